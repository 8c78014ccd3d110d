from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.event_logs import write_run

from cnnlog.tensorboard import serve

CONV1 = "00_conv1"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two log folders of the same name; the first holds versions 2 and 10, the second a run with other layers too."""
    root = tmp_path_factory.mktemp("logs")
    write_run(root / "tuned" / "logs" / "version_2", seed=1)
    write_run(root / "tuned" / "logs" / "version_10", seed=2)
    write_run(root / "scratch" / "logs", seed=3, tags=["filters/00_stem", "filters/01_conv1", "filters/00_conv1"])
    return [root / "tuned" / "logs", root / "scratch" / "logs"]


@pytest.fixture(scope="module")
def server(folders: list[Path]) -> Iterator[serve.Server]:
    with serve.start(folders) as server:
        yield server


def cards(url: str | None) -> list[tuple[str, str]]:
    assert url is not None
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    return [(card["tag"], card["runId"]) for card in json.loads(query["pinnedCards"][0])]


def test_several_folders_show_as_one_with_every_step(server: serve.Server) -> None:
    assert set(server.image_tags()) == {"scratch-logs", "tuned-logs/version_10", "tuned-logs/version_2"}
    query = urllib.parse.urlencode({"tag": f"filters/{CONV1}", "run": "tuned-logs/version_2", "sample": 0})
    assert [image["step"] for image in server.get(f"plugin/images/images?{query}")] == list(range(31))


def test_it_listens_on_the_loopback_address_only(server: serve.Server) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.url)


def test_the_link_pins_the_layer_that_most_runs_share(server: serve.Server) -> None:
    url = server.pinned_url()
    assert url is not None
    assert url.startswith(f"{server.url}?pinnedCards=")
    assert url.endswith("#timeseries")
    assert cards(url) == [
        (f"feature_maps/{CONV1}", "defaultExperimentId/tuned-logs/version_2"),
        (f"feature_maps/{CONV1}", "defaultExperimentId/tuned-logs/version_10"),
        (f"filters/{CONV1}", "defaultExperimentId/scratch-logs"),
        (f"filters/{CONV1}", "defaultExperimentId/tuned-logs/version_2"),
        (f"filters/{CONV1}", "defaultExperimentId/tuned-logs/version_10"),
    ]


def test_the_link_pins_a_named_layer_wherever_it_stands(server: serve.Server) -> None:
    tags = {tag for tag, _ in cards(server.pinned_url("conv1", kinds=["filters"]))}
    assert tags == {"filters/00_conv1", "filters/01_conv1"}
    assert {tag for tag, _ in cards(server.pinned_url("01_conv2"))} == {"filters/01_conv2"}


def test_the_link_pins_the_first_image_of_several(tmp_path: Path) -> None:
    images = [f"feature_maps/{CONV1}/image{number}" for number in range(3)]
    strips = [f"{kind}_strip/{CONV1}" for kind in ("filters", "feature_maps")]
    with serve.start(write_run(tmp_path, tags=[*images, *strips, f"filters/{CONV1}"])) as server:
        pinned = [tag for tag, _ in cards(server.pinned_url("conv1"))]
    assert pinned == [f"feature_maps/{CONV1}/image0", f"filters/{CONV1}"]


def test_an_unknown_layer_is_refused_with_close_names(server: serve.Server) -> None:
    with pytest.raises(ValueError, match=r"'conv3' has none; choose one of: conv[12]"):
        server.pinned_url("conv3")


def test_a_run_without_pictures_has_no_link(tmp_path: Path) -> None:
    with serve.start(write_run(tmp_path, tags=[])) as server:
        assert server.pinned_url(timeout=0) is None


def test_stop_ends_the_process_and_removes_the_links(folders: list[Path]) -> None:
    server = serve.start(folders)
    scratch = server._scratch
    assert {link.name for link in (scratch / "runs").iterdir()} == {"tuned-logs", "scratch-logs"}
    server.stop()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    assert not scratch.exists()
    assert all(any(folder.rglob("*tfevents*")) for folder in folders)


def test_where_links_cannot_be_made_the_folders_are_named_to_tensorboard(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with serve.start(folders) as server:
        assert len(cards(server.pinned_url())) == 5


def test_a_port_that_is_taken_is_said(folders: list[Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"TensorBoard did not start: ERROR: .*{port}.*in use"):
            serve.start(folders, port=port)


def test_the_port_that_is_asked_for_is_taken(folders: list[Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve.start(folders[0], port=port) as server:
        assert server.url == f"http://127.0.0.1:{port}/"


def test_folders_without_runs_are_refused(tmp_path: Path, folders: list[Path]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"'.*gone' does not exist; give the folder your logger writes to"):
        serve.start([folders[0], tmp_path / "gone"])
    with pytest.raises(ValueError, match=r"'.*file' is a file; give the folder"):
        serve.start(tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"holds event files \(\*tfevents\*\), but there is none in or below '.*empty'"
    ):
        serve.start(tmp_path / "empty")
    with pytest.raises(ValueError, match="at least one log folder, got none"):
        serve.start([])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/a/x/logs", "/a/y/logs", "/z"], ["x-logs", "y-logs", "z"]),
        (["/", "/a"], ["root", "a"]),
        (["gs://bucket/a", "/a"], ["bucket-a", "a"]),
        (["/p/a-b", "/p-a/b", "/p-a-b"], ["a-b", "b", "p-a-b"]),
    ],
)
def test_names_of_folders_are_short_and_differ(folders: list[str], names: list[str]) -> None:
    assert serve._short_names(folders) == names


@pytest.mark.parametrize("ending", ["Ctrl-C", "kill"])
def test_it_ends_cleanly(folders: list[Path], ending: str) -> None:
    # a shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    serves = (
        "from cnnlog.tensorboard.serve import serve; "
        f"serve({str(folders[0])!r}, echo=lambda line: print(line, flush=True))"
    )
    code = f"{heeds}; {serves}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as ours:
        overdue = threading.Timer(120, lambda: os.killpg(ours.pid, signal.SIGKILL))
        overdue.start()
        assert ours.stdout is not None
        try:
            address, link = ours.stdout.readline(), ours.stdout.readline()
            if ending == "Ctrl-C":  # a terminal interrupts TensorBoard as well
                os.killpg(ours.pid, signal.SIGINT)
            else:
                ours.terminate()
            rest = ours.stdout.read()
        finally:
            overdue.cancel()
    said = re.search(r"http://127\.0\.0\.1:(\d+)/", address)
    assert said, address
    assert "pinnedCards=" in link
    assert (rest, ours.returncode) == ("", 0)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(said[1]))) != 0

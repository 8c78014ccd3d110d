from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.event_logs import SCALAR, train_run
from tensorboard.plugins import base_plugin

from cnnlog.tensorboard.plugin import ALL_STEPS, KeepAllImages

HEAVY = ("torch", "torchvision", "lightning", "matplotlib", "numpy", "PIL")
IMAGES = "filters/00_conv1"
Get = Callable[..., Any]
T = TypeVar("T")


@pytest.fixture(scope="module")
def run_of_30_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("log") / "run")


@contextmanager
def tensorboard(logdir: Path, log: Path, *flags: str) -> Iterator[Get]:
    """The real command, as a person starts it; yields a getter of its JSON once it has read the run to the end."""
    command = [str(Path(sys.executable).with_name("tensorboard")), "--logdir", str(logdir)]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, "--host=127.0.0.1", "--port=0", *flags], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        address = re.compile(r"^TensorBoard \S+ at (\S+)", re.MULTILINE)
        found = _until(lambda: process.poll() is not None or address.search(log.read_text(encoding="utf-8")))
        assert isinstance(found, re.Match), log.read_text(encoding="utf-8")
        url = found[1]
        assert url.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def get(route: str, **query: str) -> Any:
            with opener.open(f"{url}data/{route}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
                return json.load(answer)

        _until(lambda: 30 in [point["step"] for point in _series(get, "scalars", SCALAR)])
        yield get
    finally:
        process.terminate()
        process.wait(30)


def _until(ready: Callable[[], T], *, timeout: float = 120.0) -> T:
    deadline = time.monotonic() + timeout
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"not ready within {timeout:g} s"
        time.sleep(0.1)
    return answer


def _series(get: Get, plugin: str, tag: str) -> list[dict[str, Any]]:
    request: dict[str, Any] = {"plugin": plugin, "tag": tag}
    if plugin == "images":
        request |= {"run": ".", "sample": 0}
    (answer,) = get("plugin/timeseries/timeSeries", requests=json.dumps([request]))
    return answer.get("runToSeries", {}).get(".", [])


def steps_served(get: Get) -> dict[str, list[int]]:
    in_images = get("plugin/images/images", tag=IMAGES, run=".", sample="0")
    return {
        "Images": [image["step"] for image in in_images],
        "Time Series": [image["step"] for image in _series(get, "images", IMAGES)],
    }


@pytest.mark.parametrize("loader", ["--load_fast=true", "--load_fast=false"])
def test_plain_tensorboard_serves_every_step(run_of_30_epochs: Path, tmp_path: Path, loader: str) -> None:
    with tensorboard(run_of_30_epochs, tmp_path / "log", loader) as get:
        assert steps_served(get) == {"Images": list(range(31)), "Time Series": list(range(31))}


@pytest.mark.parametrize(
    "flags",
    [
        ("--samples_per_plugin=images=10",),
        ("--samples_per_plugin=images=10", "--load_fast=false"),
        ("--cnnlog_keep_all_images=false",),
    ],
    ids=["named", "named, Python loader", "switched off"],
)
def test_a_named_limit_and_the_off_switch_win(run_of_30_epochs: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    with tensorboard(run_of_30_epochs, tmp_path / "log", *flags) as get:
        assert {dashboard: len(steps) for dashboard, steps in steps_served(get).items()} == {
            "Images": 10,
            "Time Series": 10,
        }


def test_limits_of_other_plugins_stay(tmp_path: Path) -> None:
    named = {"scalars": 7}
    flags = argparse.Namespace(samples_per_plugin=named, cnnlog_keep_all_images="true")
    KeepAllImages().fix_flags(flags)
    assert flags.samples_per_plugin == {"scalars": 7, "images": ALL_STEPS}
    assert named == {"scalars": 7}


def test_the_entry_point_is_a_loader_without_a_dashboard() -> None:
    (entry,) = [entry for entry in entry_points(group="tensorboard_plugins") if entry.name == "cnnlog"]
    loader = entry.load()
    assert loader is KeepAllImages
    assert issubclass(loader, base_plugin.TBLoader)
    plugin: Any = loader()
    assert plugin.load(base_plugin.TBContext()) is None


@pytest.mark.parametrize("flags", [argparse.Namespace(), argparse.Namespace(samples_per_plugin="images=3"), None])
def test_flags_it_does_not_know_are_left_alone(flags: argparse.Namespace | None) -> None:
    before = repr(flags)
    KeepAllImages().fix_flags(flags)  # type: ignore[arg-type]
    assert repr(flags) == before


def test_a_flag_that_is_there_already_is_no_error() -> None:
    parser = argparse.ArgumentParser()
    KeepAllImages().define_flags(parser)
    KeepAllImages().define_flags(parser)
    assert parser.parse_args([]).cnnlog_keep_all_images == "true"


def modules_loaded_by(statement: str) -> list[str]:
    code = f"{statement}; import sys; print(*(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return sorted(done.stdout.split())


def test_the_entry_point_loads_nothing_that_tensorboard_does_not_load() -> None:
    tensorboard_itself = "from tensorboard.plugins import base_plugin"
    assert modules_loaded_by("import cnnlog.plugin") == modules_loaded_by(tensorboard_itself)
    assert "torch" not in modules_loaded_by("import cnnlog.plugin")


def test_the_test_above_can_fail() -> None:
    assert "PIL" in modules_loaded_by("import cnnlog.plugin, PIL")

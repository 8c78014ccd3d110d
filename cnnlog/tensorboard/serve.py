"""Start TensorBoard with every step of images kept, and link to the same layer of all runs side by side."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnlog.kinds import Kind
from cnnlog.messages import near

ALL_IMAGES = "images=1000000000"
"""Keeps every step. The entry point asks for that, too, but it may be switched off or not installed."""

KINDS: tuple[str, ...] = (Kind.FEATURE_MAPS, Kind.FILTERS)
"""The pictures of a layer that a link pins, in this order: `feature_maps/00_conv1` and `filters/00_conv1`, say.

Where a probe has several images, the first one's maps are pinned: `feature_maps/00_conv1/image0`.
"""

_IMAGE = re.compile(r"/image\d+$")

# A proxy of the environment must not stand between two processes of one machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A running TensorBoard. `stop()` it, or use it in a `with`; at the latest it ends with this process.

    Args:
        process: the TensorBoard that listens.
        url: the address of its page.
        runs: the names of the runs that it will list; empty if they are not known.
        scratch: a folder of ours with its log and links; removed when it is stopped.

    Attributes:
        url: the address of its page, `http://127.0.0.1:6006/` say.
        pid: its process id.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, runs: frozenset[str], scratch: Path) -> None:
        self.url = url
        self.pid = process.pid
        self._process = process
        self._runs = runs
        self._scratch = scratch
        atexit.register(self.stop)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def get(self, route: str) -> Any:
        """Ask TensorBoard for data.

        Args:
            route: what stands behind `data/` in the address, such as `runs` or `plugin/images/tags`.

        Returns:
            The JSON that it answers.
        """
        with _opener.open(urllib.parse.urljoin(self.url, f"data/{route}"), timeout=60) as answer:
            return json.load(answer)

    def image_tags(self, *, timeout: float = 20.0) -> dict[str, tuple[str, ...]]:
        """The image tags of each run, as soon as TensorBoard has read all runs.

        Args:
            timeout: how many seconds to wait for that; then what it has read is returned.

        Returns:
            For each run its tags. A run without images has no entry.
        """
        deadline = time.monotonic() + timeout
        before: dict[str, tuple[str, ...]] = {}
        while True:
            tags = {run: tuple(sorted(found)) for run, found in self.get("plugin/images/tags").items() if found}
            settled = bool(tags) and tags == before and self._runs.issubset(self.get("runs"))
            if settled or time.monotonic() > deadline:
                return tags
            before = tags
            time.sleep(0.25)

    def pinned_url(
        self, layer: str | None = None, *, kinds: Sequence[str] = KINDS, timeout: float = 20.0
    ) -> str | None:
        """A link to the Time Series page with one layer's pictures of all runs pinned side by side.

        Args:
            layer: the layer's name (`features.0`) or its name in the tags (`00_features.0`); None takes the first
                layer that most runs have in common.
            kinds: which pictures, as the first part of the tag.
            timeout: how many seconds TensorBoard may take to read the runs.

        Returns:
            The link, or None if no run has such pictures (yet).

        Raises:
            ValueError: no run has the layer.
        """
        tags = self.image_tags(timeout=timeout)
        runs_with = _layers(tags, kinds)
        if layer is None:
            chosen = sorted(runs_with, key=runs_with.__getitem__, reverse=True)[:1]
        else:
            chosen = [tag for tag in runs_with if layer in (tag, _plain(tag))]
            if not chosen:
                names = [_plain(tag) for tag in runs_with]
                offer = near(layer, names) or names or ["none, no pictures are logged yet"]
                raise ValueError(
                    f"a layer with logged pictures is expected, but {layer!r} has none; "
                    f"choose one of: {', '.join(offer)}"
                )
        wanted = [(f"{kind}/{tag}", run) for kind in kinds for tag in chosen for run in sorted(tags, key=_counting)]
        cards = [(found, run) for tag, run in wanted for found in (tag, f"{tag}/image0") if found in tags[run]]
        return pinned_url(self.url, cards) if cards else None

    def wait(self) -> None:
        """Block until TensorBoard ends by itself; raise RuntimeError with its last words if that was a failure."""
        if self._process.wait() != 0:
            raise RuntimeError(f"TensorBoard ended by itself: {_last_words(self._scratch)}")

    def stop(self) -> None:
        """End TensorBoard and remove what was made for it. May be called again."""
        atexit.unregister(self.stop)
        _end(self._process)
        shutil.rmtree(self._scratch, ignore_errors=True)


def start(
    logdirs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    timeout: float = 120.0,
) -> Server:
    """Start TensorBoard on one or several log folders, with every step of images kept.

    Args:
        logdirs: folders that have event files in them, at any depth. Several show as one, each under its own name.
        host: the address to listen on; the default can be reached from this machine only.
        port: the port to listen on; None takes a free one.
        timeout: how many seconds TensorBoard may take to start.

    Raises:
        ValueError: a folder is missing or has no event file in it, or no folder is given.
        RuntimeError: TensorBoard did not start; its own last words are in the message.
    """
    folders = _checked([logdirs] if isinstance(logdirs, (str, os.PathLike)) else logdirs)
    scratch = Path(tempfile.mkdtemp(prefix="cnnlog-tensorboard-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        where, runs = _as_one(folders, scratch)
        flags = [*where, f"--host={host}", f"--port={port or 0}", f"--samples_per_plugin={ALL_IMAGES}"]
        with (scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tensorboard.main", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return Server(process, _address(process, scratch, timeout), runs, scratch)
    except BaseException:
        if process is not None:
            _end(process)
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def serve(
    logdirs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    layer: str | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Run TensorBoard until Ctrl-C (or SIGTERM). First say its address, and a link to one layer of all runs.

    Args:
        logdirs: folders that have event files in them, at any depth. Several show as one, each under its own name.
        host: the address to listen on; the default can be reached from this machine only.
        port: the port to listen on; None takes a free one.
        layer: the layer that the link shows; None takes the first one that most runs have in common.
        echo: a function that is told each line.

    Raises:
        ValueError: a folder is missing or has no event file in it, no folder is given, or no run has the layer.
        RuntimeError: TensorBoard did not start, or ended by itself; its own last words are in the message.
    """
    with (
        _sigterm_as_ctrl_c(),
        contextlib.suppress(KeyboardInterrupt),
        start(logdirs, host=host, port=port) as server,
    ):
        echo(f"TensorBoard with all steps: {server.url} (Ctrl-C ends it)")
        pinned = server.pinned_url(layer)
        if pinned is None:
            echo("No filters or feature maps are logged there yet.")
        else:
            echo(f"The same layer of all runs, side by side: {pinned}")
        server.wait()


def pinned_url(url: str, cards: Sequence[tuple[str, str]]) -> str:
    """A link to TensorBoard's Time Series page with image cards pinned on top, in the given order.

    Args:
        url: TensorBoard's address.
        cards: for each card the tag and the run of its images.

    >>> pinned_url("http://127.0.0.1:6006/", [("filters/00_conv1", "a")])[:47]
    'http://127.0.0.1:6006/?pinnedCards=%5B%7B%22plu'
    """
    # The page names a run "<experiment>/<run>"; without --compare there is one experiment, under this name.
    pinned = [
        {"plugin": "images", "tag": tag, "runId": f"defaultExperimentId/{run}", "sample": 0} for tag, run in cards
    ]
    return f"{url}?pinnedCards={urllib.parse.quote(json.dumps(pinned, separators=(',', ':')), safe='')}#timeseries"


def _layers(tags: Mapping[str, Sequence[str]], kinds: Sequence[str]) -> dict[str, int]:
    """For each layer, as the tags name it, how many runs have it, in the order of the tags.

    Args:
        tags: for each run its image tags.
        kinds: which pictures count, as the tags begin: `filters`, say.
    """
    parts = [(run, *_IMAGE.sub("", name).partition("/")) for run, names in tags.items() for name in names]
    pairs = {(layer, run) for run, kind, _, layer in parts if layer and kind in kinds}
    return dict(sorted(Counter(layer for layer, _ in pairs).items()))


def _plain(tag_layer: str) -> str:
    """The layer's own name: `features.0` of `00_features.0`.

    Args:
        tag_layer: the part of a tag behind the first slash.
    """
    return re.sub(r"^\d+_", "", tag_layer)


def _counting(name: str) -> list[tuple[int, str]]:
    """Sort key that counts as a reader does: version_2 before version_10.

    Args:
        name: of a folder.
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _checked(logdirs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The folders as absolute paths (addresses such as gs://... as they are), each once.

    Args:
        logdirs: as they were given.
    """
    if not logdirs:
        raise ValueError("TensorBoard needs at least one log folder, got none; give the folder your logger writes to")
    folders: list[str] = []
    for given in [os.fspath(logdir) for logdir in logdirs]:
        folder = given
        if "://" not in given:
            folder = str(Path(given).expanduser().resolve())
            if not Path(folder).is_dir():
                found = "is a file" if Path(folder).exists() else "does not exist"
                raise ValueError(
                    f"a log folder is expected, but {given!r} {found}; give the folder your logger writes to"
                )
            if next(_run_folders(folder), None) is None:
                raise ValueError(
                    f"a log folder holds event files (*tfevents*), but there is none in or below {given!r}; "
                    "give the folder your logger writes to, once the run has started"
                )
        if folder not in folders:
            folders.append(folder)
    return folders


def _run_folders(folder: str) -> Iterator[str]:
    """The folders, relative to `folder`, that hold event files; TensorBoard calls each a run.

    Args:
        folder: a path.
    """
    for here, _, files in os.walk(folder, followlinks=True):
        if any("tfevents" in name for name in files):
            yield Path(here).relative_to(folder).as_posix()


def _as_one(folders: Sequence[str], scratch: Path) -> tuple[list[str], frozenset[str]]:
    """TensorBoard's arguments that show the folders as one, and the names of the runs that it will list.

    Args:
        folders: absolute paths, or addresses such as gs://...
        scratch: a folder of ours, in which links to them are made.
    """
    if len(folders) == 1:
        return [f"--logdir={folders[0]}"], frozenset(() if "://" in folders[0] else _run_folders(folders[0]))
    named = dict(zip(_short_names(folders), folders, strict=True))
    links = scratch / "runs"
    links.mkdir()
    try:
        # Links rather than --logdir_spec, which would do without the fast data server: 50 times slower to load.
        for name, folder in named.items():
            if "://" in folder:
                raise OSError(f"{folder} cannot be linked to")
            (links / name).symlink_to(folder, target_is_directory=True)
    except OSError:
        return [f"--logdir_spec={','.join(f'{name}:{folder}' for name, folder in named.items())}"], frozenset()
    return [f"--logdir={links}"], frozenset(_run_folders(str(links)))


def _short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, with as many of the parts before it as it takes to tell all of them apart.

    Args:
        folders: absolute paths, or addresses such as gs://...
    """
    parts = [[part for part in re.split(r"[/\\:]+", folder) if part] or ["root"] for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}-{part[-1]}" for number, part in enumerate(parts, 1)]


def _address(process: subprocess.Popen[bytes], scratch: Path, timeout: float) -> str:
    """Wait until TensorBoard says where it listens: it takes a free port itself, so nobody can take it in between.

    Args:
        process: the TensorBoard that is starting.
        scratch: the folder with its log.
        timeout: how many seconds to wait.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"TensorBoard did not start: {_last_words(scratch)}")
        said = re.search(r"^TensorBoard \S+ at (\S+)", (scratch / "log").read_text(errors="replace"), re.MULTILINE)
        if said:
            return said[1]
        time.sleep(0.1)
    raise RuntimeError(f"TensorBoard did not start within {timeout:g} s: {_last_words(scratch)}")


def _last_words(scratch: Path) -> str:
    """What TensorBoard wrote last, in one line.

    Args:
        scratch: the folder with its log.
    """
    lines = [line.strip() for line in (scratch / "log").read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours: asked first, killed if it does not.

    Args:
        process: which may have ended already.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that TensorBoard is stopped too; only the main thread can handle signals."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

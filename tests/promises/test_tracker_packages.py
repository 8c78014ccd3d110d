"""Trackers: the real packages, offline, asked for what they have of a watched training."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forks import Forks
from support.logged_files import number_files, of_event_files, picture_files
from support.places import ROOT, TESTS, environment
from support.tracked import EPOCHS, TRACKERS, main

PACKAGES = {
    name: tracker.package for name, tracker in TRACKERS.items() if name != "trackio"
}  # which has a test of its own
ALL_STEPS = list(range(EPOCHS + 1))


def tracked(name: str, how: str, folder: str) -> None:
    """In a process of its own: what is printed, and how it failed, lies in the folder."""
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context((Path(folder) / "printed").open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        try:
            main(name, how, Path(folder))
        except BaseException:
            traceback.print_exc(file=printed)


def in_a_fork(forks: Forks) -> Callable[[str, str, Path], str]:
    """Trackers patch what they find, so each has a process; what all of them need is imported once."""

    def run(name: str, how: str, folder: Path) -> str:
        forks.wait(forks.start("tracked", name, how, str(folder)), timeout=500)
        return (folder / "printed").read_text(encoding="utf-8")

    return run


def with_another(python: str) -> Callable[[str, str, Path], str]:
    def run(name: str, how: str, folder: Path) -> str:
        command = [python, str(TESTS / "support" / "tracked.py"), name, how, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment())
        return done.stderr + done.stdout

    return run


def found_by(name: str, how: str, folder: Path, run: Callable[[str, str, Path], str]) -> dict[str, Any]:
    """What a tracker has of a watched training, compared with what a file has of it, picture by picture.

    That file is one of those that a CSVLogger beside it gets, or with `how="handle"` the event file of a loop.
    """
    printed = run(name, how, folder)
    line = next((line for line in reversed(printed.splitlines()) if line.startswith('{"images"')), None)
    assert line is not None, printed[-3000:]
    found: dict[str, Any] = json.loads(line)
    assert found["warned"] == []
    if how == "handle":
        images, numbers = of_event_files(folder / "loop")
        assert not list(folder.rglob("cnnlog/pictures"))
    else:
        (pictures,) = folder.rglob("cnnlog/pictures")
        images, numbers = picture_files(pictures), number_files(pictures)
    assert found["images"] == images
    assert sorted(map(int, found["images"]["filters/00_net.0"])) == ALL_STEPS
    for tag, values in numbers.items():
        assert found["scalars"][tag] == pytest.approx(values), tag
    return found


@pytest.mark.timeout(600)  # a tracker and Lightning take a while to import on a busy machine
@pytest.mark.parametrize("how", ["logger", "handle"])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_has_every_picture_and_number(name: str, how: str, forks: Forks, tmp_path: Path) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed; scripts/test --all installs it")
    found = found_by(name, how, tmp_path, in_a_fork(forks))
    if name == "wandb":
        assert {found["axes"][tag] for tag in (*found["images"], "numbers/cka_positions/00_net.0")} == {"cnnlog/epoch"}
        assert found["axes"].get("*") == ("trainer/global_step" if how == "logger" else None)
    if name == "mlflow":
        assert found["grid"] == "True"
    if name in ("mlflow", "clearml"):
        assert "| watched | `net.0` | Conv2d | 6x16x16 | 456 |" in found["text"]
    if name == "comet":
        assert found["endings"] == ["png"]
    if name == "aim":
        assert found["epochs"]["filters/00_net.0"] == {str(step): step for step in ALL_STEPS}


@pytest.mark.once
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["logger", "handle"])
def test_trackio_has_every_picture_and_number(how: str, tmp_path: Path) -> None:
    """It wants an older Pillow than the tests have, and so an environment of its own."""
    pythons = [sys.executable] if importlib.util.find_spec("trackio") else []
    pythons += [str(path) for path in (ROOT / ".venv-trackio").glob("*/python")]
    if not pythons:
        pytest.skip("there is no .venv-trackio; scripts/setup --trackio makes it")
    found = found_by("trackio", how, tmp_path, with_another(pythons[0]))
    assert "| watched | `net.0` | Conv2d | 6x16x16 | 456 |" in found["text"]
    assert any("Filters of `net.0`" in caption for caption in found["captions"])
    assert found["mine"] == [0, 1]  # numbers without a step go on from their own

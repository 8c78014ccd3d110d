"""The disk is full from a random moment on: the training ends with the same weights, and the store stays whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.forks import Forks
from support.training import TinyCNN, events, fit, image_steps, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

pytestmark = pytest.mark.once

EPOCHS = 7
SMALL_DISK = 1 << 20


class Silent(TinyCNN):
    """Logs nothing of its own: on a full disk Lightning's own numbers stop a training, with us or without."""

    def log(self, *_: object, **__: object) -> None:
        pass


class Fill(L.Callback):
    """Leaves no more room from a random moment of a random epoch on."""

    def __init__(self, seed: int, fill: Callable[[random.Random], None]) -> None:
        self.chance = random.Random(seed)
        self.epoch = self.chance.randrange(3, EPOCHS)
        self.fill = fill

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            time.sleep(self.chance.uniform(0, 0.02))  # the last snapshot may be half stored, or half drawn
            self.fill(self.chance)


def limit_files(size: int) -> None:
    """No file grows past `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_files(folder: Path) -> Callable[[random.Random], None]:
    return lambda chance: limit_files(chance.randrange(20_000))  # a step file has 19 kB


def fill_events(folder: Path) -> Callable[[random.Random], None]:
    def fill(chance: random.Random) -> None:
        (path,) = (folder / "run" / "v0").glob("*tfevents*")
        limit_files(path.stat().st_size + chance.randrange(8_000))  # less than the next step's pictures

    return fill


def fill_disk(folder: Path) -> Callable[[random.Random], None]:
    def fill(chance: random.Random) -> None:
        with open(folder / "fill", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
            file.truncate(os.path.getsize(folder / "fill") - 4096 * chance.randrange(6))

    return fill


FILLS = {"files": fill_files, "events": fill_events, "disk": fill_disk}


def run(where: str, result: str, how: str, seed: int, logger: bool) -> None:
    """Train in a child process, and leave what came of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(where)
    torch.manual_seed(0)
    module, callbacks = Silent(), []
    if how != "plain":
        fill = Fill(seed, FILLS[how](folder))
        callbacks = [fill, FilterMonitor(), FeatureMapMonitor(probe())]
    more = {} if logger else {"logger": False}
    fitted = trainer(folder, callbacks, max_epochs=EPOCHS, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(fitted, module)
    limit_files(resource.RLIM_INFINITY)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()
    said = [str(w.message) for w in caught if "cnnlog:" in str(w.message)]
    full_from = fill.epoch if callbacks else EPOCHS
    facts = {"weights": digest, "epochs": fitted.current_epoch, "said": said, "full_from": full_from}
    Path(result).write_text(json.dumps(facts), encoding="utf-8")


@pytest.fixture(scope="module")
def plain(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(forks, tmp_path_factory.mktemp("plain"), "plain", 0)["weights"]


def trained(
    forks: Forks, folder: Path, how: str, seed: int, *, logger: bool = True, disk: Path | None = None
) -> dict[str, Any]:
    result = folder / "result.json"
    forks.wait(forks.start("run", str(disk or folder), str(result), how, seed, logger))
    assert result.exists(), "the training came to its end"
    return json.loads(result.read_text())


def check(came: dict[str, Any], plain: str, folder: Path) -> RunStore:
    assert came["weights"] == plain
    assert came["epochs"] == EPOCHS
    run = RunStore.open(str(folder))
    assert run.steps[: came["full_from"]] == list(range(came["full_from"])), "the last one before may have been late"
    for step in run.steps:
        assert run.read_record(step).filters.keys() == {"net.0", "net.3"}
    assert run.read_weights("baseline")[1] == 0
    assert run.read_weights("latest")[1] in run.steps
    assert not [path.name for path in folder.iterdir() if "tmp" in path.name]
    return run


def stored_once(came: dict[str, Any]) -> bool:
    """Whether there is one warning of the store, and none twice."""
    said = [text for text in came["said"] if "could not be stored in" in text]
    assert all("training goes on, and later steps are tried again" in text for text in said)
    assert len(came["said"]) <= 2, "one of the store, one of the pictures"
    return len(said) == 1


@pytest.mark.parametrize("logger", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_no_file_grows_any_more(seed: int, logger: bool, forks: Forks, plain: str, tmp_path: Path) -> None:
    came = trained(forks, tmp_path, "files", seed, logger=logger)
    folder = tmp_path / ("run/v0" if logger else "cnnlog_logs/version_0") / "cnnlog"
    run = check(came, plain, folder)
    assert stored_once(came) == (run.steps != list(range(EPOCHS + 1)))
    if logger:
        (said,) = (text for text in came["said"] if "TensorBoard did not take the pictures" in text)
        assert "File too large" in said


@pytest.mark.parametrize("seed", range(4))
def test_the_event_file_alone_is_full(seed: int, forks: Forks, plain: str, tmp_path: Path) -> None:
    came = trained(forks, tmp_path, "events", seed)
    run = check(came, plain, tmp_path / "run" / "v0" / "cnnlog")
    assert run.steps == list(range(EPOCHS + 1)), "the store has room, and has them all"
    (said,) = came["said"]
    assert "TensorBoard did not take the pictures of step" in said
    assert f"every snapshot is in {tmp_path}" in said
    drawn = image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"]
    assert drawn == sorted(set(drawn))
    assert drawn[: came["full_from"] - 1] == list(range(came["full_from"] - 1))
    # How much room there is depends on what was written when it was limited: on a busy machine for one step a file.
    apart = [after - before for before, after in itertools.pairwise([*drawn, EPOCHS + 1])]
    assert max(apart) <= 2, "the writer is opened anew, and the next file has room, if for a few steps only"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk needs the command mount")
    if done.returncode:
        pytest.skip(f"a small disk may not be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_disk_is_full(seed: int, forks: Forks, plain: str, small_disk: Path, tmp_path: Path) -> None:
    came = trained(forks, tmp_path, "disk", seed, disk=small_disk)
    check(came, plain, small_disk / "run" / "v0" / "cnnlog")
    assert stored_once(came)
    assert all("No space left on device" in text for text in came["said"])

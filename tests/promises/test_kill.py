"""A training that is killed at any moment leaves whole files without a gap, and can be gone on with."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from support.forks import Forks
from support.training import TinyCNN, events, fit, image_steps, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

pytestmark = pytest.mark.once

# Stored steps at which each training is killed (after a further random moment), and whether it logs numbers of its
# own: with those Lightning flushes the event file, too.
KILLS = [(1, True), (1, False), (2, True), (5, False), (9, True), (16, False), (24, True), (33, False)]

# Trainings that are killed at a random moment: how many, their length, and how long after one of the marks that they
# leave while they run (the start, the begin of the baseline, every snapshot taken) the kill comes, at most.
RANDOM_KILLS = int(os.environ.get("CNNLOG_KILLS", "50"))  # 200 take about a minute on two cores
EPOCHS = 6
DELAY = 0.05


class Silent(TinyCNN):
    def log(self, *_: object, **__: object) -> None:
        pass


def train(folder: Path, *, logs: bool = True, epochs: int = 500, ckpt_path: Path | None = None) -> None:
    callbacks = [FilterMonitor(), FeatureMapMonitor(probe()), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]
    run = trainer(folder, callbacks, max_epochs=epochs, enable_checkpointing=True)
    fit(run, TinyCNN() if logs else Silent(), ckpt_path=ckpt_path)


def train_until_killed(folder: str, logs: bool) -> None:
    train(Path(folder), logs=logs)


class Mark(L.Callback):
    """Tells the test how far the training is: a byte before the baseline, another one after every snapshot."""

    def __init__(self, pipe: int, *, before: bool) -> None:
        self.pipe, self.before = pipe, before

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        os.write(self.pipe, b".")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.before:
            os.write(self.pipe, b".")


def train_with_marks(folder: str, logs: bool) -> None:
    pipe = os.open(Path(folder) / "marks", os.O_WRONLY)
    monitors = [FilterMonitor(), FeatureMapMonitor(probe())]
    callbacks = [Mark(pipe, before=True), *monitors, Mark(pipe, before=False)]
    fit(trainer(Path(folder), callbacks, max_epochs=EPOCHS), TinyCNN() if logs else Silent())


def step_files(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "v0" / "cnnlog").glob("step-*.safetensors"))


@dataclass(frozen=True)
class Killed:
    folder: Path
    at: int


@pytest.fixture(scope="module")
def killed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[Killed]:
    """Trainings that were killed, two at a time."""
    chance = random.Random(5)
    jobs = [(tmp_path_factory.mktemp("killed"), *kill, chance.uniform(0, 0.08)) for kill in KILLS]

    def kill(job: tuple[Path, int, bool, float]) -> Killed:
        folder, at, logs, delay = job
        child = forks.start("train_until_killed", str(folder), logs)
        until = time.monotonic() + 120
        while len(step_files(folder)) < at:
            assert time.monotonic() < until, f"no {at} steps in {folder}"
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        forks.wait(child)
        return Killed(folder, at)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(kill, jobs))


def check_store(folder: Path) -> int:
    """The number of steps, all of them whole and without a gap."""
    if not RunStore.exists(str(folder / "run" / "v0" / "cnnlog")):
        return 0
    run = RunStore.open(str(folder / "run" / "v0" / "cnnlog"))
    assert run.steps == list(range(len(run.steps)))
    for step in run.steps:
        record = run.read_record(step)
        assert record.step == step
        assert record.filters.keys() == record.feature_maps.keys() == {"net.0", "net.3"}
    if run.steps:
        baseline, _ = run.read_weights("baseline")
        np.testing.assert_array_equal(baseline["net.0"], run.read_record(0).filters["net.0"])
        assert run.read_probe().shape == (1, 3, 16, 16)
        assert run.read_probe_picture().shape == (16, 16, 3)
        assert run.read_outputs("baseline")[0].keys() == {"net.0", "net.3", "head"}
    if len(run.steps) > 1:
        _, latest = run.read_weights("latest")
        assert latest in run.steps, "written when the step files since its last writing outweigh it"
    return len(run.steps)


def check_names(folder: Path) -> None:
    """Half-written files have no final name."""
    final = re.compile(
        r"manifest\.json|probe\.png|(probe|step-\d{8}|weights-(baseline|latest)|outputs-(baseline|latest))\.safetensors"
    )
    others = [path.name for path in (folder / "run" / "v0" / "cnnlog").glob("*") if not final.fullmatch(path.name)]
    assert all(".tmp" in name for name in others)
    assert len(others) <= 2  # our temporary name and safetensors' own


def check_events(folder: Path, stored: int) -> int:
    """The number of drawn steps, all of them whole and without a gap."""
    images = image_steps(events(folder / "run" / "v0")) if (folder / "run" / "v0").is_dir() else {}
    drawn = images.get("filters/00_net.0", [])
    assert drawn == list(range(len(drawn)))
    assert len(drawn) <= stored, "what was queued may be missing"
    kinds = {"filters": 0, "feature_maps": 0, "filters_change": 1, "feature_maps_change": 1}  # and their first step
    firsts = {tag: kinds[tag.split("/")[0]] for tag in images if tag.split("/")[0] in kinds}
    assert all(images[tag] == drawn[first:] for tag, first in firsts.items()), "a step is there with all its pictures"
    return len(drawn)


def test_a_kill_at_any_moment_costs_at_most_the_last_snapshot(forks: Forks, tmp_path: Path) -> None:
    def kill(job: tuple[int, int, float, bool]) -> tuple[int, int, int]:
        number, after, delay, logs = job
        folder = tmp_path / str(number)
        folder.mkdir()
        os.mkfifo(folder / "marks")
        child = forks.start("train_with_marks", str(folder), logs)
        with open(folder / "marks", "rb", buffering=0) as marks:
            seen = sum(len(marks.read(1) or b"") for _ in range(after))
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):  # it came to its end before
                os.kill(child, signal.SIGKILL)
            seen += len(marks.read())  # up to the end that the kill has put to it
        taken = max(seen - 1, 0)
        stored = check_store(folder)
        assert stored >= taken - 1, f"{taken} snapshots were taken, and {stored} are kept"
        assert stored > 0 or taken == 0, "the baseline is kept before the training begins"
        check_names(folder)
        return taken, stored, check_events(folder, stored)

    chance = random.Random(200)
    jobs = [
        (number, number % (EPOCHS + 3), chance.uniform(0, DELAY), chance.random() < 0.7)
        for number in range(RANDOM_KILLS)
    ]
    with ThreadPoolExecutor(2) as pool:
        kept = list(pool.map(kill, jobs))
    assert {taken for taken, *_ in kept} == set(range(EPOCHS + 2)), "kills at every length of the run"
    print(f"stored but not drawn: {sorted(stored - drawn for _, stored, drawn in kept)}")


def test_a_kill_long_after_the_start(killed: list[Killed]) -> None:
    """The checkpoint of an epoch is saved after its snapshot was taken."""
    for one in killed:
        saved = max((int(path.stem.split("=")[1]) for path in one.folder.glob("epoch=*.ckpt")), default=-1)
        stored = check_store(one.folder)
        assert stored >= max(one.at, saved + 1)
        check_names(one.folder)
        check_events(one.folder, stored)


@pytest.mark.parametrize("which", [3, 5])
def test_a_killed_training_is_resumed_in_its_folder(which: int, killed: list[Killed]) -> None:
    folder = sorted(killed, key=lambda one: one.at)[which].folder
    before = {path.name: path.read_bytes() for path in step_files(folder)}
    saved = max(int(path.stem.split("=")[1]) for path in folder.glob("epoch=*.ckpt"))
    end = len(before) + 2
    train(folder, epochs=end, ckpt_path=folder / f"epoch={saved - 1}.ckpt")  # the last one may be half written
    run = RunStore.open(str(folder / "run" / "v0" / "cnnlog"))
    assert run.steps == list(range(end + 1))
    assert all((folder / "run" / "v0" / "cnnlog" / name).read_bytes() == data for name, data in before.items())
    assert run.read_record(end).numbers["weight_change"]["net.0"].min() > 0
    images = image_steps(events(folder / "run" / "v0"))["filters/00_net.0"]
    assert images == list(range(end + 1)), "what the kill kept from the event file is drawn by the resume"

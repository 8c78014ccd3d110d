"""Trainings that are killed and resumed again and again: nothing goes back, nothing is missing, one baseline."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from support.forks import Forks
from support.training import TinyCNN, events, fit, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.metrics.change import distance
from cnnlog.runs.store import RunStore

EPOCHS = 12
KILLS = (3, 6, 9)  # stored steps in all, at which the training is killed
CHAINS = {"same": ("v0", "v0", "v0", "v0"), "new": ("v0", "v1", "v2", "v3"), "back": ("v0", "v1", "v1", "v2")}
OF_THE_BASELINE = ("weight_change", "filter_angle", "function_change", "cka_positions")
OURS = ("filters", "feature_maps", "numbers/", "probe")


def train(where: str, version: str, checkpoint: str | None) -> None:
    folder = Path(where)
    torch.manual_seed(0)
    saves = ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)
    logger = TensorBoardLogger(folder, name="run", version=version)
    callbacks = [FilterMonitor(), FeatureMapMonitor(probe()), saves]
    run = trainer(folder, callbacks, max_epochs=EPOCHS, logger=logger, enable_checkpointing=True)
    fit(run, TinyCNN(), ckpt_path=checkpoint)


def store(folder: Path, version: str) -> RunStore:
    return RunStore.open(str(folder / "run" / version / "cnnlog"))


def last_step(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.rglob("step-*.safetensors")), default=-1)


def last_checkpoint(folder: Path) -> str:
    saved = sorted((folder / "checkpoints").glob("epoch=*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return str(saved[-2])  # the last one may be half written


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """The same training without a kill."""
    folder = tmp_path_factory.mktemp("whole")
    forks.wait(forks.start("train", str(folder), "v0", None))
    return store(folder, "v0")


def chain(forks: Forks, folder: Path, versions: tuple[str, ...], seed: int) -> None:
    chance = random.Random(seed)
    checkpoint = None
    for version, at in zip(versions, (*KILLS, None), strict=True):
        child = forks.start("train", str(folder), version, checkpoint)
        if at is None:
            forks.wait(child)
            continue
        until = time.monotonic() + 120
        while last_step(folder) < at:
            assert time.monotonic() < until, f"no step {at} in {folder}"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        forks.wait(child)
        checkpoint = last_checkpoint(folder)


@pytest.mark.parametrize("how", CHAINS)
def test_a_chain_of_kills_and_resumes(how: str, whole: RunStore, forks: Forks, tmp_path: Path) -> None:
    versions = CHAINS[how]
    chain(forks, tmp_path, versions, seed=len(how))
    runs = {version: store(tmp_path, version) for version in dict.fromkeys(versions)}
    assert set().union(*(run.steps for run in runs.values())) == set(range(EPOCHS + 1)), "no gap in all of them"
    first = whole.read_weights("baseline")[0]
    for run in runs.values():
        assert run.manifest.baseline_step == 0
        for layer, weight in run.read_weights("baseline")[0].items():
            np.testing.assert_array_equal(weight, first[layer], "the baseline is the first run's")
        for step in run.steps:
            record, expected = run.read_record(step), whole.read_record(step)
            for layer in ("net.0", "net.3"):
                np.testing.assert_array_equal(record.filters[layer], expected.filters[layer])
                for number in (*OF_THE_BASELINE, *(("update_ratio",) if step else ())):
                    np.testing.assert_array_equal(
                        record.numbers[number][layer], expected.numbers[number][layer], "relative to the baseline"
                    )
    latest = runs[versions[-1]].read_weights("latest")[0]["net.0"]
    last = whole.read_record(EPOCHS).numbers["weight_change"]["net.0"]
    np.testing.assert_allclose(distance(first["net.0"], latest), last, rtol=1e-6)
    for older, newer in pairwise(runs.values()):
        assert newer.manifest.carried_from == older.folder
    for version, run in runs.items():
        check_tags(tmp_path / "run" / version, run.steps, complete=version == versions[-1])


def check_tags(folder: Path, stored: list[int], *, complete: bool) -> None:
    """Steps only rise on every tag of ours, and are those of the store; of a killed run the last may be missing."""
    found = events(folder)
    tags = found.Tags()
    steps = {tag: [event.step for event in found.Images(tag)] for tag in tags["images"]}
    steps |= {tag: [event.step for event in found.Scalars(tag)] for tag in tags["scalars"] if tag.startswith(OURS)}
    assert len(steps) > 20
    for tag, values in steps.items():
        assert all(a < b for a, b in pairwise(values)), f"{folder.name}, {tag}: {values}"
    drawn = steps["filters/00_net.0"]
    assert drawn == (stored if complete else stored[: len(drawn)])

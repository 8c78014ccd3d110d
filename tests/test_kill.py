"""A training that is killed at any moment leaves whole files without a gap, and can be gone on with."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from training import TinyCNN, events, fit, image_steps, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.recorder import SNAPSHOTS_WAITING, TRACKER_SNAPSHOTS_WAITING
from cnnlog.store import RunStore

# Stored steps at which each training is killed (after a further random moment), and whether it logs numbers of its
# own: with those Lightning flushes the event file, too.
KILLS = [(1, True), (1, False), (2, True), (5, False), (9, True), (16, False), (24, True), (33, False)]

# Imports once, then forks a training for each folder on its standard input: importing lightning takes seconds.
FORKS = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_kill import train
for line in sys.stdin:
    folder, logs = line.rsplit(maxsplit=1)
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr
        train(Path(folder), logs=logs == "True")
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


class Silent(TinyCNN):
    def log(self, *_: object, **__: object) -> None:
        pass


def train(folder: Path, *, logs: bool = True, epochs: int = 500, ckpt_path: Path | None = None) -> None:
    callbacks = [FilterMonitor(), FeatureMapMonitor(probe()), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]
    run = trainer(folder, callbacks, max_epochs=epochs, enable_checkpointing=True)
    fit(run, TinyCNN() if logs else Silent(), ckpt_path=ckpt_path)


def step_files(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "v0" / "cnnlog").glob("step-*.safetensors"))


@dataclass(frozen=True)
class Killed:
    folder: Path
    at: int


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Killed]]:
    """Trainings that were killed, two at a time."""
    chance = random.Random(5)
    jobs = [(tmp_path_factory.mktemp("killed"), *kill, chance.uniform(0, 0.08)) for kill in KILLS]

    def work(mine: list[tuple[Path, int, bool, float]]) -> list[Killed]:
        script = FORKS.format(tests=str(Path(__file__).parent))
        command = [sys.executable, "-c", script]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            for folder, at, logs, delay in mine:
                print(folder, logs, file=parent.stdin, flush=True)
                child = int(parent.stdout.readline())
                until = time.monotonic() + 120
                while len(step_files(folder)) < at:
                    assert time.monotonic() < until, f"no {at} steps in {folder}"
                    time.sleep(0.001)
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
            parent.stdin.close()
        return [Killed(folder, at) for folder, at, *_ in mine]

    with ThreadPoolExecutor(2) as pool:
        yield [one for some in pool.map(work, (jobs[::2], jobs[1::2])) for one in some]


def test_the_store_opens_and_has_no_gap(killed: list[Killed]) -> None:
    for one in killed:
        run = RunStore.open(str(one.folder / "run" / "v0" / "cnnlog"))
        assert run.steps == list(range(len(run.steps)))
        assert len(run.steps) >= one.at
        for step in run.steps:
            record = run.read_record(step)
            assert record.step == step
            assert record.filters.keys() == record.feature_maps.keys() == {"net.0", "net.3"}
        baseline, _ = run.read_weights("baseline")
        np.testing.assert_array_equal(baseline["net.0"], run.read_record(0).filters["net.0"])
        assert run.read_probe().shape == (1, 3, 16, 16)
        assert run.read_probe_picture().shape == (16, 16, 3)
        assert run.read_sampled_maps().keys() == {"net.0", "net.3"}
        if len(run.steps) > 1:
            _, latest = run.read_weights("latest")
            assert run.steps[-1] - 1 <= latest <= run.steps[-1]


def test_half_written_files_have_no_final_name(killed: list[Killed]) -> None:
    final = re.compile(
        r"manifest\.json|probe\.png|(probe|step-\d{8}|weights-(baseline|latest)|maps-baseline)\.safetensors"
    )
    for one in killed:
        folder = one.folder / "run" / "v0" / "cnnlog"
        others = [path.name for path in folder.iterdir() if not final.fullmatch(path.name)]
        assert all(".tmp" in name for name in others)
        assert len(others) <= 2  # our temporary name and safetensors' own


def test_the_event_file_opens_and_has_no_gap(killed: list[Killed]) -> None:
    for one in killed:
        stored = RunStore.open(str(one.folder / "run" / "v0" / "cnnlog")).steps
        images = image_steps(events(one.folder / "run" / "v0"))
        drawn = images.get("filters/00_net.0", [])
        assert drawn == list(range(len(drawn)))
        assert len(drawn) <= len(stored)
        assert len(drawn) >= len(stored) - 2 - TRACKER_SNAPSHOTS_WAITING, "only what was queued may be missing"
        steps_of_both = {tag: steps for tag, steps in images.items() if tag.startswith(("filters", "feature_maps"))}
        assert all(steps == drawn for steps in steps_of_both.values()), "a step is there with all of its pictures"


def test_no_more_than_the_queue_is_lost(killed: list[Killed]) -> None:
    """The checkpoint of an epoch is saved after its snapshot was handed over."""
    for one in killed:
        saved = max((int(path.stem.split("=")[1]) for path in one.folder.glob("epoch=*.ckpt")), default=-1)
        stored = RunStore.open(str(one.folder / "run" / "v0" / "cnnlog")).steps
        assert stored[-1] >= saved + 1 - SNAPSHOTS_WAITING - 1


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
    assert run.read_record(end).numbers["filter_drift_l2"]["net.0"].min() > 0
    images = image_steps(events(folder / "run" / "v0"))["filters/00_net.0"]
    assert images == list(range(end + 1)), "what the kill kept from the event file is drawn by the resume"

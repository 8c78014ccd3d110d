"""A run that failed or died with its baseline alone does not lock its folder, and whatever else is there does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.training import TinyCNN, fit, loader, probe, trainer

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, open_run, watch
from cnnlog.runs import writers
from cnnlog.runs.store import RunStore


class Bug(TinyCNN):
    def training_step(self, *_: Any) -> torch.Tensor:
        raise RuntimeError("a bug of the user's")


def crash(folder: Path, module: L.LightningModule | None = None, callbacks: Sequence[L.Callback] = ()) -> None:
    with pytest.raises(RuntimeError, match="a bug of the user's"):
        fit(trainer(folder, callbacks or [FilterMonitor(), FeatureMapMonitor(probe())]), module or Bug())


def run_store(folder: Path) -> RunStore:
    return RunStore.open(str(folder / "run" / "v0" / "cnnlog"))


def test_after_a_crash_in_the_first_batch_the_folder_is_free(tmp_path: Path) -> None:
    crash(tmp_path)
    first = run_store(tmp_path)
    assert first.steps == [0]
    assert first.manifest.writer == writers.FAILED
    crash(tmp_path)
    fit(trainer(tmp_path, [FilterMonitor("net.0")]), TinyCNN())  # of other layers, and without maps
    assert run_store(tmp_path).steps == [0, 1, 2, 3]
    assert run_store(tmp_path).manifest.run_id != first.manifest.run_id
    assert open_run(tmp_path / "run" / "v0").layers == ("net.0",)


def test_nothing_of_the_crashed_run_is_left_in_the_next(tmp_path: Path) -> None:
    crash(tmp_path)
    folder = tmp_path / "run" / "v0" / "cnnlog"
    of_the_crashed = (folder / "probe.png").read_bytes(), (folder / "outputs-baseline.safetensors").read_bytes()

    run = trainer(tmp_path, [FilterMonitor("net.0")])
    run.fit(TinyCNN(), _Batches())
    assert run_store(tmp_path).steps == [0, 1, 2, 3]
    assert (folder / "probe.png").read_bytes() != of_the_crashed[0]
    assert (folder / "outputs-baseline.safetensors").read_bytes() != of_the_crashed[1]


class _Batches:
    """Loads batches without a data set; the default probe is of the first one."""

    def __iter__(self) -> Any:
        return iter(loader())

    def __len__(self) -> int:
        return 4


def test_a_crash_after_a_snapshot_keeps_the_folder(tmp_path: Path) -> None:
    class Late(TinyCNN):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if self.current_epoch == 1:
                raise RuntimeError("a bug of the user's")
            return super().training_step(batch, index)

    crash(tmp_path, Late())
    assert run_store(tmp_path).steps == [0, 1]
    with pytest.raises(ValueError, match="already holds a run of 2 snapshots"):
        fit(trainer(tmp_path, [FilterMonitor()]), TinyCNN())
    assert run_store(tmp_path).steps == [0, 1]


def test_a_resume_that_crashes_at_once_can_be_tried_again(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", [FilterMonitor()], max_epochs=1)
    fit(first, TinyCNN())
    path = tmp_path / "at.ckpt"
    first.save_checkpoint(path)
    with pytest.raises(RuntimeError, match="a bug of the user's"):
        fit(trainer(tmp_path, [FilterMonitor()]), Bug(), ckpt_path=path)
    assert run_store(tmp_path).steps == [0]
    fit(trainer(tmp_path, [FilterMonitor()]), TinyCNN(), ckpt_path=path)
    assert run_store(tmp_path).steps == [0, 2, 3]
    assert run_store(tmp_path).manifest.carried_from == str(tmp_path / "first" / "run" / "v0" / "cnnlog")


def test_a_loop_that_crashes_at_once_can_be_tried_again(tmp_path: Path) -> None:
    def fails() -> None:
        with watch(TinyCNN().net, None, tmp_path) as watcher:
            watcher.snapshot(0)
            raise RuntimeError("a bug")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            fails()
    with watch(TinyCNN().net, None, tmp_path) as watcher:
        watcher.snapshot(0)
    with pytest.raises(ValueError, match="already holds a run of 1 snapshots"):  # it ended as it should
        watch(TinyCNN().net, None, tmp_path)


def test_a_run_under_way_is_not_taken_over(tmp_path: Path) -> None:
    with watch(TinyCNN().net, None, tmp_path) as watcher:
        watcher.snapshot(0)
        with pytest.raises(ValueError, match="already holds a run"):
            watch(TinyCNN().net, None, tmp_path)
        watcher.snapshot(1)
    assert open_run(tmp_path).steps == (0, 1)


SCRIPT = """
    import os, signal, sys
    import torch
    from cnnlog import watch
    watcher = watch(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), None, sys.argv[1], tensorboard=False)
    watcher.snapshot(0)
    print("there", flush=True)
    if len(sys.argv) > 2:
        sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), *more]
    env = {**os.environ, "PYTHONPATH": str(Path(cnnlog.__file__).parents[1])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is asked for by a signal")
def test_the_folder_of_a_killed_process_is_free_and_of_a_living_one_is_not(tmp_path: Path) -> None:
    with start(tmp_path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        with pytest.raises(ValueError, match="already holds a run of 1 snapshots"):
            watch(net(), None, tmp_path)
        process.communicate("\n")
    with watch(net(), None, tmp_path) as watcher:
        watcher.snapshot(0)
        watcher.snapshot(1)
    assert open_run(tmp_path).steps == (0, 1)


def test_who_writes() -> None:
    own = writers.own_mark()
    machine, pid, started = own.split(":")
    assert writers.is_gone(own, "a run that is not under way")
    writers.begins("a run")
    assert not writers.is_gone(own, "a run")
    writers.ends("a run")
    assert writers.is_gone(own, "a run")
    assert not writers.is_gone(f"other:{pid}:{started}", "x")  # nobody here can see that machine
    assert not writers.is_gone("nonsense", "x")
    if started:  # a later process has the number
        assert writers.is_gone(f"{machine}:{pid}:1", "x")
    assert writers.is_gone(f"{machine}:{2**22 + 1}:1", "x") or os.name != "posix"
    assert "/" not in own


# --- one trainer, several fits


def test_loops_that_were_reset_begin_a_new_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [FilterMonitor()], logger=False, max_epochs=2)
    fit(run, TinyCNN())
    run.fit_loop.epoch_progress.reset()
    fit(run, TinyCNN())
    found = sorted(folder.parent for folder in tmp_path.rglob("manifest.json"))
    assert [RunStore.open(str(folder)).steps for folder in found] == [[0, 1, 2], [0, 1, 2]]


def test_loops_that_were_reset_are_refused_in_a_folder_that_was_named(tmp_path: Path) -> None:
    run = trainer(tmp_path, [FilterMonitor()], max_epochs=2)
    fit(run, TinyCNN())
    run.fit_loop.epoch_progress.reset()
    with pytest.raises(ValueError, match="already holds a run of 3 snapshots"):
        fit(run, TinyCNN())
    assert run_store(tmp_path).steps == [0, 1, 2]

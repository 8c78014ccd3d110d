"""A process that `os.fork` made of a training leaves the run alone, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cnnlog
from cnnlog import open_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork here")

START = """
    import os, sys, threading, time, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
    import torch
    from cnnlog import FilterMonitor, Probe, watch

    folder = sys.argv[1]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())

    def files():
        return sorted((path, os.stat(path).st_mtime_ns, os.stat(path).st_size)
                      for top, _, names in os.walk(folder) for path in (os.path.join(top, name) for name in names))

    def child(what):
        before = None
        while before != (before := files()):  # until the parent's own background has nothing left to write
            time.sleep(0.5)
        pid = os.fork()
        if pid == 0:
            what()
            sys.exit(7)  # runs atexit and what weakref.finalize has
        _, status = os.waitpid(pid, 0)
        assert os.WEXITSTATUS(status) == 7, status
        assert files() == before, (before, files())
"""

LOOP = """
    class Tracker:
        closed = 0
        def log_image(self, name, image, step): pass
        def close(self): open(folder + "/closed", "w").close()

    watcher = watch(net, Probe.chart(32), folder, trackers=[Tracker()])
    watcher.snapshot(0)
    watcher._live.recorder.drain(trackers=True)

    def all_of_it():
        watcher.snapshot(1)
        watcher.snapshot(2)
        watcher.close()
        watcher.close(failed=True)

    def in_a_block():
        with watcher:
            watcher.snapshot(1)

    def let_go():
        global watcher
        del watcher
        import gc
        gc.collect()

    for what in (all_of_it, in_a_block, let_go, lambda: None):
        child(what)

    # A lock that another thread holds at the fork is held for ever in the child.
    for lock in (watcher._live.recorder._problems._lock, watcher._live.recorder._jobs._queue.mutex,
                 watcher._live.recorder.store._lock):
        with lock:
            child(all_of_it)
    watcher.snapshot(1)
    watcher.close()
    print("right")
"""

FIT = """
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x):
            return self.net(x)
        def training_step(self, batch, index):
            if index == 1 and os.getpid() == first:
                child(HOW)
            return self(batch[0]).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    first = os.getpid()
    HOW = {"exit": lambda: None, "error": lambda: 1 / 0, "ctrl_c": lambda: exec("raise KeyboardInterrupt")}[sys.argv[2]]
    data = DataLoader(TensorDataset(torch.rand(8, 3, 16, 16)), 2)
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
                        callbacks=[FilterMonitor(every_n_epochs=5)])
    try:
        trainer.fit(Module(), data)
    except ZeroDivisionError:
        sys.exit(7)
    except SystemExit as error:
        if os.getpid() != first:
            sys.exit(7)
        raise
    print("right")
"""


def run(script: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(Path(cnnlog.__file__).parents[1])}
    text = textwrap.dedent(START) + textwrap.dedent(script)
    done = subprocess.run(  # a child that hangs runs into the time limit
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_of_a_watched_loop(tmp_path: Path) -> None:
    assert run(LOOP, str(tmp_path)).endswith("right\n")
    assert open_run(tmp_path).steps == (0, 1)


@pytest.mark.parametrize("how", ["exit", "error", "ctrl_c"])
def test_a_child_of_a_fit(how: str, tmp_path: Path) -> None:
    assert run(FIT, str(tmp_path), how).endswith("right\n")
    (manifest,) = tmp_path.rglob("manifest.json")
    assert open_run(manifest.parent).steps == (0, 2)

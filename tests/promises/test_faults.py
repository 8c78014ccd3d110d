"""What goes wrong while training: it goes on to the same weights, with one warning, and later snapshots are taken."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from support.places import environment
from support.training import TinyCNN, events, fit, image_steps, ours, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.monitors import live_run
from cnnlog.runs.store import RunStore

EPOCHS = 4


def monitors(**more: Any) -> list[L.Callback]:
    return [FilterMonitor(**more), FeatureMapMonitor(probe(), **more)]


def store(folder: Path) -> RunStore:
    return RunStore.open(str(folder / "run" / "v0" / "cnnlog"))


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("cnnlog")]


def trained(
    folder: Path, callbacks: Sequence[L.Callback], module: type[L.LightningModule] = TinyCNN, **more: Any
) -> tuple[list[bytes], list[str]]:
    """Final weights as bytes, and the warnings of cnnlog, after a training that came to its end."""
    torch.manual_seed(0)
    made = module()
    run = trainer(folder, callbacks, **{"max_epochs": EPOCHS, **more})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(run, made)
    assert run.current_epoch == run.max_epochs
    assert no_threads()
    noisy = [str(w.message) for w in caught if ours(w) or issubclass(w.category, RuntimeWarning)]
    return [p.detach().numpy().tobytes() for p in made.parameters()], noisy


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return trained(tmp_path_factory.mktemp("plain"), [])[0]


# --- the store


def fail_at(monkeypatch: pytest.MonkeyPatch, *steps: int, error: type[Exception] = OSError) -> None:
    write = RunStore.write_record

    def maybe(self: RunStore, record: Any) -> int:
        if record.step in steps:
            raise error(28, "No space left on device")
        return write(self, record)

    monkeypatch.setattr(RunStore, "write_record", maybe)


@pytest.mark.parametrize(("full", "stored"), [((1, 2), [0, 3, 4]), ((0,), [])])
def test_a_disk_that_is_full_for_a_while(
    full: tuple[int, ...], stored: list[int], plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, *full)
    weights, warned = trained(tmp_path, monitors())
    assert weights == plain
    (text,) = warned
    assert f"step {full[0]} could not be stored" in text
    assert "training goes on, and later steps are tried again (OSError: [Errno 28] No space left on device)" in text
    if stored:
        assert store(tmp_path).steps == stored
    else:  # without a snapshot there is nothing to mix with, and the folder is free again
        assert not RunStore.exists(str(tmp_path / "run" / "v0" / "cnnlog"))
    assert image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"] == [0, 1, 2, 3, 4]


FULL_DISK = """
import resource, signal, sys, warnings
import lightning, torch
from pathlib import Path
from test_faults import monitors, trainer, TinyCNN, fit, store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({folder!r})
torch.manual_seed(0)
run, module = trainer(folder, monitors(), max_epochs=6, logger=False), TinyCNN()

class Fill(lightning.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        limit = {limit} if trainer.current_epoch in (1, 2) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.callbacks[0]._session._live.recorder.drain(trackers=True)  # else step 1 is still being drawn

run.callbacks.append(Fill())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fit(run, module)
print(*(str(w.message) for w in caught if "cnnlog:" in str(w.message)), sep="\\n")
"""


@pytest.mark.once
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    script = FULL_DISK.format(folder=str(tmp_path), limit=2000)
    around = environment(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=around,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("cnnlog:")]
    stored, drawn = lines
    assert "step 2 could not be stored" in stored
    assert "the folder of pictures did not take the pictures of step 2" in drawn
    assert "File too large" in stored
    assert "File too large" in drawn
    folder = tmp_path / "cnnlog_logs" / "version_0" / "cnnlog"
    run = RunStore.open(str(folder))
    assert run.steps == [0, 1, 4, 5, 6]
    assert all(run.read_record(step).step == step for step in run.steps)
    assert not [path.name for path in folder.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_that_cannot_be_written(
    late: bool, plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the store's folder should be, which keeps even root from writing there."""
    blocked = tmp_path / "run" / "v0" / "cnnlog"
    callbacks = monitors()

    class Unblock(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if late and trainer.current_epoch == 2:
                first: Any = callbacks[0]
                first._session._live.recorder.drain()
                blocked.unlink()

    blocked.parent.mkdir(parents=True)
    blocked.touch()
    weights, warned = trained(tmp_path, [*callbacks, Unblock()])
    assert weights == plain
    (text,) = warned
    assert f"step 0 could not be stored in {blocked}" in text
    assert image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"] == [0, 1, 2, 3, 4]
    if late:
        assert store(tmp_path).steps == [0, 3, 4]
        assert store(tmp_path).read_record(3).numbers["weight_change"]["net.0"].min() > 0


# --- trackers


class Broken(TensorBoardLogger):
    """Its event writer raises at our events, which are those with pictures."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        if not hasattr(writer, "whole"):
            writer.whole = writer._get_file_writer

            class Raising:
                def add_summary(self, summary: Any, step: int) -> None:
                    if 1 <= step <= 2:
                        raise ConnectionError("the disk of the logs is gone")
                    writer.whole().add_summary(summary, step)

                def __getattr__(self, name: str) -> Any:
                    return getattr(writer.whole(), name)

            writer._get_file_writer = lambda: (
                Raising() if threading.current_thread().name != "MainThread" else writer.whole()
            )
        return writer


def test_a_logger_whose_writer_raises(plain: list[bytes], tmp_path: Path) -> None:
    weights, warned = trained(tmp_path, monitors(), logger=Broken(tmp_path, name="run", version="v0"))
    assert weights == plain
    (text,) = warned
    assert "TensorBoard did not take the pictures of step 1" in text
    assert "(ConnectionError: the disk of the logs is gone)" in text
    assert store(tmp_path).steps == [0, 1, 2, 3, 4]
    assert image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"] == [0, 3, 4]


# --- the network


class Poisoned(TinyCNN):
    """Weights become NaN and infinite in epoch 2, in both layers at once."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == 2 and batch_idx == 0:
            with torch.no_grad():
                self.get_parameter("net.0.weight")[0, 0, 0, 0] = float("nan")
                self.get_parameter("net.3.weight")[1, 0, 0, 0] = float("inf")
                self.get_parameter("net.3.weight")[1, 0, 0, 1] = -float("inf")


class Dying(TinyCNN):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.current_epoch >= 1:
            with torch.no_grad():
                self.get_parameter("net.0.weight").zero_()
                self.get_parameter("net.0.bias").fill_(-1.0)


class FailsOnce(TinyCNN):
    """Its forward in eval mode raises in the third epoch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.current_epoch == 2:
            raise RuntimeError("mask of another size")
        return super().forward(x)


def test_weights_that_turn_nan_or_infinite(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain", [], Poisoned)
    weights, warned = trained(tmp_path, monitors(), Poisoned)
    assert weights == plain
    (text,) = warned
    assert "cnnlog: values of net.0 (filters" in text
    assert "are NaN or infinite at step 3; they are drawn in green" in text
    run = store(tmp_path)
    assert run.steps == [0, 1, 2, 3, 4]
    assert np.isnan(run.read_record(3).filters["net.0"]).any()
    found = events(tmp_path / "run" / "v0")
    assert image_steps(found)["feature_maps/01_net.3"] == [0, 1, 2, 3, 4]


def test_a_layer_that_dies(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain", [], Dying)
    weights, warned = trained(tmp_path, monitors(), Dying)
    assert weights == plain
    (text,) = warned
    assert "no channel of net.0 is above 0 anywhere on the probe at step 2, after the activation: dead" in text
    assert store(tmp_path).read_record(4).numbers["dead_share"]["net.0"] == 1


@pytest.mark.parametrize("kinds", ["both", "filters"])
def test_a_probe_that_fails_at_one_epoch(kinds: str, plain: list[bytes], tmp_path: Path) -> None:
    callbacks = monitors() if kinds == "both" else [FilterMonitor(probe=probe())]
    weights, warned = trained(tmp_path, callbacks, FailsOnce)
    assert weights == plain
    (text,) = warned
    assert "cnnlog: no snapshot of step 3; training goes on, and later ones are tried" in text
    assert "mask of another size" in text
    assert store(tmp_path).steps == [0, 1, 2, 4]


def test_a_baseline_that_fails_is_taken_later_and_whole(
    plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vars(live_run)["capture"]

    def fails_at_first(*args: Any, **more: Any) -> Any:
        if more["step"] == 0:
            raise RuntimeError("not yet")
        return whole(*args, **more)

    monkeypatch.setattr(live_run, "capture", fails_at_first)
    weights, warned = trained(tmp_path, [FilterMonitor(), FeatureMapMonitor(probe(), every_n_epochs=2)])
    assert weights == plain
    (text,) = warned
    assert "no snapshot of step 0" in text
    run = store(tmp_path)
    assert run.steps == [1, 2, 3, 4]
    assert run.manifest.baseline_step == 1
    assert [bool(run.read_record(step).feature_maps) for step in run.steps] == [True, True, False, True]


# --- on_error="raise"


@pytest.mark.parametrize("what", ["store", "probe", "tracker", "start"])
def test_on_error_raise_stops_the_training(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: type[L.LightningModule] = FailsOnce if what == "probe" else TinyCNN
    kind = Broken if what == "tracker" else TensorBoardLogger
    if what in ("store", "start"):
        fail_at(monkeypatch, 2 if what == "store" else 0)
    run = trainer(
        tmp_path, monitors(on_error="raise"), max_epochs=EPOCHS, logger=kind(tmp_path, name="run", version="v0")
    )
    with pytest.raises(RuntimeError, match=r"^cnnlog: ") as caught:
        fit(run, module())
    assert "training goes on" not in str(caught.value)
    assert str(caught.value).endswith('; raised because of on_error="raise"')
    cause = caught.value.__cause__
    assert isinstance(cause, {"probe": ValueError, "tracker": ConnectionError}.get(what, OSError))
    assert run.current_epoch < EPOCHS or what == "tracker"
    assert (run.global_step == 0) == (what == "start")
    assert no_threads()


# --- the training itself ends early


class Stops(TinyCNN):
    error: BaseException

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 2 and batch_idx == 1:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.fixture
def _sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from the first Ctrl-C on


@pytest.mark.usefixtures("_sigint")
@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("a fault of the user's")])
def test_what_was_queued_is_written_when_the_training_is_stopped(
    error: BaseException, on_error: Any, tmp_path: Path
) -> None:
    module = Stops()
    module.error = error
    arrives = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(arrives) as caught:
        fit(trainer(tmp_path, monitors(on_error=on_error)), module)
    assert isinstance(error, KeyboardInterrupt) or caught.value is error
    assert no_threads()
    last = [3] if isinstance(error, KeyboardInterrupt) else []  # Ctrl-C: the state within an epoch, too
    assert store(tmp_path).steps == [0, 1, 2, *last]
    steps = image_steps(events(tmp_path / "run" / "v0"))
    assert steps["filters/00_net.0"] == steps["feature_maps/01_net.3"] == [0, 1, 2]
    assert steps["feature_maps_change/01_net.3"] == [1, 2]
    assert steps["filters_strip/00_net.0"] == [2]


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_the_users_exception_is_not_hidden_by_ours(
    on_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_way_out, write = threading.Event(), RunStore.write_record

    class Leaves(Stops):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if (self.current_epoch, batch_idx) == (2, 1):
                on_the_way_out.set()
            return super().training_step(batch, batch_idx)

    def full(self: RunStore, record: Any) -> int:
        if record.step == 2:
            assert on_the_way_out.wait(20)
            raise OSError(28, "No space left on device")
        return write(self, record)

    monkeypatch.setattr(RunStore, "write_record", full)
    module = Leaves()
    module.error = ValueError("a fault of the user's")
    run = trainer(tmp_path, monitors(on_error=on_error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="a fault of the user's"):
            fit(run, module)
    assert [str(w.message) for w in caught if "step 2 could not be stored" in str(w.message)]
    assert no_threads()
    assert store(tmp_path).steps == [0, 1]


def test_nan_in_the_training_loss_alone_is_not_ours_to_say(tmp_path: Path) -> None:
    class NaNLoss(TinyCNN):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return nn.functional.relu(loss) + (float("nan") if self.current_epoch == 3 else 0.0)

    _, warned = trained(tmp_path, monitors(), NaNLoss)
    assert not [text for text in warned if "step 3" in text]
    assert [text for text in warned if "NaN or infinite" in text or "dead" in text] == warned

"""The last state of a training is captured, whatever the schedule and however it ends; a resume goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from support.training import TinyCNN, events, fit, image_steps, loader, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor, open_run
from cnnlog.recording.recorder import Recorder
from cnnlog.runs.run import Run
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot

try:
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
except ImportError:
    LIGHTNING_AVERAGES = False
else:
    LIGHTNING_AVERAGES = True

LAYER = "net.0"


def monitors(**more: Any) -> list[L.Callback]:
    return [FilterMonitor(**more), FeatureMapMonitor(probe(), **more)]


def stored(folder: Path) -> Run:
    return open_run(folder / "run" / "v0")


def weight(module: nn.Module) -> np.ndarray:
    return module.get_parameter("net.0.weight").detach().numpy().copy()


def is_last(run: Run, module: nn.Module) -> None:
    """The last record, and the last weights, are those of the module, and both kinds are there."""
    last = run.steps[-1]
    assert run.filters(LAYER, last).tobytes() == weight(module).tobytes()
    latest, step = run.weights("last")
    assert step == last
    assert latest[LAYER].tobytes() == weight(module).tobytes()
    assert run.record(last).feature_maps.keys() == run.record(run.steps[0]).feature_maps.keys()
    assert run.outputs("last")[1] == last


class StopAt(L.Callback):
    """Ends the training after so many batches, in one of several ways."""

    def __init__(self, batches: int, how: Callable[[L.Trainer], None]) -> None:
        self.left, self.how = batches, how

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.how(trainer)


def should_stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


def ctrl_c(trainer: L.Trainer) -> None:
    raise KeyboardInterrupt


class Clock(L.Callback):
    """Makes `max_time` pass."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            timer = next(c for c in trainer.callbacks if type(c).__name__ == "Timer")  # type: ignore[attr-defined]
            timer._offset = 1e9


# What a fit of 4 batches an epoch is given, and the steps that are stored: with `max_epochs` and callbacks.
ENDS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[], list[L.Callback]], list[int], bool]] = {
    "every 3 of 4": ({"every_n_epochs": 3}, {"max_epochs": 4}, list, [0, 3, 4], False),
    "every 50": ({"every_n_epochs": 50}, {"max_epochs": 2}, list, [0, 2], False),
    "early stopping": (
        {"every_n_epochs": 20},
        {"max_epochs": 50},
        lambda: [EarlyStopping("loss", patience=2, min_delta=10.0, check_on_train_epoch_end=True)],
        [0, 3],
        False,
    ),
    "max_steps": ({"every_n_epochs": 3}, {"max_epochs": 9, "max_steps": 6}, list, [0, 2], True),
    "max_steps, due": ({}, {"max_epochs": 9, "max_steps": 6}, list, [0, 1, 2], True),
    "max_steps at an end": ({"every_n_epochs": 3}, {"max_epochs": 9, "max_steps": 8}, list, [0, 2], False),
    "max_time": ({"every_n_epochs": 5}, {"max_time": timedelta(hours=1)}, lambda: [Clock()], [0, 2], True),
    "should_stop": ({"every_n_epochs": 4}, {"max_epochs": 9}, lambda: [StopAt(5, should_stop)], [0, 2], True),
    "should_stop first": ({"every_n_epochs": 4}, {"max_epochs": 9}, lambda: [StopAt(1, should_stop)], [0, 1], True),
    "every 7 of 5 steps": ({"every_n_train_steps": 7}, {"max_steps": 5}, list, [0, 5], False),
    "at steps": ({"at_steps": (2, 3)}, {"max_epochs": 2}, list, [0, 2, 3, 8], False),
    "at a last step": ({"at_steps": [8]}, {"max_epochs": 2}, list, [0, 8], False),
    "accumulated": ({"every_n_epochs": 4}, {"max_epochs": 3, "accumulate_grad_batches": 3}, list, [0, 3], False),
    "fewer batches": ({"every_n_epochs": 4}, {"max_epochs": 3, "limit_train_batches": 2}, list, [0, 3], False),
    "half of them": ({"every_n_epochs": 4}, {"max_epochs": 3, "limit_train_batches": 0.5}, list, [0, 3], False),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_last_state_is_captured(name: str, tmp_path: Path) -> None:
    schedule, options, more, steps, provisional = ENDS[name]
    module = TinyCNN()
    run = trainer(tmp_path, [*more(), *monitors(**schedule)], **options)
    fit(run, module)
    there = stored(tmp_path)
    assert list(there.steps) == steps
    is_last(there, module)
    assert there.provisional == provisional
    assert there.record(steps[-1]).global_step == run.global_step
    assert all(steps_of == sorted(set(steps_of)) for steps_of in image_steps(events(tmp_path / "run" / "v0")).values())
    filters = [tag for tag in image_steps(events(tmp_path / "run" / "v0")) if tag.startswith("filters/")]
    assert image_steps(events(tmp_path / "run" / "v0"))[filters[0]] == steps  # who ends by itself is shown, too


def interrupted(folder: Path, module: L.LightningModule, callbacks: Sequence[L.Callback], **more: Any) -> L.Trainer:
    run = trainer(folder, callbacks, **more)
    with pytest.raises(SystemExit):  # as Lightning ends after Ctrl-C
        fit(run, module, validate=more.pop("validate", False))
    return run


@pytest.mark.parametrize(("batches", "steps"), [(2, [0, 1]), (6, [0, 2]), (8, [0, 2])])
def test_ctrl_c(batches: int, steps: list[int], tmp_path: Path) -> None:
    module = TinyCNN()
    interrupted(tmp_path, module, [*monitors(every_n_epochs=5), StopAt(batches, ctrl_c)], max_epochs=9)
    there = stored(tmp_path)
    assert list(there.steps) == steps
    is_last(there, module)
    # After the last batch of an epoch that epoch is complete.
    assert there.provisional == (batches != 8)
    shown = image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"]
    assert shown == (steps if batches == 8 else [0])  # within an epoch it goes into the store alone


def test_ctrl_c_within_a_batch(tmp_path: Path) -> None:
    class Late(TinyCNN):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            if self.trainer.global_step == 5:
                raise KeyboardInterrupt

    module = Late()
    interrupted(tmp_path, module, monitors(every_n_epochs=5), max_epochs=9)
    is_last(stored(tmp_path), module)
    assert stored(tmp_path).provisional


def test_ctrl_c_while_a_snapshot_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, left = Recorder.record, [3]

    def pressed(self: Recorder, snapshot: Snapshot) -> None:
        left[0] -= 1
        if left[0] == 0:  # as if it came while this waits for the snapshot before
            raise KeyboardInterrupt
        record(self, snapshot)

    monkeypatch.setattr(Recorder, "record", pressed)
    module = TinyCNN()
    interrupted(tmp_path, module, monitors(), max_epochs=9)
    assert stored(tmp_path).steps == (0, 1, 2)
    is_last(stored(tmp_path), module)
    assert not stored(tmp_path).provisional


def test_ctrl_c_before_a_step_adds_nothing(tmp_path: Path) -> None:
    class First(TinyCNN):
        def training_step(self, *_: Any) -> torch.Tensor:
            raise KeyboardInterrupt

    interrupted(tmp_path, First(), monitors())
    assert stored(tmp_path).steps == (0,)


def test_after_other_exceptions_nothing_is_captured(tmp_path: Path) -> None:
    def fails(trainer: L.Trainer) -> None:
        raise RuntimeError("a bug of the user's")

    with pytest.raises(RuntimeError, match="a bug of the user's"):
        fit(trainer(tmp_path, [*monitors(every_n_epochs=5), StopAt(6, fails)]), TinyCNN())
    assert stored(tmp_path).steps == (0,)


def test_kinds_of_two_schedules_are_both_in_the_last_step(tmp_path: Path) -> None:
    module = TinyCNN()
    callbacks = [FilterMonitor(every_n_epochs=2), FeatureMapMonitor(probe(), every_n_epochs=3)]
    fit(trainer(tmp_path, callbacks, max_epochs=4), module)
    there = stored(tmp_path)
    assert there.steps == (0, 2, 3, 4)
    is_last(there, module)
    assert {"map_mean", "filter_norm", "function_change"} <= there.record(4).numbers.keys()
    alone = tmp_path / "alone"
    again = TinyCNN()
    fit(
        trainer(alone, [FilterMonitor(every_n_epochs=4), FeatureMapMonitor(probe(), every_n_epochs=4)], max_epochs=4),
        again,
    )
    whole = stored(alone).record(4)
    for layer, maps in there.record(4).feature_maps.items():
        assert maps.shape == whole.feature_maps[layer].shape
    shown = image_steps(events(tmp_path / "run" / "v0"))
    assert (shown["filters/00_net.0"], shown["feature_maps/00_net.0"]) == ([0, 2, 4], [0, 3, 4])
    ranges = there.record(4).ranges
    assert ranges.keys() == {"filters", "filters_change", "feature_maps", "feature_maps_change"}


def test_one_monitor_that_counts_steps_makes_all_count_them(tmp_path: Path) -> None:
    module = TinyCNN()
    callbacks = [FilterMonitor(at_steps=(1, 4, 6)), FeatureMapMonitor(probe())]  # 4 batches an epoch
    fit(trainer(tmp_path, callbacks, max_epochs=2), module)
    there = stored(tmp_path)
    assert there.steps == (0, 1, 4, 6, 8)
    assert there.manifest.unit == "step"
    assert [bool(there.record(step).feature_maps) for step in there.steps] == [True, False, True, False, True]
    assert [bool(there.record(step).filters) for step in there.steps] == [True, True, True, True, True]
    is_last(there, module)
    shown = image_steps(events(tmp_path / "run" / "v0"))
    assert (shown["filters/00_net.0"], shown["feature_maps/00_net.0"]) == ([0, 1, 4, 6, 8], [0, 4, 8])


@pytest.mark.parametrize("schedule", [{"every_n_epochs": 2}, {"every_n_train_steps": 3}])
def test_steps_besides_a_schedule(schedule: dict[str, int], tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(at_steps=[7, 1], **schedule), max_epochs=3), TinyCNN())
    assert list(stored(tmp_path).steps) == (
        [0, 1, 7, 8, 12] if "every_n_epochs" in schedule else [0, 1, 3, 6, 7, 9, 12]
    )


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        (5, TypeError, "at_steps as a list of optimiser steps, such as (10, 100), got 5"),
        ("12", TypeError, "at_steps as a list"),
        ([1, 2.5], ValueError, "at_steps to be whole numbers from 0 on, got 2.5"),
        ([True], ValueError, "got True among them"),
        ([-1], ValueError, "got -1 among them"),
    ],
)
def test_impossible_steps_are_refused_at_once(steps: Any, error: type[Exception], said: str) -> None:
    for kind in (FilterMonitor, FeatureMapMonitor):
        with pytest.raises(error) as caught:
            kind(at_steps=steps)
        assert said in str(caught.value)


# --- beside weight averaging


class OwnAverage(L.Callback):
    """An average as people write it: kept as a dict, put into the module for validation and at the end, by `.data`."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.kept = {name: torch.zeros_like(p) for name, p in pl_module.named_parameters()}

    def _swap(self, module: L.LightningModule) -> None:
        for name, parameter in module.named_parameters():
            mine = parameter.data.clone()
            parameter.data.copy_(self.kept[name])
            self.kept[name].copy_(mine)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)


class Witness(L.Callback):
    """The weights being trained at the end of each epoch, and after each batch."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.trained = weight(pl_module)


AVERAGES: dict[str, Callable[[], L.Callback]] = {
    "SWA": lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    "own": OwnAverage,
}
if LIGHTNING_AVERAGES:
    AVERAGES |= {"EMA": lambda: EMAWeightAveraging(decay=0.9), "WeightAveraging": WeightAveraging}
STOPS: dict[str, tuple[dict[str, Any], Callable[[], list[L.Callback]], int]] = {
    "by itself": ({"max_epochs": 4}, list, 4),
    "max_steps": ({"max_epochs": 9, "max_steps": 6}, list, 2),
    "should_stop": ({"max_epochs": 9}, lambda: [StopAt(5, should_stop)], 2),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", AVERAGES)
def test_beside_averages_the_last_trained_state_is_kept(kind: str, first: bool, stop: str, tmp_path: Path) -> None:
    options, more, step = STOPS[stop]
    module, witness, average = TinyCNN(), Witness(), AVERAGES[kind]()
    ours = monitors(every_n_epochs=3)
    fit(
        trainer(tmp_path, [*more(), witness, *([average, *ours] if first else [*ours, average])], **options),
        module,
        validate=True,
    )
    there = stored(tmp_path)
    assert list(there.steps) == ([0, 3, 4] if step == 4 else [0, step])
    assert there.filters(LAYER).tobytes() == witness.trained.tobytes()
    assert there.provisional == (stop != "by itself")
    if kind in ("EMA", "own"):
        assert weight(module).tobytes() != witness.trained.tobytes(), "the averages are in the module by now"


@pytest.mark.skipif(not LIGHTNING_AVERAGES, reason="this Lightning has no WeightAveraging")
@pytest.mark.parametrize("weights", ["train", "ema"])
@pytest.mark.parametrize("where", ["training", "validation"])
def test_ctrl_c_beside_averages(where: str, weights: str, tmp_path: Path) -> None:
    class InValidation(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 8:
                raise KeyboardInterrupt

    module, witness, average = TinyCNN(), Witness(), EMAWeightAveraging(decay=0.5)
    stop = StopAt(6, ctrl_c) if where == "training" else InValidation()
    callbacks = [average, *monitors(every_n_epochs=9, weights=weights), witness, stop]
    run = trainer(tmp_path, callbacks, max_epochs=9)
    with pytest.raises(SystemExit):
        fit(run, module, validate=True)
    there = stored(tmp_path)
    assert there.steps == (0, 2)
    assert (there.filters(LAYER).tobytes() == witness.trained.tobytes()) == (weights == "train")
    if weights == "ema":
        holder = average._average_model.module if where == "training" else module  # type: ignore[union-attr]
        assert there.filters(LAYER).tobytes() == weight(holder).tobytes()


def test_ctrl_c_while_an_average_of_their_own_may_be_in_the_module(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 8:
                raise KeyboardInterrupt

    witness, module = Witness(), TinyCNN()
    run = trainer(tmp_path, [OwnAverage(), *monitors(every_n_epochs=9), witness, Stop()], max_epochs=9)
    with pytest.raises(SystemExit):
        fit(run, module, validate=True)
    there = stored(tmp_path)
    assert there.steps == (0, 1), "the last epoch's end, which was kept in memory"
    assert there.filters(LAYER).tobytes() != weight(module).tobytes()


def test_only_one_epoch_is_kept_in_memory(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counts(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            session: Any = next(c for c in trainer.callbacks if isinstance(c, FilterMonitor))._session  # type: ignore[attr-defined]
            seen.append(0 if session.taking._last is None else session.taking._last[0].step)

    fit(trainer(tmp_path, [OwnAverage(), *monitors(every_n_epochs=3), Counts()], max_epochs=5), TinyCNN())
    assert seen == [0, 1, 2, 0, 4]  # nothing after epoch 3, which was due


# --- resumes


def checkpoint_at(folder: Path, **more: Any) -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(folder / "checkpoints", save_top_k=-1, filename="{step}", **more)


HOW: dict[str, tuple[dict[str, Any], Callable[[], list[L.Callback]], bool]] = {
    "Ctrl-C": ({"max_epochs": 9}, lambda: [StopAt(7, ctrl_c)], True),
    "max_steps": ({"max_epochs": 9, "max_steps": 6}, list, False),
    "should_stop": ({"max_epochs": 9}, lambda: [StopAt(6, should_stop)], False),
}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("how", HOW)
def test_a_resume_writes_a_provisional_state_anew(how: str, step: int, every: int, tmp_path: Path) -> None:
    options, more, raises = HOW[how]
    saves = checkpoint_at(tmp_path, every_n_train_steps=2, save_on_train_epoch_end=False)
    run = trainer(tmp_path, [*monitors(every_n_epochs=every), saves, *more()], enable_checkpointing=True, **options)
    if raises:
        with pytest.raises(SystemExit):
            fit(run, TinyCNN())
    else:
        fit(run, TinyCNN())
    first = stored(tmp_path)
    assert first.provisional
    assert first.steps[-1] == 2
    module, witness = TinyCNN(), EpochWitness()
    resumed = trainer(tmp_path, [*monitors(every_n_epochs=every), witness], max_epochs=4)
    fit(resumed, module, ckpt_path=tmp_path / "checkpoints" / f"step={step}.ckpt")
    there = stored(tmp_path)
    assert list(there.steps) == ([0, 1, 2, 3, 4] if every == 1 else [0, 2, 3, 4])
    assert not there.record(2).provisional
    for at, trained in witness.trained.items():
        assert there.filters(LAYER, at).tobytes() == trained.tobytes(), at
    is_last(there, module)
    for tag, steps in image_steps(events(tmp_path / "run" / "v0")).items():
        assert steps == sorted(set(steps)), tag


class EpochWitness(L.Callback):
    """The weights being trained at the end of each epoch."""

    def __init__(self) -> None:
        self.trained: dict[int, np.ndarray] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained[trainer.current_epoch + 1] = weight(pl_module)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:You're resuming from a checkpoint")
def test_a_resume_that_is_interrupted_again_and_again(tmp_path: Path) -> None:
    module = TinyCNN()
    for batches in (6, 1, 1, 5):
        saves = checkpoint_at(tmp_path, every_n_train_steps=1, save_on_train_epoch_end=False)
        path = max((tmp_path / "checkpoints").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]), default=None)
        run = trainer(
            tmp_path,
            [*monitors(every_n_epochs=2), StopAt(batches, ctrl_c), saves],
            max_epochs=9,
            enable_checkpointing=True,
        )
        with pytest.raises(SystemExit):
            fit(run, module, ckpt_path=path)
        is_last(stored(tmp_path), module)
    for tag, steps in image_steps(events(tmp_path / "run" / "v0")).items():
        assert steps == sorted(set(steps)), tag


def test_a_second_fit_after_each_end_goes_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, monitors(every_n_epochs=3), max_epochs=9, max_steps=6)
    module = TinyCNN()
    fit(run, module)
    run.fit_loop.epoch_loop.max_steps = -1
    run.fit_loop.max_epochs = 5
    fit(run, module)
    there = stored(tmp_path)
    assert list(there.steps)[:2] == [0, 2]
    is_last(there, module)
    for tag, steps in image_steps(events(tmp_path / "run" / "v0")).items():
        assert steps == sorted(set(steps)), tag


# --- other ways of training


class Gan(L.LightningModule):
    """Two networks with an optimiser each, by hand; one of them need not be stepped at each batch."""

    def __init__(self, *, raw: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.raw = raw
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.other = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).mean((2, 3)) + self.other(x).mean((2, 3))

    def training_step(self, batch: Any, index: int) -> None:
        optimisers = self.optimizers(use_pl_optimizer=not self.raw)
        for position, optimiser in enumerate(optimisers):  # type: ignore[arg-type]
            if position and index % 2:
                continue
            optimiser.zero_grad()
            self.manual_backward(self(batch[0]).square().mean())
            optimiser.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), 0.1), torch.optim.SGD(self.other.parameters(), 0.1)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("end", ["max_epochs", "should_stop", "ctrl_c"])
def test_two_optimisers_by_hand(raw: bool, end: str, tmp_path: Path) -> None:
    stop = {"max_epochs": [], "should_stop": [StopAt(6, should_stop)], "ctrl_c": [StopAt(6, ctrl_c)]}[end]
    module = Gan(raw=raw)
    run = trainer(tmp_path, [*stop, *monitors(every_n_epochs=5)], max_epochs=2)
    if end == "ctrl_c":
        with pytest.raises(SystemExit):
            fit(run, module)
    else:
        fit(run, module)
    there = stored(tmp_path)
    assert there.steps == (0, 2)
    is_last(there, module)


def test_a_data_set_without_a_length(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader().dataset)

    module = TinyCNN()
    run = trainer(tmp_path, monitors(every_n_epochs=5), max_epochs=2)
    run.fit(module, torch.utils.data.DataLoader(Stream(), 4))
    assert stored(tmp_path).steps == (0, 2)
    assert not stored(tmp_path).provisional
    is_last(stored(tmp_path), module)


def test_a_last_state_that_cannot_be_captured_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(TinyCNN):
        def on_train_epoch_end(self) -> None:
            self.forward = None  # type: ignore[assignment,method-assign]

    with pytest.warns(UserWarning, match="no snapshot of step 1"):
        fit(trainer(tmp_path, monitors(every_n_epochs=5), max_epochs=1), Breaks())
    assert RunStore.open(str(tmp_path / "run" / "v0" / "cnnlog")).steps == [0]

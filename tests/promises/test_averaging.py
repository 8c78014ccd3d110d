"""Averaged weights: which are shown, that they are the right ones, and that looking leaves both kinds alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from support.devices import ACCELERATORS
from support.inertness import differences, trace
from support.training import TinyCNN, fit, probe, trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

try:
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
except ImportError:
    LIGHTNING_AVERAGES = False
else:
    LIGHTNING_AVERAGES = True

needs_lightnings = pytest.mark.skipif(not LIGHTNING_AVERAGES, reason="this Lightning has no WeightAveraging")


class OwnAverage(L.Callback):
    """A callback as people wrote it before Lightning had one."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ema = AveragedModel(pl_module, avg_fn=get_ema_avg_fn(0.5), use_buffers=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.ema.update_parameters(pl_module)


AVERAGES: dict[str, Callable[[], Any]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "ema, late": lambda: EMAWeightAveraging(decay=0.5, update_every_n_steps=2, update_starting_at_step=5),
    "ema, by epoch": lambda: EMAWeightAveraging(decay=0.5, update_every_n_steps=0, update_starting_at_epoch=0),
    "equal": lambda: WeightAveraging(use_buffers=False),
    "own": OwnAverage,
}
KINDS = [pytest.param(name, marks=() if name == "own" else needs_lightnings) for name in AVERAGES]


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(4, 5, 3)
    )


def monitors(**more: Any) -> list[L.Callback]:
    return [FilterMonitor(**more), FeatureMapMonitor(probe(), **more)]


def stored(folder: Path) -> RunStore:
    (path,) = folder.rglob("manifest.json")
    return RunStore.open(str(path.parent))


class Witness(L.Callback):
    """Copies the averaged model, and the trained one, after each batch and epoch; keeps what the last look saw."""

    def __init__(self, averaging: L.Callback) -> None:
        self.averaging = averaging
        self.filters: dict[int, torch.Tensor] = {}
        self.maps: dict[int, torch.Tensor] = {}
        self.trained: dict[int, torch.Tensor] = {}

    def look(self, trainer: L.Trainer, module: Any) -> None:
        (average,) = [value.module for value in vars(self.averaging).values() if isinstance(value, AveragedModel)]
        parts: list[Any] = [*average.get_submodule("net").children()]
        with torch.no_grad():
            normed = nn.functional.batch_norm(
                parts[0](probe().tensor), parts[1].running_mean, parts[1].running_var, parts[1].weight, parts[1].bias
            )
            self.maps[trainer.global_step] = parts[4](torch.relu(normed))
        self.filters[trainer.global_step] = parts[0].weight.detach().clone()
        self.trained[trainer.global_step] = module.net[0].weight.detach().clone()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)


@pytest.mark.parametrize("schedule", [{}, {"every_n_train_steps": 1}], ids=["epochs", "steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_filters_and_maps_are_those_of_the_averages(
    kind: str, schedule: dict[str, int], tmp_path: Path
) -> None:
    averaging = AVERAGES[kind]()
    witness = Witness(averaging)
    callbacks = [averaging, *monitors(weights="ema", **schedule), witness]
    trace(net, (3, 16, 16), lambda: callbacks, tmp_path, epochs=3, images=16)
    run = stored(tmp_path)
    assert run.manifest.settings["filters"]["weights"] == run.manifest.settings["feature_maps"]["weights"] == "ema"
    assert run.steps == [*range(13 if schedule else 4)]
    for step in run.steps:
        record = run.read_record(step)
        at = record.global_step
        if schedule and kind == "ema, by epoch" and at in (4, 8, 12):
            continue  # this one updates after its last look at the step, with the epoch's end
        np.testing.assert_array_equal(record.filters["net.0"], witness.filters[at].numpy())
        np.testing.assert_allclose(record.feature_maps["net.4"], witness.maps[at].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run.read_record(0).filters["net.0"], witness.trained[0].numpy())
    assert not torch.equal(witness.filters[12], witness.trained[12])


@pytest.mark.parametrize("weights", ["train", "ema"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_averages_are_as_if_unwatched(kind: str, weights: str, tmp_path: Path) -> None:
    facts, averages = [], []
    for watching in (False, True):
        averaging = AVERAGES[kind]()
        own = monitors(weights=weights, every_n_train_steps=1) if watching else []
        callbacks: list[L.Callback] = [averaging, *own]
        # training's end copies Lightning's averages into the module, so that these facts are of both
        facts.append(trace(net, (3, 16, 16), partial(list, callbacks), tmp_path, epochs=3, images=16))
        (average,) = [value for value in vars(averaging).values() if isinstance(value, AveragedModel)]
        averages.append({**average.state_dict(), **{n: p.training for n, p in average.named_modules()}})
    assert differences(*facts) == []
    assert averages[0].keys() == averages[1].keys()
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(*(a.values() for a in averages), strict=True))


@needs_lightnings
@pytest.mark.parametrize("weights", ["train", "ema"])
def test_validation_swaps_nothing_into_the_snapshots(weights: str, tmp_path: Path) -> None:
    averaging = AVERAGES["ema"]()
    witness = Witness(averaging)
    # Lightning validates with the averages in the place of the weights: at the start, and within each epoch, too
    run = trainer(
        tmp_path, [averaging, *monitors(weights=weights, every_n_train_steps=1), witness], val_check_interval=2
    )
    fit(run, Normed(), validate=True)
    expected = witness.filters if weights == "ema" else witness.trained
    for step in range(13):
        np.testing.assert_array_equal(stored(tmp_path).read_record(step).filters["net.0"], expected[step].numpy())


class Normed(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = net(), nn.Linear(5, 3)


@needs_lightnings
@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("options", [{"precision": p} for p in ("bf16-mixed", "bf16-true", "64-true")], ids=str)
def test_averages_are_shown_in_every_precision(options: dict[str, Any], accelerator: str, tmp_path: Path) -> None:
    callbacks = [EMAWeightAveraging(device="cpu", decay=0.5), *monitors(weights="ema")]
    trace(net, (3, 16, 16), lambda: callbacks, tmp_path, accelerator=accelerator, devices=1, **options)
    assert stored(tmp_path).steps == [0, 1, 2]
    assert stored(tmp_path).read_record(2).feature_maps["net.4"].shape == (1, 5, 12, 12)


def test_a_resume_goes_on_with_the_averages(tmp_path: Path) -> None:
    if not LIGHTNING_AVERAGES:
        pytest.skip("this Lightning has no WeightAveraging")

    def run(folder: Path, epochs: int, weights: str, ckpt_path: Path | None = None) -> Path:
        checkpoint = ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)
        callbacks = [EMAWeightAveraging(decay=0.5), *monitors(weights=weights), checkpoint]
        torch.manual_seed(0)
        fit(trainer(folder, callbacks, max_epochs=epochs, enable_checkpointing=True), TinyCNN(), ckpt_path=ckpt_path)
        return folder / "checkpoints" / f"epoch={epochs - 1}.ckpt"

    saved = run(tmp_path / "parts", 2, "ema")
    with pytest.raises(ValueError, match=r"the run that is resumed had other settings .*'ema'.*'train'"):
        run(tmp_path / "parts", 4, "train", saved)
    run(tmp_path / "parts", 4, "ema", saved)
    run(tmp_path / "whole", 4, "ema")
    parts, whole = stored(tmp_path / "parts"), stored(tmp_path / "whole")
    assert parts.steps == whole.steps == [0, 1, 2, 3, 4]
    for step in parts.steps:
        np.testing.assert_array_equal(
            parts.read_record(step).filters["net.0"], whole.read_record(step).filters["net.0"]
        )


# --- SWA


class SwaWitness(L.Callback):
    """The trained filters at the end of each epoch, and the averaged ones at the end."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained.append(pl_module.get_parameter("net.0.weight").detach().clone())


@pytest.mark.parametrize("norm", [False, True])
def test_beside_swa_the_trained_weights_are_shown(norm: bool, tmp_path: Path) -> None:
    build = net if norm else (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))

    def swa() -> L.Callback:
        return StochasticWeightAveraging(1e-2, swa_epoch_start=1)

    witness, averaging = SwaWitness(), swa()
    plain = trace(build, (3, 16, 16), lambda: [swa()], tmp_path, epochs=4, images=16)
    callbacks = [averaging, *monitors(), witness]
    watched = trace(build, (3, 16, 16), lambda: callbacks, tmp_path, epochs=4, images=16)
    assert differences(plain, watched) == []
    run = stored(tmp_path)
    assert run.steps == [*range(6 if norm else 5)]  # with batch norm, SWA adds an epoch that begins with its average
    for step in run.steps[1:]:
        np.testing.assert_array_equal(run.read_record(step).filters["net.0"], witness.trained[step - 1].numpy())
    averaged = averaging._average_model.net[0].weight.detach().numpy()  # type: ignore[attr-defined]
    away = [float(np.abs(run.read_record(step).filters["net.0"] - averaged).max()) for step in run.steps]
    assert (away[-1] < away[-2] / 2) == norm, "the added epoch is a step of the optimiser's momentum away"


# --- refusals


def refused(folder: Path, callbacks: Sequence[L.Callback], message: str) -> None:
    run = trainer(folder, callbacks)
    with pytest.raises(ValueError, match=message) as caught:
        fit(run, TinyCNN())
    assert run.global_step == 0
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob("cnnlog"))


def test_averages_that_nobody_keeps(tmp_path: Path) -> None:
    message = r'weights="ema" expected a callback that keeps an AveragedModel.*there is .*add one before the monitors'
    refused(tmp_path, [FilterMonitor(weights="ema")], message)
    refused(tmp_path, [StochasticWeightAveraging(1e-2), *monitors(weights="ema")], "there is StochasticWeightAveraging")


def test_averages_that_are_updated_after_the_look(tmp_path: Path) -> None:
    refused(
        tmp_path, [*monitors(weights="ema"), OwnAverage()], "OwnAverage keeps, .*after the monitors.*list it before"
    )


def test_monitors_of_different_weights(tmp_path: Path) -> None:
    callbacks = [OwnAverage(), FilterMonitor(weights="ema"), FeatureMapMonitor(probe())]
    refused(tmp_path, callbacks, r'share their forward pass.*weights="ema".*weights="train".*give both the same')


def test_weights_of_another_name() -> None:
    with pytest.raises(ValueError, match="FilterMonitor expected weights as one of train, ema, got 'swa'"):
        FilterMonitor(weights="swa")  # type: ignore[arg-type]

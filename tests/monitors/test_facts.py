"""What a training knows of itself is kept beside its snapshots: metrics, learning rates, hyper-parameters."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from support.training import TinyCNN, events, fit, loader, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor, open_run, watch
from cnnlog.monitors.announcement import announcement
from cnnlog.monitors.facts import MOST_VALUES, hyper_parameters, learning_rates, plain_numbers
from cnnlog.monitors.plan import Watched
from cnnlog.runs.manifest import Manifest
from cnnlog.runs.run import Run
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Record


def stored(folder: Path) -> Run:
    return open_run(folder / "run" / "v0")


class Scheduled(TinyCNN):
    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)}


def test_metrics_and_learning_rates_stand_beside_each_snapshot(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Sees(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    fit(trainer(tmp_path, [FilterMonitor(), Sees()]), Scheduled(), validate=True)
    run = stored(tmp_path)
    assert run.steps == (0, 1, 2, 3)
    assert run.metrics("baseline")["lr-SGD"] == pytest.approx(0.1)
    for step in (1, 2, 3):
        assert run.metrics(step) == pytest.approx({**seen[step - 1], "lr-SGD": 0.1 * 0.5**step})
        assert {"loss", "val_loss"} <= run.metrics(step).keys()
    assert run.metrics() == run.metrics(3)
    assert run.record(2).metrics == run.metrics(2) == run.summary(2).metrics
    logged = {scalar.step: scalar.value for scalar in events(tmp_path / "run" / "v0").Scalars("val_loss")}
    assert run.metrics(3)["val_loss"] == pytest.approx(logged[max(logged)])


def test_metrics_of_steps_and_of_a_last_state(tmp_path: Path) -> None:
    losses: list[float] = []

    class Sees(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, out: Any, *_: Any) -> None:
            losses.append(float(out["loss"]))

    fit(trainer(tmp_path, [FilterMonitor(every_n_train_steps=3), Sees()], max_epochs=2), TinyCNN())
    run = stored(tmp_path)
    assert run.steps == (0, 3, 6, 8)
    for step in (3, 6, 8):
        assert run.metrics(step)["loss"] == pytest.approx(losses[step - 1])


def test_a_resumed_run_has_the_metrics_of_both_parts(tmp_path: Path) -> None:
    first = trainer(tmp_path, [FilterMonitor()], max_epochs=2)
    fit(first, TinyCNN())
    first.save_checkpoint(tmp_path / "at.ckpt")
    fit(trainer(tmp_path, [FilterMonitor()], max_epochs=4), TinyCNN(), ckpt_path=tmp_path / "at.ckpt")
    run = stored(tmp_path)
    assert run.steps == (0, 1, 2, 3, 4)
    assert all("lr-SGD" in run.metrics(step) for step in run.steps)
    assert all("loss" in run.metrics(step) for step in run.steps[1:])


def test_a_metric_that_cannot_be_told_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("compute before update")

    monkeypatch.setattr("cnnlog.monitors.taking.metrics_of", fails)
    with pytest.warns(UserWarning, match=r"metrics are not known .*compute before update") as caught:
        fit(trainer(tmp_path, [FilterMonitor()]), TinyCNN())
    assert len([w for w in caught if "cnnlog" in str(w.message)]) == 1
    assert stored(tmp_path).steps == (0, 1, 2, 3)


def test_learning_rates_are_called_as_lightnings(tmp_path: Path) -> None:
    class Several(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, _: int) -> None:  # type: ignore[override]
            for optimiser in self.optimizers():  # type: ignore[union-attr]
                optimiser.zero_grad()
                self.manual_backward(self(batch[0]).square().mean())
                optimiser.step()

        def configure_optimizers(self) -> Any:
            head = list(self.head.parameters())
            groups: Any = [{"params": self.net[0].parameters()}, {"params": self.net[3].parameters(), "lr": 0.3}]
            named: Any = [{"params": head[:1], "name": "weight"}, {"params": head[1:], "lr": 0.4, "name": "bias"}]
            return (
                torch.optim.SGD(groups, lr=0.1),
                torch.optim.SGD(named, lr=0.2),
                torch.optim.Adam(self.head.parameters(), lr=0.5),
            )

    fit(trainer(tmp_path, [FilterMonitor(), LearningRateMonitor()], max_epochs=1), Several())
    rates = {name: value for name, value in stored(tmp_path).metrics().items() if name.startswith("lr-")}
    assert rates == pytest.approx(
        {"lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.3, "lr-SGD-1/weight": 0.2, "lr-SGD-1/bias": 0.4, "lr-Adam": 0.5}
    )
    theirs = {tag for tag in events(tmp_path / "run" / "v0").Tags()["scalars"] if tag.startswith("lr-")}
    assert theirs == set(rates)


def test_a_loop_gives_metrics(tmp_path: Path) -> None:
    with watch(TinyCNN().net, None, tmp_path) as watcher:
        watcher.snapshot(0)
        watcher.snapshot(1, metrics={"val/loss": torch.tensor(0.25), "acc": np.float32(0.5), "n": 3})
        with pytest.warns(UserWarning, match=r"metrics expected names with numbers, left out: 'what', 3"):
            watcher.snapshot(2, metrics={"what": "words", 3: 1.0, "nan": math.nan})  # type: ignore[dict-item]
    run = open_run(tmp_path)
    assert run.metrics(0) == {}
    assert run.metrics(1) == {"val/loss": 0.25, "acc": 0.5, "n": 3.0}
    assert list(run.metrics(2)) == ["nan"]
    assert math.isnan(run.metrics(2)["nan"])


@pytest.mark.parametrize("metrics", [3, [("a", 1)]])
def test_metrics_of_another_kind(metrics: Any) -> None:
    assert plain_numbers(metrics) == ({}, repr(metrics))


def test_files_without_metrics_stay_readable_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with watch(TinyCNN().net, None, tmp_path) as watcher:
        watcher.snapshot(0)
    store = RunStore.open(str(tmp_path / "cnnlog"))
    manifest = json.loads((tmp_path / "cnnlog" / "manifest.json").read_text())
    for key in ("hyper_parameters", "writer"):
        del manifest[key]
    assert Manifest.from_json(json.dumps(manifest), where="x").hyper_parameters == {}
    record = store.read_record(0)
    assert (record.metrics, record.provisional) == ({}, False)
    given = Record(1, 1, 4, metrics={"a/b": 0.1, "é": math.inf}, provisional=True)
    store.write_record(given)
    read = store.read_record(1, numbers_only=True)
    assert (read.metrics, read.provisional) == (given.metrics, True)
    path = tmp_path / "cnnlog" / "step-00000001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a/b", b'a"b'))
    with pytest.raises(ValueError, match=r"step-00000001.safetensors.*delete it"):
        store.read_record(1)


# --- hyper-parameters


class Colour(enum.Enum):
    RED = 1


class Parametrised(TinyCNN):
    def __init__(self, lr: float, layers: tuple[int, ...], net: nn.Module, **more: Any) -> None:
        super().__init__(lr)
        self.save_hyperparameters()


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def train_dataloader(self) -> Any:
        return loader(batch_size=self.hparams["batch_size"])


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of `nn.Module`")
def test_hyper_parameters_are_in_the_manifest(tmp_path: Path) -> None:
    module = Parametrised(
        0.01,
        (3, 4),
        nn.ReLU(),
        nested={"a": {"b": [1, None, True]}, "net": nn.ReLU()},
        colour=Colour.RED,
        numpy=np.float32(0.5),
        whole=np.int64(7),
        nan=math.nan,
        text="words",
    )
    trainer(tmp_path, [FilterMonitor()], max_epochs=1).fit(module, datamodule=Data(4, 99.0))
    found = stored(tmp_path).manifest.hyper_parameters
    assert found == {
        "lr": 0.01,
        "layers": [3, 4],
        "nested": {"a": {"b": [1, None, True]}},
        "numpy": 0.5,
        "whole": 7,
        "nan": "nan",
        "text": "words",
        "batch_size": 4,
    }
    json.loads((tmp_path / "run" / "v0" / "cnnlog" / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_hyper_parameters_are_bounded() -> None:
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    huge = {f"n{i}": list(range(10**4)) for i in range(10**3)}
    source = SimpleNamespace(hparams={"text": "x" * 10**6, "deep": deep, "loop": loop, "int": 10**400, **huge, 5: 1})
    found = hyper_parameters(None, SimpleNamespace(), source, SimpleNamespace(hparams=SimpleNamespace(lr=1)))
    assert len(json.dumps(found)) < 30_000
    assert len(found["text"]) < 600
    assert "n0" in found
    assert sum(len(v) for v in found.values() if isinstance(v, list)) <= MOST_VALUES
    assert all(isinstance(name, str) for name in found)
    assert hyper_parameters(SimpleNamespace(hparams=SimpleNamespace(lr=1))) == {"lr": 1}


def test_learning_rates_of_what_is_no_optimiser() -> None:
    assert learning_rates([object(), SimpleNamespace(param_groups=[{"lr": 1}])]) == {"lr-SimpleNamespace": 1}


# --- the start line


def line_of(names: list[str], **more: Any) -> str:
    watched = Watched(tuple(names), tuple(names), layers=(), taken=(), measured=())
    given = {"schedules": ["every epoch"], "averaged": False, "size": "1.00 MB stored", "folder": "/f/cnnlog"}
    return announcement(watched, probe(), **{**given, "logdir": None, **more})


def test_the_start_line_names_layers_probe_and_range() -> None:
    assert line_of(["conv1", "a.conv2", "layer4.2.conv3"]) == (
        "cnnlog watches filters and feature maps of 3 layers, conv1 ... layer4.2.conv3, every epoch; probe image 0 "
        "[1, 3, 16, 16] from 0.000879 to 0.999: 1.00 MB stored a snapshot in /f/cnnlog"
    )
    assert "of 2 layers, conv1 and conv2," in line_of(["conv1", "conv2"])
    assert "of 1 layer, conv1," in line_of(["conv1"])
    assert line_of(["a"], folder=None).endswith(": nothing is kept in fast_dev_run")
    assert line_of(["a"], logdir="/my runs").endswith("view: tensorboard --logdir '/my runs'")


@pytest.mark.parametrize("long", [10, 100, 200, 400, 5000])
def test_the_start_line_has_at_most_300_characters(long: int) -> None:
    name = "x" * long
    for names in ([f"{name}1"], [f"{name}{i}" for i in range(52)]):
        for folder in ("/f", f"/{name}", None):
            for logdir in (None, f"/{name}"):
                line = line_of(names, folder=folder, logdir=logdir, schedules=[f"at {name}", "every 3 epochs"])
                assert len(line) <= 300
                assert "1.00 MB stored" in line or folder is None
                assert "[1, 3, 16, 16] from 0.000879 to 0.999" in line


@pytest.mark.filterwarnings("ignore:.*is above 0 anywhere on the probe")  # so deep, and not trained
def test_the_start_line_of_a_deep_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Deep(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            more = [part for _ in range(50) for part in (nn.Conv2d(10, 10, 1), nn.ReLU())]
            self.net = nn.Sequential(*self.net, *more)

    with caplog.at_level("INFO"):
        callbacks = [FilterMonitor("*.*"), FeatureMapMonitor(probe(7), [nn.Conv2d], every_n_epochs=2)]
        fit(trainer(tmp_path / ("a" * 60) / ("b" * 60), callbacks, max_epochs=1), Deep())
    (line,) = [record.message for record in caplog.records if record.message.startswith("cnnlog watches")]
    assert len(line) <= 300
    assert "52 layers, net.0 ... net.103" in line
    assert "every epoch and every 2 epochs" in line

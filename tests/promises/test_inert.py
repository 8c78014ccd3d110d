"""The first promise: training with the monitors is bit-identical to training without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
import torchvision
from support.inertness import differences, trace
from support.zoo import ZOO
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe

# name -> height and width of the images: the smallest at which the model works
TORCHVISION = {
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 64,
    "mnasnet0_5": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "mobilenet_v2": 32,
    "convnext_tiny": 32,
    "regnet_y_400mf": 32,
}


def model(name: str) -> Callable[[], nn.Module]:
    more = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=5, **more)


def probe(image: tuple[int, int, int]) -> Probe:
    return Probe.from_tensor(torch.rand(2, *image, generator=torch.Generator().manual_seed(8)))


def monitors(image: tuple[int, int, int]) -> Callable[[], Sequence[L.Callback]]:
    return lambda: [FilterMonitor(), FeatureMapMonitor(probe(image))]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_trains_as_if_unwatched(name: str, tmp_path: Path) -> None:
    image = (3, TORCHVISION[name], TORCHVISION[name])
    plain = trace(model(name), image, list, tmp_path)
    watched = trace(model(name), image, monitors(image), tmp_path)
    assert differences(plain, watched) == []


@pytest.mark.parametrize("name", ZOO)
def test_awkward_nets_train_as_if_unwatched(name: str, tmp_path: Path) -> None:
    case = ZOO[name]
    plain = trace(case.build, case.image, list, tmp_path, epochs=3)
    fails = name == "fails_midway"
    with pytest.warns(UserWarning, match="cnnlog: .*evaluates only before training") if fails else nullcontext():
        watched = trace(case.build, case.image, monitors(case.image), tmp_path, epochs=3)
    assert differences(plain, watched) == []
    assert (tmp_path / "cnnlog_logs").exists()  # the monitors did run


class TrainModeForward(L.Callback):
    """A monitor as people write it: the probe goes through the model as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            pl_module(self.tensor)


class EvalThenTrain(TrainModeForward):
    """A monitor as careful people write it."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.eval()
        super().on_train_epoch_end(trainer, pl_module)
        pl_module.train()


class LeavesHook(TrainModeForward):
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        next(iter(pl_module.children())).register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("name", "careless", "seen"),
    [
        ("dropout_first", TrainModeForward, "torch generator"),
        ("dropout_first", TrainModeForward, "state net.3.running_mean"),
        ("frozen_norm", EvalThenTrain, "flag net.norm"),
        ("frozen_norm", EvalThenTrain, "loss 2"),
        ("spectral_norm_old", TrainModeForward, "state net.0.weight_u"),
        ("draws", EvalThenTrain, "python generator"),
        ("draws", EvalThenTrain, "attribute net.torch_generator"),
        ("mutates", EvalThenTrain, "attribute net.calls"),
        ("momentum", EvalThenTrain, "state net.key.weight"),
        ("in_place", LeavesHook, "hooks net"),
    ],
)
def test_the_comparison_sees_careless_monitors(
    name: str, careless: type[TrainModeForward], seen: str, tmp_path: Path
) -> None:
    case = ZOO[name]
    plain = trace(case.build, case.image, list, tmp_path, epochs=3)
    watched = trace(case.build, case.image, lambda: [careless(probe(case.image).tensor)], tmp_path, epochs=3)
    assert seen in differences(plain, watched)


def test_the_comparison_calls_two_plain_trainings_equal(tmp_path: Path) -> None:
    case = ZOO["draws"]
    assert differences(*(trace(case.build, case.image, list, tmp_path) for _ in range(2))) == []

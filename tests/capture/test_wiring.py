"""What lies behind a layer: the norm, the activation, and whether it makes the scores."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnnlog.capture.capture import survey
from cnnlog.capture.wiring import Behind


def behind(net: nn.Module, size: tuple[int, ...] = (1, 3, 16, 16)) -> dict[str, Behind]:
    infos = survey(net, torch.rand(size, generator=torch.Generator().manual_seed(0)))
    return {info.name: info.behind for info in infos if info.has_weights and info.behind is not None}


def net(*after: nn.Module) -> nn.Sequential:
    """A convolution, what comes after it, and a classifier, which makes the scores."""
    head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4, 2))
    return nn.Sequential(
        OrderedDict(
            [("conv", nn.Conv2d(3, 4, 3)), *((f"after{i}", part) for i, part in enumerate(after)), *head.items()]
        )
    )


class Doing(nn.Module):
    """Does something to its input that is no module."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.what(x)
        return result


SEEN: dict[str, tuple[list[nn.Module], str, str]] = {
    "module": ([nn.ReLU()], "ReLU", "conv"),
    "in place": ([nn.ReLU(inplace=True)], "ReLU", "conv"),
    "function": ([Doing(F.relu)], "ReLU", "conv"),
    "torch's": ([Doing(torch.relu)], "ReLU", "conv"),
    "method": ([Doing(lambda x: x.relu())], "ReLU", "conv"),
    "clamp": ([Doing(lambda x: x.clamp(min=0))], "ReLU", "conv"),
    "six": ([nn.ReLU6()], "ReLU6", "conv"),
    "swish": ([nn.SiLU()], "SiLU", "conv"),
    "hard swish": ([nn.Hardswish()], "Hardswish", "conv"),
    "gelu": ([nn.GELU()], "GELU", "conv"),
    "behind a norm": ([nn.BatchNorm2d(4), nn.ReLU()], "ReLU", "after0"),
    "behind a group norm": ([nn.GroupNorm(2, 4), nn.ELU()], "ELU", "after0"),
    "behind dropout": ([nn.Dropout(), nn.ReLU()], "ReLU", "conv"),
}


@pytest.mark.parametrize("case", SEEN)
def test_the_activation_behind_is_seen(case: str) -> None:
    after, activation, at = SEEN[case]
    found = behind(net(*after))["conv"]
    assert (found.activation, found.at, found.scores) == (activation, at, False)
    assert found.normalised == any("Norm" in type(part).__name__ for part in after)


UNSEEN: dict[str, list[nn.Module]] = {
    "none": [],
    "pooling first": [nn.MaxPool2d(2), nn.ReLU()],
    "an addition first": [Doing(lambda x: (x + x.mean()).relu())],
    "a gate": [nn.Sigmoid()],
    "always above 0": [nn.Softplus()],
    "a clamp elsewhere": [Doing(lambda x: x.clamp(min=-1))],
    "another convolution": [nn.Conv2d(4, 4, 1), nn.ReLU()],
}


@pytest.mark.parametrize("case", UNSEEN)
def test_where_there_is_none_in_sight_it_is_not_guessed(case: str) -> None:
    found = behind(net(*UNSEEN[case]))["conv"]
    assert (found.activation, found.at) == (None, None)


def test_a_frozen_norm_does_not_undo_the_length_of_filters() -> None:
    found = behind(net(torchvision.ops.FrozenBatchNorm2d(4), nn.ReLU()))["conv"]
    assert (found.activation, found.at, found.normalised) == ("ReLU", "after0", False)


class Twice(nn.Module):
    """One norm and one activation for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.a(x)))
        x = self.relu(self.norm(self.b(x)))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def test_a_norm_that_serves_two_layers_is_looked_at_for_its_first() -> None:
    found = behind(Twice())
    assert found["a"].at == "norm"
    assert found["b"].at is None


class Forked(nn.Module):
    """What goes into the activation is used again: beside its negative, or on a skip, before or after."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(8 if how == "crelu" else 4, 2, 1)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.how == "crelu":
            x = torch.cat([F.relu(x), F.relu(-x)], 1)
        elif self.how == "preactivation":
            x = x + F.relu(self.inner(F.relu(self.norm(x))))
        elif self.how == "skip first":
            skip = x * 1
            x = skip + F.relu(self.inner(F.relu(x)))
        else:  # read and activated twice
            x = F.relu(x) * x.shape[1] + F.relu(x)
        result: torch.Tensor = self.head(x)
        return result


@pytest.mark.parametrize(
    ("how", "at"), [("crelu", None), ("preactivation", None), ("skip first", None), ("twice", "stem")]
)
def test_a_channel_that_lives_on_elsewhere_is_not_called_dead(how: str, at: str | None) -> None:
    assert behind(Forked(how))["stem"].at == at


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(F.relu(F.batch_norm(self.conv(x), None, None, training=True)))
        return result


def test_a_norm_that_is_called_as_a_function_normalises_and_hides_what_goes_into_the_activation() -> None:
    conv = behind(FunctionalNorm())["conv"]
    assert (conv.normalised, conv.at) == (True, None)


class Detector(nn.Module):
    """Two heads, one of scores and one of boxes, on each of two levels; a ReLU behind the scores changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2)
        self.scores, self.boxes = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        levels = [x := F.relu(self.stem(x)), F.relu(self.down(x))]
        return [torch.cat([F.relu(self.scores(level)), self.boxes(level)], 1).flatten(1) for level in levels]


def test_heads_that_make_scores_have_no_activation() -> None:
    found = behind(Detector())
    assert {name for name, one in found.items() if one.scores} == {"scores", "boxes"}
    assert {name for name, one in found.items() if one.at is not None} == {"stem", "down"}


@pytest.mark.parametrize(
    ("name", "seen", "normalised", "scores"),
    [
        ("squeezenet1_1", 25, 0, ["classifier.1"]),  # a ReLU stands behind its scores, too
        ("resnet50", 33, 53, ["fc"]),  # the others come to theirs after an addition
        ("mobilenet_v3_small", 33, 34, ["classifier.3"]),
        ("vgg11_bn", 10, 8, ["classifier.6"]),
    ],
)
def test_known_networks(name: str, seen: int, normalised: int, scores: list[str]) -> None:
    found = behind(torchvision.models.get_model(name, weights=None), (1, 3, 64, 64))
    assert sum(one.at is not None for one in found.values()) == seen
    assert sum(one.normalised for one in found.values()) == normalised
    assert [layer for layer, one in found.items() if one.scores] == scores


class Stubborn(nn.Module):
    """Refuses to run while its functions are watched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.overrides._len_torch_function_stack():  # type: ignore[attr-defined]
            raise RuntimeError("somebody is watching")
        result: torch.Tensor = self.conv(x)
        return result


def test_a_network_that_cannot_be_watched_so_closely_is_surveyed_all_the_same() -> None:
    (conv,) = [info for info in survey(Stubborn(), torch.rand(1, 3, 8, 8)) if info.has_weights]
    assert conv.output_shape == (1, 4, 6, 6)
    assert conv.behind is None

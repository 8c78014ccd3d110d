"""A dozen small networks for the oracle, and what it sees of them itself: with plain hooks, on a copy, without cnnlog.

What lies behind each layer is written down here by hand, because the package finds it out by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]
Steps = tuple[tuple[int, int], ...]
STEPS: Steps = ((0, 0), (1, 3), (2, 6), (4, 12))
"""The snapshots: step, and how many optimiser steps are complete."""


@dataclass(frozen=True)
class Layer:
    """What lies behind a layer.

    Attributes:
        norm: whether a norm follows directly.
        activated: the module whose output is that of the activation behind; None without one.
        function: applied to that output first, where the activation is no module.
    """

    norm: bool = False
    activated: str | None = None
    function: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """A network of the zoo.

    Attributes:
        build: makes it.
        layers: its convolutions and linear layers in the order in which they run.
        image: the shape of a probe image.
        images: how many there are.
        disturb: done to the network before each snapshot but the first; None trains it.
        options: of `cnnlog.watch`.
    """

    build: Callable[[], nn.Module]
    layers: Mapping[str, Layer]
    image: tuple[int, int, int] = (3, 14, 14)
    images: int = 1
    disturb: Callable[[nn.Module, int], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def probe(self) -> torch.Tensor:
        return torch.randn(self.images, *self.image, generator=torch.Generator().manual_seed(11))


@dataclass(frozen=True)
class State:
    """What was seen of a network at one snapshot.

    Attributes:
        step: of the snapshot.
        global_step: completed optimiser steps.
        weights: layer -> its weights, filters first: `[O, I, ...]`.
        outputs: layer -> its first output on the probe.
        activated: layer -> what the activation behind it gives, channels first.
        before: layer -> its weights before the last optimiser step, where that is known.
    """

    step: int
    global_step: int
    weights: dict[str, Array]
    outputs: dict[str, Array]
    activated: dict[str, Array]
    before: dict[str, Array] = field(default_factory=dict)


def weights_of(model: nn.Module, layers: Mapping[str, Layer], prefix: str = "") -> dict[str, Array]:
    modules = dict(model.named_modules())
    return {prefix + name: _filters_first(modules[name]) for name in layers}


def seen(model: nn.Module, case: Case, step: int, global_step: int, *, prefix: str = "") -> State:
    """Run the probe through a copy of the network, and keep what comes out of its layers."""
    observed = copy.deepcopy(model).eval()
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            outputs.setdefault(name, output.detach().clone())

        return hook

    for name, module in observed.named_modules():
        module.register_forward_hook(keep(name))
    with torch.no_grad():
        observed(case.probe())
    activated = {}
    for name, layer in case.layers.items():
        if layer.activated is not None:
            output = outputs[layer.activated]
            output = output if layer.function is None else layer.function(output)
            last = outputs[name].dim() != 4 and isinstance(dict(observed.named_modules())[name], nn.Linear)
            activated[prefix + name] = np.moveaxis(output.numpy(), -1 if last else 1, 0)
    return State(
        step,
        global_step,
        weights_of(observed, case.layers, prefix),
        {prefix + name: outputs[name].numpy() for name in case.layers},
        activated,
    )


def trained(model: nn.Module, case: Case, *, lr: float = 1e-2, steps: Steps = STEPS) -> Iterator[tuple[int, int]]:
    """Train a network, and yield at each snapshot."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(5)
    done = 0
    for step, global_step in steps:
        while done < global_step and case.disturb is None:
            optimiser.zero_grad()
            out = model(torch.randn(4, *case.image, generator=generator))
            (out - torch.randn(out.shape, generator=generator)).square().mean().backward()
            optimiser.step()
            done += 1
        if case.disturb is not None and step:
            case.disturb(model, step)
        yield step, global_step


def _filters_first(module: nn.Module) -> Array:
    """As the forward pass uses them: one filter a row, frames of a 3-D kernel side by side."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    array = weight.detach().clone().numpy()
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        parts = np.split(array, module.groups, axis=0)
        array = np.concatenate([np.swapaxes(part, 0, 1) for part in parts], axis=0)
    if array.ndim == 5:
        array = np.concatenate([array[:, :, frame] for frame in range(array.shape[2])], axis=-1)
    return array


# --- the networks ----------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """A body, the mean over positions, and a head."""

    def __init__(self, body: nn.Module, channels: int, classes: int = 3) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


class Residual(nn.Module):
    """Two blocks, whose activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.head((nn.functional.gelu(self.conv3(x)) + x).mean((2, 3)))


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.act = nn.Conv3d(1, 5, (2, 3, 3)), nn.ReLU()
        self.deeper, self.head = nn.Conv3d(5, 4, (2, 3, 3), bias=False), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deeper(self.act(self.deep(x[:, None]))).mean((2, 3, 4)))


class Sequence(nn.Module):
    """A convolution in two dimensions, and two along one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.act1 = nn.Conv2d(3, 6, 3), nn.Conv1d(6, 7, 5, stride=2), nn.ReLU(inplace=True)
        self.conv2, self.norm, self.act2 = nn.Conv1d(7, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.conv1(self.stem(x).flatten(2)))
        return self.head(self.act2(self.norm(self.conv2(x))).mean(2))


class Tokens(nn.Module):
    """Patches, and what a transformer does with them apart from attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.up, self.act = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 16), nn.GELU()
        self.down, self.norm, self.head = nn.Linear(16, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.down(self.act(self.up(tokens)))).mean(1))


class Branches(nn.Module):
    """Two convolutions side by side, so that what is NaN in one does not reach the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.act, self.right = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(3, 6, 3)
        self.after, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.after(self.act(self.left(x))) + self.right(x)[..., 1:-1, 1:-1][:, :5]).mean((2, 3)))


class Wide(nn.Module):
    """A linear layer with more weights than are all measured."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.wide, self.then = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(576, 1830), nn.ReLU()
        self.head = nn.Linear(1830, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.then(self.wide(self.act(self.conv(x)).flatten(1))))


def _plain() -> nn.Module:
    return Pooled(
        nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 3), nn.ReLU()), 10
    )


def _dead() -> nn.Module:
    model = Pooled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()), 6)
    with torch.no_grad():
        for position, channels in ((0, 3), (2, 1)):
            conv = model.body[position] if isinstance(model.body, nn.Sequential) else None
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            conv.bias[:channels] = -100
    return model


def _near_zero() -> nn.Module:
    body = [
        nn.Conv2d(3, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3),
        nn.BatchNorm2d(10),
        nn.ReLU(),
    ]
    model = Pooled(nn.Sequential(*body), 10)
    with torch.no_grad():
        first, second = model.get_submodule("body.0"), model.get_submodule("body.3")
        assert isinstance(first.weight, torch.Tensor)
        assert isinstance(second.weight, torch.Tensor)
        first.weight[2] *= 1e-5
        first.weight[4] = 0
        second.weight[1] *= 1e-4
    return model


def _noise(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)


def _break_a_filter(model: nn.Module, step: int) -> None:
    _noise(model, step)
    left = model.get_submodule("left").weight
    assert isinstance(left, torch.Tensor)
    if step == 2:
        with torch.no_grad():
            left[1, 0, 0, 0] = torch.nan
    elif step == 4:
        with torch.no_grad():
            left[1] = 0.5


_ENDS = {"head": Layer()}

ZOO: dict[str, Case] = {
    "plain": Case(_plain, {"body.0": Layer(activated="body.1"), "body.3": Layer(activated="body.4"), **_ENDS}),
    "batch_norm": Case(
        lambda: Pooled(
            nn.Sequential(
                *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
                *(nn.Conv2d(8, 9, 3, bias=False), nn.BatchNorm2d(9), nn.ReLU(inplace=True)),
            ),
            9,
        ),
        {"body.0": Layer(norm=True, activated="body.2"), "body.3": Layer(norm=True, activated="body.5"), **_ENDS},
        images=3,
    ),
    "group_norm": Case(
        lambda: Pooled(
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.GroupNorm(3, 6), nn.SiLU()
            ),
            6,
        ),
        {"body.0": Layer(norm=True, activated="body.2"), "body.3": Layer(norm=True, activated="body.5"), **_ENDS},
    ),
    "depthwise": Case(
        lambda: Pooled(
            nn.Sequential(
                *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
                *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
                *(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)),
            ),
            12,
        ),
        {
            "body.0": Layer(norm=True, activated="body.2"),
            "body.3": Layer(norm=True, activated="body.5"),
            "body.6": Layer(norm=True),
            **_ENDS,
        },
    ),
    "grouped": Case(
        lambda: Pooled(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(inplace=True), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()), 8
        ),
        {"body.0": Layer(activated="body.1"), "body.2": Layer(activated="body.3"), **_ENDS},
        options={"view": "mean", "map_layers": ["body.2"]},
    ),
    "transposed": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 4, 4, stride=2, groups=2)),
            *(nn.LeakyReLU(), nn.ConvTranspose2d(4, 3, 3)),
        ),
        {"0": Layer(activated="1"), "2": Layer(activated="3"), "4": Layer()},
    ),
    "video": Case(Video, {"deep": Layer(activated="act"), "deeper": Layer(), **_ENDS}),
    "sequence": Case(
        Sequence,
        {"stem": Layer(), "conv1": Layer(activated="act1"), "conv2": Layer(norm=True, activated="act2"), **_ENDS},
    ),
    "tokens": Case(Tokens, {"patches": Layer(), "up": Layer(activated="act"), "down": Layer(norm=True), **_ENDS}),
    "residual": Case(
        Residual,
        {
            "conv1": Layer(norm=True, activated="bn1", function=torch.relu),
            "conv2": Layer(norm=True),
            "conv3": Layer(activated="conv3", function=nn.functional.gelu),
            **_ENDS,
        },
        images=2,
    ),
    "dead": Case(_dead, {"body.0": Layer(activated="body.1"), "body.2": Layer(activated="body.3"), **_ENDS}),
    "not_finite": Case(
        Branches,
        {"left": Layer(activated="act"), "after": Layer(), "right": Layer(), **_ENDS},
        disturb=_break_a_filter,
    ),
    "near_zero": Case(
        _near_zero, {"body.0": Layer(activated="body.1"), "body.3": Layer(norm=True, activated="body.5"), **_ENDS}
    ),
    "large_maps": Case(
        lambda: Pooled(nn.Sequential(nn.Conv2d(3, 40, 5), nn.SiLU(), nn.Conv2d(40, 20, 3, 4), nn.ReLU()), 20, 2),
        {"body.0": Layer(activated="body.1"), "body.2": Layer(activated="body.3"), **_ENDS},
        image=(3, 66, 70),
        images=5,
    ),
    "wide": Case(
        Wide, {"conv": Layer(activated="act"), "wide": Layer(activated="then"), **_ENDS}, options={"cmap": "gray"}
    ),
}

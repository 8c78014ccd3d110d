"""Awkward nets: each does in `forward` something that a careless observer disturbs, or trips over.

`ZOO` maps a name to a builder and the shape of one image. A net may be a plain module or a LightningModule; what it
returns is a tensor, or holds one first.
"""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from support.inertness import Trained
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    image: tuple[int, int, int] = (3, 12, 12)


class InPlace(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
        )


class FrozenNorm(nn.Module):
    """Its norm is in eval mode while the rest trains, and one convolution is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        self.drop = nn.Dropout(0.3)
        self.norm.eval()
        self.stem.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.head(self.norm(self.stem(x))))


class Shared(nn.Module):
    """One convolution under two names, run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(self.stem(x)))
        return self.second(self.norm(self.first(x)))


class Grouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3, groups=2), nn.ReLU6(True))


class InModuleDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"conv_a": nn.Conv2d(3, 4, 3), "rest": nn.ModuleList([nn.Conv2d(4, 4, 3)])})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = self.parts["rest"]
        assert isinstance(rest, nn.ModuleList)
        return rest[0](self.parts["conv_a"](x))


def _old_style(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.Sequential(wrap(nn.Conv2d(3, 6, 3)), nn.ReLU(), wrap(nn.Conv2d(6, 4, 3)))

    return build


def _new_style(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(nn.Conv2d(3, 6, 3)), nn.ReLU(), wrap(nn.Conv2d(6, 4, 3)))


class Noisy(nn.Module):
    """A parametrisation that draws."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + 0.01 * torch.randn_like(weight)


def _noisy(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Noisy())


def _pruned(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.4)


class DropoutFirst(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Dropout(0.5), nn.Conv2d(3, 6, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3))


class Logs(Trained):
    """Logs metrics from forward."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        self.log("mean", y.mean())
        self.log_dict({"largest": y.amax()})
        return y


class FailsMidway(nn.Module):
    """Evaluates well before training, and raises half-way once it has been trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.trained = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        self.trained += self.training
        if not self.training and self.trained:
            raise RuntimeError("this net evaluates only before training")
        return self.head(x)


class Draws(nn.Module):
    """Draws from every generator there is, in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generators: dict[str, Any] = {"new": np.random.default_rng(2), "old": np.random.RandomState(3)}
        self.python_generator = [random.Random(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = (
            torch.rand(()).item()
            + random.random()
            + np.random.rand()  # noqa: NPY002 - the global generator is the point
            + torch.rand((), generator=self.torch_generator).item()
            + self.numpy_generators["new"].random()
            + self.numpy_generators["old"].rand()
            + self.python_generator[0].random()
        )
        return self.conv(x) * noise


class Mutates(nn.Module):
    """Writes into attributes, containers, arrays and buffers, swaps a sub-module; its output shows it."""

    bytes: torch.Tensor
    rebound: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.spare = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.calls = 0
        self.cells: list[torch.Tensor] = [torch.zeros(2)]
        self.seen: dict[str, int] = {"calls": 0}
        self.shapes: set[int] = set()
        self.recent: deque[int] = deque(maxlen=3)
        self.array = np.zeros(2)
        self.plain = torch.zeros(3)
        self.register_buffer("bytes", torch.zeros(2))
        self.register_buffer("rebound", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen["calls"] += 1
        self.shapes.add(self.calls)
        self.recent.append(self.calls)
        self.array += 1
        self.plain += 1
        self.cells[0].add_(1)
        self.cells.append(x.detach().mean())
        self.bytes.add_(1)
        self.rebound = self.rebound + 1
        self.conv, self.spare = self.spare, self.conv
        self.invented = self.calls
        state = self.calls + self.seen["calls"] + len(self.shapes) + sum(self.recent) + len(self.cells)
        state += self.array.sum() + self.plain.sum() + self.cells[0].sum() + self.bytes.sum() + self.rebound.sum()
        return self.conv(x) * state


class Momentum(nn.Module):
    """Moves a second encoder after the first in each forward: by re-pointing `.data`, or in place."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.key.requires_grad_(False)
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for q, k in zip(self.query.parameters(), self.key.parameters(), strict=True):
                if self.in_place:
                    k.mul_(0.9).add_(q, alpha=0.1)
                else:
                    k.data = k.data * 0.9 + q.data * 0.1
        return self.query(x) - self.key(x)


class OtherBatch(nn.Module):
    """Cuts every image into four, as region heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        regions = self.stem(x).unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return self.head(regions)


class PairConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:  # type: ignore[override]
        return super().forward(x), "and a word"


class DictConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> dict[str, object]:  # type: ignore[override]
        return {"note": None, "out": [super().forward(x)]}


class Packed(nn.Module):
    """Its convolutions return a tuple and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.dictionary = PairConv(3, 4, 3), DictConv(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.dictionary(self.pair(x)[0])["out"]
        assert isinstance(out, list)
        return out[0]


class Caches(nn.Module):
    """Keeps a tensor of its first forward and saves it for backward in every later one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.template: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.template is None:
            self.template = torch.ones_like(y[:1]) * 0.5
        return y * self.template


class Transposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 4, 3, groups=2))


class Late(nn.Module):
    """Registers a buffer and a parameter when first run, with random values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.rand(4, 1, 1))
            self.register_buffer("shift", torch.rand(4, 1, 1))
        return self.conv(x) * self.scale + self.shift


class Video(nn.Module):
    """A 3-D convolution, whose output has five dimensions, beside a 2-D one."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deep(self.flat(x)[:, None])


class Auxiliary(nn.Module):
    """A head that runs in training only, and a flag that decides on more than mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.head(y) + self.aux(y) if self.training else self.head(y)


class KeepsHooks(nn.Module):
    """Has a hook of its own that replaces an output, and turns gradients on in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)
        self.conv.register_forward_hook(lambda _module, _inputs, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        return self.norm(self.conv(x))


def _old_weight_norm(module: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(module)


def _old_spectral_norm(module: nn.Module) -> nn.Module:
    return nn.utils.spectral_norm(module)


ZOO: dict[str, Case] = {
    "in_place": Case(InPlace),
    "frozen_norm": Case(FrozenNorm),
    "shared": Case(Shared),
    "grouped": Case(Grouped),
    "module_dict": Case(InModuleDict),
    "spectral_norm_old": Case(_old_style(_old_spectral_norm)),
    "spectral_norm_new": Case(_new_style(parametrizations.spectral_norm)),
    "weight_norm_old": Case(_old_style(_old_weight_norm)),
    "weight_norm_new": Case(_new_style(parametrizations.weight_norm)),
    "noisy_parametrisation": Case(_new_style(_noisy)),
    "pruned": Case(_new_style(_pruned)),
    "dropout_first": Case(DropoutFirst),
    "logs": Case(Logs),
    "fails_midway": Case(FailsMidway),
    "draws": Case(Draws),
    "mutates": Case(Mutates),
    "momentum": Case(lambda: Momentum(in_place=False)),
    "momentum_in_place": Case(lambda: Momentum(in_place=True)),
    "other_batch": Case(OtherBatch),
    "packed": Case(Packed),
    "caches": Case(Caches),
    "transposed": Case(Transposed),
    "late": Case(Late),
    "video": Case(Video),
    "auxiliary": Case(Auxiliary),
    "keeps_hooks": Case(KeepsHooks),
}

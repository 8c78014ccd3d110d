"""Networks made to break the loan: each changes something in forward that a look at it must not change.

All are one small network, whose output depends on what `more` gives before the convolution runs.
"""

from __future__ import annotations

import contextvars
import functools
import os
import random
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

IMAGE = (3, 6, 6)
CALLS = 0
STATE = {"seen": 0}
Build = Callable[[], nn.Module]
Look = Callable[[], None]


class Base(nn.Module):
    """The network that all others are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.trained = 0
        self.prepare()

    def prepare(self) -> None:
        """What a network adds."""

    def more(self, x: torch.Tensor) -> Any:
        """What it does in forward."""
        return 0

    @property
    def late(self) -> bool:
        """Whether it has been trained for two steps."""
        return self.trained >= 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.trained += 1
        more = float(self.more(x.detach()))
        return torch.relu(self.norm(self.conv(x))) * (1 + 0.01 * more)


class LateData(Base):
    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            self.conv.weight.data.mul_(1.01)
        return 0


class LateInPlace(Base):
    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            with torch.no_grad():
                self.conv.weight.add_(0.01)
        return 0


class LateThroughAnAlias(Base):
    def prepare(self) -> None:
        self.alias = [self.conv.weight.detach()]

    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            self.alias[0].mul_(1.05)
        return 0


class LateThroughNumpy(Base):
    def prepare(self) -> None:
        self.view = self.conv.weight.detach().numpy()

    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            self.view *= 1.05
        return 0


class LateAllAtOnce(Base):
    def prepare(self) -> None:
        self.key = nn.Conv2d(3, 4, 3, padding=1)

    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            with torch.no_grad():
                torch._foreach_lerp_([*self.key.parameters()], [*self.conv.parameters()], 0.1)
        return self.key(x).detach().mean()


class LateMomentum(Base):
    def prepare(self) -> None:
        self.key = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)

    def more(self, x: torch.Tensor) -> Any:
        if self.late:
            for ours, theirs in zip(self.key.parameters(), self.conv.parameters(), strict=True):
                ours.data = ours.data * 0.9 + theirs.data * 0.1
        return self.key(x).mean()


class LateMaxNorm(Base):
    def prepare(self) -> None:
        self.table = nn.Embedding(4, 3, max_norm=5.0)

    def more(self, x: torch.Tensor) -> Any:
        if self.training:
            with torch.no_grad():
                self.table.weight.mul_(3.0)
        return self.table(torch.tensor([0, 1] if self.training else [2, 3])).detach().sum()


class BindsAParameterAnew(Base):
    def more(self, x: torch.Tensor) -> Any:
        if not self.training:
            self.conv.weight = nn.Parameter(self.conv.weight.detach() * 1.1)
        return 0


class ReordersItsParameters(Base):
    def prepare(self) -> None:
        self.scale, self.last = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def more(self, x: torch.Tensor) -> Any:
        if not self.training:
            scale = self.scale
            del self.scale
            self.register_parameter("scale", scale)
        return 0


class ScalesGradients(Base):
    def more(self, x: torch.Tensor) -> Any:
        if self.conv.weight.grad is not None:
            self.conv.weight.grad.mul_(2)
        return 0


class DropsGradients(Base):
    def more(self, x: torch.Tensor) -> Any:
        self.conv.weight.grad = None
        return 0


class ParameterWithAttribute(Base):
    def more(self, x: torch.Tensor) -> Any:
        weight: Any = self.conv.weight
        weight.seen = getattr(weight, "seen", 0) + 1
        return weight.seen


class TurnsSwitches(Base):
    def more(self, x: torch.Tensor) -> Any:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = True
        torch.set_grad_enabled(True)
        os.environ["CNNLOG_TEST_COUNT"] = str(int(os.environ.get("CNNLOG_TEST_COUNT", "0")) + 1)
        if not self.training:
            torch.set_default_dtype(torch.float64)
        return int(os.environ["CNNLOG_TEST_COUNT"])


class CountsInAGlobal(Base):
    def more(self, x: torch.Tensor) -> Any:
        global CALLS  # noqa: PLW0603 - as people write it
        CALLS += 1
        STATE["seen"] += 1
        return CALLS + STATE["seen"]


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        kept: Any = wrapper
        kept.calls = getattr(kept, "calls", 0) + 1
        return function(*args) + calls + kept.calls

    return wrapper


def decorated() -> Base:
    class Decorated(Base):
        @counted
        def more(self, x: torch.Tensor) -> Any:
            return 0

    return Decorated()


def lru_cached() -> Base:
    class LruCached(Base):
        @functools.lru_cache(None)  # noqa: B019 - as people write it
        def table(self, length: int) -> torch.Tensor:
            return torch.ones(length) * self.trained

        def more(self, x: torch.Tensor) -> Any:
            return self.table(3).sum()

    return LruCached()


class CachedProperty(Base):
    @functools.cached_property
    def table(self) -> torch.Tensor:
        return torch.ones(3) * self.trained

    def more(self, x: torch.Tensor) -> Any:
        return self.table.sum()


class UnregisteredModules(Base):
    def prepare(self) -> None:
        self.parts = {"a": [nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))], "b": ({"c": nn.Linear(3, 3)},)}

    def more(self, x: torch.Tensor) -> Any:
        parts: Any = self.parts
        linear = parts["b"][0]["c"]
        with torch.no_grad():
            linear.weight.mul_(1.01)
        norm = parts["a"][0]
        return norm(x).mean() * norm[0].running_mean.sum() + linear.weight.detach().sum()


class AddsModulesAndHooks(Base):
    def prepare(self) -> None:
        self.calls = [0]

    def more(self, x: torch.Tensor) -> Any:
        self.add_module(f"more{len(self._modules)}", nn.Identity())
        self.conv.register_forward_hook(lambda *_: self.calls.__setitem__(0, self.calls[0] + 1))
        return len(self._modules) + self.calls[0]


class CollectsByHooks(Base):
    def prepare(self) -> None:
        self.store: dict[str, list[Any]] = {}

        def hook_for(name: str) -> Callable[..., None]:
            def hook(*given: Any) -> None:
                self.store.setdefault(name, []).append(given[-1])

            return hook

        self.conv.register_forward_hook(hook_for("conv"))
        self.norm.register_forward_pre_hook(hook_for("norm"))

    def more(self, x: torch.Tensor) -> Any:
        return sum(map(len, self.store.values()))


class WeakCache(Base):
    def prepare(self) -> None:
        self.cache: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self.alive: list[nn.Module] = []

    def more(self, x: torch.Tensor) -> Any:
        self.alive.append(nn.Identity())
        self.cache[len(self.alive)] = self.alive[-1]
        return len(self.cache)


class Queue(Base):
    def prepare(self) -> None:
        self.register_buffer("queue", torch.zeros(20_000, 20))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def more(self, x: torch.Tensor) -> Any:
        queue, pointer = self.get_buffer("queue"), self.get_buffer("pointer")
        queue[int(pointer)] = 1.0
        pointer += 1
        return queue.sum()


class GrowsABuffer(Base):
    def prepare(self) -> None:
        self.register_buffer("bound", torch.zeros(1))
        self.register_buffer("resized", torch.zeros(1))

    def more(self, x: torch.Tensor) -> Any:
        self.bound = torch.cat([self.get_buffer("bound"), torch.ones(1)])
        resized = self.get_buffer("resized")
        resized.data = torch.cat([resized.data, torch.ones(1)])
        return self.bound.sum() + resized.sum()


class ExpandedBuffer(Base):
    def prepare(self) -> None:
        self.register_buffer("one", torch.ones(1))
        self.register_buffer("five", self.get_buffer("one").expand(5))

    def more(self, x: torch.Tensor) -> Any:
        self.get_buffer("one").add_(1)
        return self.get_buffer("five").sum()


class SparseBuffer(Base):
    def prepare(self) -> None:
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def more(self, x: torch.Tensor) -> Any:
        self.sparse = self.get_buffer("sparse") * 1.1
        return self.sparse.to_dense().sum()


class Draws(Base):
    def more(self, x: torch.Tensor) -> Any:
        if not self.training:
            torch.manual_seed(3)
        return torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002


class AsksTheSystem(Base):
    def prepare(self) -> None:
        self.random = random.SystemRandom()


class TrainsItsNorm(Base):
    def more(self, x: torch.Tensor) -> Any:
        was = self.norm.training
        self.norm.train()
        mean = self.norm(x.mean(1, keepdim=True).expand(-1, 4, -1, -1)).detach().abs().mean()
        self.norm.train(was)
        return mean + self.norm.running_mean.sum()  # type: ignore[union-attr]


class Slots:
    __slots__ = ("__dict__", "__private", "parts")

    def __init__(self) -> None:
        self.__private, self.parts, self.more = 0, [0], 0

    def up(self) -> int:
        self.__private += 1
        self.parts[0] += 1
        self.more += 1
        return self.__private + self.parts[0] + self.more


class PrivateSlots(Base):
    def prepare(self) -> None:
        self.slots = Slots()

    def more(self, x: torch.Tensor) -> Any:
        return self.slots.up()


class OddArrays(Base):
    def prepare(self) -> None:
        self.numbers = np.zeros((4, 4)).T[1:]
        self.objects = np.array([[], {}], dtype=object)

    def more(self, x: torch.Tensor) -> Any:
        self.numbers += 1
        self.objects[0].append(1)
        return self.numbers.sum() + len(self.objects[0])


class LocksAnArray(Base):
    def prepare(self) -> None:
        self.locked, self.grown, self.numbers = np.zeros(3), np.zeros(2), [0]
        self.register_buffer("count", torch.zeros(1))

    def more(self, x: torch.Tensor) -> Any:
        self.locked = self.locked if self.locked.flags.writeable else self.locked.copy()
        self.locked += 1
        if not self.training:
            self.locked.setflags(write=False)
        self.grown.resize(len(self.grown) + 1, refcheck=False)
        self.numbers[0] += 1
        self.get_buffer("count").add_(1)
        return self.locked.sum() + len(self.grown) + self.numbers[0] + self.get_buffer("count").sum()


class WritesUnderAGraph(Base):
    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(1))

    def more(self, x: torch.Tensor) -> Any:
        kept = self.get_buffer("kept")
        if self.training:
            return kept.detach().sum()
        with torch.enable_grad():
            kept.add_(self.conv.weight.sum())
        return kept.detach().sum()


class SaysMore(dict[str, float]):
    """A dict whose items are not what is in it."""

    def items(self) -> Any:
        return [(key, 2 * value) for key, value in super().items()]


class OddDict(Base):
    def prepare(self) -> None:
        self.odd = SaysMore(a=1.0)

    def more(self, x: torch.Tensor) -> Any:
        if not self.training:
            self.odd["b"] = 1.0
        return self.odd["a"] + len(self.odd)


class Transposes(Base):
    def prepare(self) -> None:
        self.square = nn.Parameter(torch.arange(9.0).reshape(3, 3))
        self.register_buffer("plane", torch.arange(4.0).reshape(2, 2))

    def more(self, x: torch.Tensor) -> Any:
        plane = self.get_buffer("plane")
        self.square.data = self.square.data.t()
        plane.data = plane.data.t()
        return self.square.detach()[0].sum() + plane[0].sum()


class SharedBuffers(Base):
    """A view of a small buffer sees what is written into it, also after the buffer was bound to other memory."""

    def prepare(self) -> None:
        self.register_buffer("whole", torch.zeros(4))
        self.first = [self.get_buffer("whole")[:2]]

    def more(self, x: torch.Tensor) -> Any:
        whole = self.get_buffer("whole")
        if self.training:
            whole += 1
        else:
            whole.data = torch.full((4,), 9.0)
        return self.first[0].sum()


class OtherParameters(Base):
    def more(self, x: torch.Tensor) -> Any:
        if not self.training:
            self.conv._parameters = {name: nn.Parameter(value * 2) for name, value in self.conv.named_parameters()}
        return 0


class LazyConjugates(Base):
    def prepare(self) -> None:
        self.register_buffer("large", torch.ones(90_000, dtype=torch.complex128).conj())
        self.register_buffer("small", torch.full((2,), complex(float("nan"), 1), dtype=torch.complex128).conj())

    def more(self, x: torch.Tensor) -> Any:
        self.get_buffer("large").mul_(2)
        return self.get_buffer("large").real[0]


class UnseenGradients(Base):
    def more(self, x: torch.Tensor) -> Any:
        with torch.enable_grad():
            torch.autograd.backward(self.conv.weight.sum() * 2)
        return 0


class MaskedArray(Base):
    def prepare(self) -> None:
        self.masked: Any = np.ma.array([0.0, 0.0], mask=[True, False])

    def more(self, x: torch.Tensor) -> Any:
        self.masked += 1
        if not self.training:
            self.masked[0] = 5.0
        return float(self.masked.sum())


class AttributesOfTensors(Base):
    def prepare(self) -> None:
        self.register_buffer("buffer", torch.zeros(1))
        self.plain = torch.zeros(2)

    def more(self, x: torch.Tensor) -> Any:
        for tensor in (self.get_buffer("buffer"), self.plain):
            counted: Any = tensor
            counted.calls = getattr(counted, "calls", 0) + 1
        return self.plain.calls  # type: ignore[attr-defined]


class ChainedAndPartial(Base):
    def prepare(self) -> None:
        self.chained: Any = ChainMap({"n": 0}, {"m": 0})
        self.partial: Any = functools.partial(dict, n=0)

    def more(self, x: torch.Tensor) -> Any:
        self.chained["n"] += 1
        self.partial.keywords["n"] += 1
        return self.chained["n"] + self.partial.keywords["n"]


class Held:
    def __init__(self) -> None:
        self.calls = 0


class OtherAttributes(Base):
    """Binds another dict of attributes to an object, and makes another class of a module."""

    def prepare(self) -> None:
        self.held = Held()

    def more(self, x: torch.Tensor) -> Any:
        self.held.__dict__ = {"calls": self.held.calls + 1}
        if not self.training:
            self.norm.__class__ = type("Other", (nn.BatchNorm2d,), {})
        return self.held.calls + len(type(self.norm).__name__)


class Differentiates(Base):
    """With transforms of torch.func, in which outputs and weights wrap others."""

    def prepare(self) -> None:
        self.seen: list[float] = []

    def more(self, x: torch.Tensor) -> Any:
        gradient = torch.func.grad(lambda z: self.conv(z).square().mean())(x)
        self.seen.append(1.0)
        return gradient.mean() + len(self.seen)


class TrainsItself(Base):
    """With an optimiser of its own, whose state is not given back."""

    def prepare(self) -> None:
        self.prompt = nn.Parameter(torch.ones(3))
        self.kept = [torch.optim.SGD([self.prompt], lr=0.1, momentum=0.9)]

    def more(self, x: torch.Tensor) -> Any:
        with torch.enable_grad():
            self.prompt.square().sum().backward()
        self.kept[0].step()
        self.kept[0].zero_grad()
        return self.prompt.detach().sum()


class Context(Base):
    def prepare(self) -> None:
        self.variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def more(self, x: torch.Tensor) -> Any:
        self.variable.set(self.variable.get() + 1)
        return self.variable.get()


GIVEN_BACK: dict[str, Build] = {
    cls.__name__: cls for cls in Base.__subclasses__() if cls not in (WeakCache, TrainsItself, Context)
} | {"decorated": decorated}
TOLD: dict[str, Build] = {"lru_cached": lru_cached, "TrainsItself": TrainsItself, "Context": Context}
"""What nobody can give back, so that a warning is due."""


def left_behind(build: Build, watch: Callable[[nn.Module], Look] | None) -> dict[str, str]:
    """Everything that a training of five steps leaves, as text.

    It is looked at before each step, once between a backward pass and the step that follows it, and at the end.
    """
    torch.manual_seed(7)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    globals()["CALLS"], STATE["seen"] = 0, 0
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    os.environ.pop("CNNLOG_TEST_COUNT", None)
    try:
        return dict(_left_behind(build(), watch))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.backends.cudnn.deterministic = False


def _left_behind(net: Any, watch: Callable[[nn.Module], Look] | None) -> Iterator[tuple[str, str]]:
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    images = torch.rand(4, *IMAGE)
    look = watch(net) if watch else lambda: None
    for step in range(5):
        look()
        optimiser.zero_grad(set_to_none=step % 2 == 0)
        loss = (net(images + 0.1 * torch.rand_like(images)) - torch.rand(1)).square().mean()
        loss.backward()
        if step == 3:
            look()
        optimiser.step()
        yield f"loss {step}", float(loss).hex()
    look()
    yield "order", repr([*net.state_dict()])
    for name, value in net.state_dict().items():
        yield f"state {name}", repr(value.to_dense().tolist())
    for name, parameter in net.named_parameters():
        yield f"gradient {name}", repr(None if parameter.grad is None else parameter.grad.tolist())
        yield f"thawed {name}", str(parameter.requires_grad)
    yield "generators", repr((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    yield "flags", repr([module.training for module in net.modules()])
    yield "hooks", repr([len(module._forward_hooks) for module in net.modules()])
    yield "modules", repr([name for name, _ in net.named_modules()])
    yield "switches", repr((torch.backends.cudnn.benchmark, torch.get_default_dtype(), torch.is_grad_enabled()))
    yield "environment", repr(os.environ.get("CNNLOG_TEST_COUNT"))

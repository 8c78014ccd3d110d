"""Networks drawn at random that keep state where a look at them may disturb it: place, depth, kind and time are drawn.

Each is trained twice, with and without being looked at; what it leaves behind is compared byte for byte.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import queue
import random
import types
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

IMAGE = (3, 6, 6)
GLOBALS: dict[str, Any] = {}  # what one network keeps among the globals of this file
KEPT: Any = None

# --- kinds of state: how it is made, and how a forward pass uses it ------


@dataclass
class Kind:
    """One kind of state.

    Attributes:
        make: the state, new.
        use: with the state, and a function that binds another in its place; gives a number.
        binds: whether it is bound anew, so that its owner must be one that can be written.
        told: whether it cannot be given back, so that a warning is due.
    """

    make: Callable[[], Any]
    use: Callable[[Any, Callable[[Any], None]], float]
    binds: bool = False
    told: bool = False


def _append(state: Any, _: object) -> float:
    state.append(float(len(state)))
    return float(len(state))


def _count(state: Any, bind: Callable[[Any], None]) -> float:
    bind(state + 1)
    return float(state)


def _new_key(state: Any, _: object) -> float:
    state[len(state)] = float(len(state))
    return float(len(state))


def _key(state: Any, _: object) -> float:
    state["n"] = state.get("n", 0) + 1
    return float(state["n"])


def _collect(state: Any, _: object) -> float:
    state["seen"].append(1)
    return float(len(state["seen"]))


def _add(state: Any, _: object) -> float:
    state.add(len(state))
    return float(len(state))


def _rotate(state: Any, _: object) -> float:
    state.rotate(1)
    return float(state[0])


def _to_end(state: Any, _: object) -> float:
    first = next(iter(state))
    state.move_to_end(first)
    return float(first)


def _in_place(state: Any, _: object) -> float:
    state += 1
    return float(state.sum())


def _through_data(state: Any, _: object) -> float:
    state.data.mul_(1.25)
    return float(state.sum())


def _bind_data(state: Any, _: object) -> float:
    state.data = state.data + 1
    return float(state.sum())


def _mean(state: Any, bind: Callable[[Any], None]) -> float:
    bind(state * 0.5 + 1)
    return float(state.sum())


def _byte(state: Any, _: object) -> float:
    state[0] = (state[0] + 1) % 100
    return float(state[0])


def _norm(state: Any, _: object) -> float:
    return float(state(torch.linspace(-1, 3, 8)[:, None]).sum() + state.running_mean.sum())


def _write(state: Any, _: object) -> float:
    state.write("x")
    return float(state.tell())


def _put(state: Any, _: object) -> float:
    state.put(1)
    return float(state.qsize())


def _attribute(state: Any, _: object) -> float:
    state.calls = getattr(state, "calls", 0) + 1
    return float(state.calls)


def _draws() -> Iterator[float]:
    value = 0.0
    while True:
        yield value
        value += 1


KINDS: dict[str, Kind] = {
    "number": Kind(lambda: 0, _count, binds=True),
    "list": Kind(list, _append),
    "dict": Kind(dict, _new_key),
    "filled dict": Kind(lambda: {"a": 1}, _key),
    "defaultdict": Kind(lambda: defaultdict(list), _collect),
    "set": Kind(set, _add),
    "deque": Kind(lambda: deque([1, 2, 3, 4, 5, 6, 7]), _rotate),
    "full deque": Kind(lambda: deque([0.0], maxlen=50), _append),
    "ordered dict": Kind(lambda: OrderedDict((i, i) for i in range(6)), _to_end),
    "tensor": Kind(lambda: torch.zeros(2), _in_place),
    "bound tensor": Kind(lambda: torch.ones(3), _mean, binds=True),
    "tensor's data": Kind(lambda: torch.ones(4), _through_data),
    "bound data": Kind(lambda: torch.ones(4), _bind_data),
    "large tensor": Kind(lambda: torch.ones(300_000), _through_data),
    "parameter": Kind(lambda: nn.Parameter(torch.ones(3)), _through_data),
    "array": Kind(lambda: np.zeros(3), _in_place),
    "bytes": Kind(lambda: bytearray(b"0123"), _byte),
    "norm": Kind(lambda: nn.BatchNorm1d(1), _norm),
    "torch generator": Kind(lambda: torch.Generator().manual_seed(3), lambda g, _: float(torch.rand(1, generator=g))),
    "numpy generator": Kind(lambda: np.random.default_rng(4), lambda g, _: float(g.random())),
    "numpy state": Kind(lambda: np.random.RandomState(4), lambda g, _: float(g.rand())),
    "python generator": Kind(lambda: random.Random(5), lambda g, _: g.random()),
    "file": Kind(io.StringIO, _write, told=True),
    "count": Kind(itertools.count, lambda it, _: float(next(it)), told=True),
    "iterator": Kind(lambda: iter([1.0, 2.0, 3.0] * 40), lambda it, _: float(next(it)), told=True),
    "cycle": Kind(lambda: itertools.cycle([1.0, 2.0, 3.0, 4.0, 5.0]), lambda it, _: float(next(it)), told=True),
    "generator": Kind(_draws, lambda it, _: float(next(it)), told=True),
    "queue": Kind(queue.SimpleQueue, _put, told=True),
    "foreign object": Kind(argparse.Namespace, _attribute, told=True),
}

# --- what holds it: how the owner of a value is made, how the value is read, how another is bound ---------------------


class Plain:
    def __init__(self, v: Any) -> None:
        self.v = v


class Slotted:
    __slots__ = ("v",)

    def __init__(self, v: Any) -> None:
        self.v = v


@dataclass
class Data:
    v: Any
    more: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    v: Any


class Derived(dict[str, Any]):
    """A dict of somebody's own, with an attribute beside its items."""

    def __init__(self, v: Any) -> None:
        super().__init__(other=1)
        self.v = v


def _closure(v: Any) -> Callable[..., Any]:
    def held(*new: Any) -> Any:
        nonlocal v
        if new:
            (v,) = new
        return v

    return held


class Owner:
    def __init__(self, v: Any) -> None:
        self.v = v

    def method(self) -> Any:
        return self.v


def _default(v: Any) -> Callable[[], Any]:
    def held(kept: Any = v) -> Any:
        return kept

    return held


def _identity(v: Any) -> Any:
    return v


Holder = tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any, Any], None] | None]
_BY_ATTRIBUTE: tuple[Callable[[Any], Any], Callable[[Any, Any], None]] = (
    lambda o: o.v,
    lambda o, v: setattr(o, "v", v),
)
HOLDERS: dict[str, Holder] = {
    "list": (lambda v: [0, v], lambda o: o[1], lambda o, v: o.__setitem__(1, v)),
    "tuple": (lambda v: (v, "t"), lambda o: o[0], None),
    "dict": (lambda v: {"k": v}, lambda o: o["k"], lambda o, v: o.__setitem__("k", v)),
    "ordered": (lambda v: OrderedDict(k=v), lambda o: o["k"], lambda o, v: o.__setitem__("k", v)),
    "deque": (lambda v: deque([v]), lambda o: o[0], lambda o, v: o.__setitem__(0, v)),
    "plain": (Plain, *_BY_ATTRIBUTE),
    "slots": (Slotted, *_BY_ATTRIBUTE),
    "dataclass": (Data, *_BY_ATTRIBUTE),
    "frozen": (Frozen, lambda o: o.v, lambda o, v: object.__setattr__(o, "v", v)),
    "derived": (Derived, *_BY_ATTRIBUTE),
    "namespace": (lambda v: types.SimpleNamespace(v=v), *_BY_ATTRIBUTE),
    "closure": (_closure, lambda o: o(), lambda o, v: o(v)),
    "partial": (lambda v: functools.partial(_identity, v), lambda o: o(), None),
    "method": (lambda v: Owner(v).method, lambda o: o(), lambda o, v: setattr(o.__self__, "v", v)),
    "default": (_default, lambda o: o(), None),
}
PLACES = ("attribute", "layer", "class", "global", "hook", "hook of all")


class Net(nn.Module):
    """A small network, whose output depends on the state of a drawn kind."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drawn = drawn.name  # a text: what is drawn must not be reached by this way
        self.late = drawn.late
        self.trained = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.trained += 1
        factor = 1.0
        if self.trained >= self.late:
            factor += 0.01 * (_use(self) % 7)
        return torch.relu(self.norm(self.conv(x))) * factor


def _use(net: Net) -> float:
    drawn = Drawn.of(net.drawn)
    return drawn.use(net)


@dataclass(frozen=True)
class Drawn:
    """What was drawn: enough to build the network again.

    Attributes:
        kind: a key of `KINDS`.
        place: one of `PLACES`.
        holders: keys of `HOLDERS`, from outside in; none where the state lies in its place itself.
        late: after how many training steps it is first used.
    """

    kind: str
    place: str
    holders: tuple[str, ...]
    late: int

    @property
    def name(self) -> str:
        """All of it, as text."""
        return "|".join((self.kind, self.place, ",".join(self.holders), str(self.late)))

    @staticmethod
    @functools.lru_cache(None)
    def of(name: str) -> Drawn:
        """What a name says."""
        kind, place, holders, late = name.split("|")
        return Drawn(kind, place, tuple(filter(None, holders.split(","))), int(late))

    @staticmethod
    def by(draw: random.Random) -> Drawn:
        """One more."""
        kind = draw.choice([*KINDS])
        holders = [draw.choice([*HOLDERS]) for _ in range(draw.choice((0, 0, 1, 1, 2, 3, 4)))]
        if KINDS[kind].binds and holders:
            holders[-1] = draw.choice([name for name, holder in HOLDERS.items() if holder[2] is not None])
        return Drawn(kind, draw.choice(PLACES), tuple(holders), draw.choice((0, 0, 0, 1, 3)))

    def build(self) -> Net:
        """The network, with new state."""
        state = KINDS[self.kind].make()
        for name in reversed(self.holders):
            state = HOLDERS[name][0](state)
        own = type("Own", (Net,), {"__module__": __name__})
        net: Net = own(self)
        owner: Any = net.conv if self.place == "layer" else own
        if self.place in ("attribute", "layer"):
            target = net if self.place == "attribute" else owner
            if isinstance(state, (nn.Module, nn.Parameter)):
                target.__dict__["kept"] = state  # as in a plain list: not registered
            else:
                target.kept = state
        elif self.place == "class":
            own.kept = state  # type: ignore[attr-defined]
        elif self.place == "global":
            globals()["KEPT"] = state
        else:
            _hook(net, state, everywhere=self.place == "hook of all", used=self.used)
        return net

    def use(self, net: Any) -> float:
        """What forward does with it."""
        if self.place == "global":
            return self.used(KEPT, functools.partial(globals().__setitem__, "KEPT"))
        if self.place == "class":
            return self.used(type(net).kept, functools.partial(setattr, type(net), "kept"))
        if self.place in ("attribute", "layer"):
            owner = net if self.place == "attribute" else net.conv
            return self.used(owner.__dict__["kept"], functools.partial(owner.__dict__.__setitem__, "kept"))
        return float(net.conv.__dict__.get("told", 0.0))

    def used(self, state: Any, bind: Callable[[Any], None]) -> float:
        """Reach the state, through what holds it, and use it."""
        for name in self.holders:
            _, get, put = HOLDERS[name]
            owner = state
            state = get(owner)
            bind = functools.partial(put, owner) if put is not None else _cannot_bind
        return KINDS[self.kind].use(state, bind)

    def left(self, net: Any) -> str:
        """What is left of the state after a training, as text."""
        if self.place == "global":
            state = KEPT
        elif self.place == "class":
            state = type(net).kept
        elif self.place in ("attribute", "layer"):
            state = (net if self.place == "attribute" else net.conv).__dict__["kept"]
        else:
            state = net.conv.__dict__["watching"]()
        for name in self.holders:
            state = HOLDERS[name][1](state)
        return _text(state)


def _cannot_bind(_: Any) -> None:
    raise TypeError("what holds this cannot be written")


def _hook(net: Any, state: Any, *, everywhere: bool, used: Callable[[Any, Callable[[Any], None]], float]) -> None:
    """Keep the state in the closure of a forward hook, which uses it and leaves a number for forward."""
    conv = net.conv

    def bind(new: Any) -> None:
        nonlocal state
        state = new

    def hook(module: nn.Module, *_: Any) -> None:
        if module is conv and net.trained >= net.late:
            conv.__dict__["told"] = used(state, bind)

    conv.__dict__["watching"] = lambda: state
    if everywhere:
        handle = nn.modules.module.register_module_forward_hook(hook)
        GLOBALS["handle"] = handle
    else:
        conv.register_forward_hook(hook)


def _text(state: Any) -> str:
    for cls, text in _TEXTS:
        if isinstance(state, cls):
            return str(text(state))
    return f"next {next(state)}" if hasattr(state, "__next__") else repr(state)


_TEXTS: list[tuple[Any, Callable[[Any], object]]] = [
    (torch.Generator, lambda g: g.get_state().tolist()),
    (np.random.RandomState, lambda g: g.get_state()),
    (np.random.Generator, lambda g: g.bit_generator.state),
    (random.Random, lambda g: g.getstate()),
    (nn.Module, lambda m: [(name, value.tolist()) for name, value in m.state_dict().items()]),
    (torch.Tensor, lambda t: (t.sum().item(), t.requires_grad, t.shape)),
    (io.StringIO, lambda f: f.getvalue()),
    (queue.SimpleQueue, lambda q: q.qsize()),
]


# --- trained with and without being looked at -------------------------------------------------------------------------

Watch = Callable[[Net], Callable[[int], None]]
"""Gives a function that looks at the network, called with the step."""


def trained(drawn: Drawn, watch: Watch | None) -> tuple[dict[str, str], list[str]]:
    """What a training leaves behind, and the warnings of it."""
    torch.manual_seed(7)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 - the global generator is under test
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            facts = dict(_trained(drawn, watch))
        finally:
            globals()["KEPT"] = None
            if "handle" in GLOBALS:
                GLOBALS.pop("handle").remove()
    return facts, [str(warning.message) for warning in said]


def _trained(drawn: Drawn, watch: Watch | None) -> Iterator[tuple[str, str]]:
    net = drawn.build()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    images = torch.rand(4, *IMAGE)
    look = watch(net) if watch else None
    for step in range(5):
        if look:
            look(step)
        optimiser.zero_grad()
        loss = (net(images + 0.1 * torch.rand_like(images)) - torch.rand(1)).square().mean()
        loss.backward()
        optimiser.step()
        yield f"loss {step}", float(loss).hex()
    if look:
        look(5)
    for name, value in net.state_dict().items():
        yield f"state {name}", repr(value.tolist())
    for index, kept in optimiser.state_dict()["state"].items():
        yield f"optimiser {index}", repr({key: value.tolist() for key, value in kept.items()})
    yield "state of the drawn kind", drawn.left(net)
    yield "generators", repr((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    yield "flags", repr([module.training for module in net.modules()])
    yield "attributes", repr([sorted(module.__dict__) for module in net.modules()])


def careless(net: nn.Module) -> Callable[[int], None]:
    """Looks as careful people do it by hand."""

    def look(_: int) -> None:
        net.eval()
        with torch.no_grad(), suppress(StopIteration):
            net(torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(1)))
        net.train()

    return look

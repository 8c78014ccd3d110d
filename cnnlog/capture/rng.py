"""Random number generators: their states are kept and given back, so that looking draws nothing."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch

PASS_SEED = 0
"""What every pass of the probe starts from, so that a network that draws in forward draws the same at every step."""

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, torch.Tensor, np.ndarray)
_CONTAINERS = (list, tuple, set, frozenset, deque)


@contextmanager
def kept_rng(generators: Iterable[object] = (), *, seed: int | None = None) -> Iterator[None]:
    """Give back the states of random number generators, whatever happens inside.

    The global ones are among them: torch's on CPU, on CUDA once it is initialised, and on MPS; Python's; NumPy's.

    Args:
        generators: further ones, of torch, NumPy or Python. Those of the operating system have no state.
        seed: what all of them are set to inside; None leaves them as they are.
    """
    with ExitStack() as stack:
        generators = [generator for generator in generators if not isinstance(generator, random.SystemRandom)]
        for give_back in [*_global_states(), *(_state(generator) for generator in generators)]:
            stack.callback(give_back)
        if seed is not None:
            seed_all(generators, seed)
        yield


def seed_all(generators: Iterable[object], seed: int) -> None:
    """Seed the global generators, and further ones. Their states are for the caller to keep: see `kept_rng`.

    Args:
        generators: of torch, NumPy or Python. One that cannot be seeded goes on from where it is.
        seed: a whole number.
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a device that is not yet in use, too
    random.seed(seed)
    with suppress(TypeError):  # it may have been given other bits than those which can be seeded
        np.random.seed(seed)  # noqa: NPY002 - the global one, as the network uses it
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    seed_these(generators, seed)


def seed_these(generators: Iterable[object], seed: int) -> None:
    """Seed some generators, and not the global ones.

    Args:
        generators: of torch, NumPy or Python. One that cannot be seeded goes on from where it is.
        seed: a whole number.
    """
    for generator in generators:
        with suppress(Exception):  # of a class of the user's own, or with bits that cannot be seeded
            _seed(generator, seed)


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, (random.Random, np.random.RandomState)):
        generator.seed(seed)
    else:
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state


def is_generator(cls: type) -> bool:
    """Whether the objects of a class are random number generators of torch, NumPy or Python.

    Args:
        cls: any class.
    """
    return issubclass(cls, _GENERATORS)


def generators_in(roots: Iterable[object], *, depth: int) -> list[object]:
    """The generators among some objects, and in their elements and attributes.

    Containers of more than 256 elements are data, not settings, and are not searched.

    Args:
        roots: where to look.
        depth: how many levels of elements and attributes to search; 0 looks at the roots alone.
    """
    found: dict[int, object] = {}
    seen: set[int] = set()
    level = list(roots)
    for levels in range(depth, -1, -1):
        deeper: list[object] = []
        if levels == 0 and not any(_what(cls)[0] for cls in {*map(type, level)}):
            break  # as nearly always; the deepest level is the largest
        for thing in level:
            cls: Any = type(thing)
            generator, plain = _what(cls)
            if generator:
                found[id(thing)] = thing
            elif levels > 0 and not plain and id(thing) not in seen:
                seen.add(id(thing))
                deeper += _parts(thing)
        level = deeper
    return list(found.values())


@lru_cache(4096)  # a large model has tens of thousands of attributes, of few types
def _what(cls: type) -> tuple[bool, bool]:
    """Whether these are generators, and whether they hold nothing."""
    return any(base in _GENERATORS for base in cls.__mro__), any(base in _PLAIN for base in cls.__mro__)


def _parts(thing: Any) -> Iterable[object]:
    cls: Any = type(thing)
    if issubclass(cls, _CONTAINERS):
        return thing if len(thing) <= 256 else ()
    if issubclass(cls, dict):
        return thing.values() if len(thing) <= 256 else ()
    try:
        attributes = getattr(thing, "__dict__", None)
    except Exception:  # it stands for another object, and there is none yet
        return ()
    return attributes.values() if attributes else ()


def _global_states() -> list[Callable[[], Any]]:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the user's global generator, not one of ours
    states: list[Callable[[], Any]] = [
        lambda: torch.set_rng_state(cpu),
        lambda: random.setstate(python),
        lambda: np.random.set_state(numpy),  # noqa: NPY002
    ]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all()
        states.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        states.append(lambda: torch.mps.set_rng_state(mps))
    return states


def _state(generator: Any) -> Callable[[], Any]:
    if isinstance(generator, torch.Generator):
        kept = generator.get_state().clone()
        return lambda: generator.set_state(kept)
    if isinstance(generator, random.Random):
        python = generator.getstate()
        return lambda: generator.setstate(python)
    if isinstance(generator, np.random.RandomState):
        legacy = generator.get_state(legacy=False)
        return lambda: generator.set_state(legacy)
    bits = generator.bit_generator
    state = bits.state
    return lambda: setattr(bits, "state", state)

"""What can be reached from a model and not be put back: where it stands is noted, to say if a forward pass moved it."""

from __future__ import annotations

import contextvars
import functools
import io
import itertools
import operator
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import nn

from cnnlog.capture.layers import layer_names
from cnnlog.capture.reach import Where


class Watched:
    """Files, iterators, caches and objects of other packages, with a mark of how each is now.

    Args:
        things: each with its place.
    """

    def __init__(self, things: Iterable[tuple[object, Where]]) -> None:
        self._marks = [(thing, where, _mark(thing)) for thing, where in things]

    def moved(self) -> list[Where]:
        """The places of those that are not as they were, or of which that cannot be known."""
        return [where for thing, where, mark in self._marks if mark is None or not _same(mark, _mark(thing))]


def place(where: Where, model: nn.Module) -> str:
    """A place below a model as a person would write it, such as `net.cache['mean']`.

    Args:
        where: the place.
        model: the model.
    """
    names = {id(module): name for name, _, module in layer_names(model)}
    text = ""
    at: Where | None = where
    while at is not None:
        at, key = at
        if isinstance(key, nn.Module):
            name = names.get(id(key), "")
            return f"{type(model).__name__}{'.' * bool(name)}{name}{text}"
        if isinstance(key, type):
            return f"{key.__qualname__}{text}"
        if at is None:
            return f"{key}{text}"
        text = (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r:.40}]") + text
    return text


_Mark = tuple[Any, ...]


def _mark(thing: Any) -> _Mark | None:
    """What tells whether a thing has been used; None where nothing does."""
    with suppress(Exception):  # of classes that others wrote
        if isinstance(thing, _BY_AMOUNT):
            return (_amount(thing),)
        attributes = getattr(thing, "__dict__", None)
        if isinstance(thing, types.GeneratorType):
            frame = thing.gi_frame
            return (frame is None or frame.f_lasti, *([] if frame is None else frame.f_locals.values()))
        if isinstance(thing, torch.optim.Optimizer):
            held = chain(thing.state.values(), thing.param_groups)  # tensors by parameter, learning rates by group
            attributes = dict(enumerate(chain.from_iterable(part.values() for part in held)))
        if attributes:
            return tuple(chain.from_iterable((name, value, _amount(value)) for name, value in attributes.items()))
        return _place_of_iterator(thing) if hasattr(thing, "__next__") else (_amount(thing),)
    return ()


def _amount(thing: Any) -> object:
    """What changes in a thing when it is used, as one value; None where nothing of this kind is known."""
    for cls, ask in _AMOUNTS:
        if isinstance(thing, cls):
            return ask(thing)
    with suppress(TypeError, ValueError):  # a buffer, as a number that is shared with other processes is
        held = memoryview(thing)
        return held.tobytes() if held.nbytes <= 1 << 20 else held.nbytes
    for name in ("qsize", "locked", "__len__"):
        if not isinstance(thing, type) and hasattr(thing, name):
            return getattr(thing, name)()
    return None


_AMOUNTS: list[tuple[Any, Callable[[Any], object]]] = [
    (torch.Tensor, lambda tensor: -1 if tensor.is_inference() else tensor._version),
    (io.IOBase, lambda file: file.closed or not file.seekable() or file.tell()),
    (functools._lru_cache_wrapper, lambda cache: cache.cache_info().currsize),
    (contextvars.ContextVar, lambda variable: variable.get(None)),
]
_BY_AMOUNT = (io.IOBase, functools._lru_cache_wrapper)


def _place_of_iterator(thing: Any) -> _Mark | None:
    if isinstance(thing, itertools.count):
        return (repr(thing),)
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")  # Python 3.14 takes away what 3.12 begins to deprecate
        return (*_reduced(thing),)
    return (operator.length_hint(thing),) if hasattr(thing, "__length_hint__") else None


def _reduced(thing: Any) -> list[object]:
    return [*_flat(thing.__reduce__())]


def _flat(parts: Iterable[Any]) -> Iterator[object]:
    for part in parts:
        if isinstance(part, tuple):
            yield from _flat(part)
        elif isinstance(part, list):
            yield len(part)
        elif hasattr(part, "__next__") and not isinstance(part, type):
            yield from _reduced(part)
        else:
            yield part if isinstance(part, (int, float, str)) else id(part)


def _same(before: _Mark, now: _Mark | None) -> bool:
    return now is not None and len(before) == len(now) and all(map(_is_same, before, now))


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, str, bytes)) and a == b)

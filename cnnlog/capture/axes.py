"""Which axis of a tensor holds the channels: followed through a forward pass, from the layers that decide it.

A convolution and a norm over channels have them second, a linear layer and a norm over the last axis have them last;
what permutes, reshapes or adds up tensors moves that axis along. An attention mixes axes, and nothing is known behind
it until the next of these layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import ref

import torch

_Span = tuple[int, ...]
_LOST: _Span = (10**6,)  # an axis that no tensor has: somebody saw the tensor, and does not know
_BEFORE_SPACE = {  # functions whose result has the channels before so many axes of space
    **{f"conv{n}d": n for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": n for n in (1, 2, 3)},
    "pixel_shuffle": 2,
    "pixel_unshuffle": 2,
}
_SECOND = {"batch_norm", "group_norm", "instance_norm"}
_LAST = {"linear", "embedding", "bilinear"}
_TURNS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"}
_TAKES_AXES_AWAY = {
    *("sum", "mean", "amax", "amin", "max", "min", "norm", "logsumexp", "prod", "std", "var", "median", "select"),
    "__getitem",
}
_RESHAPES = {"reshape", "view", "flatten", "unflatten", "view_as", "squeeze", "unsqueeze"}
_MIXES = {
    "matmul",
    "__matmul",
    "__rmatmul",
    "mm",
    "bmm",
    "einsum",
    "addmm",
    "baddbmm",
    "tensordot",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
}


@dataclass(frozen=True)
class _Call:
    """One of torch's functions with what it got."""

    func: Any
    name: str
    args: Any
    kwargs: Any


class Axes:
    """Follows the axis of the channels through a forward pass; the axes, while a reshape has split it into several."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Callable[[], torch.Tensor | None], _Span]] = {}

    def begin(self, tensor: torch.Tensor) -> None:
        """Take what a network is fed: its channels are second.

        Args:
            tensor: the probe `[N, C, ...]`.
        """
        if tensor.dim() > 1:
            self._keep(tensor, (1,))

    def of(self, tensor: torch.Tensor) -> int | None:
        """The axis that holds a tensor's channels, from 0 on; None where it is not known.

        Args:
            tensor: of the forward pass.
        """
        span = self._span(tensor)
        return span[0] if span is not None and len(span) == 1 else None

    def passed(self, given: Any, output: Any) -> None:
        """A module has run: where nobody saw what it did, an output as large as its input has the same axes.

        Args:
            given: its arguments.
            output: what it returned.
        """
        first = next(tensors_in(given), None)
        span = None if first is None else self._span(first)
        for tensor in tensors_in(output) if span is not None else ():
            known = self._known.get(id(tensor))
            if (known is None or known[0]() is not tensor) and first is not None and tensor.shape == first.shape:
                self._keep(tensor, span)

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One of torch's functions has run.

        Args:
            func: which.
            args: what it got.
            kwargs: what it got by name.
            result: what it gave.
        """
        results = list(tensors_in(result))
        if not results:
            return
        call = _Call(func, str(getattr(func, "__name__", "")).rstrip("_"), args, kwargs)
        known = [(other, span) for other in tensors_in((args, kwargs)) if (span := self._span(other)) is not None]
        for tensor in results:
            span = _decided(call.name, tensor.dim()) or _passed_on(call, known, tensor)
            self._keep(tensor, span if span is not None and 0 <= min(span) <= max(span) < tensor.dim() else None)

    def _span(self, tensor: torch.Tensor) -> _Span | None:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor and max(known[1]) < tensor.dim() else None

    def _keep(self, tensor: torch.Tensor, span: _Span | None) -> None:
        self._known[id(tensor)] = (ref(tensor), _LOST if span is None else span)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an argument or an output, the first one first.

    Args:
        value: a tensor, or nested tuples, lists and mappings of them; anything else holds none.
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def _decided(name: str, axes: int) -> _Span | None:
    """The axis of the channels that some functions decide, whatever they get; None of others.

    Args:
        name: the function's.
        axes: how many its result has.
    """
    if name in _BEFORE_SPACE:
        return (axes - 1 - _BEFORE_SPACE[name],)
    if name in _SECOND:
        return (1,)
    return (axes - 1,) if name in _LAST else None


def _passed_on(call: _Call, known: list[tuple[torch.Tensor, _Span]], result: torch.Tensor) -> _Span | None:
    """The axes of the channels in what a function made of tensors with known ones; None where they are lost.

    Args:
        call: of the function.
        known: the tensors that it got, and their axes, of those that are known.
        result: what it gave.
    """
    name, args, kwargs = call.name, call.args, call.kwargs
    if name == "layer_norm" and not known:
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        return (result.dim() - 1,) if len(shape) == 1 else None
    if name in _MIXES or not known:
        return None
    if name == "stack":
        at = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.dim()
        return tuple(axis + (at <= axis) for axis in known[0][1])
    alike = [span for tensor, span in known if tensor.dim() == result.dim()]
    if name not in _RESHAPES and name not in _TURNS and alike:
        shared = tuple(axis for axis in alike[0] if all(axis in span for span in alike))
        return shared if shared and (name != "__get" or _is_same_view(known[0][0], result)) else None
    if name in _TURNS or name in _TAKES_AXES_AWAY:
        return _turned(call, *known[0])
    return _moved(tuple(known[0][0].shape), known[0][1], tuple(result.shape))


def _turned(call: _Call, tensor: torch.Tensor, span: _Span) -> _Span | None:
    """Where axes go when those of a tensor are put in another order, or some are taken away.

    The same is done to a tensor without values, each of whose axes has a size of its own.
    """
    sizes = _sizes(tensor.dim())
    try:
        like = torch.empty(sizes, device="meta")
        moved = next(tensors_in(call.func(*(like if arg is tensor else arg for arg in call.args), **call.kwargs)))
    except (RuntimeError, IndexError, TypeError, NotImplementedError, StopIteration):
        return None
    shape = list(moved.shape)
    return tuple(sorted(shape.index(sizes[axis]) for axis in span if sizes[axis] in shape)) or None


def _sizes(axes: int) -> tuple[int, ...]:
    """Sizes that tell axes apart: primes, so that no product of some is another; fewer digits where there are many."""
    return next(chosen for first in (1009, 101, 2) if math.prod(chosen := _primes(first, axes)) < 2**60 or first == 2)


@lru_cache(64)
def _primes(first: int, count: int) -> tuple[int, ...]:
    found = (n for n in itertools.count(first) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    return tuple(itertools.islice(found, count))


def _moved(before: tuple[int, ...], span: _Span, after: tuple[int, ...]) -> _Span | None:
    """Where axes are after a reshape: as many values stand before them as did, and they hold as many.

    Args:
        before: the shape.
        span: the axes, which lie side by side.
        after: the shape behind.
    """
    first, last = span[0], span[-1] + 1
    if last - first != len(span):
        return None
    ahead, size = math.prod(before[:first]), math.prod(before[first:last])
    for start in range(len(after)):
        for stop in range(start + 1, len(after) + 1):
            held = after[start:stop]
            if math.prod(after[:start]) == ahead and math.prod(held) == size and (len(held) == 1 or 1 not in held):
                return tuple(range(start, stop))
    if after[:last] == before[:last]:  # axes behind them were averaged away
        return span
    shift = len(after) - len(before)
    return (
        tuple(axis + shift for axis in span)
        if first + shift >= 0 and after[first + shift :] == before[first:]
        else None
    )


def _is_same_view(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether an attribute of a tensor (`.data`) is the tensor with its axes as they were (`.T` is not)."""
    return before.shape == after.shape and before.stride() == after.stride()

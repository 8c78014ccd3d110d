"""Copies a tensor's bytes just before a forward pass writes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import torch
import torch.overrides
from torch.overrides import TorchFunctionMode

from cnnlog.capture.kept import Kept, is_wrapper

# What gives out the memory of a tensor, so that it may be written later, past any count of torch's.
_GIVES_MEMORY = frozenset(("data", "numpy", "__array__", "storage", "untyped_storage", "data_ptr", "__dlpack__"))
_IN_PLACE = frozenset(("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__"))
_IN_PLACE |= frozenset(("__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__idiv__"))


_P = ParamSpec("_P")
_modes: Any = torch.overrides


def unseen(record: Callable[_P, None]) -> Callable[_P, None]:
    """A function of ours, during which nobody watches torch's: ours are several times as many as forward's.

    Args:
        record: what is called in a hook.
    """

    @wraps(record)
    def unwatched_record(*args: _P.args, **kwargs: _P.kwargs) -> None:
        if not _is_ours_on_top():
            record(*args, **kwargs)
            return
        mode = _modes._pop_mode()
        try:
            record(*args, **kwargs)
        finally:
            _modes._push_mode(mode)

    return unwatched_record


def _is_ours_on_top() -> bool:
    """Whether the last mode is one of ours; one of the user's is left alone."""
    mode = _modes._get_current_function_mode()
    return mode is not None and type(mode).__module__.startswith("cnnlog.")


@contextmanager
def unwatched() -> Iterator[None]:
    """Let nobody watch torch's functions in between."""
    if not _is_ours_on_top():
        yield
        return
    mode = _modes._pop_mode()
    try:
        yield
    finally:
        _modes._push_mode(mode)


class WriteGuard(TorchFunctionMode):
    """Sees each function of torch that Python calls; before one that writes, what it will write into is copied.

    So nothing is copied of a network that does not write, and also a write through `.data` can be undone, which torch
    does not count. It does not see what compiled code writes (TorchScript, extensions), nor NumPy.

    Args:
        watched: the tensors to watch.
        kept: those of them that are kept from the start, by their ids; more are added.

    Attributes:
        saw: whether anything was going to be written.
    """

    def __init__(self, watched: Iterable[torch.Tensor], kept: dict[int, Kept]) -> None:
        super().__init__()
        self._watched = watched
        self._kept = kept
        self._at: dict[int, list[torch.Tensor]] | None = None  # memory -> those that lie there
        self.saw = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        writes = _writes.get(func)
        if writes is None:
            if len(_writes) > _WRITES_LIMIT:  # of functions that somebody makes anew each time
                _writes.clear()
            writes = _writes[func] = _may_write(func)
        if func is torch.Tensor.backward:  # it adds to gradients
            for tensor in self._watched:
                self._keep(tensor)
        if kwargs:
            if writes or kwargs.get("out") is not None or kwargs.get("inplace") or kwargs.get("max_norm") is not None:
                self._copy([*args, *kwargs.values()])
            return func(*args, **kwargs)
        if writes:
            self._copy(args)
        return func(*args)

    def _copy(self, given: Iterable[Any]) -> None:
        if self._at is None:
            self._at = {}
            for tensor in self._watched:
                self._at.setdefault(_memory(tensor), []).append(tensor)
        for written in _tensors(given):
            for tensor in self._at.get(_memory(written), ()):
                self._keep(tensor)

    def _keep(self, tensor: torch.Tensor) -> None:
        self.saw = True
        if id(tensor) not in self._kept:
            self._kept[id(tensor)] = Kept(tensor)
        self._kept[id(tensor)].keep()


_WRITES_LIMIT = 10_000
_writes: dict[Any, bool] = {}  # function -> whether it may write into what it is given


def _may_write(func: Any) -> bool:
    owner = getattr(func, "__self__", None)  # of a property's getter: the property
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return getattr(owner, "__name__", "") in _GIVES_MEMORY
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    if isinstance(func, torch._ops.OpOverloadPacket):
        overloads: Any = func
        return any(getattr(func, name)._schema.is_mutable for name in overloads.overloads())
    return name in _GIVES_MEMORY or name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _memory(tensor: torch.Tensor) -> int:
    """What names the memory of a tensor; of those without any of their own it is the tensor itself."""
    if tensor.layout is not torch.strided or is_wrapper(tensor) or tensor.is_meta:
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # inside a transform of torch.func, it wraps another
        return id(tensor)


def _tensors(given: Iterable[Any]) -> Iterator[torch.Tensor]:
    for thing in given:
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, (list, tuple)):
            yield from _tensors(thing)

"""Somebody's Python objects, given back as they were after something has been read through them.

A data set may open its files at the first read, fill a cache, count, or draw. Objects are given back in place, because
others hold them, too. `ARCHITECTURE.md` says what lies beyond this.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import os
import queue
import socket
import stat
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from operator import is_
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

OBJECTS_LIMIT = 10_000
BYTES_LIMIT = 64_000_000
_FIRST = 256  # of a long container these are looked into; all of it is given back
_LIBRARIES = {*sys.stdlib_module_names, "torch", "torchvision", "lightning", "numpy", "PIL", "cnnlog"} - {"__main__"}
_LEAVES: tuple[type, ...] = (str, bytes, int, float, complex, range, ModuleType, BuiltinFunctionType)
_OTHERS: tuple[type, ...] = (
    *(torch.optim.Optimizer, torch.Generator, logging.Logger),
    *(threading.Thread, BaseProcess, Executor, queue.Queue, queue.SimpleQueue),  # others change them meanwhile
)
_lru_cache = type(functools.lru_cache(lambda: None))


class Noted:
    """What some objects, and all that can be reached from them, hold now.

    Args:
        roots: where to begin.

    Attributes:
        one_way: an iterator or a generator is among them: who reads it uses it up. A copy of the process does not.
        shared: a pipe or a socket is among them: who reads it uses it up, in a copy of the process as well.
        whole: everything was noted. If not, there were more than `OBJECTS_LIMIT` objects, or more than `BYTES_LIMIT`
            bytes of arrays.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self.one_way = False
        self.shared = False
        self.whole = True
        self._seen: dict[int, object] = {}
        self._bytes = 0
        self._undo: list[Callable[[], object]] = []
        self._changes: list[Callable[[], list[object]]] = []
        self._files: list[tuple[Any, int, int | None]] = []
        self._descriptors = _open_descriptors()
        level = list(roots)
        while level:
            level = [part for thing in level for part in self._note(thing)]

    def give_back(self, *, read_here: bool) -> None:
        """Undo what has been done to them, and close what they have opened.

        Args:
            read_here: they were read in this process. If not, it was a forked one, which has moved the positions of
                open files and whatever lies in shared memory, and nothing else.
        """
        new = [value for change in self._changes for value in change()]
        opened = _closeable(new, known=self._seen) if new else []
        descriptors = [value for value in new if type(value) is int] if new else []
        new.clear()
        for undo in self._undo:
            with suppress(Exception):  # of the many kinds of objects some refuse; the others are given back
                undo()
        for file, offset, position in self._files:
            with suppress(Exception):
                file.seek(position) if read_here and position is not None else _put_back(file, offset)
        self._close(opened, descriptors)

    def _close(self, opened: list[Any], descriptors: list[int]) -> None:
        for _ in range(2):  # what holds another goes first
            for number in range(len(opened) - 1, -1, -1):
                if sys.getrefcount(opened[number]) <= 2:  # nobody else has it
                    with suppress(Exception):
                        opened.pop(number).close()
        for descriptor in {*descriptors} & (_open_descriptors() - self._descriptors):
            with suppress(OSError):
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)

    # ---- noting

    def _note(self, thing: Any) -> Iterable[Any]:
        """Note one object; what can be reached from it in one step."""
        if thing is None or id(thing) in self._seen:
            return ()
        if type(thing) is int:
            self._note_descriptor(thing)
        cls: Any = type(thing)
        if isinstance(thing, (*_LEAVES, *_OTHERS)) or _is_trainer(cls):
            return ()
        if len(self._seen) >= OBJECTS_LIMIT:
            self.whole = False
            return ()
        self._seen[id(thing)] = thing
        if isinstance(thing, (torch.Tensor, np.ndarray, bytearray)):
            self._note_values(thing)
            return ()
        if isinstance(thing, (list, dict, set, deque)):
            inside = self._note_container(thing)
        elif isinstance(thing, (tuple, frozenset)):
            inside = [part for part, _ in zip(thing, range(_FIRST), strict=False)]
        else:
            inside = self._note_special(thing)
        return [*inside, *self._note_attributes(thing)]

    def _note_values(self, array: Any) -> None:
        if isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and not array.flags.writeable):
            return
        if isinstance(array, torch.Tensor) and (array.layout != torch.strided or array.device.type != "cpu"):
            return
        size = len(array) if isinstance(array, bytearray) else array.nbytes
        if self._bytes + size > BYTES_LIMIT:
            self.whole = False
            return
        self._bytes += size
        self._undo.append(_values_back(array))

    def _note_container(self, container: Any) -> list[Any]:
        kind = type(container)
        base = next(base for base in (OrderedDict, dict, list, set, deque) if issubclass(kind, base))
        every: Any = base  # of an OrderedDict, dict.items has another order
        keyed = base in (dict, OrderedDict)

        def now() -> list[list[Any]]:
            """The keys and the values, or the elements."""
            if keyed:
                return [list(every.keys(container)), list(every.values(container))]
            return [list(every.__iter__(container))]

        held = now()

        def changed(current: list[list[Any]]) -> bool:
            return any(len(a) != len(b) or not all(map(is_, a, b)) for a, b in zip(current, held, strict=True))

        def back() -> None:
            if changed(now()):
                every.clear(container)
                filled = zip(*held, strict=True) if keyed else held[0]
                (every.update if keyed or base is set else every.extend)(container, filled)

        def new() -> list[object]:
            current = now()
            return [part for items in current for item in items for part in _parts(item)] if changed(current) else []

        self._undo.append(back)
        self._changes.append(new)
        return [part for items in held for item in items[:_FIRST] for part in _parts(item)]

    def _note_special(self, thing: Any) -> list[Any]:
        """What is neither array nor container, and holds something outside of its attributes."""
        if isinstance(thing, FunctionType):
            return self._note_function(thing)
        if isinstance(thing, MethodType):
            return [thing.__self__, thing.__func__]
        if isinstance(thing, functools.partial):
            return [thing.func, thing.args, thing.keywords]
        if isinstance(thing, GeneratorType):
            self.one_way = True
            return [] if thing.gi_frame is None else list(thing.gi_frame.f_locals.values())
        self._note_native(thing)
        return [thing.__wrapped__] if isinstance(thing, _lru_cache) else []

    def _note_native(self, thing: Any) -> None:
        """Note what is kept outside of Python's objects."""
        if isinstance(thing, _lru_cache):
            if thing.cache_info().currsize == 0:
                self._undo.append(thing.cache_clear)
        elif isinstance(thing, (io.IOBase, io.TextIOBase)):
            self._note_file(thing)
        elif isinstance(thing, (ctypes._SimpleCData, ctypes.Array, ctypes.Structure)):
            kept = bytes(thing)
            self._undo.append(lambda: ctypes.memmove(ctypes.addressof(thing), kept, len(kept)))
        elif isinstance(thing, Iterator) and not hasattr(thing, "__dict__"):  # one of C's
            self.one_way = True
        self.shared |= isinstance(thing, socket.socket)

    def _note_function(self, function: FunctionType) -> list[Any]:
        reached: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # it is empty
                held = cell.cell_contents
                reached.append(held)
                self._note_binding(functools.partial(getattr, cell, "cell_contents"), _cell_setter(cell), held)
        if not _of_a_library(function.__module__):
            space = function.__globals__
            for name in function.__code__.co_names:
                value = space.get(name)
                if name in space and not isinstance(value, (ModuleType, type, BuiltinFunctionType)):
                    reached.append(value)
                    bind = functools.partial(space.__setitem__, name)
                    self._note_binding(functools.partial(space.get, name), bind, value)
        return reached

    def _note_binding(self, get: Callable[[], Any], put: Callable[[Any], object], held: Any) -> None:
        self._undo.append(lambda: None if get() is held else put(held))
        self._changes.append(lambda: [] if get() is held else [get()])

    def _note_attributes(self, thing: Any) -> list[Any]:
        reached: list[Any] = []
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            reached += self._note_container(attributes)
        cls = thing if isinstance(thing, type) else type(thing)
        for base in cls.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else tuple(slots):
                reached += self._note_slot(thing, base.__dict__.get(name))
            if id(base) not in self._seen and not _of_a_library(base.__module__):
                self._seen[id(base)] = base
                reached += self._note_class(base)
        return reached

    def _note_slot(self, thing: Any, slot: Any) -> list[Any]:
        if not hasattr(slot, "__set__") or isinstance(thing, type):
            return []
        held = _of_slot(slot, thing)

        def put(value: Any) -> None:
            slot.__delete__(thing) if value is _NOTHING else slot.__set__(thing, value)

        self._note_binding(lambda: _of_slot(slot, thing), put, held)
        return [] if held is _NOTHING else [held]

    def _note_class(self, cls: type) -> list[Any]:
        held = {name: value for name, value in vars(cls).items() if not name.startswith("__")}

        def new() -> list[object]:
            return [value for name, value in vars(cls).items() if name[:2] != "__" and held.get(name) is not value]

        def back() -> None:
            for name in [name for name in vars(cls) if name[:2] != "__" and name not in held]:
                delattr(cls, name)
            for name, value in held.items():
                if vars(cls).get(name) is not value:
                    setattr(cls, name, value)

        self._undo.append(back)
        self._changes.append(new)
        return [getattr(value, "__func__", getattr(value, "fget", value)) for value in held.values()]

    # ---- files

    def _note_file(self, file: Any) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file of the system's
            self.shared |= file.readable() and not file.seekable()
            position: int | None = None
            with suppress(OSError, ValueError):
                position = file.tell()
            try:
                offset = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            except (OSError, ValueError):
                offset = -1
            self._files.append((file, offset, position))

    def _note_descriptor(self, number: int) -> None:
        """Note the position of a file that an object holds as a number."""
        if number in self._descriptors and number > 2:
            with suppress(OSError, ImportError):
                import fcntl

                reads = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                if reads and stat.S_ISREG(os.fstat(number).st_mode):
                    self._files.append((number, os.lseek(number, 0, os.SEEK_CUR), None))


_NOTHING = object()


@functools.lru_cache(1024)
def _is_trainer(cls: Any) -> bool:
    """Whether this is Lightning's trainer, which leads to everything else. Importing it to ask would cost seconds."""
    homes = {base.__module__.partition(".")[0] for base in cls.__mro__ if base.__name__ == "Trainer"}
    return not homes.isdisjoint({"lightning", "pytorch_lightning"})


def _of_slot(slot: Any, thing: Any) -> Any:
    try:
        return slot.__get__(thing)
    except AttributeError:
        return _NOTHING


def _cell_setter(cell: Any) -> Callable[[Any], None]:
    return functools.partial(setattr, cell, "cell_contents")


def _of_a_library(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _LIBRARIES


def _parts(item: Any) -> tuple[Any, ...]:
    return item if type(item) is tuple and len(item) <= _FIRST else (item,)


def _values_back(array: Any) -> Callable[[], None]:
    if isinstance(array, torch.Tensor):
        plain = array.detach()
        kept = plain.clone()

        def back_tensor() -> None:
            if not torch.equal(plain, kept):
                plain.copy_(kept)

        return back_tensor
    copied = array.copy()

    def back_array() -> None:
        if bytes(array) != bytes(copied):
            array[...] = copied

    def back_bytes() -> None:
        if array != copied:
            array[:] = copied

    return back_bytes if isinstance(array, bytearray) else back_array


def _open_descriptors() -> set[int]:
    """The numbers of the open files; none where the system does not tell."""
    found = set()
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):  # the listing itself was one
                os.fstat(int(name))
                found.add(int(name))
    return found


def _put_back(file: Any, offset: int) -> None:
    number = file if isinstance(file, int) else file.fileno()
    if offset >= 0 and os.lseek(number, 0, os.SEEK_CUR) != offset:
        os.lseek(number, offset, os.SEEK_SET)


def _closeable(new: list[Any], *, known: dict[int, object]) -> list[Any]:
    """Those among new objects, and in them, that were opened and can be closed."""
    found: list[Any] = []
    seen: set[int] = set()
    level, depth = list(new), 0
    while level and depth < 6 and len(seen) < 2000:
        deeper: list[Any] = []
        for thing in level:
            if id(thing) in known or id(thing) in seen or isinstance(thing, (*_LEAVES, type, torch.Tensor, np.ndarray)):
                continue
            seen.add(id(thing))
            if callable(getattr(thing, "close", None)):
                found.append(thing)
            elif isinstance(thing, dict):
                deeper += thing.values()
            elif isinstance(thing, (list, tuple, set, deque)):
                deeper += list(thing)[:_FIRST]
            else:
                deeper += getattr(thing, "__dict__", {}).values()
        level, depth = deeper, depth + 1
    return found

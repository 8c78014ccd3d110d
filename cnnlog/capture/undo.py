"""Somebody's Python objects, given back as they were after something has been read through them.

A data set may open its files at the first read, fill a cache, count, or draw. Objects are given back in place, because
others hold them, too. `ARCHITECTURE.md` says what lies beyond this.
"""

from __future__ import annotations

import ctypes
import functools
import io
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import is_
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from cnnlog.capture.contents import CELL, MISSING, OF_CLASSES, bind_again, names_in, set_slot
from cnnlog.capture.descriptors import Descriptors
from cnnlog.capture.kinds_of_data import is_leaf, is_object_of_a_library, is_of_a_library, of_a_library, used_up
from cnnlog.capture.kinds_of_state import CONTAINERS, own_packages
from cnnlog.capture.memory import KINDS, Bytes, Edges, Memory, size_of
from cnnlog.capture.opened import Positions, close_all, of_slot, opened, python_slots

OBJECTS_LIMIT = 10_000
BYTES_LIMIT = 64_000_000
_FIRST = 256  # of a long container these are looked into; all of it is given back
_lru_cache = type(functools.lru_cache(lambda: None))
_told: set[str] = set()


class Noted:
    """What some objects, and all that can be reached from them, hold now.

    Args:
        roots: where to begin.

    Attributes:
        one_way: an iterator or a generator is among them: who reads it uses it up. A copy of the process does not.
        shared: the kind of what is among them and used up by who reads it, in a copy of the process as well: a queue, a
            pipe, a socket, or a thread that fills one. Empty if there is none.
        whole: everything was noted. If not, there were more than `OBJECTS_LIMIT` objects.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self.one_way = False
        self.shared = ""
        self.whole = True
        self._seen: dict[int, object] = {}
        self._spaces: set[tuple[int, frozenset[str]]] = set()
        self._found = self._size = 0
        self._bytes: list[Bytes] = []
        self._edges: list[Edges] = []
        self._undo: list[Callable[[], object]] = []
        self._changes: list[Callable[[], list[object]]] = []
        self._files = Positions()
        roots = list(roots)
        self._packages = own_packages(roots)
        self._descriptors = Descriptors(self._packages)
        level = [(thing, False) for thing in roots]
        while level:
            level = [part for thing, in_library in level for part in self._parts_of(thing, in_library)]

    @contextmanager
    def reading(self, *, here: bool, in_use: bool = False) -> Iterator[None]:
        """Read through them, and give them back as they were.

        Args:
            here: they are read in this process. If not, it is another one, which may move the positions of open files
                and write into shared memory, and nothing else; only that is put back.
            in_use: further processes, which read for the training, may write into shared memory meanwhile; then it is
                left as it is.
        """
        try:
            with self._descriptors.watched():
                yield
        finally:
            self._give_back(read_here=here, with_memory=not in_use)

    def tell(self, kind: str) -> None:
        """Warn, once for each kind of data set, if something may not have been given back.

        Args:
            kind: the name of what was read.
        """
        if (self.whole and not any(edges.moved() for edges in self._edges)) or kind in _told:
            return
        _told.add(kind)
        warnings.warn(
            f"cnnlog: {kind} holds more than 10,000 objects or 64 MB that reading it may change. What lies beyond is "
            "not given back after the probe was read from it; pass a Probe if your training minds.",
            stacklevel=4,
        )

    def _give_back(self, *, read_here: bool, with_memory: bool) -> None:
        memory = Memory()
        new: list[object] = []
        for change in self._changes if read_here else ():
            with suppress(Exception):
                new += change()
        closeable, numbers = opened(new, known=self._seen) if new else ([], [])
        new.clear()
        for undo in self._undo if read_here else ():
            with suppress(Exception):  # of the many kinds of objects some refuse; the others are given back
                undo()
        for values in self._bytes if with_memory else ():
            with suppress(Exception):
                values.put_back(memory, only_shared=not read_here)
        self._files.put_back(read_here=read_here)
        self._descriptors.put_back()
        close_all(closeable)
        self._descriptors.close(numbers)

    # ---- noting

    def _parts_of(self, thing: Any, in_library: bool) -> Iterable[tuple[Any, bool]]:
        """Note one object; what can be reached from it in one step, and whether an installed package's object has it.

        A client's pool of connections is a queue, too, and is not what a data set reads.
        """
        try:
            if shared := used_up(thing):
                self.shared = self.shared or ("" if in_library else shared)
                return ()
            parts = self._note(thing, in_library)
        except Exception:  # of the many kinds of objects some refuse: those that stand for another which is not there
            return ()
        in_library = in_library or is_object_of_a_library(thing, self._packages)
        return [(part, in_library) for part in parts]

    def _note(self, thing: Any, in_library: bool) -> Iterable[Any]:
        cls: Any = type(thing)
        if thing is None or id(thing) in self._seen:
            return ()
        if cls is int:
            self._descriptors.note(thing)
        if is_leaf(thing) or (issubclass(cls, (FunctionType, _lru_cache)) and is_of_a_library(thing)):
            return ()
        self._found += not issubclass(cls, CONTAINERS) or len(thing) > 0  # a module has a dozen empty ones
        if self._found > OBJECTS_LIMIT:
            self.whole = False
            return ()
        self._seen[id(thing)] = thing
        if issubclass(cls, KINDS):
            return self._note_values(thing)
        if issubclass(cls, CONTAINERS):
            inside = self._note_container(thing)
        elif issubclass(cls, (tuple, frozenset)):
            inside = [part for part, _ in zip(thing, range(_FIRST), strict=False)]
        else:
            inside = self._note_special(thing, in_library)
        return [*inside, *self._note_attributes(thing)]

    def _note_values(self, array: Any) -> list[Any]:
        if isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and not array.flags.writeable):
            return []
        if isinstance(array, torch.Tensor) and (array.layout != torch.strided or array.is_meta):
            return []
        self._keep(array)
        of_objects = isinstance(array, np.ndarray) and array.dtype.hasobject
        return array.ravel()[:_FIRST].tolist() if of_objects else []

    def _keep(self, values: Any) -> None:
        size = size_of(values)
        if self._size + size > BYTES_LIMIT:
            self._edges.append(Edges(values))
        else:
            self._size += size
            self._bytes.append(Bytes(values))

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

    def _note_special(self, thing: Any, in_library: bool) -> list[Any]:
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
        self._note_native(thing, in_library)
        return [thing.__wrapped__] if isinstance(thing, _lru_cache) else []

    def _note_native(self, thing: Any, in_library: bool) -> None:
        """Note what is kept outside of Python's objects."""
        if isinstance(thing, _lru_cache):
            if thing.cache_info().currsize == 0:
                self._undo.append(thing.cache_clear)
        elif isinstance(thing, (io.IOBase, io.TextIOBase)):
            if self._files.note(thing) and not in_library:
                self.shared = self.shared or type(thing).__name__
        elif isinstance(thing, (ctypes._SimpleCData, ctypes.Array, ctypes.Structure)):
            self._keep(thing)
        elif isinstance(thing, Iterator) and not hasattr(thing, "__dict__"):  # one of C's
            self.one_way = True

    def _note_function(self, function: FunctionType) -> list[Any]:
        reached: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        reached += [self._note_slot(cell, CELL) for cell in function.__closure__ or ()]
        if not of_a_library(function.__module__):
            reached += self._note_globals(function.__globals__, names_in(function.__code__))
        return [part for part in reached if part is not MISSING]

    def _note_globals(self, variables: dict[str, Any], names: frozenset[str]) -> list[Any]:
        """Note what a function finds in its file, and in others of the user's files that it names."""
        key = (id(variables), names)
        if key in self._spaces:
            return []
        self._spaces.add(key)
        bound = {name: variables[name] for name in names if name in variables}
        self._note_bound(variables, bound, lambda: {name: variables.get(name) for name in bound})
        modules = [value for value in bound.values() if isinstance(value, ModuleType)]
        reached = [value for value in bound.values() if not isinstance(value, ModuleType)]
        for module in modules:
            if not of_a_library(module.__name__):
                reached += self._note_globals(vars(module), names)
        return reached

    def _note_bound(self, owner: Any, bound: dict[str, Any], now: Callable[[], dict[str, Any]]) -> None:
        self._undo.append(lambda: bind_again(owner, bound))
        self._changes.append(lambda: [value for key, value in now().items() if bound.get(key, MISSING) is not value])

    def _note_attributes(self, thing: Any) -> list[Any]:
        reached: list[Any] = []
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            reached += self._note_container(attributes)
        is_class = isinstance(thing, type)
        held = [] if is_class else [self._note_slot(thing, slot) for slot in python_slots(thing)]
        reached += [value for value in held if value is not MISSING]
        for base in (thing if is_class else type(thing)).__mro__:
            if not of_a_library(base.__module__) and (base is thing or id(base) not in self._seen):
                self._seen[id(base)] = base
                reached += self._note_class(base)
        return reached

    def _note_slot(self, thing: Any, slot: Any) -> Any:
        """Note a slot or a closure's cell; what it holds, or `MISSING`."""
        held = of_slot(slot, thing)
        self._undo.append(lambda: set_slot(slot, thing, held))
        self._changes.append(lambda: [value for value in (of_slot(slot, thing),) if value is not held])
        return held

    def _note_class(self, cls: type) -> list[Any]:
        def now() -> dict[str, Any]:
            return {name: value for name, value in vars(cls).items() if name not in OF_CLASSES}

        held = now()
        self._note_bound(cls, held, now)
        return [getattr(value, "__func__", getattr(value, "fget", value)) for value in held.values()]


def _parts(item: Any) -> tuple[Any, ...]:
    return item if type(item) is tuple and len(item) <= _FIRST else (item,)

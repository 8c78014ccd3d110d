"""What is in containers, attributes, slots and closures: compared by identity, and put back in place."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from itertools import chain
from operator import is_
from typing import Any

import numpy as np

MISSING = object()
"""Stands for the value of a slot or a closure's cell that is empty."""

# What Python itself keeps in a class.
OF_CLASSES = frozenset(vars(type("_", (), {"__slots__": ()})))
OF_CLASSES |= {"__dict__", "__weakref__", "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__"}
OF_CLASSES |= {"__orig_bases__", "__annotate_func__"}


class _Cell:
    """A closure's cell, read and written as a slot is."""

    __name__ = "cell"

    def __get__(self, cell: Any, _: Any = None) -> Any:
        return cell.cell_contents

    def __set__(self, cell: Any, value: Any) -> None:
        cell.cell_contents = value

    def __delete__(self, cell: Any) -> None:
        del cell.cell_contents


CELL = _Cell()


def slots_of(thing: object) -> tuple[Any, ...]:
    """The descriptors of the `__slots__` of an object's class, those of its bases included.

    Args:
        thing: any object.
    """
    cls: Any = type(thing)
    return _slots_of(cls)


@lru_cache(4096)
def _slots_of(cls: Any) -> tuple[Any, ...]:
    if cls.__module__ == "builtins":
        return ()
    own = chain.from_iterable(vars(base).values() for base in cls.__mro__ if base.__module__ != "builtins")
    return tuple(value for value in own if isinstance(value, types.MemberDescriptorType))


def bind_again(owner: Any, bound: Mapping[str, Any]) -> None:
    """Bind a class's attributes, or a file's variables, as they were.

    Args:
        owner: the class, or the file's globals.
        bound: name -> value; of a class all of its own.
    """
    if isinstance(owner, dict):
        for name, value in bound.items():
            if owner.get(name, MISSING) is not value:
                owner[name] = value
        return
    for name in [name for name in vars(owner) if name not in bound and name not in OF_CLASSES]:
        type.__delattr__(owner, name)
    for name, value in bound.items():
        if vars(owner).get(name, MISSING) is not value:
            type.__setattr__(owner, name, value)


@lru_cache(8192)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names that a function uses of what is outside it, those of the functions within it included.

    Args:
        code: the function's.
    """
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(code.co_names).union(*map(names_in, inner))


def value_of(slot: Any, thing: Any) -> Any:
    """What a slot, or a closure's cell, holds; `MISSING` if it is empty.

    Args:
        slot: its descriptor, or `CELL`.
        thing: the object, or the cell.
    """
    try:
        return slot.__get__(thing, type(thing))
    except (AttributeError, ValueError):
        return MISSING


def set_slot(slot: Any, thing: Any, value: Any) -> None:
    """Put a value back into a slot, past what its class may do when it is set.

    Args:
        slot: its descriptor, or `CELL`.
        thing: the object, or the cell.
        value: what it held; `MISSING` empties it.
    """
    now = value_of(slot, thing)
    if now is value:
        return
    if value is MISSING:
        slot.__delete__(thing)
    else:
        slot.__set__(thing, value)


def plain_copy(container: Any) -> Any:
    """A plain copy of a dict, list, set or deque, without what a subclass may do when it is read.

    Args:
        container: any of these.
    """
    if isinstance(container, dict):
        return dict((OrderedDict if isinstance(container, OrderedDict) else dict).items(container))
    if isinstance(container, set):
        return set(set.__iter__(container))
    return list((list if isinstance(container, list) else deque).__iter__(container))


def vars_of(thing: Any) -> Any:
    """An object's dict of attributes; None where it has none, or its class cannot say it.

    Args:
        thing: any object.
    """
    try:
        return getattr(thing, "__dict__", None)
    except Exception:  # it stands for another object, and there is none yet
        return None


def refill(now: MutableMapping[str, Any], before: Mapping[str, Any], *, in_order: bool = False) -> None:
    """Make a dict of attributes what it was.

    Args:
        now: the dict.
        before: a copy of it.
        in_order: also in its order.
    """
    for key in [key for key in now if key not in before]:
        del now[key]
    for key, value in before.items():
        if key not in now or now[key] is not value:
            now[key] = value
    if in_order and [*now] != [*before]:
        now.clear()
        now.update(before)


def same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether two dicts hold the very same objects, in the same order.

    Args:
        a: the one; what a subclass may do when it is read is passed by.
        b: the other, a plain dict.
    """
    if type(a) is dict:  # as nearly always, and thousands of times
        return len(a) == len(b) and all(map(is_, a, b)) and all(map(is_, a.values(), b.values()))
    base: Any = OrderedDict if isinstance(a, OrderedDict) else dict
    return (
        dict.__len__(a) == len(b) and all(map(is_, base.__iter__(a), b)) and all(map(is_, base.values(a), b.values()))
    )


def same_content(container: Any, content: Any) -> bool:
    """Whether a container or array still holds what it held.

    Args:
        container: a dict, set, list, deque, array, or bytes that can be written.
        content: a copy of it.
    """
    if isinstance(container, dict):
        return same_items(container, content)
    if isinstance(container, np.ndarray):
        return _same_elements(container, content)
    if isinstance(container, set):
        return {*map(id, set.__iter__(container))} == {*map(id, content)}
    if isinstance(container, (list, deque)):
        base: Any = list if isinstance(container, list) else deque
        return base.__len__(container) == len(content) and all(map(is_, base.__iter__(container), content))
    return bool(container == content)  # a bytearray, an array of numbers


def _same_elements(a: Any, b: Any) -> bool:
    if a.shape != b.shape:
        return False
    if a.flags.c_contiguous and a.size and not a.dtype.hasobject:
        return bool(np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)))
    return bool(a.tobytes() == b.tobytes())


def restore_content(container: Any, content: Any) -> None:
    """Put back what was in a container or array, past what its class may do when it is written.

    Args:
        container: a dict, set, list, deque, array, or bytes that can be written.
        content: a copy of it.
    """
    if isinstance(container, dict):
        base: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        base.clear(container)
        base.update(container, content)
    elif isinstance(container, np.ndarray):
        if not container.flags.writeable:
            container.setflags(write=True)
        if container.shape != content.shape:
            container.resize(content.shape, refcheck=False)
        np.copyto(container, content)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, content)
    elif isinstance(container, (list, deque)):
        base = list if isinstance(container, list) else deque
        base.clear(container)
        base.extend(container, content)
    else:
        container[:] = content

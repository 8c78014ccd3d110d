"""Files and the like that somebody's objects have open: put back where they were, or closed if they are new."""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress
from typing import Any

from cnnlog.capture.contents import CELL, MISSING, slots_of, value_of
from cnnlog.capture.kinds_of_data import LEAVES
from cnnlog.capture.memory import KINDS

_FIRST = 256  # of a long container these are looked at


class Positions:
    """Where open file objects stand."""

    def __init__(self) -> None:
        self._files: list[tuple[Any, int, int | None]] = []

    def note(self, file: Any) -> bool:
        """Note where a file stands.

        Args:
            file: of Python's `io`.

        Returns:
            Whether what is read from it is gone, as from a pipe.
        """
        gone = False
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file of the system's
            gone = file.readable() and not file.seekable()
            position: int | None = None
            with suppress(OSError, ValueError):
                position = file.tell()
            try:
                offset = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            except (OSError, ValueError):
                offset = -1
            self._files.append((file, offset, position))
        return gone

    def put_back(self, *, read_here: bool) -> None:
        """Make them stand where they stood.

        Args:
            read_here: they were read in this process, which has parts of them in its memory. If not, a forked one may
                have moved the place in the file that both share.
        """
        for file, offset, position in self._files:
            with suppress(Exception):
                if read_here and position is not None:
                    file.seek(position)
                elif offset >= 0 and os.lseek(file.fileno(), 0, os.SEEK_CUR) != offset:
                    os.lseek(file.fileno(), offset, os.SEEK_SET)


def opened(new: list[Any], *, known: dict[int, object]) -> tuple[list[Any], list[int]]:
    """Those among new objects, and in them, that were opened and can be closed; and the numbers there.

    Args:
        new: objects that were not there before.
        known: id -> object, of those that were.
    """
    found: list[Any] = []
    numbers: list[int] = []
    seen: set[int] = set()
    level, depth = list(new), 0
    while level and depth < 6 and len(seen) < 2000:
        deeper: list[Any] = []
        for thing in level:
            cls: Any = type(thing)
            if cls is int:
                numbers.append(thing)
            if id(thing) in known or id(thing) in seen or issubclass(cls, (*LEAVES, type, *KINDS)):
                continue
            seen.add(id(thing))
            with suppress(Exception):  # of the many kinds of objects some refuse
                if callable(getattr(thing, "close", None)):
                    found.append(thing)
                else:
                    deeper += _inside(thing)
        level, depth = deeper, depth + 1
    return found, numbers


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, deque)):
        return list(thing)[:_FIRST]
    slots = [of_slot(slot, thing) for slot in python_slots(thing)]
    return [*slots, *getattr(thing, "__dict__", {}).values()]


def close_all(things: list[Any]) -> None:
    """Close those that nobody else has.

    Args:
        things: with a `close`. The list is emptied of those that were closed.
    """
    for _ in range(2):  # what holds another goes first
        for number in range(len(things) - 1, -1, -1):
            if sys.getrefcount(things[number]) <= 2:  # nobody else has it
                with suppress(Exception):
                    things.pop(number).close()


def python_slots(thing: Any) -> list[Any]:
    """The slots of classes that are written in Python; what C's classes call so are parts of a file's, say.

    Args:
        thing: any object.
    """
    return [slot for slot in slots_of(thing) if "__slots__" in vars(slot.__objclass__)]


def of_slot(slot: Any, thing: Any) -> Any:
    """What a slot or a closure's cell holds, or `MISSING`.

    Args:
        slot: its descriptor, or `CELL`.
        thing: the object, or the cell.
    """
    if slot is CELL:
        return value_of(CELL, thing)
    try:
        return slot.__get__(thing, type(thing))
    except AttributeError:
        return MISSING

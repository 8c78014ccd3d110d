"""Open files that Python code holds as numbers: which of them somebody's code used, and which it opened."""

from __future__ import annotations

import functools
import gc
import io
import mmap
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cnnlog.capture.kinds_of_state import is_foreign

_USES = ("read", "readv", "readinto", "lseek")  # of os: what moves the position in a file, or asks for it
_NUMBERS = 1 << 16  # files with a higher number are left alone


class Descriptors:
    """The numbers of open files that were met in some objects.

    A number in an object may be anything, such as a count of classes. So a position is only put back, and a file only
    closed, if code that is not of an installed package called `os.read` or `os.open` for just that number.

    Args:
        packages: top-level packages whose code may do so, though they are installed.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        self._packages = frozenset(packages)
        self._open = open_descriptors()
        self._positions: dict[int, tuple[int, tuple[int, int]]] = {}
        self._opened: dict[int, tuple[int, int]] = {}
        self._used: mmap.mmap | None = None  # a forked process writes into it, too

    def note(self, number: int) -> None:
        """Note the position of a file that is read, if this is the number of one.

        Args:
            number: that an object holds.
        """
        if number in self._positions or number not in self._open or not 2 < number < _NUMBERS:
            return
        with suppress(OSError, ImportError):
            import fcntl

            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                place = _regular(number)
                if place is not None:
                    self._positions[number] = os.lseek(number, 0, os.SEEK_CUR), place

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See which files are opened and read by number, in this process and in those that it forks meanwhile."""
        self._used = mmap.mmap(-1, _NUMBERS) if self._positions else None
        thread = threading.get_ident()

        def opened(_: Any, number: int) -> None:
            if threading.get_ident() == thread and (place := _regular(number)) is not None:
                self._opened[number] = place

        def used(number: Any, _: Any) -> None:
            mine = threading.get_ident() == thread  # also of the only thread that a forked process has
            if mine and self._used is not None and type(number) is int and 0 <= number < _NUMBERS:
                self._used[number] = 1

        notes: dict[str, Callable[[Any, Any], None]] = {"open": opened, **dict.fromkeys(_USES, used)}
        own = {name: getattr(os, name) for name in notes if hasattr(os, name)}
        put = {name: self._noting(function, notes[name]) for name, function in own.items()}
        for name, function in put.items():
            setattr(os, name, function)
        try:
            yield
        finally:
            for name, function in own.items():
                if getattr(os, name) is put[name]:
                    setattr(os, name, function)

    def put_back(self) -> None:
        """Make the positions what they were, of the files that were read by number."""
        for number, (position, place) in self._positions.items():
            if self._used is not None and self._used[number]:
                with suppress(OSError):
                    if _regular(number) == place and os.lseek(number, 0, os.SEEK_CUR) != position:
                        os.lseek(number, position, os.SEEK_SET)

    def close(self, numbers: Iterable[int]) -> None:
        """Close files that were opened by number meanwhile, unless a file object has them.

        Args:
            numbers: that objects hold now, and did not hold before.
        """
        mine = {number for number in numbers if number in self._opened and number not in self._open}
        if mine:
            mine -= _in_file_objects()
        for number in mine:
            with suppress(OSError):
                if _regular(number) == self._opened.pop(number):
                    os.close(number)

    def _noting(self, function: Callable[..., Any], note: Callable[[Any, Any], None]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            caller = str(sys._getframe(1).f_globals.get("__name__")).partition(".")[0]
            if caller in self._packages or not is_foreign(caller):
                note(args[0] if args else None, result)
            return result

        return noting


def open_descriptors() -> set[int]:
    """The numbers of the open files; none where the system does not tell."""
    found = set()
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):  # the listing itself was one
                os.fstat(int(name))
                found.add(int(name))
    return found


def _regular(number: int) -> tuple[int, int] | None:
    """What tells a file on a disk from others; None of what is none."""
    with suppress(OSError):
        found = os.fstat(number)
        if stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def _in_file_objects() -> set[int]:
    """The numbers of all files that Python's own file objects have open."""
    found = set()
    for thing in gc.get_objects():
        if issubclass(type(thing), io.FileIO):
            with suppress(ValueError, OSError):  # it is closed
                found.add(thing.fileno())
    return found

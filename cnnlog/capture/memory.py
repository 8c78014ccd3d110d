"""The bytes of arrays and tensors, as they were, and put back where that is allowed."""

from __future__ import annotations

import array
import ctypes
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlog.capture.contents import restore_content, same_content
from cnnlog.capture.kept import Kept, copy_back

EDGE = 1 << 20  # bytes at either end of a large array


class Memory:
    """Which of this process's memory can be written, and which others share, as Linux tells; elsewhere none knows."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._known: list[tuple[int, str]] = []
        with suppress(OSError, ValueError):
            for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
                places, permissions, *_ = line.split()
                begin, end = (int(place, 16) for place in places.split("-"))
                self._begins.append(begin)
                self._known.append((end, permissions))

    def may_be_written(self, address: int) -> bool:
        """Whether it can be written; True where nobody knows.

        Args:
            address: of the first byte.
        """
        return "w" in (self._at(address) or "w")

    def is_shared(self, address: int) -> bool | None:
        """Whether other processes see it; None where nobody knows.

        Args:
            address: of the first byte.
        """
        permissions = self._at(address)
        return None if permissions is None else "s" in permissions

    def _at(self, address: int) -> str | None:
        number = bisect_right(self._begins, address) - 1
        if number < 0:
            return None
        end, permissions = self._known[number]
        return permissions if address < end else None


class Bytes:
    """What one tensor, array, number of C's or `bytearray` held.

    Args:
        thing: any of these.
    """

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self._tensor: Kept | None = None
        self._content: Any = None
        if isinstance(thing, torch.Tensor):
            self._tensor = Kept(thing.detach().as_subclass(torch.Tensor))
            self._tensor.keep()
        else:
            self._content = bytes(thing) if _is_c(thing) else thing.copy() if _is_array(thing) else thing[:]

    def put_back(self, memory: Memory, *, only_shared: bool) -> None:
        """Make it what it was. Nothing is written where the bytes are the same, or where nothing can be written.

        Args:
            memory: of this process.
            only_shared: only what another process can have changed.
        """
        address = _address(self.thing)
        if only_shared and (address is None or not self._is_shared(memory.is_shared(address))):
            return
        if self._is_the_same() or (address is not None and not memory.may_be_written(address)):
            return
        if self._tensor is not None:
            copy_back([self._tensor])
        elif _is_c(self.thing):
            ctypes.memmove(ctypes.addressof(self.thing), self._content, len(self._content))
        else:
            restore_content(self.thing, self._content)

    def _is_shared(self, known: bool | None) -> bool:
        if known is not None:
            return known
        if _is_array(self.thing):
            return self.thing.base is not None
        return self._tensor is None or bool(self.thing.is_shared())

    def _is_the_same(self) -> bool:
        if self._tensor is not None:
            return self._tensor.copy is None or bool(torch.equal(_raw(self._tensor.alias), _raw(self._tensor.copy)))
        if _is_c(self.thing):
            return bool(bytes(self.thing) == self._content)
        if _is_array(self.thing) and self.thing.dtype.hasobject:
            return all(a is b for a, b in zip(self.thing.ravel(), self._content.ravel(), strict=True))
        return same_content(self.thing, self._content)


class Edges:
    """The first and the last of an array that is too large to be kept: enough to say that a sample was written there.

    Args:
        thing: a tensor or an array.
    """

    def __init__(self, thing: Any) -> None:
        self._thing = thing
        self._before = self._now()

    def moved(self) -> bool:
        """Whether they are not as they were; False if nobody can know."""
        with suppress(Exception):  # its size may have been changed
            return self._before != self._now()
        return False

    def _now(self) -> list[bytes]:
        if isinstance(self._thing, torch.Tensor):
            flat = self._thing.detach().as_subclass(torch.Tensor)
            here = flat.device.type == "cpu" and flat.is_contiguous()
            return [] if not here or flat.is_quantized else _ends_of(_raw(flat).numpy())
        is_plain = isinstance(self._thing, np.ndarray) and self._thing.flags.c_contiguous
        if is_plain and not self._thing.dtype.hasobject:
            return _ends_of(self._thing.reshape(-1).view(np.uint8))
        return []


def size_of(thing: Any) -> int:
    """How many bytes it holds.

    Args:
        thing: what `Bytes` takes.
    """
    if isinstance(thing, (np.ndarray, torch.Tensor)):
        return thing.nbytes
    return ctypes.sizeof(thing) if _is_c(thing) else memoryview(thing).nbytes


def _ends_of(flat: Any) -> list[bytes]:
    return [flat[:EDGE].tobytes(), flat[-EDGE:].tobytes()]


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _address(thing: Any) -> int | None:
    """Where it begins in memory; None for what is never shared or read-only."""
    if isinstance(thing, torch.Tensor):
        return thing.data_ptr() if thing.device.type == "cpu" else None
    if _is_array(thing):
        return int(thing.__array_interface__["data"][0])
    return ctypes.addressof(thing) if _is_c(thing) else None


def _is_array(thing: Any) -> bool:
    return isinstance(thing, np.ndarray)


def _is_c(thing: Any) -> bool:
    return isinstance(thing, (ctypes._SimpleCData, ctypes.Array, ctypes.Structure))


KINDS: tuple[type, ...] = (torch.Tensor, np.ndarray, bytearray, array.array)
"""What is kept whole, or not at all. Numbers of C's are kept, too, and may have attributes besides."""

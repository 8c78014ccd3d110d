"""The tensors that a lent model seldom writes, and how each is given back: parameters, gradients, large attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from cnnlog.capture.kept import Group, Kept, Seen, copied, copy_back, is_wrapper, size
from cnnlog.capture.write_guard import WriteGuard

COPIED_WHOLE = 2_000_000
"""Bytes: of a model that is smaller all is copied at every loan, which costs less than to watch for writes."""


@dataclass(frozen=True)
class Found:
    """What was found when tensors were given back.

    Attributes:
        written: whether any had been written, or bound to other memory.
        unseen: whether that was in a way that only a copy made before could undo.
        lost: those of which there was no copy.
    """

    written: bool = False
    unseen: bool = False
    lost: Sequence[torch.Tensor] = ()


class Copied:
    """All are copied at once; for models that are small.

    Args:
        tensors: id -> tensor.

    Attributes:
        guard: to be active while the model runs: nothing.
    """

    def __init__(self, tensors: Mapping[int, torch.Tensor]) -> None:
        self.guard: AbstractContextManager[Any] = nullcontext()
        self._kept = [Kept(tensor) for tensor in tensors.values()]
        self._groups: list[Group]
        self._others: list[Kept]
        self._groups, self._others = copied(kept.alias for kept in self._kept)

    def put_back(self) -> Found:
        """Make the bytes what they were, in the memory that they were in."""
        moved = [kept.put_in_place() for kept in self._kept]  # a list: all of them
        changed = [kept for kept in self._others if kept.changed(tell=False)]
        copy_back(changed)
        written = [group.put_back() for group in self._groups]
        return Found(written=any(moved) or bool(changed) or any(written))


class Guarded:
    """Each is copied just before something writes into it; at a model's first loan, all are copied besides.

    Args:
        tensors: id -> tensor.
        copy_all: copy all of them now.
        tell: find out for certain what has changed, even if this thread must wait for a device.

    Attributes:
        guard: to be active while the model runs.
    """

    def __init__(
        self,
        tensors: Mapping[int, torch.Tensor],
        *,
        copy_all: bool,
        tell: bool,
    ) -> None:
        self._tell = tell
        # a wrapper's version and memory are those of what it wraps
        self._kept = {key: Kept(tensor) for key, tensor in tensors.items() if copy_all or is_wrapper(tensor)}
        for kept in self._kept.values() if copy_all else ():
            kept.keep()
        self._seen = [Seen(tensor) for key, tensor in tensors.items() if key not in self._kept]
        self.guard = WriteGuard([*tensors.values()], self._kept)

    def put_back(self) -> Found:
        """Make the bytes of those that were written what they were."""
        kept = [*self._kept.values()]  # among them those that the guard has copied
        touched = {one for one in kept if one.put_in_place()}
        changed = {one for one in kept if one.changed(tell=self._tell)}
        copy_back(changed)
        written = touched | changed
        lost = [one.tensor for one in written if one.copy is None and one.written]
        lost += [one.tensor for one in self._seen if not one.is_as_it_was() and id(one.tensor) not in self._kept]
        return Found(bool(written or lost), bool(lost) or bool(written and not self.guard.saw), lost)


def lend(
    tensors: Mapping[int, torch.Tensor],
    gradients: Mapping[int, torch.Tensor],
    *,
    first: bool,
    copy_all: bool,
) -> Copied | Guarded:
    """How some tensors are lent: copied if they are small, guarded otherwise.

    Args:
        tensors: id -> tensor, of all that the model can reach.
        gradients: id -> tensor.
        first: it is the model's first loan.
        copy_all: copy all tensors.
    """
    if not first and sum(map(size, tensors.values())) < COPIED_WHOLE:
        return Copied({**tensors, **gradients})
    return Guarded({**tensors, **gradients}, copy_all=first or copy_all, tell=first)

"""The processes of one training: what goes wrong in one of them is known to all, so that none waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")

_KINDS = (ValueError, TypeError, LookupError, OSError)


class Ranks:
    """The processes, seen from one of them. Every one must make the same calls, in the same order.

    Args:
        several: whether there are others that torch.distributed reaches; else nothing here waits for anybody.
        first: what is true of this process where it does not reach them.

    Attributes:
        several: there are others.
        first: this is rank 0, which writes.
    """

    def __init__(self, *, several: bool, first: bool = True) -> None:
        self.several = several and distributed.is_available() and distributed.is_initialized()
        self.first = distributed.get_rank() == 0 if self.several else first

    def share(self, value: T) -> T:
        """What rank 0 has; it must pickle.

        Args:
            value: what this process has; only rank 0's counts.
        """
        if not self.several:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        shared: T = box[0]
        return shared

    def agree(self, error: Exception | None) -> Exception | None:
        """The error of this process, else one of the same kind that says what another's was, else None.

        Args:
            error: what went wrong in this process; None if nothing did.
        """
        if not self.several:
            return error
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), RuntimeError)
        said: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(said, None if error is None else (kind, f"{type(error).__name__}: {error}"))
        failed = [(rank, *what) for rank, what in enumerate(said) if what is not None]
        if error is not None or not failed:
            return error
        rank, kind, text = failed[0]
        others: Exception = kind(f"rank {rank} failed: {text}")
        return others

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error raised in here by one process is raised by all, at the end of the block."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        agreed = self.agree(error)
        if agreed is not None:
            raise agreed

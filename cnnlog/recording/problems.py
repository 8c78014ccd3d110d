"""What went wrong beside the training, kept until the training thread asks for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that went wrong here. You are warned of it once per `what`.

    Attributes:
        what: the sort of problem, such as `"store"` or a tracker's name.
        message: what went wrong.
        error: why, where an exception tells.
        next: what follows if the training goes on all the same, which it does not where problems are raised.
    """

    what: str
    message: str
    error: Exception | None = None
    next: str = ""

    def text(self, *, goes_on: bool) -> str:
        """The whole sentence for a warning or an error.

        Args:
            goes_on: whether the training goes on, so that what follows from that is said, too.
        """
        said = f"{self.message}; {self.next}" if goes_on and self.next else self.message
        return said + (f" ({type(self.error).__name__}: {self.error})" if self.error is not None else "")


class Problems:
    """The problems since somebody last asked. Every thread may add one."""

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._lock = threading.Lock()

    def add(self, problem: Problem) -> None:
        """Keep a problem.

        Args:
            problem: what went wrong.
        """
        with self._lock:
            self._found.append(problem)

    def take(self) -> list[Problem]:
        """The problems since the last call, in the order in which they happened."""
        with self._lock:
            found, self._found = self._found, []
        return found

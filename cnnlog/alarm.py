"""What goes wrong here while somebody trains: said once, or raised, and never in the way of their own exception."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from cnnlog.recorder import Problem


class Alarm:
    """Warns once of each kind of problem, or raises it.

    Args:
        raises: raise, as `on_error="raise"` asks for.
        warned: the kinds that were warned of before; more are added.
        say: takes a warning's text where warnings are errors and one must not be raised.

    Attributes:
        failed: the training's own exception is on its way, and must not be hidden by one of ours.
    """

    def __init__(self, *, raises: bool, warned: set[str], say: Callable[[str], object]) -> None:
        self.failed = False
        self._raises = raises
        self._warned = warned
        self._say = say

    def handle(self, problems: Iterable[Problem]) -> None:
        """Warn of them, or raise the first.

        Raises:
            RuntimeError: a problem, if problems are to be raised.
        """
        for problem in problems:
            why = f" ({type(problem.error).__name__}: {problem.error})" if problem.error is not None else ""
            if self._raises and not self.failed:
                self._warned.add(problem.what)
                raise RuntimeError(f"cnnlog: {problem.message}{why}") from problem.error
            self.warn(problem.what, problem.message + why)

    def warn(self, what: str, message: str) -> None:
        """Warn, if it is the first time of this kind."""
        if what not in self._warned:
            self._warned.add(what)
            try:
                warnings.warn(f"cnnlog: {message}", stacklevel=2)
            except Warning as warning:  # warnings are errors here
                if not self.failed:
                    raise
                self._say(str(warning))

"""What goes wrong here while somebody trains: said once, or raised, and never in the way of their own exception."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from cnnlog.monitors.ranks import Ranks
from cnnlog.recording.problems import Problem


class Alarm:
    """Warns once of each kind of problem, or raises it.

    Args:
        raises: raise, as `on_error="raise"` asks for.
        warned: the kinds that were warned of before; more are added.
        say: takes a warning's text where warnings are errors and one must not be raised.
        ranks: those that handle problems together, where they are raised; rank 0 alone warns.

    Attributes:
        failed: the training's own exception is on its way, and must not be hidden by one of ours.
    """

    def __init__(self, *, raises: bool, warned: set[str], say: Callable[[str], object], ranks: Ranks) -> None:
        self.failed = False
        self._raises = raises
        self._ranks = ranks
        self._warned = warned
        self._say = say

    def handle(self, problems: Iterable[Problem]) -> None:
        """Warn of them, or raise the first: then on every rank what rank 0 has to raise.

        Args:
            problems: what went wrong since the last call; where problems are raised, every rank must call this, with or
                without any.

        Raises:
            RuntimeError: a problem, if problems are to be raised.
        """
        problems = list(problems)
        if self._raises and not self.failed:
            told = self._ranks.share([(problem.what, problem.text(goes_on=False)) for problem in problems])
            for what, text in told[:1]:
                self._warned.add(what)
                error = problems[0].error if problems else None
                raise RuntimeError(f'cnnlog: {text}; raised because of on_error="raise"') from error
        for problem in problems:
            self.warn(problem.what, problem.text(goes_on=not self.failed))

    def warn(self, what: str, message: str) -> None:
        """Warn, if it is the first time of this kind.

        Args:
            what: the kind of the problem.
            message: one sentence, without the package's name.
        """
        if what not in self._warned and self._ranks.first:
            self._warned.add(what)
            try:
                warnings.warn(f"cnnlog: {message}", stacklevel=2)
            except Warning as warning:  # warnings are errors here
                if not self.failed:
                    raise
                self._say(str(warning))

"""How far a command is, shown to a person who watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_watched() -> bool:
    """Whether stderr is a terminal; with FORCE_COLOR Rich takes anything for one, but that asks for colours only."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the terminal for each kind of work, gone when all is done."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    if not is_watched():
        yield lambda what, done, total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield advance

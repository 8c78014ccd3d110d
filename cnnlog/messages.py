"""How messages list names, shapes and near misses, and say an error in a line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def some(names: Iterable[str], at_most: int = 3) -> str:
    """The first few names, and how many more there are; "none" without any.

    Args:
        names: what to list.
        at_most: how many are named.

    Example:
        >>> some(["a", "b", "c", "d"]), some([])
        ('a, b, c and 1 more', 'none')
    """
    listed = list(names)
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return (", ".join(listed[:at_most]) + more) or "none"


def by(shape: Sequence[int] | None) -> str:
    """A shape as people write it; empty where there is none.

    Args:
        shape: sizes; None is empty, too.

    Example:
        >>> by((64, 3, 11, 11))
        '64x3x11x11'
    """
    return "x".join(str(size) for size in shape or ())


def near(name: str, known: Sequence[str], at_most: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """Those of the known names that are most like a name which is not among them, the nearest first.

    Args:
        name: what was asked for.
        known: what there is.
        at_most: how many to return.
        cutoff: how alike they must be, from 0 (anything) to 1 (the same).

    Example:
        >>> near("feature.0", ["features.0", "classifier"])
        ['features.0']
    """
    return difflib.get_close_matches(name, known, n=at_most, cutoff=cutoff)


def said(error: BaseException) -> str:
    """An error in one line: its class, and the first line of its text.

    Args:
        error: any; its text may have several lines, or none.

    Example:
        >>> said(ValueError("no such layer\\nand more"))
        'ValueError: no such layer'
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"

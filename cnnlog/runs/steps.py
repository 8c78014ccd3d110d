"""Which steps are shown, if a run has more than there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def evenly(steps: Sequence[_T], at_most: int) -> tuple[_T, ...]:
    """Some of the steps, at even distances, the first and the last among them.

    Args:
        steps: all steps.
        at_most: how many to take, at most.

    Example:
        >>> evenly(range(100), 4), evenly([3, 5], 4)
        ((0, 33, 66, 99), (3, 5))
    """
    if len(steps) <= at_most:
        return tuple(steps)
    return tuple(steps[at] for at in np.unique(np.linspace(0, len(steps) - 1, at_most).round().astype(int)))

"""Which steps are shown, if a run has more than there is room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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


@dataclass(frozen=True)
class Strided:
    """Steps at one distance from each other, from the first one on.

    Attributes:
        steps: the steps that were chosen, rising.
        stride: the distance that was aimed at.
        is_even: whether it was met; else the stored steps nearest to it were taken.
    """

    steps: tuple[int, ...]
    stride: int
    is_even: bool


def strided(steps: Sequence[int], at_most: int = 8, *, at_least: int = 4) -> Strided:
    """Some of the stored steps at one distance from each other, so that a strip of them has an even axis.

    The first step is always among them. The last one is, if a stride that gives `at_least` to `at_most` steps divides
    the way to it; of several, one that meets stored steps is taken, then the smallest. Else it is the smallest stride
    that meets stored steps and with which `at_most` of them would reach the last step. If none does, the smallest with
    which they would is aimed at.

    Args:
        steps: all stored steps, rising, at least one.
        at_most: how many to take, at most; 2 or more.
        at_least: how few are still a strip.

    Raises:
        ValueError: `at_most` is below 2.

    Example:
        >>> strided(range(101)).steps, strided(range(12)).steps
        ((0, 20, 40, 60, 80, 100), (0, 2, 4, 6, 8, 10))
        >>> strided([0, 1, 2, 4, 8])
        Strided(steps=(0, 2, 4, 8), stride=2, is_even=False)
    """
    if at_most < 2:
        raise ValueError(f"at_most must be 2 or more; got {at_most}")
    first, span, stored = steps[0], steps[-1] - steps[0], frozenset(steps)
    if span == 0:
        return Strided((first,), 0, True)
    enough = min(at_least, len(steps))
    whole = [span // parts for parts in range(at_most - 1, enough - 2, -1) if parts and span % parts == 0]
    smallest = math.ceil(span / (at_most - 1))
    is_regular = len({after - before for before, after in pairwise(steps)}) == 1
    reaching = [step - first for step in steps if step - first >= smallest]
    met = [stride for stride in reaching if is_regular or span // stride + 1 >= enough]
    by_choice = [
        *(stride for stride in whole if _aims(first, span, stride) <= stored),
        *([] if is_regular else whole),
        *(stride for stride in met if _aims(first, span, stride) <= stored),
        smallest,
    ]
    stride = by_choice[0]
    aims = _aims(first, span, stride)
    nearest = {min(steps, key=lambda step: abs(step - aim)) for aim in aims}
    return Strided(tuple(sorted(nearest)), stride, aims <= stored)


def _aims(first: int, span: int, stride: int) -> frozenset[int]:
    return frozenset(range(first, first + span + 1, stride))

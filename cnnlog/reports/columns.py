"""Which steps of a run are the columns of a strip: as many as there is room for, at even strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_ENOUGH = 4  # columns from which on a stride that reaches the last step is taken for it


class Columns(NamedTuple):
    """The columns of a strip.

    Attributes:
        steps: their steps, rising.
        stride: how far they are meant to be apart.
    """

    steps: tuple[int, ...]
    stride: int

    @property
    def note(self) -> str:
        """A few words where the steps are not at that stride, because the run has not stored them; else empty."""
        even = {later - earlier for earlier, later in pairwise(self.steps)} <= {self.stride}
        return "" if even else f"columns: of every {self.stride} steps the nearest that is stored"


def even_strides(steps: Sequence[int], at_most: int) -> Columns:
    """Some of the steps, from the first one on, as far apart from one another as can be said in one number.

    The stride is the smallest with at most so many columns that ends at the last step, if one with 4 columns or more
    does; else the smallest with at most so many columns, and the steps behind its last multiple are left out. If a
    step at a multiple of the stride is not stored, the nearest one that is takes its place.

    Args:
        steps: the steps that there are, rising.
        at_most: how many to take, 2 or more.

    Example:
        >>> even_strides(range(21), 8).steps, even_strides(range(12), 8).steps
        ((0, 4, 8, 12, 16, 20), (0, 2, 4, 6, 8, 10))
        >>> even_strides([0, 1, 2, 5, 10, 20], 8)
        Columns(steps=(0, 5, 10, 20), stride=4)
    """
    if at_most < 2:
        raise ValueError(f"at_most must be 2 or more; got {at_most}")
    if len(steps) < 2:
        return Columns(tuple(steps), 0)
    first, span = steps[0], steps[-1] - steps[0]
    unit = math.gcd(*(later - earlier for earlier, later in pairwise(steps)))
    least = -(-span // unit // at_most) * unit if span // unit + 1 > at_most else unit
    longest = max(span // (_ENOUGH - 1), least + unit)
    fitting = [stride for stride in range(least, longest + 1, unit) if span // stride + 1 <= at_most]
    reaching = [stride for stride in fitting if span % stride == 0 and span // stride + 1 >= _ENOUGH]
    stride = (reaching or fitting)[0]
    wanted = range(first, first + span + 1, stride)
    nearest = dict.fromkeys(min(steps, key=lambda step: (abs(step - at), step)) for at in wanted)
    return Columns(tuple(nearest), stride)

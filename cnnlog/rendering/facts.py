"""What it takes to read values off a grid's pixels. It goes into each PNG as text, so that this needs no store."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnlog.rendering.colours import ABOVE, BELOW, GAP, NOT_FINITE, NOTCH, RGB_STEP, RGB_ZERO, TOP, ZERO
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits

_INDICES = {
    "first": 0,
    "last": TOP,
    "gap": GAP,
    "not_finite": NOT_FINITE,
    "below": BELOW,
    "above": ABOVE,
    "notch": NOTCH,
}
_COMPONENTS = {"first": RGB_ZERO - ZERO * RGB_STEP, "last": RGB_ZERO + ZERO * RGB_STEP}


def facts_of(grid: Grid, limits: Limits, *, channels: Sequence[int], cells: int = 1) -> dict[str, Any]:
    """The facts of a grid, as JSON takes them.

    A value is `low + (shade - first) / (last - first) * (high - low)` of its channel, to half of 1/62 of `high - low`.
    Shades are palette indices, or the three components of a colour, in steps of 4, where the file has no palette.

    Args:
        grid: one of `maps_grid`, `filters_grid` or `strip_grid`.
        limits: the ranges that it was drawn with.
        channels: the number of each channel, in the order of the cells.
        cells: how many cells each channel has, side by side.

    Returns:
        - `channels`, and the `cells` of each.
        - `low` and `high`: the range of each channel.
        - `symmetric`: whether low is -high, else 0. `doubled`: how often a range has doubled, by the channel's number.
          `switched`: whether the ranges became symmetric after the baseline.
        - `first` and `last`: the shades of low and of high. With a palette also the indices of what is no value: `gap`,
          `not_finite`, `below` and `above` the range, and `notch`.
        - `columns`, `cell` (rows and columns of values) and `factor` (pixels a value has on each side). Cell k begins
          at pixel `1 + (k // columns) * (cell[0] * factor + 1)` from the top, and alike from the left.

    Raises:
        ValueError: the grid does not know its layout.
    """
    if grid.layout is None:
        raise ValueError("the grid must have a layout, as those of maps_grid, filters_grid and strip_grid do")
    layout = grid.layout
    return {
        "channels": list(channels),
        "cells": cells,
        "low": list(_numbers(np.ascontiguousarray(limits.low, np.float32).tobytes())),
        "high": list(_numbers(np.ascontiguousarray(limits.high, np.float32).tobytes())),
        "symmetric": bool(limits.symmetric),
        "doubled": {str(channels[i]): int(limits.doubled[i]) for i in np.flatnonzero(limits.doubled).tolist()},
        "switched": bool(limits.switched),
        **(_COMPONENTS if grid.palette is None else _INDICES),
        "columns": layout.columns,
        "cell": [layout.height, layout.width],
        "factor": layout.factor,
    }


@functools.lru_cache(maxsize=512)
def _numbers(float32: bytes) -> tuple[float, ...]:
    """Each number as the shortest decimal that float32 reads as the same; most ranges are those of the step before."""
    return tuple(float(str(number)) for number in np.frombuffer(float32, np.float32))

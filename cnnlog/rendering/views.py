"""What is shown: which filters and feature maps, in which view, in cells of which width."""

from __future__ import annotations

import functools
import math
from typing import Literal, get_args

import numpy as np

from cnnlog.rendering.shrink import fit_width
from cnnlog.snapshot import FloatArray

View = Literal["auto", "rgb", "gray", "slices", "mean"]
_STRIP_HEIGHT = 6  # pixels
_SHORTEST_STRIP = 16  # values; shorter rows are cells like others
ResolvedView = Literal["rgb", "gray", "slices", "mean"]


def resolve_view(shape: tuple[int, ...], view: View) -> ResolvedView:
    """How filters of this shape are drawn.

    Args:
        shape: `(O, I, kH, kW)`; `I` is 1 for a depthwise convolution.
        view: `"auto"` takes rgb for 3 input channels, gray for 1, else slices. Any other value asks for that view.

    Raises:
        ValueError: the filters do not have the input channels that the view needs.
    """
    if view not in get_args(View):
        raise ValueError(f"view must be one of {', '.join(get_args(View))}; got {view!r}")
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"filters must be [O, I, kH, kW] with none of them 0; got shape {list(shape)}")
    inputs = shape[1]
    if view == "auto":
        return "rgb" if inputs == 3 else "gray" if inputs == 1 else "slices"
    if view == "rgb" and inputs != 3:
        raise ValueError(
            f'view "rgb" needs filters with 3 input channels; these have {inputs}: use "slices", "mean" or "auto"'
        )
    if view == "gray" and inputs != 1:
        raise ValueError(
            f'view "gray" needs filters with 1 input channel; these have {inputs}: use "mean" or "slices" (or "auto")'
        )
    return view


def select_filters(weight: FloatArray, *, view: View, max_filters: int = 64, max_slices: int = 16) -> FloatArray:
    """The filters that are shown: always the first ones, so that they are the same at every step.

    Args:
        weight: all filters of a layer, `[O, I, kH, kW]`.
        view: how filters are shown: `"rgb"`, `"gray"`, `"slices"` (one cell an input channel), `"mean"` (averaged over
            the input channels), or `"auto"` for what fits their shape.
        max_filters: how many filters, at most; 1 or more.
        max_slices: how many rows and columns the view slices has, at most; 1 or more.

    Returns:
        A copy. rgb and gray: `[n, I, kH, kW]`, n = min(O, max_filters). mean: `[n, 1, kH, kW]`. slices:
        `[n, k, kH, kW]`, n = min(O, max_filters, max_slices), k = min(I, max_slices).

    Raises:
        ValueError: the filters do not have the input channels that the view needs, or a number is below 1.
    """
    resolved = resolve_view(weight.shape, view)
    _at_least_one(max_filters=max_filters, max_slices=max_slices)
    if resolved == "slices":
        return np.array(weight[: min(max_filters, max_slices), :max_slices], dtype=np.float32, order="C")
    if resolved == "mean":
        with np.errstate(invalid="ignore"):
            averaged = np.mean(weight[:max_filters], axis=1, keepdims=True, dtype=np.float64)
        return np.asarray(averaged, dtype=np.float32)
    return np.array(weight[:max_filters], dtype=np.float32, order="C")


def select_maps(maps: FloatArray, *, max_maps: int = 64, cell: int | None) -> FloatArray:
    """The feature maps that are shown: always the first ones, averaged by area if they are wider than their cell.

    Args:
        maps: all feature maps of a layer on the probe, `[N, C, H, W]`.
        max_maps: how many channels, at most; 1 or more.
        cell: how wide a cell of the grid is, in pixels; None keeps every map at full size.

    Returns:
        A copy `[N, n, h, w]`: n = min(C, max_maps), w <= cell, h in proportion.
    """
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"feature maps must be [N, C, H, W] with none of them 0; got shape {list(maps.shape)}")
    _at_least_one(max_maps=max_maps)
    return np.array(fit_width(maps[:, :max_maps], cell), dtype=np.float32, order="C")


def cell_width(n_columns: int, width: int | None = 350, *, bare: bool = False) -> int | None:
    """How wide a cell of a grid may be, in pixels, if there is a gap of 1 px around each cell.

    Args:
        n_columns: how many cells stand in a row.
        width: of the grid in pixels, at most; None for no limit.
        bare: whether the grid has gaps between its cells only, and none at its edges.

    Returns:
        1 or more, however many columns there are; None for no limit.
    """
    _at_least_one(n_columns=n_columns)
    if width is None:
        return None
    _at_least_one(width=width)
    gaps = n_columns - 1 if bare else n_columns + 1
    return max(1, (width - gaps) // n_columns)


def grid_columns(n: int) -> int:
    """Columns of a nearly square grid of `n` cells: the square root, rounded up (64 cells: 8)."""
    return math.isqrt(n - 1) + 1 if n > 0 else 1


def is_strip(size: tuple[int, int]) -> bool:
    """Whether a map is a strip: one row, as a layer makes of audio or EEG.

    Args:
        size: `(h, w)`, how many values it has on each side.
    """
    return size[0] == 1 and size[1] >= _SHORTEST_STRIP


def map_columns(n: int, size: tuple[int, int]) -> int:
    """Columns of the grid of feature maps: one of strips, which need the width, else those of `grid_columns`.

    Args:
        n: how many channels.
        size: `(h, w)`, how many values a map has on each side.
    """
    return 1 if is_strip(size) else grid_columns(n)


def thickened(maps: FloatArray, width: int | None) -> FloatArray:
    """Strips with their row several times, so that it can be seen; other maps as they are.

    Args:
        maps: `[..., h, w]`.
        width: how many pixels a strip is drawn on, at most; None draws each value as one pixel.

    Returns:
        `[..., r, w]`, so that r rows are at least 6 pixels high.
    """
    h, w = maps.shape[-2:]
    if width is None or not is_strip((h, w)):
        return maps
    rows = -(-_STRIP_HEIGHT * w // width) if w > width else -(-_STRIP_HEIGHT // (width // w))
    return np.repeat(maps, rows, axis=-2)


@functools.lru_cache(maxsize=1024)
def columns_that_fill(n: int, size: tuple[int, int], width: int | None = 350) -> int:
    """Columns of the nearly square grid that fills its width best, where cells are enlarged by whole factors only.

    Cells wider than their place are averaged to it and fill the grid anyway: `grid_columns` then decides, and also
    where it fills 9 tenths of the width. Else, of the widest grid and those that are at least 9 tenths as wide, the one
    with the largest cells is taken, of these the widest, of these the squarest. Counted in cells, a grid is at most 1.5
    times as long as wide and 2.25 times as wide as long, and its cells are no smaller than those of `grid_columns`.

    Args:
        n: how many cells there are.
        size: `(h, w)`, how many values a cell has on each side.
        width: of the grid in pixels, at most; None for no limit, and then `grid_columns` decides.

    Example:
        >>> columns_that_fill(64, (13, 13)), columns_that_fill(64, (11, 11)), columns_that_fill(64, (27, 27))
        (8, 7, 12)
    """
    square = grid_columns(n)
    least = cell_width(square, width)
    if width is None or least is None or size[1] >= least:
        return square
    filled: dict[int, tuple[int, int]] = {}  # columns -> how wide the grid is, and a cell
    for columns in range(1, n + 1):
        rows, cell = -(-n // columns), cell_width(columns, width)
        is_even_enough = 2 * rows <= 3 * columns and 4 * columns <= 9 * rows
        if columns == square or (is_even_enough and cell and size[1] <= cell):
            drawn = size[1] * max(1, (cell or 1) // max(size))
            filled[columns] = (columns * (drawn + 1) + 1, drawn)
    if filled[square][0] >= 0.9 * width:
        return square
    no_smaller = [columns for columns, (_, drawn) in filled.items() if drawn >= filled[square][1]]
    widest = max(filled[columns][0] for columns in no_smaller)
    wide = [columns for columns in no_smaller if filled[columns][0] >= 0.9 * widest]
    return max(wide, key=lambda columns: (*filled[columns][::-1], -abs(columns - square), -columns))


def most_changed(steps: FloatArray, at_most: int) -> list[int]:
    """The channels that changed most over some steps, the one that changed most first.

    A channel's change is the largest `|x_t - x_0| / max(|x_0|, m / 10)` over the steps t, with Euclidean lengths, and m
    the median of `|x_0|` over the channels: so one that is nearly 0 at first cannot lead by a change that is nearly 0,
    too. Of equal changes the lower number comes first. Changes that are NaN come last.

    Args:
        steps: `[t, n, ...]`, the channels at each step, the baseline first.
        at_most: how many channels, at most.

    Example:
        >>> most_changed(np.array([[[1.0], [1.0], [1.0]], [[1.1], [1.0], [3.0]]], np.float32), 2)
        [2, 0]
    """
    flat = steps.reshape(*steps.shape[:2], -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(flat[0], axis=1)
        least = np.median(lengths[np.isfinite(lengths)]) / 10 if np.isfinite(lengths).any() else 0.0
        moved = np.linalg.norm(flat - flat[0], axis=2).max(axis=0)
        change = np.where(moved == 0, 0.0, moved / np.maximum(lengths, least))
    return [int(channel) for channel in np.argsort(-change, kind="stable")[:at_most]]


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more; got {number}")

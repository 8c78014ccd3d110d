"""What is shown: which filters and feature maps, in which view, in cells of which width."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from cnnlog.rendering.shrink import fit_width
from cnnlog.snapshot import FloatArray

View = Literal["auto", "rgb", "gray", "slices", "mean"]
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


def cell_width(n_columns: int, width: int | None = 350) -> int | None:
    """How wide a cell of a grid may be, in pixels, if there is a gap of 1 px between cells.

    Args:
        n_columns: how many cells stand in a row.
        width: of the grid in pixels, at most; None for no limit.

    Returns:
        1 or more, however many columns there are; None for no limit.
    """
    _at_least_one(n_columns=n_columns)
    if width is None:
        return None
    _at_least_one(width=width)
    return max(1, (width - (n_columns - 1)) // n_columns)


def grid_columns(n: int) -> int:
    """Columns of a nearly square grid of `n` cells: the square root, rounded up (64 cells: 8)."""
    return math.isqrt(n - 1) + 1 if n > 0 else 1


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more; got {number}")

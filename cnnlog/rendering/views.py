"""What a grid shows: which filters and maps, in which view, in cells of which width."""

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
        view: `"auto"` is rgb for `I == 3`, gray for `I == 1`, else slices; any other value asks for that view.

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
    """The filters that a grid shows, as they are.

    Always the first ones, so that the same filters are shown at every step.

    Args:
        weight: `[O, I, kH, kW]`.
        view: rgb, gray: `[n, I, kH, kW]`, n = min(O, max_filters). mean: the same, averaged over the input channels,
            `[n, 1, kH, kW]`. slices: `[n, k, kH, kW]`, n = min(O, max_filters, max_slices), k = min(I, max_slices).
        max_filters: at least 1.
        max_slices: at least 1; rows and columns of the slices view.

    Returns:
        An array of its own, not a view of `weight`.
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
    """The feature maps that a grid shows: the first `max_maps`, averaged by area where wider than a cell.

    Args:
        maps: `[N, C, H, W]`.
        max_maps: at least 1.
        cell: widest cell in pixels (see `cell_width`); None keeps every map at full size.

    Returns:
        `[N, n, h, w]`, n = min(C, max_maps), w <= cell, h in proportion; an array of its own.
    """
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"feature maps must be [N, C, H, W] with none of them 0; got shape {list(maps.shape)}")
    _at_least_one(max_maps=max_maps)
    return np.array(fit_width(maps[:, :max_maps], cell), dtype=np.float32, order="C")


def cell_width(n_columns: int, width: int | None = 350) -> int | None:
    """The widest cell, in pixels, with which `n_columns` cells and the 1 px gaps between them fit `width`.

    At least 1, however many columns there are; None (no limit) where `width` is None.
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

"""Values to grids: one cell a channel, in channel order, each value an index into a palette."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnlog.rendering.colours import (
    GAP,
    NOT_FINITE,
    RGB_GAP,
    RGB_NOT_FINITE,
    RGB_STEP,
    RGB_ZERO,
    TOP,
    ZERO,
    Pixels,
    palette,
)
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shrink import fit_width
from cnnlog.rendering.views import View, cell_width, grid_columns, resolve_view
from cnnlog.snapshot import FloatArray

STRIP_STEPS = 8
"""How many steps a strip shows, unless more are asked for."""

STRIP_CHANNELS = 8
"""How many channels a strip shows: the first ones, unless others are asked for."""


def filters_grid(shown: FloatArray, limits: Limits, *, view: View, cmap: str = "auto", width: int | None = 350) -> Grid:
    """One cell a filter in a nearly square grid; with slices: rows are filters, columns are input channels.

    Args:
        shown: `[n, k, kH, kW]`, the part of the filters that `select_filters` gives for this view.
        limits: the ranges of the n filters.
        view: how filters are shown: `"rgb"`, `"gray"`, `"slices"` (one cell an input channel), `"mean"`, or
            `"auto"` for what fits their shape.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map. The view rgb ignores it: there 0 is mid gray, and the range's end the full colour.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
    """
    if shown.ndim != 4:
        raise ValueError(f"filters to draw must be [n, k, kH, kW]; got shape {list(shown.shape)}")
    resolved = "mean" if view == "mean" and shown.shape[1] == 1 else resolve_view(shown.shape, view)
    n, k = shown.shape[:2]
    if resolved == "rgb":
        return _draw_rgb(shown, limits.high, n_columns=grid_columns(n), width=width)
    n_columns = k if resolved == "slices" else grid_columns(n)
    cells, high = shown.reshape(n * k, *shown.shape[2:]), np.repeat(limits.high, k)
    return _draw(cells, high, symmetric=limits.symmetric, n_columns=n_columns, cmap=cmap, width=width)


def maps_grid(shown: FloatArray, limits: Limits, *, cmap: str = "auto", width: int | None = 350) -> Grid:
    """One cell a feature map, in channel order, in a nearly square grid.

    Args:
        shown: `[n, h, w]`: the maps of one probe image, of those that `select_maps` gives.
        limits: the ranges of the n channels.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
    """
    if shown.ndim != 3 or 0 in shown.shape:
        raise ValueError(f"feature maps to draw must be [n, h, w] with none of them 0; got shape {list(shown.shape)}")
    n_columns = grid_columns(len(shown))
    return _draw(shown, limits.high, symmetric=limits.symmetric, n_columns=n_columns, cmap=cmap, width=width)


def strip_grid(cells: FloatArray, limits: Limits, *, cmap: str = "auto", width: int | None = 350) -> Grid:
    """A layer's evolution: rows are channels, columns are steps, all steps drawn with the same limits.

    Args:
        cells: `[steps, n, h, w]`, or `[steps, n, 3, h, w]` for rgb filters.
        limits: the ranges of the n channels, the same for all steps.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
    """
    if cells.ndim not in (4, 5) or 0 in cells.shape or (cells.ndim == 5 and cells.shape[2] != 3):
        raise ValueError(f"cells must be [steps, n, h, w] or [steps, n, 3, h, w]; got shape {list(cells.shape)}")
    steps, n = cells.shape[:2]
    by_channel = np.swapaxes(cells, 0, 1).reshape(n * steps, *cells.shape[2:])
    high = np.repeat(limits.high, steps)
    if cells.ndim == 5:
        return _draw_rgb(by_channel, high, n_columns=steps, width=width)
    return _draw(by_channel, high, symmetric=limits.symmetric, n_columns=steps, cmap=cmap, width=width)


def _draw(
    values: FloatArray, high: FloatArray, *, symmetric: bool, n_columns: int, cmap: str, width: int | None
) -> Grid:
    cell = cell_width(n_columns, width)
    indices = _indices(fit_width(values, cell), high, symmetric)
    pixels = _lay_out(indices, n_columns, _factor(indices.shape[1], indices.shape[2], cell), GAP)
    return Grid(pixels, palette(cmap, symmetric))


def _draw_rgb(values: FloatArray, high: FloatArray, *, n_columns: int, width: int | None) -> Grid:
    cell = cell_width(n_columns, width)
    values = fit_width(values, cell)
    shares, finite = _shares(values, high, True)
    colours: Pixels = np.asarray(RGB_ZERO + RGB_STEP * np.rint(shares * ZERO), dtype=np.uint8)
    factor = _factor(colours.shape[2], colours.shape[3], cell)
    planes = [_lay_out(colours[:, c], n_columns, factor, RGB_GAP[c]) for c in range(3)]
    pixels = np.stack(planes, axis=-1)
    if finite is not None:
        # Any single colour may be some filter's; a chequer of two that no value takes is told apart at a glance.
        lost: Pixels = np.asarray(~finite.all(axis=1), dtype=np.uint8)
        broken = _lay_out(lost, n_columns, factor, 0).astype(bool)
        odd = np.add.outer(np.arange(pixels.shape[0]), np.arange(pixels.shape[1])) % 2
        pixels[broken] = np.array(RGB_NOT_FINITE, np.uint8)[odd[broken]]
    return Grid(pixels, None)


def _indices(values: FloatArray, high: FloatArray, symmetric: bool) -> Pixels:
    shares, finite = _shares(values, high, symmetric)
    shares *= ZERO if symmetric else TOP
    np.rint(shares, out=shares)
    if symmetric:
        shares += ZERO
    indices = shares.astype(np.uint8)
    if finite is not None:
        indices[~finite] = NOT_FINITE
    return indices


def _shares(values: FloatArray, high: FloatArray, symmetric: bool) -> tuple[FloatArray, npt.NDArray[np.bool_] | None]:
    """Values `[m, ...]` as shares of their range `[m]`, clipped to it; and where they are finite (None: all are)."""
    if len(high) != len(values):
        raise ValueError(f"limits must be of the cells that are drawn; {len(high)} arrived for {len(values)} cells")
    with np.errstate(over="ignore", invalid="ignore"):
        shares = np.divide(values, high.reshape(-1, *[1] * (values.ndim - 1)), dtype=np.float32)
    finite = np.isfinite(values)
    all_finite = bool(finite.all())
    if not all_finite:
        shares[~finite] = 0
    np.clip(shares, -1 if symmetric else 0, 1, out=shares)
    return shares, None if all_finite else finite


def _factor(height: int, width: int, cell: int | None) -> int:
    return 1 if cell is None else max(1, cell // max(height, width))


def _lay_out(cells: Pixels, n_columns: int, factor: int, gap: int) -> Pixels:
    """Cells `[m, h, w]` enlarged by `factor`, row by row, 1 px of `gap` between them and in the places left over."""
    m, h, w = cells.shape
    n_rows = -(-m // n_columns)
    if m < n_rows * n_columns:
        left_over = np.full((n_rows * n_columns - m, h, w), gap, np.uint8)
        cells = np.concatenate([cells, left_over])
    h, w = h * factor, w * factor
    if factor > 1:
        cells = cells.repeat(factor, axis=1).repeat(factor, axis=2)
    canvas = np.full((n_rows, h + 1, n_columns, w + 1), gap, np.uint8)
    canvas[:, :h, :, :w] = cells.reshape(n_rows, n_columns, h, w).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(canvas.reshape(n_rows * (h + 1), n_columns * (w + 1))[:-1, :-1])

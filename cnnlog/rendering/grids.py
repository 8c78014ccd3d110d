"""Values to grids: one cell a channel, in channel order, each value an index into a palette.

A grid has 1 px of gap around every cell, and 1 px more on the right and below: with c columns of cells w px wide it is
c * (w + 1) + 1 px wide. In the gap above a cell stands its notch, if its range is no longer that of the baseline. Bare
grids have neither: a page lays their cells out anew.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from cnnlog.rendering.colours import (
    ABOVE,
    BELOW,
    GAP,
    NOT_FINITE,
    NOTCH,
    RGB_GAP,
    RGB_NOT_FINITE,
    RGB_NOTCH,
    RGB_STEP,
    RGB_ZERO,
    TOP,
    ZERO,
    Pixels,
    palette,
)
from cnnlog.rendering.png import Grid, Layout
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shrink import fit_width
from cnnlog.rendering.views import View, cell_width, columns_that_fill, grid_columns, resolve_view
from cnnlog.snapshot import FloatArray

STRIP_STEPS = 8
"""How many steps a strip shows, unless more are asked for."""

STRIP_CHANNELS = 8
"""How many channels a strip shows, unless others are asked for."""

_NOTCH_LENGTH = (3, 12)


def filters_grid(
    shown: FloatArray,
    limits: Limits,
    *,
    view: View,
    cmap: str = "auto",
    width: int | None = 350,
    bare: bool = False,
) -> Grid:
    """One cell a filter in a nearly square grid; with slices: rows are filters, columns are input channels.

    Args:
        shown: `[n, k, kH, kW]`, the part of the filters that `select_filters` gives for this view.
        limits: the ranges of the n filters.
        view: how filters are shown: `"rgb"`, `"gray"`, `"slices"` (one cell an input channel), `"mean"`, or
            `"auto"` for what fits their shape.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map. The view rgb ignores it: there 0 is mid gray, the range's end the full colour, and
            what is beyond the range takes the full colour, too.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
        bare: leave out the frame and the notches, and take as many columns as `grid_columns` gives.
    """
    if shown.ndim != 4:
        raise ValueError(f"filters to draw must be [n, k, kH, kW]; got shape {list(shown.shape)}")
    resolved = "mean" if view == "mean" and shown.shape[1] == 1 else resolve_view(shown.shape, view)
    n, k = shown.shape[:2]
    n_columns = k if resolved == "slices" else _columns(n, shown, width, bare)
    if resolved == "rgb":
        return _draw_rgb(shown, limits, n_columns=n_columns, width=width, bare=bare)
    cells = shown.reshape(n * k, *shown.shape[2:])
    return _draw(cells, _of_cells(limits, k), n_columns=n_columns, cmap=cmap, width=width, bare=bare)


def maps_grid(
    shown: FloatArray,
    limits: Limits,
    *,
    cmap: str = "auto",
    width: int | None = 350,
    bare: bool = False,
    columns: int | None = None,
) -> Grid:
    """One cell a feature map, in channel order, in a nearly square grid.

    Args:
        shown: `[n, h, w]`: the maps of one probe image, of those that `select_maps` gives.
        limits: the ranges of the n channels.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
        bare: leave out the frame and the notches, and take as many columns as `grid_columns` gives.
        columns: how many cells stand in a row; None takes as many as fill the grid.
    """
    if shown.ndim != 3 or 0 in shown.shape:
        raise ValueError(f"feature maps to draw must be [n, h, w] with none of them 0; got shape {list(shown.shape)}")
    n_columns = columns or _columns(len(shown), shown, width, bare)
    return _draw(shown, limits, n_columns=n_columns, cmap=cmap, width=width, bare=bare)


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
    of_cells = _of_cells(limits, steps)
    if cells.ndim == 5:
        return _draw_rgb(by_channel, of_cells, n_columns=steps, width=width)
    return _draw(by_channel, of_cells, n_columns=steps, cmap=cmap, width=width)


def _columns(n: int, shown: FloatArray, width: int | None, bare: bool) -> int:
    return grid_columns(n) if bare else columns_that_fill(n, (shown.shape[-2], shown.shape[-1]), width)


def _of_cells(limits: Limits, cells: int) -> Limits:
    """The ranges of cells, if each channel has some side by side."""
    if cells == 1:
        return limits
    high, doubled = np.repeat(limits.high, cells), np.repeat(limits.doubled, cells)
    return Limits(high, limits.symmetric, doubled, limits.switched)


def _draw(
    values: FloatArray, limits: Limits, *, n_columns: int, cmap: str, width: int | None, bare: bool = False
) -> Grid:
    cell = cell_width(n_columns, width, bare=bare)
    indices = _indices(fit_width(values, cell), limits.high, limits.symmetric)
    layout = _layout(indices, n_columns, cell)
    pixels = _lay_out(indices, layout, GAP, bare=bare)
    if not bare:
        _cut_notches(pixels, limits, layout, NOTCH)
    return Grid(pixels, palette(cmap, limits.symmetric), layout)


def _draw_rgb(values: FloatArray, limits: Limits, *, n_columns: int, width: int | None, bare: bool = False) -> Grid:
    cell = cell_width(n_columns, width, bare=bare)
    values = fit_width(values, cell)
    shares, finite = _shares(values, limits.high)
    np.clip(shares, -1, 1, out=shares)
    colours: Pixels = np.asarray(RGB_ZERO + RGB_STEP * np.rint(shares * ZERO), dtype=np.uint8)
    layout = _layout(colours[:, 0], n_columns, cell)
    pixels = np.stack([_lay_out(colours[:, c], layout, RGB_GAP[c], bare=bare) for c in range(3)], axis=-1)
    if finite is not None:
        # Any single colour may be some filter's; a chequer of two that no value takes is told apart at a glance.
        lost: Pixels = np.asarray(~finite.all(axis=1), dtype=np.uint8)
        broken = _lay_out(lost, layout, 0, bare=bare).astype(bool)
        odd = np.add.outer(np.arange(pixels.shape[0]), np.arange(pixels.shape[1])) % 2
        pixels[broken] = np.array(RGB_NOT_FINITE, np.uint8)[odd[broken]]
    if not bare:
        _cut_notches(pixels, limits, layout, RGB_NOTCH)
    return Grid(pixels, None, layout)


def _indices(values: FloatArray, high: FloatArray, symmetric: bool) -> Pixels:
    shares, finite = _shares(values, high)
    lowest, highest = float(shares.min(initial=0)), float(shares.max(initial=0))
    is_above = shares > 1 if highest > 1 else None
    is_below = shares < -float(symmetric) if lowest < -float(symmetric) else None
    if is_above is not None or is_below is not None:
        np.clip(shares, -float(symmetric), 1, out=shares)
    shares *= ZERO if symmetric else TOP
    np.rint(shares, out=shares)
    if symmetric:
        shares += ZERO
    indices = shares.astype(np.uint8)
    for where, index in ((is_above, ABOVE), (is_below, BELOW), (None if finite is None else ~finite, NOT_FINITE)):
        if where is not None:
            indices[where] = index
    return indices


def _shares(values: FloatArray, high: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_] | None]:
    """Values `[m, ...]` as shares of their range `[m]`; and where they are finite (None: all are). NaN becomes 0."""
    if len(high) != len(values):
        raise ValueError(f"limits must be of the cells that are drawn; {len(high)} arrived for {len(values)} cells")
    with np.errstate(over="ignore", invalid="ignore"):
        shares = np.divide(values, high.reshape(-1, *[1] * (values.ndim - 1)), dtype=np.float32)
    finite = np.isfinite(values)
    if finite.all():
        return shares, None
    shares[~finite] = 0
    return shares, finite


def _layout(cells: Pixels, n_columns: int, cell: int | None) -> Layout:
    h, w = cells.shape[1:]
    return Layout(columns=n_columns, height=h, width=w, factor=1 if cell is None else max(1, cell // max(h, w)))


def _lay_out(cells: Pixels, layout: Layout, gap: int, *, bare: bool) -> Pixels:
    """Cells `[m, h, w]` enlarged by the factor, row by row, 1 px of `gap` around them and in the places left over."""
    m, n_columns, factor = len(cells), layout.columns, layout.factor
    n_rows = -(-m // n_columns)
    if m < n_rows * n_columns:
        left_over = np.full((n_rows * n_columns - m, *cells.shape[1:]), gap, np.uint8)
        cells = np.concatenate([cells, left_over])
    h, w = layout.height, layout.width * factor
    cells = cells.repeat(factor, axis=2) if factor > 1 else cells
    canvas = np.full((n_rows * (h * factor + 1) + 1, n_columns * (w + 1) + 1), gap, np.uint8)
    down, right = canvas.strides
    # Each row of values is written `factor` times from one copy: half the work of repeating it first.
    places = as_strided(
        canvas[1:, 1:],
        (n_rows, h, factor, n_columns, w),
        (down * (h * factor + 1), down * factor, down, right * (w + 1), right),
    )
    places[...] = cells.reshape(n_rows, n_columns, h, w).transpose(0, 2, 1, 3)[:, :, None]
    return np.ascontiguousarray(canvas[1:-1, 1:-1]) if bare else canvas


def _cut_notches(pixels: Pixels, limits: Limits, layout: Layout, colour: int | tuple[int, int, int]) -> None:
    """Colour a run of the gap above each cell whose range is no longer the baseline's, about its middle."""
    notched = limits.notched
    if not notched.any():
        return
    h, w = layout.height * layout.factor, layout.width * layout.factor
    long = min(w, max(_NOTCH_LENGTH[0], min(_NOTCH_LENGTH[1], w // 3)))
    rows, columns = np.divmod(np.flatnonzero(notched), layout.columns)
    left = 1 + columns * (w + 1) + (w - long) // 2
    pixels[rows[:, None] * (h + 1), left[:, None] + np.arange(long)] = colour

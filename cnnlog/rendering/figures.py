"""Figures for a paper or a slide: filters and feature maps with a title, channel numbers and a colour bar.

Grids are drawn as fast as can be, at every step. A figure is drawn once, with words around it, in the same colours. It
is made of matplotlib's objects and never through pyplot, so your backend, style and current figure stay as they are.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnlog.rendering.colours import NOT_FINITE, TOP, Pixels, palette
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shared_ranges import in_words
from cnnlog.rendering.views import View, grid_columns, is_strip, resolve_view
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")

# All lengths are inches.
_CELLS_WIDTH = 6.8
_CELL = (0.34, 2.4)
_MARGIN = 0.25
_SPACE = 0.07
_NUMBER = 0.17
_ROW_NUMBER = 0.22
_BAR, _BAR_SPACE, _BAR_LABELS = 0.15, 0.2, 0.95
_LEAST_WIDTH = 4.2
_TITLE = (12, 0.24, 0.105)  # points, line height, width of a character
_SUBTITLE = (9, 0.18, 0.072)


@dataclass(frozen=True)
class _Bar:
    """A colour bar: the ranges and colours that it shows, and whether NaN or infinity has a square below it."""

    limits: Limits
    cmap: str
    whose: str  # "filter" or "channel": whose range the bar is in shares of
    not_finite: bool


def filters_figure(
    shown: FloatArray, limits: Limits, *, view: View = "auto", cmap: str = "auto", title: str = ""
) -> Figure:
    """A layer's filters, numbered.

    Args:
        shown: `[n, k, kH, kW]`, the part of the filters that `select_filters` gives for this view.
        limits: the ranges of the n filters. If they differ, the colour bar is in shares of each filter's range, and the
            line below the title says from where to where these go.
        view: how filters are shown: `"rgb"`, `"gray"`, `"slices"` (a row is a filter, a column an input channel),
            `"mean"`, or `"auto"` for what fits their shape. rgb has no colour bar; the line below the title says what
            its colours mean.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map.
        title: the first line; empty for none.
    """
    if shown.ndim != 4:
        raise ValueError(f"filters to draw must be [n, k, kH, kW]; got shape {list(shown.shape)}")
    n, k = shown.shape[:2]
    resolved = "mean" if view == "mean" and k == 1 else resolve_view(shown.shape, view)
    subtitle = f"{n} filters of {_size(shown)}"
    numbers = [str(f) for f in range(n)]
    if resolved == "rgb":
        several = f"the end of each filter's range, {in_words(limits)}"
        full = several if _several_ranges(limits) else f"a weight of {limits.high[0]:.3g}"
        subtitle += f" in colour; mid gray is 0, full colour {full}"
        if not np.isfinite(shown).all():
            subtitle += "; chequered where NaN or infinite"
        cells = [_pixels(shown[f], limits, f, "auto") for f in range(n)]
        return _figure(cells, grid_columns(n), title=title, subtitle=subtitle, numbers=numbers, rows=None, bar=None)
    ranges = _told(limits, "filter")
    bar = _Bar(limits, cmap, "filter", not np.isfinite(shown).all())
    cells = [_pixels(cell, limits, f, cmap) for f in range(n) for cell in shown[f]]
    if resolved == "slices":
        subtitle = f"{n} filters (rows) by {k} input channels (columns), {_size(shown)} each"
        subtitle += ranges
        columns = [str(c) for c in range(k)]
        return _figure(cells, k, title=title, subtitle=subtitle, numbers=columns, rows=numbers, bar=bar)
    if resolved == "mean":
        subtitle += ", averaged over input channels"
    subtitle += ranges
    return _figure(cells, grid_columns(n), title=title, subtitle=subtitle, numbers=numbers, rows=None, bar=bar)


def maps_figure(
    shown: FloatArray,
    limits: Limits,
    *,
    cmap: str = "auto",
    title: str = "",
    channels: Sequence[int] | None = None,
) -> Figure:
    """A layer's feature maps, numbered.

    Args:
        shown: `[n, h, w]`, the maps of one probe image, at full size or averaged by area.
        limits: the ranges of the n channels. If they differ, the colour bar is in shares of each channel's range, and
            the line below the title says from where to where these go.
        cmap: the colours: `"auto"` (white at 0 if values have a sign, else magma from 0), `"gray"`, or the name of any
            matplotlib colour map.
        title: the first line; empty for none.
        channels: the numbers to write over the n maps; None writes 0 to n - 1.
    """
    if shown.ndim != 3:
        raise ValueError(f"feature maps to draw must be [n, h, w]; got shape {list(shown.shape)}")
    numbers = [str(c) for c in (range(len(shown)) if channels is None else channels)]
    if len(numbers) != len(shown):
        raise ValueError(f"channels must number each of the {len(shown)} maps; got {len(numbers)} numbers")
    cells = [_pixels(shown[c], limits, c, cmap) for c in range(len(shown))]
    if is_strip((shown.shape[1], shown.shape[2])):
        cells = [cell.repeat(-(-shown.shape[2] // 16), axis=0) for cell in cells]
    return _figure(
        cells,
        grid_columns(len(shown)),
        title=title,
        subtitle=f"{len(shown)} feature maps of {_size(shown)}{_told(limits, 'channel')}",
        numbers=numbers,
        rows=None,
        bar=_Bar(limits, cmap, "channel", not np.isfinite(shown).all()),
    )


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file.

    Args:
        figure: the figure.
        path: the file; its suffix decides the format: .png (150 dots per inch), .pdf or .svg.

    Raises:
        ValueError: another suffix, or none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"a figure is saved as {', '.join(SUFFIXES)}; got {str(path)!r}")
    figure.savefig(path, format=suffix[1:], dpi=150)


def _pixels(cell: FloatArray, limits: Limits, channel: int, cmap: str) -> Pixels:
    """One cell as the grids draw it: `[h, w]`, or `[3, h, w]` for rgb, to uint8 `[h, w, 3]`."""
    own = limits.only([channel])
    if cell.ndim == 3:
        return filters_grid(cell[None], own, view="rgb", width=None, bare=True).pixels
    grid = maps_grid(cell[None], own, cmap=cmap, width=None, bare=True)
    return _table(cmap, limits.symmetric)[grid.pixels]


def _table(cmap: str, symmetric: bool) -> Pixels:
    return np.frombuffer(palette(cmap, symmetric), np.uint8).reshape(-1, 3)


def _several_ranges(limits: Limits) -> bool:
    return bool((limits.high != limits.high[0]).any())


def _told(limits: Limits, whose: str) -> str:
    """Where ranges differ: from where to where they go."""
    return f"; {whose} ranges {in_words(limits)}" if _several_ranges(limits) else ""


def _size(shown: FloatArray) -> str:
    return f"{shown.shape[-2]} × {shown.shape[-1]}"


def _figure(
    cells: Sequence[Pixels],
    n_columns: int,
    *,
    title: str,
    subtitle: str,
    numbers: Sequence[str],
    rows: Sequence[str] | None,
    bar: _Bar | None,
) -> Figure:
    """Place everything by hand, in inches: no layout engine is then needed to keep words from being cut.

    `numbers` stand over the cells; with `rows` over those of the first row only, and `rows` left of each row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n_rows = -(-len(cells) // n_columns)
    side = float(np.clip(_CELLS_WIDTH / n_columns - _SPACE, *_CELL))
    h, w = cells[0].shape[:2]
    cell_h, cell_w = side * h / max(h, w), side * w / max(h, w)
    step_x, step_y = max(cell_w, _ROW_NUMBER) + _SPACE, cell_h + (_SPACE if rows else _NUMBER + _SPACE)
    left = _MARGIN + (_ROW_NUMBER if rows else 0)
    cells_right = left + n_columns * step_x - _SPACE
    width = max(cells_right + (_BAR_SPACE + _BAR + _BAR_LABELS if bar else 0) + _MARGIN, _LEAST_WIDTH)
    header = [*_wrapped(title, width, _TITLE), *_wrapped(subtitle, width, _SUBTITLE)]
    top = _MARGIN + sum(height for _, _, height in header) + 0.08 + _NUMBER
    bottom = top + n_rows * step_y - (_SPACE if rows else _NUMBER + _SPACE)
    height = max(bottom, top + (1.2 if bar else 0)) + _MARGIN

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    baseline = _MARGIN
    for text, points, line in header:
        page.text(_MARGIN, baseline, text, fontsize=points, va="top", color="0.1" if points > 9 else "0.35")
        baseline += line
    for position, cell in enumerate(cells):
        row, column = divmod(position, n_columns)
        x, y = left + column * step_x + (step_x - _SPACE - cell_w) / 2, top + row * step_y
        page.imshow(cell, extent=(x, x + cell_w, y + cell_h, y), interpolation="antialiased", origin="upper")
        page.add_patch(Rectangle((x, y), cell_w, cell_h, fill=False, linewidth=0.4, edgecolor="0.6"))
        if not rows or row == 0:
            _write(page, x + cell_w / 2, y - 0.03, numbers[position], ha="center", va="bottom")
        if rows and column == 0:
            _write(page, x - 0.05, y + cell_h / 2, rows[row], ha="right", va="center")
    if bar:
        _draw_bar(figure, page, bar, x=cells_right + _BAR_SPACE, y=top, height=min(max(bottom - top, 1.2), 3.0))
    page.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def _wrapped(text: str, width: float, style: tuple[int, float, float]) -> list[tuple[str, int, float]]:
    points, line, character = style
    lines = textwrap.wrap(text, max(1, int((width - 2 * _MARGIN) / character)))
    return [(part, points, line) for part in lines]


def _write(page: Axes, x: float, y: float, text: str, *, ha: str, va: str) -> None:
    page.text(x, y, text, fontsize=7, ha=ha, va=va, color="0.35")


def _draw_bar(figure: Figure, page: Axes, bar: _Bar, *, x: float, y: float, height: float) -> None:
    total_w, total_h = figure.get_size_inches()
    lost = 0.4 if bar.not_finite else 0.0
    axes = figure.add_axes((x / total_w, 1 - (y + height - lost) / total_h, _BAR / total_w, (height - lost) / total_h))
    several = _several_ranges(bar.limits)
    high = 1.0 if several else float(bar.limits.high[0])
    low = -high if bar.limits.symmetric else 0.0
    table = _table(bar.cmap, bar.limits.symmetric)
    axes.imshow(table[: TOP + 1][:, None], extent=(0, 1, low, high), origin="lower", aspect="auto")
    ticks = np.linspace(low, high, 5)
    axes.set(xticks=[], yticks=ticks, yticklabels=[f"{tick:.3g}".replace("-", "−") for tick in ticks])
    axes.tick_params(labelsize=7, labelcolor="0.35", color="0.35", length=2, pad=2)
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(f"share of each {bar.whose}'s range" if several else "value", fontsize=7, color="0.35", labelpad=3)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.35")
    if bar.not_finite:
        square = np.broadcast_to(table[NOT_FINITE], (1, 1, 3))
        page.imshow(square, extent=(x, x + _BAR, y + height, y + height - _BAR))
        _write(page, x + _BAR + 0.06, y + height - _BAR / 2, "NaN or infinity", ha="left", va="center")

"""Arrays to pictures: anchored ranges, cells, grids, PNG bytes.

A colour means the same value at every step. `AnchoredRange` fixes what full colour stands for at the baseline; a grid
turns values into palette indices with it, one cell a channel, in channel order.

Palette indices: 0 to 62 are values (0 to the range's end, or with a sign: -end to end with 0 at 31), 63 is the gap
between cells, 64 is NaN or infinity. 63 levels look even, and cost 70 % of the bytes of 251.
"""

from __future__ import annotations

import difflib
import functools
import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from cnnlog.snapshot import FloatArray

View = Literal["auto", "rgb", "gray", "slices", "mean"]
ResolvedView = Literal["rgb", "gray", "slices", "mean"]
RangeRule = Literal["channel", "layer", "step"]
Pixels = npt.NDArray[np.uint8]

TOP = 62
ZERO = 31
GAP = 63
NOT_FINITE = 64

# In rgb grids values take 4 to 252 in each component, so a colour with a 0 or a 255 in it is no value.
RGB_ZERO = 128
RGB_STEP = 4
RGB_GAP = (0, 0, 0)
RGB_NOT_FINITE = ((0, 200, 0), (255, 0, 255))

_GAP_COLOURS = ((96, 96, 96), (20, 50, 120), (0, 0, 0), (255, 255, 255), (150, 100, 40))
_NOT_FINITE_COLOURS = ((0, 200, 0), (255, 0, 255), (0, 255, 255), (255, 220, 0), (140, 70, 0))
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_ZLIB_RLE = 3
_PNG_HEADER_END = 33


# --- what is shown -------------------------------------------------------------------------------------------------


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
    return np.array(_fit(maps[:, :max_maps], cell), dtype=np.float32, order="C")


def cell_width(n_columns: int, width: int | None = 350) -> int | None:
    """The widest cell, in pixels, with which `n_columns` cells and the 1 px gaps between them fit `width`.

    At least 1, however many columns there are; None (no limit) where `width` is None.
    """
    _at_least_one(n_columns=n_columns)
    if width is None:
        return None
    _at_least_one(width=width)
    return max(1, (width - (n_columns - 1)) // n_columns)


def columns(n: int) -> int:
    """Columns of a nearly square grid of `n` cells: the square root, rounded up (64 cells: 8)."""
    return math.isqrt(n - 1) + 1 if n > 0 else 1


def shrink(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Average by area, exactly, also where the ratio is not a whole number.

    Output pixel `(i, j)` is the mean of the input over the rectangle that it covers: rows `i*H/h` to `(i+1)*H/h`,
    columns `j*W/w` to `(j+1)*W/w`, pixels that are covered in part counting in part. The mean of the map is kept.

    Args:
        maps: `[..., H, W]`.
        size: `(h, w)` with 1 <= h <= H and 1 <= w <= W.

    Returns:
        `[..., h, w]`. An output pixel whose rectangle touches NaN or infinity is NaN; no other is.
    """
    height, width = maps.shape[-2:]
    h, w = size
    if not (1 <= h <= height and 1 <= w <= width):
        raise ValueError(f"size must be from (1, 1) to the map's own {(height, width)}; got {size}")
    if size == (height, width):
        return np.array(maps, dtype=np.float32, order="C")
    finite = np.isfinite(maps)
    if finite.all():
        return _average(maps, size).astype(np.float32, order="C")
    averaged = _average(np.where(finite, maps, np.float32(0)), size).astype(np.float32, order="C")
    averaged[_average((~finite).astype(np.float32), size) > 0] = np.nan
    return averaged


def _average(maps: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = maps.shape[-2:]
    # The axis to add up comes first, so that each addition runs through all maps at once, in memory order. In float64,
    # so that the largest float32 values do not overflow.
    by_row = np.array(maps.reshape(-1, height, width).swapaxes(0, 1), dtype=np.float64, order="C")
    by_column = np.ascontiguousarray(_span_means(by_row, size[0]).transpose(2, 0, 1))
    averaged: npt.NDArray[np.float64] = _span_means(by_column, size[1]).transpose(2, 1, 0)
    return averaged.reshape(*maps.shape[:-2], *size)


def _span_means(rows: npt.NDArray[np.float64], n_out: int) -> npt.NDArray[np.float64]:
    """Means over `n_out` equal spans of the rows of `[H, ...]`: differences of the running sum at their edges."""
    n_in = len(rows)
    if n_out == n_in:
        return rows
    # Edges in whole numbers of 1/n_out of a row, so that a row which is only touched by an edge weighs exactly 0.
    edges, parts = np.divmod(np.arange(n_out + 1) * n_in, n_out)
    at_edges = np.zeros((n_out + 1, *rows.shape[1:]))
    total, added = rows[0].copy(), 1
    for sums, edge, part in zip(at_edges[1:], edges[1:].tolist(), parts[1:].tolist(), strict=True):
        for row in rows[added:edge]:
            total += row
        added = edge
        if part > 0:
            np.add(total, rows[edge] * (part / n_out), out=sums)
        else:
            sums[...] = total
    means: npt.NDArray[np.float64] = np.diff(at_edges, axis=0)
    means *= n_out / n_in
    return means


def _fit(maps: FloatArray, cell: int | None) -> FloatArray:
    height, width = maps.shape[-2:]
    if cell is None or width <= cell:
        return maps
    return shrink(maps, (max(1, (2 * height * cell + width) // (2 * width)), cell))


# --- ranges --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What full colour stands for at one step, for n channels.

    Attributes:
        high: `[n]` float32, all above 0: the value drawn in the last colour.
        symmetric: the range is `-high` to `high`, else 0 to `high`.
        doubled: `[n]`, how often the channel's range doubled since its baseline.
    """

    high: FloatArray
    symmetric: bool
    doubled: npt.NDArray[np.int64]


def peak(values: npt.ArrayLike) -> float:
    """The largest finite magnitude in an array of any shape; 0 where nothing is finite."""
    array = np.asarray(values)
    if array.size and np.isfinite(low := array.min()) and np.isfinite(high := array.max()):
        return max(abs(float(low)), abs(float(high)))
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))


class AnchoredRange:
    """The range of one layer's pictures over the steps, anchored at the baseline.

    The first `update` is the baseline. A channel's range is its largest finite magnitude there (with `signed` False:
    its largest value). When values outgrow the range it doubles, as often as needed, and it never shrinks. Less than a
    shade (1/62) beyond it they are drawn in its last colour instead: in fine-tuning half of the filters pass their
    baseline's peak by a thousandth, and would lose half of their contrast for it. A channel that holds nothing but 0
    (or nothing finite) at the baseline takes the median of the layer's other channels. A layer where that is true of
    every channel is drawn with 1.0, and its baseline is the first step where it is not.

    Args:
        rule: `"channel"` is the above; `"layer"` gives all channels the largest of their ranges; `"step"` takes a fresh
            range per channel at each step.
        signed: True draws -range to range, False draws 0 to range (and what is below 0 as 0); None decides at the
            baseline: True if any value is below 0.
    """

    def __init__(self, rule: RangeRule = "channel", *, signed: bool | None = None) -> None:
        if rule not in get_args(RangeRule):
            raise ValueError(f"the range rule must be one of {', '.join(get_args(RangeRule))}; got {rule!r}")
        self.rule: RangeRule = rule
        self._signed = signed
        self._base = np.zeros(0, np.float32)  # zeros: no baseline yet
        self._doubled = np.zeros(0, np.int64)

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's values `[n, ...]`, finite or not, and return the range to draw them with."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(len(values), -1)
        if not len(self._base):
            self._base, self._doubled = np.zeros(len(flat), np.float32), np.zeros(len(flat), np.int64)
        if len(flat) != len(self._base):
            raise ValueError(
                f"every step must bring the same channels; the baseline had {len(self._base)}, now {len(flat)} arrived"
            )
        low, high = _extremes(flat)
        signed = bool((low < 0).any()) if self._signed is None else self._signed
        peaks = np.maximum(high, -low) if signed else high
        if self.rule == "layer":
            peaks = np.full_like(peaks, peaks.max())
        if not self._base.any() or self.rule == "step":
            if not peaks.any():
                return Limits(np.ones(len(flat), np.float32), signed, self._doubled.copy())
            self._signed = signed
            self._base = np.where(peaks > 0, peaks, np.median(peaks[peaks > 0].astype(np.float64))).astype(np.float32)
        else:
            self._doubled = np.maximum(self._doubled, _doublings(peaks, self._base, beyond=1 / TOP))
        return Limits(_scaled(self._base, self._doubled), signed, self._doubled.copy())

    def limits(self) -> Limits | None:
        """What `update` returned last; None where that depends on the values, too: a fresh range, or none yet."""
        if self._signed is None or self.rule == "step" or not self._base.any():
            return None
        return Limits(_scaled(self._base, self._doubled), self._signed, self._doubled.copy())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to know, as plain arrays; `from_state` continues from it."""
        return {
            "rule": np.array([get_args(RangeRule).index(self.rule)], np.int64),
            "signed": np.array([-1 if self._signed is None else int(self._signed)], np.int64),
            "base": self._base.copy(),
            "doubled": self._doubled.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> AnchoredRange:
        """The range whose `state()` this is."""
        signed = int(state["signed"][0])
        restored = cls(get_args(RangeRule)[int(state["rule"][0])], signed=None if signed < 0 else bool(signed))
        restored._base = np.array(state["base"], np.float32)
        restored._doubled = np.array(state["doubled"], np.int64)
        return restored


class ChangeRange:
    """The range of one layer's signed differences to the baseline: one for all channels.

    It is `baseline_peak * 2**-k`, with k chosen at the first step that holds a difference, as the smallest such range
    that holds it; from there on it doubles when outgrown and never shrinks. Two runs from the same baseline whose
    changes are alike so get the very same range.

    Args:
        baseline_peak: the largest magnitude among the layer's shown values at the baseline (see `peak`); for a layer of
            zeros 1.0 is taken.
    """

    def __init__(self, baseline_peak: float) -> None:
        if not (math.isfinite(baseline_peak) and baseline_peak >= 0):
            raise ValueError(f"baseline_peak must be a finite number, 0 or above; got {baseline_peak!r}")
        self._base = np.array([baseline_peak or 1.0], np.float32)
        self._first: int | None = None
        self._doubled = 0

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's differences `[n, ...]`, finite or not, and return the range to draw them with."""
        top = peak(values)
        if top > 0:
            needed = int(_doublings(np.array([top], np.float32), self._base, least=-126)[0])
            if self._first is None:
                self._first = needed
            self._doubled = max(self._doubled, needed - self._first)
        high = _scaled(self._base, np.array([(self._first or 0) + self._doubled]))
        return Limits(np.repeat(high, len(values)), True, np.full(len(values), self._doubled, np.int64))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to know, as plain arrays; `from_state` continues from it."""
        first = [] if self._first is None else [self._first]
        return {
            "base": self._base.copy(),
            "first": np.array(first, np.int64),
            "doubled": np.array([self._doubled], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> ChangeRange:
        """The range whose `state()` this is."""
        restored = cls(float(state["base"][0]))
        restored._first = int(state["first"][0]) if len(state["first"]) else None
        restored._doubled = int(state["doubled"][0])
        return restored


def _extremes(flat: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest finite value of each row, but at most and at least 0."""
    low, high = flat.min(axis=1, initial=0), flat.max(axis=1, initial=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(flat)
        low, high = flat.min(axis=1, initial=0, where=finite), flat.max(axis=1, initial=0, where=finite)
    return low, high


def _doublings(peaks: FloatArray, base: FloatArray, least: int = 0, beyond: float = 0.0) -> npt.NDArray[np.int64]:
    """The smallest k per channel, not below `least`, with `base * 2**k * (1 + beyond) >= peaks`."""
    # The quotient of two float32 is told from a power of 2 in float64, so no rounding can pick the wrong k.
    mantissa, exponent = np.frexp(peaks.astype(np.float64) / base / (1 + beyond))
    needed = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.where(peaks > 0, np.maximum(needed, least), least).astype(np.int64)


def _scaled(base: FloatArray, doublings: npt.NDArray[np.int64]) -> FloatArray:
    # The last doubling below float32's maximum may overshoot it; capped there the range still holds every value.
    scaled = np.ldexp(base.astype(np.float64), doublings)
    return np.clip(scaled, np.finfo(np.float32).smallest_subnormal, _FLOAT32_MAX).astype(np.float32)


# --- grids ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A picture.

    Attributes:
        pixels: uint8 `[H, W]` palette indices, or `[H, W, 3]` colours.
        palette: the colours of the indices from 0 on, 3 bytes each; None where the pixels are colours.
    """

    pixels: Pixels
    palette: bytes | None

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])


def filters_grid(shown: FloatArray, limits: Limits, *, view: View, cmap: str = "auto", width: int | None = 350) -> Grid:
    """One cell a filter in a nearly square grid; with slices: rows are filters, columns are input channels.

    Args:
        shown: `[n, k, kH, kW]` from `select_filters`.
        limits: of the n filters.
        view: as given to `select_filters`.
        cmap: `"auto"` (diverging with white at 0, or magma from 0), `"gray"`, or any matplotlib colour map; rgb ignores
            it: there 0 is mid gray and the range's end is the full colour.
        width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
    """
    if shown.ndim != 4:
        raise ValueError(f"filters to draw must be [n, k, kH, kW]; got shape {list(shown.shape)}")
    resolved = "mean" if view == "mean" and shown.shape[1] == 1 else resolve_view(shown.shape, view)
    n, k = shown.shape[:2]
    if resolved == "rgb":
        return _draw_rgb(shown, limits.high, n_columns=columns(n), width=width)
    n_columns = k if resolved == "slices" else columns(n)
    cells, high = shown.reshape(n * k, *shown.shape[2:]), np.repeat(limits.high, k)
    return _draw(cells, high, symmetric=limits.symmetric, n_columns=n_columns, cmap=cmap, width=width)


def maps_grid(shown: FloatArray, limits: Limits, *, cmap: str = "auto", width: int | None = 350) -> Grid:
    """One cell a feature map, in channel order, in a nearly square grid.

    Args:
        shown: `[n, h, w]`: one probe image's share of what `select_maps` gives.
        limits: of the n channels.
        cmap: as for `filters_grid`.
        width: as for `filters_grid`.
    """
    if shown.ndim != 3 or 0 in shown.shape:
        raise ValueError(f"feature maps to draw must be [n, h, w] with none of them 0; got shape {list(shown.shape)}")
    n_columns = columns(len(shown))
    return _draw(shown, limits.high, symmetric=limits.symmetric, n_columns=n_columns, cmap=cmap, width=width)


def strip(cells: FloatArray, limits: Limits, *, cmap: str = "auto", width: int | None = 350) -> Grid:
    """A layer's evolution: rows are channels, columns are steps, all steps drawn with the same limits.

    Args:
        cells: `[steps, n, h, w]`, or `[steps, n, 3, h, w]` for rgb filters.
        limits: of the n channels; those of the last step hold the values of every step.
        cmap: as for `filters_grid`.
        width: as for `filters_grid`.
    """
    if cells.ndim not in (4, 5) or 0 in cells.shape or (cells.ndim == 5 and cells.shape[2] != 3):
        raise ValueError(f"cells must be [steps, n, h, w] or [steps, n, 3, h, w]; got shape {list(cells.shape)}")
    steps, n = cells.shape[:2]
    by_channel = np.swapaxes(cells, 0, 1).reshape(n * steps, *cells.shape[2:])
    high = np.repeat(limits.high, steps)
    if cells.ndim == 5:
        return _draw_rgb(by_channel, high, n_columns=steps, width=width)
    return _draw(by_channel, high, symmetric=limits.symmetric, n_columns=steps, cmap=cmap, width=width)


def png(grid: Grid, *, text: Mapping[str, str] | None = None, level: int = 1) -> bytes:
    """The grid as a PNG file: 8-bit palette or RGB, with `text` as metadata (tEXt, or iTXt beyond Latin-1).

    Args:
        grid: the picture.
        text: key -> text; keys are 1 to 79 Latin-1 characters.
        level: of zlib, 0 to 9.
    """
    metadata = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        metadata.add_text(key, value)
    buffer = io.BytesIO()
    # Pillow filters gray rows (Paeth and others) but never palette rows. Gray with run-length coding, turned into a
    # palette file afterwards, is a quarter smaller than Pillow's own palette file and takes no longer.
    picture = Image.fromarray(grid.pixels)
    picture.save(buffer, format="PNG", compress_level=level, compress_type=_ZLIB_RLE, pnginfo=metadata)
    return buffer.getvalue() if grid.palette is None else _gray_to_palette(buffer.getvalue(), grid.palette)


def _gray_to_palette(gray: bytes, colours: bytes) -> bytes:
    """The same 8-bit PNG with colour type 3 (palette) in place of 0 (gray); the pixels' bytes are alike in both."""
    header = bytearray(gray[12 : _PNG_HEADER_END - 4])
    header[13] = 3
    chunks = [_chunk(bytes(header[:4]), bytes(header[4:])), _chunk(b"PLTE", colours)]
    return b"".join([gray[:8], *chunks, gray[_PNG_HEADER_END:]])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _draw(
    values: FloatArray, high: FloatArray, *, symmetric: bool, n_columns: int, cmap: str, width: int | None
) -> Grid:
    cell = cell_width(n_columns, width)
    indices = _indices(_fit(values, cell), high, symmetric)
    pixels = _lay_out(indices, n_columns, _factor(indices.shape[1], indices.shape[2], cell), GAP)
    return Grid(pixels, palette(cmap, symmetric))


def _draw_rgb(values: FloatArray, high: FloatArray, *, n_columns: int, width: int | None) -> Grid:
    cell = cell_width(n_columns, width)
    values = _fit(values, cell)
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


# --- colours -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def palette(cmap: str, symmetric: bool) -> bytes:
    """The colours of indices 0 to `NOT_FINITE`: values, gap, not finite; 3 bytes each.

    The gap and what is not finite take the first of a few colours that no value of this colour map comes near.

    Args:
        cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
        symmetric: what `"auto"` goes by: RdBu_r with 0 in pure white, else magma.

    Raises:
        ValueError: matplotlib has no such colour map.
    """
    colours = _sample(("RdBu_r" if symmetric else "magma") if cmap == "auto" else cmap)
    if cmap == "auto" and symmetric:
        colours = np.minimum(colours / colours[ZERO], 1.0)
    table = np.zeros((NOT_FINITE + 1, 3), np.uint8)
    table[: TOP + 1] = np.rint(colours * 255)
    table[GAP] = _far_from(table[: TOP + 1], _GAP_COLOURS)
    table[NOT_FINITE] = _far_from(table[: TOP + 1], _NOT_FINITE_COLOURS)
    return table.tobytes()


def _sample(name: str) -> npt.NDArray[np.float64]:
    import matplotlib

    if name not in matplotlib.colormaps:
        near = difflib.get_close_matches(name, list(matplotlib.colormaps), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "use auto, gray or viridis, for example"
        raise ValueError(f"cmap must be auto, gray or the name of a matplotlib colour map; got {name!r}: {hint}")
    colours = matplotlib.colormaps[name](np.linspace(0, 1, TOP + 1))
    return np.asarray(colours, np.float64)[:, :3]


def _far_from(table: Pixels, candidates: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    distances = [np.linalg.norm(table.astype(np.float64) - c, axis=1).min() for c in candidates]
    clear = [c for c, distance in zip(candidates, distances, strict=True) if distance >= 64]
    return clear[0] if clear else candidates[int(np.argmax(distances))]


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more; got {number}")

"""How far the weights and the outputs of a layer have moved: pure functions of arrays.

Sums of squares run over filters `[k, n]`, one filter a row. Undefined numbers are NaN, never an exception and never a
warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.float64]

SHORT = 0.01
"""A filter shorter than this share of the layer's median length has no direction that means anything."""

_BLOCK = 1 << 15  # values of a filter block whose float32 copies stay in the processor's cache
_RADIAL = 0.5  # share of a move along the filter itself, from which on float32 would lose the rest
_LEAST_SQUARE = 1e-20  # a sum of float32 squares below this may have lost some to underflow
_OPPOSITE = -0.9  # cosine below which float32 would lose what is missing to 180 degrees


@dataclass(frozen=True)
class Reference:
    """Filters that others are measured against, with what need be computed of them only once.

    Attributes:
        filters: `[k, ...]`, one filter a row.
        squares: `[k]`, the square of each filter's length, in float64; NaN or infinite where a filter is not finite.
    """

    filters: Array
    squares: Numbers

    @classmethod
    def of(cls, filters: Array) -> Reference:
        """The reference that some filters are.

        Args:
            filters: `[k, ...]`, one filter a row.
        """
        return cls(filters, _squares(filters))

    @cached_property
    def shortest(self) -> float:
        """A filter that is shorter has no direction that means anything."""
        finite = self.squares[np.isfinite(self.squares)]
        median = float(np.median(np.sqrt(finite))) if finite.size else 0.0
        return max(SHORT * median, float(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Moved:
    """How far a layer's filters have moved from a reference.

    Attributes:
        change: `|W - W0| / |W0|` over all filters (Frobenius norms); NaN where the reference is all zeros, and
            where no filter is finite.
        unit_change: the same of filters scaled to length 1 each, those that are too short left out.
        angle: `[k]`, the angle between each filter and its reference in degrees, 0 to 180; NaN where a filter is not
            finite, or too short to have a direction.
        norm: `[k]`, the length of each filter now.
        not_finite: how many filters hold NaN or infinity, now or in the reference, and are left out of all values.
        short: how many filters are too short: below 1 % of the reference's median length, then or now.
    """

    change: float
    unit_change: float
    angle: Numbers
    norm: Numbers
    not_finite: int
    short: int


def moved(reference: Reference, filters: Array) -> Moved:
    """How far filters have moved, by all measures, in one pass over them.

    With `d = w - w0`, the angle comes from the chord between the unit vectors,

        `|w/|w| - w0/|w0||^2 = (|d|^2 - (|w| - |w0|)^2) / (|w| |w0|)`,    `angle = 2 asin(chord / 2)`,

    and `|w| - |w0|` from `(2 <w0, d> + |d|^2) / (|w| + |w0|)`: the same numbers as by `acos` of the cosine, without the
    cancellation that would lose a small angle. `d` is formed in float32, which is exact for small moves; rows whose
    move is mostly along the filter itself, or turns it round, are computed again in float64.

    Relative Frobenius norms as a measure of change: Zhang, Bengio and Singer, "Are All Layers Created Equal?", JMLR
    2022, section 4.

    Args:
        reference: the filters at the baseline.
        filters: `[k, ...]`, the same filters now.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> now = moved(Reference.of(np.array([[3.0, 4.0], [1.0, 0.0]])), np.array([[6.0, 8.0], [0.0, 1.0]]))
        >>> now.angle.round(6), round(now.change, 4)
        (array([ 0., 90.]), 1.019)
    """
    if reference.filters.shape != filters.shape:
        raise ValueError(
            f"the filters to compare must have one shape; got {list(reference.filters.shape)} and {list(filters.shape)}"
        )
    old, new = (np.asarray(array).reshape(len(filters), -1) for array in (reference.filters, filters))
    before = reference.squares
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        square, along = _moves(old, new)
        after = before + 2 * along + square
        longer = _longer(before, after, along, square)
        turned_round = before + along < _OPPOSITE * np.sqrt(np.maximum(before * after, 0))
        again = np.flatnonzero(((longer**2 > _RADIAL * square) & (square > 0)) | turned_round | ~np.isfinite(square))
        for rows in _few(again, old.shape[1]):
            wide, wider = old[rows].astype(np.float64), new[rows].astype(np.float64)
            d = wider - wide
            square[rows], along[rows], after[rows] = _dots(d, d), _dots(wide, d), _dots(wider, wider)
        after = np.maximum(after, 0)
        if again.size:
            longer = _longer(before, after, along, square)
        return _summed_up(reference, after, square, longer)


def distance(before: Array, after: Array) -> float:
    """How far weights have moved, as a share of their size: `|after - before| / |before|` (Frobenius norms).

    Args:
        before: `[k, ...]`, one filter a row.
        after: the same later.

    Returns:
        0 and up, filters that hold NaN or infinity left out; NaN where nothing else is left, and where `before` is all
        zeros and `after` is not.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> distance(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]]))
        1.0
    """
    return distance_from(Reference.of(before), after)


def distance_from(before: Reference, after: Array) -> float:
    """What `distance` gives, of weights that need be looked at only once.

    Args:
        before: `[k, ...]`, one filter a row.
        after: the same later.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [list(array.shape) for array in (before.filters, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"what is compared must have one shape; got {shapes[0]} and {shapes[1]}")
    old, new = (np.asarray(array).reshape(len(after), -1) for array in (before.filters, after))
    with np.errstate(over="ignore", invalid="ignore"):
        square, _ = _moves(old, new, along=False)
    finite = np.isfinite(square) & np.isfinite(before.squares)
    if not finite.any():
        return float("nan")
    return _ratio(float(square[finite].sum()), float(before.squares[finite].sum()))


def relative_change(before: Array, after: Array) -> tuple[float, int]:
    """How far values have moved, as a share of their size: `|after - before| / |before|` (Frobenius norms).

    Args:
        before: `[..., C]`, channels last.
        after: the same later.

    Returns:
        The share, NaN where nothing finite is left or `before` is all zeros (0 where both are); and how many channels
        hold NaN or infinity and are left out.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> relative_change(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]]))
        (1.0, 0)
    """
    if before.shape != after.shape:
        raise ValueError(f"what is compared must have one shape; got {list(before.shape)} and {list(after.shape)}")
    old, new = (np.asarray(array).reshape(-1, array.shape[-1]) for array in (before, after))
    with np.errstate(over="ignore", invalid="ignore"):
        # A difference of float32 values is rounded once, and loses nothing that the squares would show.
        square, of = (float(np.square(values, dtype=np.float64).sum()) for values in (new - old, old))
    if np.isfinite(square) and np.isfinite(of):
        return _ratio(square, of), 0
    old, new = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(old).all(axis=0) & np.isfinite(new).all(axis=0)
    left_out = int(finite.size - np.count_nonzero(finite))
    if not finite.any():
        return float("nan"), left_out
    old, new = old[:, finite], new[:, finite]
    return _ratio(float(np.square(new - old).sum()), float(np.square(old).sum())), left_out


def _summed_up(reference: Reference, after: Numbers, square: Numbers, longer: Numbers) -> Moved:
    """The measures, from each filter's square now, that of its move, and how much longer it is."""
    before = reference.squares
    finite = np.isfinite(before) & np.isfinite(after) & np.isfinite(square)
    lengths = np.sqrt(before), np.sqrt(after)
    short = finite & (np.minimum(*lengths) < reference.shortest)
    kept = finite & ~short
    chord = np.where(kept, np.maximum(square - longer**2, 0) / (lengths[0] * lengths[1]), np.nan)
    chord[kept & (square == 0)] = 0.0
    return Moved(
        change=_ratio(float(square[finite].sum()), float(before[finite].sum())) if finite.any() else float("nan"),
        unit_change=float(np.sqrt(chord[kept].mean())) if kept.any() else float("nan"),
        angle=np.degrees(2 * np.arcsin(np.minimum(np.sqrt(chord) / 2, 1))),
        norm=np.where(np.isfinite(after), lengths[1], after),
        not_finite=int(finite.size - np.count_nonzero(finite)),
        short=int(np.count_nonzero(short)),
    )


def _longer(before: Numbers, after: Numbers, along: Numbers, square: Numbers) -> Numbers:
    """By how much each filter is longer than it was."""
    both = np.sqrt(before) + np.sqrt(np.maximum(after, 0))
    return np.asarray(np.where(both > 0, (2 * along + square) / both, 0.0), np.float64)


def _ratio(square: float, of: float) -> float:
    """The square root of a ratio of squares; 0 where both are 0."""
    if of > 0:
        return float(np.sqrt(square / of))
    return 0.0 if square == 0 else float("nan")


def _squares(filters: Array) -> Numbers:
    flat = np.asarray(filters).reshape(len(filters), -1)
    result = np.empty(len(flat))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(*flat.shape):
            wide = flat[rows].astype(np.float64)
            result[rows] = _dots(wide, wide)
    return result


def _moves(old: Array, new: Array, *, along: bool = True) -> tuple[Numbers, Numbers]:
    """The square of each row's move, and the move's dot product with the row; NaN or infinite where one is not finite.

    Args:
        old: `[k, n]`.
        new: the same later.
        along: whether the dot products are wanted, too.
    """
    square, dots = np.empty(len(old)), np.zeros(len(old))
    for block in _blocks(*old.shape):
        d = new[block] - old[block]
        square[block] = _dots(d, d)
        if along:
            dots[block] = _dots(old[block], d)
    # What leaves float32's range, at either end, is computed again in float64; most often nothing has moved there.
    lost = np.flatnonzero(~(np.isfinite(square) & np.isfinite(dots) & (square > _LEAST_SQUARE)))
    for rows in _few(lost, old.shape[1]):
        if np.array_equal(old[rows], new[rows]):
            continue
        wide = old[rows].astype(np.float64)
        d = new[rows] - wide
        square[rows], dots[rows] = _dots(d, d), _dots(wide, d) if along else 0.0
    return square, dots


def _blocks(count: int, width: int) -> Iterator[slice]:
    """All rows, some at a time."""
    at_once = max(1, _BLOCK // max(1, width))
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)


def _few(rows: npt.NDArray[np.intp], width: int) -> Iterator[npt.NDArray[np.intp]]:
    """Some rows, a few at a time."""
    for part in _blocks(len(rows), width):
        yield rows[part]


def _dots(a: Array, b: Array) -> Array:
    """The dot product of each row."""
    dots: Array = np.einsum("ij,ij->i", a, b)
    return dots

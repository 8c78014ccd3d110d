"""What version 0.1 measured of filters, how active channels are, and where maps are compared: functions of arrays.

Sums run in float64. Numbers that are undefined are NaN, never an exception and never a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.float64]

# Filters are worked through in blocks whose float64 copies stay in the processor's cache: three times as fast.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Change:
    """How filters changed, one value for each filter.

    Attributes:
        cosine: `[O]`, the cosine distance to the earlier filter, 0 (same direction) to 2 (opposite); 0 where both
            filters are zero, 1 where exactly one is; NaN where one is not finite.
        l2: `[O]`, how far the filter moved, as a share of the earlier one's length; 0 where both filters are zero; NaN
            where only the earlier one is (there is nothing to be a share of) and where one is not finite.
    """

    cosine: Numbers
    l2: Numbers


def change(a: Array, b: Array) -> Change:
    """Cosine distance and relative L2 distance of filters, in one pass over them: what old names stand for.

    The cosine distance `1 - <a, b> / (|a| |b|)` is computed as `(|d|**2 - (|a| - |b|)**2) / (2 |a| |b|)` with
    `d = b - a` and `|a| - |b|` as `-<d, a + b> / (|a| + |b|)`: the same number, without the cancellation that would
    lose a small change.

    Args:
        a: `[O, ...]`, one filter a row, as at the baseline.
        b: `[O, ...]`, the same filters later.

    Raises:
        ValueError: the shapes differ.

    >>> change(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]])).l2
    array([1.])
    >>> a = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> change(a, np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])).cosine
    array([0., 1., 2.])
    """
    if a.shape != b.shape:
        raise ValueError(f"the filters to compare must have one shape; got {list(a.shape)} and {list(b.shape)}")
    cosine, l2 = np.empty(len(a)), np.empty(len(a))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for rows, (old, new) in _blocks(a, b):
            d = new - old
            norm_a, norm_b, moved = (np.sqrt(_dots(v, v)) for v in (old, new, d))
            difference = _dots(d, old + new) / (norm_a + norm_b)
            # Rounding may leave the range by an ulp; NaN passes through.
            distance = np.clip((moved**2 - difference**2) / (2 * norm_a * norm_b), 0.0, 2.0)
            share = moved / norm_a
            zero_a, zero_b = norm_a == 0, norm_b == 0
            distance[zero_a & zero_b] = 0.0
            distance[zero_a != zero_b] = 1.0
            share[zero_a] = np.where(zero_b[zero_a], 0.0, np.nan)
            broken = ~(np.isfinite(norm_a) & np.isfinite(norm_b))
            distance[broken] = share[broken] = np.nan
            cosine[rows], l2[rows] = distance, share
    return Change(cosine, l2)


def active_share(maps: Array, threshold: float = 0.0) -> Numbers:
    """The share of positions, over all images, at which each channel's map is above a threshold.

    Args:
        maps: `[N, C, H, W]`.
        threshold: what a value must be above to count; NaN never is.

    Returns:
        `[C]`, 0 to 1.

    >>> active_share(np.array([[[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]]]))
    array([0.25, 1.  ])
    """
    _four_axes(maps)
    above = np.count_nonzero(maps > threshold, axis=(0, 2, 3))
    return np.asarray(above / (maps.shape[0] * maps.shape[2] * maps.shape[3]), dtype=np.float64)


def sample_positions(n_images: int, h: int, w: int, at_most: int = 1024) -> npt.NDArray[np.int64]:
    """Fixed positions to compare feature maps at: a square lattice, the finest with at most `at_most` per image.

    Args:
        n_images: images in the maps.
        h: height of a map.
        w: width of a map.
        at_most: positions per image.

    Returns:
        `[n_images * k]`, k <= at_most, rising: row numbers of `maps.transpose(0, 2, 3, 1).reshape(-1, C)`.

    >>> sample_positions(2, 2, 3)
    array([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11])
    >>> sample_positions(1, 4, 4, at_most=4)
    array([ 0,  2,  8, 10])
    """
    if min(n_images, h, w, at_most) < 1:
        raise ValueError(f"n_images, h, w and at_most must be 1 or more; got {n_images}, {h}, {w} and {at_most}")
    stride = 1
    while -(-h // stride) * -(-w // stride) > at_most:
        stride += 1
    rows = np.arange((h - 1) % stride // 2, h, stride)
    cols = np.arange((w - 1) % stride // 2, w, stride)
    one_image = (rows[:, None] * w + cols[None, :]).reshape(-1)
    return np.asarray((np.arange(n_images)[:, None] * (h * w) + one_image).reshape(-1), dtype=np.int64)


def _blocks(*arrays: Array) -> Iterator[tuple[slice, list[Numbers]]]:
    """Some rows of every array at a time, as float64 `[rows, -1]`."""
    flat = [array.reshape(len(array), -1) for array in arrays]
    at_once = max(1, _BLOCK // max(1, flat[0].shape[1]))
    for start in range(0, len(flat[0]), at_once):
        rows = slice(start, start + at_once)
        yield rows, [array[rows].astype(np.float64) for array in flat]


def _dots(a: Numbers, b: Numbers) -> Numbers:
    return np.asarray(np.einsum("ij,ij->i", a, b), dtype=np.float64)


def _four_axes(maps: Array) -> None:
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"feature maps must be [N, C, H, W] with none of them 0; got shape {list(maps.shape)}")

"""How far a network is from its baseline, in numbers: pure functions of arrays.

Sums run in float64. Numbers that are undefined are NaN, never an exception and never a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnlog.metrics.products import product

Array = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.float64]

# Filters are worked through in blocks whose float64 copies stay in the processor's cache: three times as fast.
_BLOCK = 1 << 15


def norm(w: Array) -> Numbers:
    """L2 norm of each filter, `sqrt(sum(w_i ** 2))`.

    Args:
        w: `[O, ...]`, one filter a row.

    Returns:
        `[O]`; NaN or infinity where a filter holds one.

    >>> norm(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([5., 0.])
    """
    result = np.empty(len(w))
    with np.errstate(over="ignore"):
        for rows, block in _blocks(w):
            result[rows] = np.sqrt(_dots(block[0], block[0]))
    return result


@dataclass(frozen=True)
class Change:
    """How filters changed, one value for each filter.

    Attributes:
        cosine: `[O]`, the cosine distance to the earlier filter, 0 to 2.
        l2: `[O]`, how far the filter moved, as a share of the earlier one's length.
        norm: `[O]`, the L2 norm of the later filter.
    """

    cosine: Numbers
    l2: Numbers
    norm: Numbers


def change(a: Array, b: Array) -> Change:
    """Cosine distance, relative L2 distance and norm of filters, in one pass over them.

    Args:
        a: `[O, ...]`, one filter a row, as at the baseline.
        b: `[O, ...]`, the same filters later.

    Raises:
        ValueError: the shapes differ.

    >>> change(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]])).l2
    array([1.])
    """
    if a.shape != b.shape:
        raise ValueError(f"the filters to compare must have one shape; got {list(a.shape)} and {list(b.shape)}")
    cosine, l2, norms = np.empty(len(a)), np.empty(len(a)), np.empty(len(a))
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
            cosine[rows], l2[rows], norms[rows] = distance, share, norm_b
    return Change(cosine, l2, norms)


def cosine_distance(a: Array, b: Array) -> Numbers:
    """Cosine distance between the filters of `a` and of `b`, `1 - <a, b> / (|a| |b|)`.

    Computed as `(|d|**2 - (|a| - |b|)**2) / (2 |a| |b|)` with `d = b - a` and `|a| - |b|` as
    `-<d, a + b> / (|a| + |b|)`: the same number, without the cancellation that would lose a small change.

    Args:
        a: `[O, ...]`, one filter a row, as at the baseline.
        b: `[O, ...]`, the same filters later.

    Returns:
        `[O]`, 0 (same direction) to 2 (opposite); 0 where both filters are zero, 1 where exactly one is; NaN where one
        is not finite.

    >>> a = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> b = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    >>> cosine_distance(a, b)
    array([0., 1., 2.])
    """
    return change(a, b).cosine


def relative_l2(a: Array, b: Array) -> Numbers:
    """How far each filter moved, as a share of its length: `|b - a| / |a|`.

    Args:
        a: `[O, ...]`, one filter a row, as at the baseline.
        b: `[O, ...]`, the same filters later.

    Returns:
        `[O]`, 0 and up; 0 where both filters are zero; NaN where only `a` is (there is nothing to be a share of) and
        where one is not finite.

    >>> relative_l2(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 9.0], [0.0, 0.0]]))
    array([1., 0.])
    """
    return change(a, b).l2


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


def dead_share(maps: Array, threshold: float = 0.0) -> float:
    """The share of channels that are never above a threshold on the probe.

    Meant for what comes after an activation. A channel of nothing but NaN is above no threshold, so it counts as dead.

    Args:
        maps: `[N, C, H, W]`.
        threshold: of the activation; 0 for ReLU.

    Returns:
        0 to 1.

    >>> dead_share(np.array([[[[0.0]], [[1.0]], [[0.0]], [[0.0]]]]))
    0.75
    """
    return float((active_share(maps, threshold) == 0).mean())


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


def linear_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment: how alike two layers, or one layer at two steps, see the same inputs.

    Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.
    With the columns of X and Y centred it is, in the form over features of section 3,

        `CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`,

    and, equally, with the Gram matrices `K = X X^T` and `L = Y Y^T` of equation 3, `CKA = <K, L> / (|K|_F |L|_F)`. The
    form with fewer operations is taken. Turning, mirroring and scaling all features alike leave it as it is.

    Args:
        x: `[p, c1]`, one position of one image a row, one channel a column.
        y: `[p, c2]`, the same positions in the same order.

    Returns:
        0 (nothing in common) to 1 (alike); NaN where undefined: a single position, features that are the same at all
        positions, NaN or infinity.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    >>> round(linear_cka(x, 10 * x[:, ::-1]), 6)
    1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"x and y must be [p, c1] and [p, c2] with the same p; got {list(x.shape)} and {list(y.shape)}"
        )
    x, y = _centred(x), _centred(y)
    positions, c1, c2 = len(x), x.shape[1], y.shape[1]
    if positions * (c1 + c2) < c1 * c2 + c1 * c1 + c2 * c2:
        gram_x, gram_y = product(x.T, x.T), product(y.T, y.T)
        shared = float(np.sum(gram_x * gram_y))
    else:
        gram_x, gram_y = product(x, x), product(y, y)
        cross = product(y, x)
        shared = float(np.sum(cross * cross))
    scale = float(np.sqrt(np.sum(gram_x * gram_x) * np.sum(gram_y * gram_y)))
    return min(max(shared / scale, 0.0), 1.0) if scale > 0 else float("nan")


def mean_of_finite(x: npt.ArrayLike) -> float:
    """The mean of what is finite; NaN where nothing is.

    Args:
        x: of any shape.

    >>> mean_of_finite([1.0, float("nan"), 3.0])
    2.0
    """
    values = np.asarray(x, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _blocks(*arrays: Array) -> Iterator[tuple[slice, list[Numbers]]]:
    """Some rows of every array at a time, as float64 `[rows, -1]`."""
    flat = [array.reshape(len(array), -1) for array in arrays]
    at_once = max(1, _BLOCK // max(1, flat[0].shape[1]))
    for start in range(0, len(flat[0]), at_once):
        rows = slice(start, start + at_once)
        yield rows, [array[rows].astype(np.float64) for array in flat]


def _dots(a: Numbers, b: Numbers) -> Numbers:
    return np.asarray(np.einsum("ij,ij->i", a, b), dtype=np.float64)


def _centred(x: Array) -> Numbers:
    """Float64, each column's mean at 0, the largest magnitude at 1; all NaN where nothing but rounding is left."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axis=0)
        largest = np.abs(centred).max(initial=0)
        if not (np.isfinite(largest) and largest > 1e-12 * np.abs(wide).max(initial=0)):
            return np.full(x.shape, np.nan)
        return np.asarray(centred / largest, dtype=np.float64)


def _four_axes(maps: Array) -> None:
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"feature maps must be [N, C, H, W] with none of them 0; got shape {list(maps.shape)}")

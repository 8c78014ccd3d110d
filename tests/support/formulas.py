"""The oracle's own numbers: by the formulas of the papers, in float64, straightforward, and with nothing of cnnlog.

Filters are `[k, ...]`, one a row. Outputs are rows `[samples, C]`. What is undefined is NaN.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SHORT = 0.01


def kept_filters(before: Array, after: Array) -> tuple[Array, Array, Array, Array]:
    """Both as float64 rows, which rows are finite, and which of these are long enough to have a direction."""
    w0, w1 = (np.asarray(w, np.float64).reshape(len(w), -1) for w in (before, after))
    finite: Array = np.asarray(np.isfinite(w0).all(axis=1) & np.isfinite(w1).all(axis=1))
    long = np.zeros(len(w0), bool)
    if finite.any():
        lengths = np.sqrt((w0[finite] ** 2).sum(axis=1)), np.sqrt((w1[finite] ** 2).sum(axis=1))
        least = SHORT * np.median(lengths[0])
        long[finite] = (lengths[0] >= least) & (lengths[1] >= least) & (lengths[0] > 0) & (lengths[1] > 0)
    return w0, w1, finite, long


def ratio_of_norms(difference: Array, of: Array) -> float:
    up, down = math.sqrt(float((difference**2).sum())), math.sqrt(float((of**2).sum()))
    if down == 0:
        return 0.0 if up == 0 else math.nan
    return up / down


def weight_change(before: Array, after: Array, *, normalised: bool) -> float:
    """`|W_t - W_0| / |W_0|`; where a norm follows, of filters scaled to length 1."""
    w0, w1, finite, long = kept_filters(before, after)
    if not finite.any():
        return math.nan
    if not normalised:
        return ratio_of_norms(w1[finite] - w0[finite], w0[finite])
    if not long.any():
        return math.nan
    unit = [w[long] / np.sqrt((w[long] ** 2).sum(axis=1, keepdims=True)) for w in (w0, w1)]
    return ratio_of_norms(unit[1] - unit[0], unit[0])


def filter_angle(before: Array, after: Array) -> Array:
    """Degrees between each filter and what it was: Kahan's formula, which has no cancellation anywhere."""
    w0, w1, _, long = kept_filters(before, after)
    angles = np.full(len(w0), np.nan)
    for row in np.flatnonzero(long):
        u, v = w0[row] / np.linalg.norm(w0[row]), w1[row] / np.linalg.norm(w1[row])
        angles[row] = math.degrees(2 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))))
    return angles


def filters_left_out(before: Array, after: Array, *, normalised: bool) -> int:
    """How many are not in `weight_change`: short ones are where lengths count."""
    _, _, finite, long = kept_filters(before, after)
    return int((~(long if normalised else finite)).sum())


def filter_norm(weights: Array) -> Array:
    return np.sqrt((np.asarray(weights, np.float64).reshape(len(weights), -1) ** 2).sum(axis=1))


def update_ratio(before: Array, after: Array) -> float:
    """`|W_after - W_before| / |W_before|`, filters that are not finite left out."""
    w0, w1, finite, _ = kept_filters(before, after)
    if not finite.any():
        return math.nan
    return ratio_of_norms(w1[finite] - w0[finite], w0[finite])


def finite_channels(before: Array, after: Array) -> Array:
    return np.asarray(np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0))


def function_change(before: Array, after: Array) -> float:
    """`|F_t - F_0| / |F_0|` of outputs, channels that are not finite left out."""
    known = finite_channels(before, after)
    if not known.any():
        return math.nan
    f0, f1 = (np.asarray(f, np.float64)[:, known] for f in (before, after))
    return ratio_of_norms(f1 - f0, f0)


def hsic_1(k: Array, other: Array) -> float:
    """Song et al. 2012, equation 4, as it stands there: with traces, and with the diagonals at 0."""
    n = len(k)
    k, other, one = k - np.diag(np.diag(k)), other - np.diag(np.diag(other)), np.ones((n, 1))
    first = np.trace(k @ other)
    second = float((one.T @ k @ one).item()) * float((one.T @ other @ one).item()) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * float((one.T @ k @ other @ one).item())
    return float((first + second - third) / (n * (n - 3)))


def debiased_cka(x: Array, y: Array) -> float:
    """Linear CKA with `HSIC_1`, of channels that are finite in both; NaN where nothing varies."""
    known = finite_channels(x, y)
    if len(x) < 4 or not known.any():
        return math.nan
    # The formula does not mind where 0 is nor how large values are; rounding does.
    grams = [centred @ centred.T for centred in (_scaled(np.asarray(f, np.float64)[:, known]) for f in (x, y))]
    both, of_x, of_y = hsic_1(grams[0], grams[1]), hsic_1(grams[0], grams[0]), hsic_1(grams[1], grams[1])
    return both / math.sqrt(of_x * of_y) if of_x > 1e-20 and of_y > 1e-20 else math.nan


@functools.cache
def noise_band(rows: int, channels: int, draws: int = 600) -> float:
    """What `debiased_cka` of noise with nothing in common lies within, 95 times of 100: drawn, at its full size."""
    if rows < 4:
        return math.nan
    generator, found = np.random.default_rng(3), []
    for _ in range(draws):
        first, other = (x @ x.T for x in generator.standard_normal((2, rows, channels)))
        np.fill_diagonal(first, 0)
        np.fill_diagonal(other, 0)
        both, one, two = (_hsic_1_of_hollow(k, of) for k, of in ((first, other), (first, first), (other, other)))
        found.append(abs(both) / math.sqrt(one * two))
    return min(1.0, float(np.quantile(found, 0.95)))


def _hsic_1_of_hollow(k: Array, other: Array) -> float:
    """The same as `hsic_1` with sums in place of the products of matrices."""
    n, of_k, of_other = len(k), k.sum(axis=0), other.sum(axis=0)
    second = float(of_k.sum() * of_other.sum()) / ((n - 1) * (n - 2))
    return (float((k * other).sum()) + second - 2 / (n - 2) * float(of_k @ of_other)) / (n * (n - 3))


def some_of(shown: Array) -> Array:
    """So many of the shown values as a way is measured by: every d-th, with the least d that leaves 1,024 at most.

    A d that has a divisor in common with the length of an axis would meet some columns alone, so it is passed over.
    """
    distance = max(1, math.ceil(shown.size / 1024))
    while distance > 1 and any(math.gcd(distance, size) > 1 for size in shown.shape):
        distance += 1
    return np.asarray(shown.reshape(-1)[::distance], np.float64)


def to_go(values: Array, first: Array, last: Array) -> float:
    """`|X - X_last| / |X_0 - X_last|`, of what is finite in all three; NaN where there was no way."""
    known = np.isfinite(values) & np.isfinite(first) & np.isfinite(last)
    way = float(np.linalg.norm(first[known] - last[known]))
    return float(np.linalg.norm(values[known] - last[known])) / way if way > 0 else math.nan


def half_way(curve: list[tuple[int, float]]) -> int | None:
    """The first step from which on there is never more than half of the way to go."""
    return next((step for at, (step, _) in enumerate(curve) if all(value <= 0.5 for _, value in curve[at:])), None)


def biased_cka(x: Array, y: Array) -> float:
    """What the debiased one replaces; a fault that is planted."""
    x, y = (_scaled(np.asarray(f, np.float64)) for f in (x, y))
    return float(np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _scaled(rows: Array) -> Array:
    centred = rows - rows.mean(axis=0)
    largest = np.abs(centred).max(initial=0.0)
    return np.asarray(centred / largest if largest > 0 else centred)


def dead_share(activated: Array) -> float:
    """Share of the channels `[C, ...]` that are nowhere above 0; those with NaN are left out."""
    flat = activated.reshape(len(activated), -1)
    known = ~np.isnan(flat).any(axis=1)
    return float((flat[known].max(axis=1) <= 0).mean()) if known.any() else math.nan


def lattice(spatial: tuple[int, ...], images: int, of_an_image: int = 64) -> list[tuple[int, ...]]:
    """The positions of an image that are compared: of all lattices with one stride the finest with few enough points.

    At most 64 an image, and at most 256 over all images unless there are more images than that; the lattice lies in
    the middle of what its stride leaves over.
    """
    at_most = min(of_an_image, max(1, 256 // images))
    for stride in itertools.count(1):
        axes = [list(range(((size - 1) % stride) // 2, size, stride)) for size in spatial]
        points = list(itertools.product(*axes))
        if len(points) <= at_most:
            return points
    raise AssertionError("a stride as long as the longest side has one point")


def sampled(output: Array, *, channels_last: bool, of_an_image: int = 64) -> Array:
    """The rows that are compared: image by image, position by position, `[samples, C]`."""
    moved = output if channels_last else np.moveaxis(output, 1, -1)
    points = lattice(moved.shape[1:-1], len(moved), of_an_image)
    return np.stack([image[point] for image in moved for point in points])


def area_means(maps: Array, size: tuple[int, int]) -> Array:
    """`[..., H, W]` averaged to `[..., h, w]`: each output pixel is the mean over the rectangle that it covers.

    One whose rectangle touches NaN or infinity is NaN.
    """
    rows, columns = _overlaps(maps.shape[-2], size[0]), _overlaps(maps.shape[-1], size[1])
    finite = np.isfinite(maps)
    found: Array = rows @ np.where(finite, maps, 0).astype(np.float64) @ columns.T
    if not finite.all():
        found[rows @ ~finite @ columns.T > 0] = np.nan
    return found


@functools.cache
def _overlaps(before: int, after: int) -> Array:
    """`[after, before]`: which share of each output pixel each input pixel makes."""
    weights = np.zeros((after, before))
    for i, j in itertools.product(range(after), range(before)):
        low, high = max(i * before / after, j), min((i + 1) * before / after, j + 1)
        weights[i, j] = max(0.0, high - low) * after / before
    return weights

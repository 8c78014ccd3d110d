"""Whether two layers started from the same weights, tried on what is known to have, and on what is known not to."""

from __future__ import annotations

import doctest
import itertools
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from cnnlog.metrics import starts
from cnnlog.metrics.starts import same_start
from cnnlog.snapshot import FloatArray

Array = npt.NDArray[np.float64]

SHAPES = [(12, 3, 3, 3), (16, 3, 7, 7), (32, 1, 3, 3), (64, 16, 1, 1), (64, 64, 3, 3), (300, 8, 3, 3)]
FEW = [(1, 3, 3, 3), (2, 3, 7, 7), (3, 3, 3, 3), (4, 1, 3, 3), (6, 8, 3, 3), (8, 3, 3, 3)]


def weights(shape: tuple[int, ...], seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turned(start: FloatArray, cosine: float, seed: int = 1) -> FloatArray:
    """Filters of other lengths, each at an angle of the given cosine to the one it comes from."""
    flat = start.reshape(len(start), -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    way = np.random.default_rng(seed).standard_normal(flat.shape)
    way -= (way * flat).sum(1, keepdims=True) * flat
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    lengths = np.random.default_rng(seed + 1).uniform(0.5, 2, (len(flat), 1))
    return (lengths * (cosine * flat + np.sqrt(1 - cosine**2) * way)).reshape(start.shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES + FEW)
@pytest.mark.parametrize("cosine", [1.0, 0.999, 0.99])
def test_what_was_fine_tuned_is_of_one_start(shape: tuple[int, ...], cosine: float) -> None:
    start = weights(shape, 0)
    assert same_start(start, start.copy())
    assert same_start(start, turned(start, cosine))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] > 12])
def test_what_was_trained_far_away_is_still_of_one_start(shape: tuple[int, ...]) -> None:
    assert same_start(weights(shape, 0), turned(weights(shape, 0), 0.5))


@pytest.mark.parametrize("shape", SHAPES + FEW)
def test_what_was_drawn_apart_is_of_two_starts(shape: tuple[int, ...]) -> None:
    wrong = [seed for seed in range(1, 41) if same_start(weights(shape, 0), weights(shape, seed))]
    assert wrong == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_permuted_copy_is_of_another_start(shape: tuple[int, ...]) -> None:
    start = weights(shape, 0)
    orders = [np.random.default_rng(seed).permutation(len(start)) for seed in range(40)]
    assert [seed for seed, order in enumerate(orders) if same_start(start, start[order])] == []


def test_what_all_filters_have_in_common_tells_nothing() -> None:
    """Smooth filters, all much alike: those of another start are as alike as one's own, a permuted copy, too."""
    common = np.linspace(1, 2, 27, dtype=np.float32).reshape(1, 3, 3, 3)
    one, other = (common + 0.2 * weights((32, 3, 3, 3), seed) for seed in (0, 1))
    assert not same_start(one, other)
    assert not same_start(one, np.roll(one, 1, axis=0))
    assert same_start(one, turned(one, 0.99))


def spoiled(array: FloatArray, spoil: Callable[[FloatArray], None]) -> FloatArray:
    copy = array.copy()
    spoil(copy)
    return copy


def test_filters_without_a_direction_are_left_out() -> None:
    start, other = weights((16, 3, 3, 3), 0), weights((16, 3, 3, 3), 1)

    def nan(array: FloatArray) -> None:
        array[3] = np.nan

    def near_zero(array: FloatArray) -> None:
        array[:8] *= 1e-6

    for spoil in (nan, near_zero):
        assert same_start(spoiled(start, spoil), turned(start, 0.99))
        assert not same_start(spoiled(start, spoil), other)


def test_where_nothing_can_tell_it_is_not_the_same() -> None:
    start = weights((4, 3, 3, 3), 0)
    assert not same_start(np.full_like(start, np.nan), start)
    assert not same_start(np.zeros_like(start), start)
    assert same_start(np.zeros_like(start), np.zeros_like(start))
    assert not same_start(start, start[:3])
    assert not same_start(np.full_like(start, 3e38), start)


def unit(array: Array) -> Array:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def margins(cosines: Array) -> tuple[Array, Array]:
    """Of `[draws, n, n]`: the margin m, and it in standard deviations of what all orders of the filters would give."""
    n = cosines.shape[-1]
    own, off = np.eye(n, dtype=bool), ~np.eye(n, dtype=bool)
    margin = cosines[:, own].mean(axis=1) - cosines[:, off].mean(axis=1)
    means = cosines.mean(axis=1, keepdims=True) + cosines.mean(axis=2, keepdims=True)
    variance = np.square(cosines - means + cosines.mean(axis=(1, 2), keepdims=True)).sum(axis=(1, 2)) / (n - 1)
    return margin, (cosines[:, own].sum(axis=1) - n * cosines.mean(axis=(1, 2))) / np.sqrt(variance)


def measured(n: int, weights: int) -> dict[str, tuple[Array, Array]]:
    """m and z of some draws of n filters, for each column of the table in the docstring of `same_start`."""
    rng = np.random.default_rng([n, weights])
    size = 40 if n == 256 else 400
    a, b = (unit(rng.standard_normal((size, n, weights))) for _ in range(2))
    aside = unit(b - (b * a).sum(axis=-1, keepdims=True) * a)
    others = {
        "independent": b,
        "permuted": np.stack([filters[rng.permutation(n)] for filters in a]),
        "cosine 0.99": 0.99 * a + np.sqrt(1 - 0.99**2) * aside,
        "cosine 0.5": 0.5 * a + np.sqrt(1 - 0.5**2) * aside,
    }
    return {column: margins(a @ other.transpose(0, 2, 1)) for column, other in others.items()}


def test_z_counts_in_deviations_of_all_orders() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, (3, 5, 5))
    for one, z in zip(cosines, margins(cosines)[1], strict=True):
        sums = [sum(one[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5))]
        assert z == pytest.approx((np.trace(one) - np.mean(sums)) / np.std(sums))
        assert starts._beyond_chance(one) == pytest.approx(z)


def test_the_measurements_in_the_docstring_are_those_of_a_naive_computation() -> None:
    """All rows and columns, m and z, within what the draws leave open; of d those that are quickly drawn."""
    lines = [line.strip(" |").split(" | ") for line in (same_start.__doc__ or "").splitlines() if " | " in line]
    heads = [head.partition(":")[0] for head in lines[0][1:]]
    assert heads == ["independent", "permuted", "cosine 0.99", "cosine 0.5"]
    assert [int(row[0]) for row in lines[1:]] == [4, 8, 16, 64, 256]
    for row in lines[1:]:
        draws = [measured(int(row[0]), weights) for weights in (9, 16, 27)]
        for column, said in zip(heads, row[1:], strict=True):
            bound = re.fullmatch(r"(<=|>=) ([\d.]+), ([\d.]+)", said)
            if bound is None:
                assert (row[0], column) == ("4", "permuted")
                assert max(draw[column][0].max() for draw in draws) >= 1
                continue
            worst, share = (max, 99.9) if bound[1] == "<=" else (min, 1.0)
            m, z = (worst(float(np.percentile(draw[column][at], share)) for draw in draws) for at in (0, 1))
            assert m == pytest.approx(float(bound[2]), abs=0.02 + 0.5 / int(row[0])), (row[0], column)
            assert z == pytest.approx(float(bound[3]), rel=0.3), (row[0], column)


def test_the_example_holds() -> None:
    assert doctest.testmod(starts, extraglobs={"np": np}).failed == 0

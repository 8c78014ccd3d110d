"""Whether two layers started from the same weights, tried on what is known to have, and on what is known not to."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest

from cnnlog.metrics import starts
from cnnlog.metrics.starts import same_start
from cnnlog.snapshot import FloatArray

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


def test_the_measurements_in_the_docstring_are_those_of_a_naive_computation() -> None:
    """A row of the table, by loops: 16 filters of 9 weights."""
    margins = []
    for seed in range(200):
        a, b = (weights((16, 9), 2 * seed + one).astype(np.float64) for one in (0, 1))
        cosines = [[float(x @ y / np.sqrt((x @ x) * (y @ y))) for y in b] for x in a]
        own = np.mean([cosines[i][i] for i in range(16)])
        margins.append(own - np.mean([cosines[i][j] for i in range(16) for j in range(16) if i != j]))
    assert 0.15 < np.percentile(margins, 99.5) < 0.27 < starts._LEAST_MARGIN


def test_the_example_holds() -> None:
    assert doctest.testmod(starts, extraglobs={"np": np}).failed == 0

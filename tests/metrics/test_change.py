"""How far weights and outputs moved: worked cases, an independent reference in plain loops, and laws."""

from __future__ import annotations

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest

from cnnlog.metrics import change
from cnnlog.metrics.change import Reference, distance, moved, relative_change

Array = npt.NDArray[np.float32]


def filters(seed: int, shape: tuple[int, ...] = (6, 3, 3, 3)) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slow(before: Array, after: Array) -> tuple[float, float, list[float]]:
    """Change, change of unit filters, and angles, filter by filter in exact sums."""
    moves, sizes, units, angles = [], [], [], []
    for one, other in zip(before.reshape(len(before), -1), after.reshape(len(after), -1), strict=True):
        a, b = ([float(v) for v in values] for values in (one, other))
        moves += [(q - p) ** 2 for p, q in zip(a, b, strict=True)]
        sizes += [p * p for p in a]
        length_a, length_b = (math.sqrt(math.fsum(v * v for v in values)) for values in (a, b))
        chord = math.sqrt(math.fsum((q / length_b - p / length_a) ** 2 for p, q in zip(a, b, strict=True)))
        sum_ = math.sqrt(math.fsum((q / length_b + p / length_a) ** 2 for p, q in zip(a, b, strict=True)))
        units.append(chord**2)
        angles.append(math.degrees(2 * math.atan2(chord, sum_)))
    return math.sqrt(math.fsum(moves) / math.fsum(sizes)), math.sqrt(math.fsum(units) / len(before)), angles


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(change)
    assert results.attempted >= 4
    assert results.failed == 0


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.3, 30.0])
@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (1, 4), (40, 1000), (3, 2, 5)])
def test_moves_of_any_size_are_those_of_plain_loops(size: float, shape: tuple[int, ...]) -> None:
    before = filters(1, shape)
    after = (before + np.float32(size) * filters(2, shape)).astype(np.float32)
    found, (whole, unit, angles) = moved(Reference.of(before), after), slow(before, after)
    assert found.change == pytest.approx(whole, rel=1e-5)
    assert found.unit_change == pytest.approx(unit, rel=1e-4)
    np.testing.assert_allclose(found.angle, angles, rtol=1e-4)
    np.testing.assert_allclose(found.norm, np.linalg.norm(after.reshape(len(after), -1), axis=1), rtol=1e-5)
    assert (found.not_finite, found.short) == (0, 0)


def test_what_stands_still_is_exactly_zero() -> None:
    found = moved(Reference.of(filters(1)), filters(1))
    assert (found.change, found.unit_change, found.angle.max()) == (0.0, 0.0, 0.0)
    assert distance(filters(1), filters(1)) == 0.0
    assert relative_change(filters(1), filters(1)) == (0.0, 0)


@pytest.mark.parametrize("scale", [0.5, 1.37, 100.0])
def test_a_longer_filter_points_the_same_way(scale: float) -> None:
    """What a norm behind the layer undoes: the length."""
    found = moved(Reference.of(filters(1)), (np.float32(scale) * filters(1)).astype(np.float32))
    assert found.change == pytest.approx(abs(scale - 1), rel=1e-5)
    assert found.unit_change < 1e-6
    assert found.angle.max() < 1e-4


def test_a_filter_that_turned_round_is_at_180_degrees() -> None:
    found = moved(Reference.of(filters(1)), -filters(1))
    np.testing.assert_allclose(found.angle, 180, atol=1e-4)
    assert found.change == pytest.approx(2)


@pytest.mark.parametrize("seed", range(5))
def test_a_filter_near_zero_has_no_direction_and_hardly_counts(seed: int) -> None:
    before = filters(seed, (32, 3, 3, 3))
    before[7] *= 1e-4
    after = before.copy()
    after[7] *= -1
    found = moved(Reference.of(before), after)
    assert math.isnan(found.angle[7])
    assert np.delete(found.angle, 7).max() == 0
    assert found.short == 1
    assert found.change < 1e-4
    assert found.unit_change == 0


def test_filters_that_are_not_finite_are_left_out_and_counted() -> None:
    before, after = filters(1), (1.1 * filters(1)).astype(np.float32)
    after[2, 0, 0, 0], before[4, 1, 1, 1] = np.nan, np.inf
    found = moved(Reference.of(before), after)
    assert found.not_finite == 2
    assert found.change == pytest.approx(0.1, rel=1e-5)
    assert np.isnan(found.angle[[2, 4]]).all()
    assert np.isfinite(np.delete(found.angle, [2, 4])).all()
    assert distance(before, after) == pytest.approx(0.1, rel=1e-5)


def test_channels_that_are_not_finite_are_left_out_and_counted() -> None:
    before, after = filters(1, (20, 4)), (1.5 * filters(1, (20, 4))).astype(np.float32)
    after[3, 1] = np.nan
    share, left_out = relative_change(before, after)
    assert share == pytest.approx(0.5)
    assert left_out == 1


@pytest.mark.parametrize("of", [distance, lambda a, b: relative_change(a, b)[0]])
def test_nothing_is_no_share_of_nothing(of: object) -> None:
    nothing = np.zeros((3, 4), np.float32)
    assert of(nothing, nothing) == 0  # type: ignore[operator]
    assert math.isnan(of(nothing, nothing + 1))  # type: ignore[operator]
    assert math.isnan(moved(Reference.of(nothing), nothing + 1).change)


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    for size in (1e-30, 1e30):
        before = (np.float64(size) * filters(1)).astype(np.float32)
        found = moved(Reference.of(before), (1.25 * before).astype(np.float32))
        assert found.change == pytest.approx(0.25, rel=1e-5)
        assert found.angle.max() < 1e-3


@pytest.mark.parametrize("of", [distance, relative_change, lambda a, b: moved(Reference.of(a), b)])
def test_other_shapes_are_refused(of: object) -> None:
    with pytest.raises(ValueError, match=r"one shape; got \[6, 3, 3, 3\] and \[6, 3, 3\]"):
        of(filters(1), filters(1)[..., 0])  # type: ignore[operator]

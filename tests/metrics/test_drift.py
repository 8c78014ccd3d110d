"""Numbers: worked cases by hand, an independent reference in plain loops, and the laws that each number obeys."""

from __future__ import annotations

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cnnlog.metrics import drift

Array = npt.NDArray[np.float32]

few = settings(deadline=None, derandomize=True, max_examples=40)
finite = st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
filters = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5), elements=finite)
seeds = st.integers(0, 2**32 - 1)


def random_pair(seed: int, shape: tuple[int, ...] = (6, 3, 3, 3), moved: float = 0.3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape).astype(np.float32)
    return a, (a + moved * rng.standard_normal(shape)).astype(np.float32)


def slow_cosine_distance(a: list[float], b: list[float]) -> float:
    dot = math.fsum(p * q for p, q in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(math.fsum(p * p for p in a)) / math.sqrt(math.fsum(q * q for q in b))


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(drift)
    assert results.attempted >= 6
    assert results.failed == 0


# --- filters -------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([1e-3, 0.3, 10.0]))
def test_cosine_distance_agrees_with_the_definition(seed: int, moved: float) -> None:
    a, b = random_pair(seed, moved=moved)
    expected = [
        slow_cosine_distance(p.reshape(-1).astype(float).tolist(), q.reshape(-1).astype(float).tolist())
        for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(drift.change(a, b).cosine, expected, atol=1e-14, rtol=1e-9)


def test_cosine_distance_keeps_small_angles() -> None:
    # 1 - cos loses an angle of 1e-9 (its square is below float64's resolution at 1); this must not.
    a = np.array([[1.0, 0.0]])
    b = np.array([[1.0, 1e-9]])
    assert drift.change(a, b).cosine[0] == pytest.approx(5e-19, rel=1e-6)
    assert slow_cosine_distance([1.0, 0.0], [1.0, 1e-9]) == 0.0


@few
@given(filters)
def test_a_filter_is_at_distance_0_from_itself(w: Array) -> None:
    assert (drift.change(w, w).cosine == 0).all()
    assert (drift.change(w, w).l2 == 0).all()


@few
@given(seeds, st.floats(0.01, 100), st.floats(0.01, 100))
def test_cosine_distance_is_symmetric_and_blind_to_length(seed: int, p: float, q: float) -> None:
    a, b = random_pair(seed)
    there = drift.change(a, b).cosine
    np.testing.assert_allclose(drift.change(b, a).cosine, there, rtol=1e-12)
    scaled = drift.change(a.astype(np.float64) * p, b.astype(np.float64) * q)
    np.testing.assert_allclose(scaled.cosine, there, rtol=1e-9)
    np.testing.assert_allclose(drift.change(a, -b).cosine, 2 - there, rtol=1e-9)


@few
@given(seeds)
def test_the_way_round_is_never_shorter(seed: int) -> None:
    a, b = random_pair(seed)
    c = random_pair(seed + 1)[0]
    lengths = [np.linalg.norm(array.reshape(len(array), -1).astype(np.float64), axis=1) for array in (a, b)]
    direct = drift.change(a, c).l2 * lengths[0]
    assert (direct <= drift.change(a, b).l2 * lengths[0] + drift.change(b, c).l2 * lengths[1] + 1e-9).all()
    # The angle, not the cosine distance, obeys the triangle inequality.
    angle = [np.arccos(np.clip(1 - drift.change(p, q).cosine, -1, 1)) for p, q in ((a, c), (a, b), (b, c))]
    assert (angle[0] <= angle[1] + angle[2] + 1e-9).all()


@few
@given(seeds)
def test_relative_l2_is_the_length_of_the_way_over_the_length_at_the_start(seed: int) -> None:
    a, b = random_pair(seed)
    expected = [
        math.sqrt(math.fsum((float(q) - float(p)) ** 2 for p, q in zip(old.flat, new.flat, strict=True)))
        / math.sqrt(math.fsum(float(p) ** 2 for p in old.flat))
        for old, new in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(drift.change(a, b).l2, expected, rtol=1e-12)


def test_zero_filters_are_told_apart() -> None:
    a = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(drift.change(a, b).cosine, [0, 1, 1])
    np.testing.assert_array_equal(drift.change(a, b).l2, [0, np.nan, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_own_filter_nan_and_no_other(bad: float) -> None:
    a, b = random_pair(3, (3, 2, 2, 2))
    b[1, 0, 1, 1] = bad
    for found in (drift.change(a, b), drift.change(b, a)):
        for value in (found.cosine, found.l2):
            np.testing.assert_array_equal(np.isnan(value), [False, True, False])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_tiny_and_huge_float32_filters_neither_vanish_nor_overflow(scale: float) -> None:
    a, b = ((np.array([row]) * scale).astype(np.float32) for row in ([3.0, 4.0], [4.0, 3.0]))
    assert drift.change(a, b).cosine[0] == pytest.approx(1 - 24 / 25, rel=1e-5)
    assert drift.change(a, b).l2[0] == pytest.approx(math.sqrt(2) / 5, rel=1e-5)


def test_blocks_do_not_show() -> None:
    a, b = random_pair(5, (100, 40, 5, 5))  # several blocks
    one_by_one = [drift.change(a[i : i + 1], b[i : i + 1]).cosine[0] for i in range(100)]
    np.testing.assert_array_equal(drift.change(a, b).cosine, one_by_one)


def test_inputs_stay_as_they_are() -> None:
    a, b = random_pair(6)
    kept = a.copy(), b.copy()
    drift.change(a, b)
    drift.active_share(a)
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])


def test_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"one shape; got \[2, 3\] and \[3, 2\]"):
        drift.change(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\].*got shape \[2, 2\]"):
        drift.active_share(np.ones((2, 2)))


# --- feature maps --------------------------------------------------------------------------------------------------


@few
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=st.floats(-2, 2, width=32)),
    st.floats(-1, 1, width=32),
)
def test_active_shares_count_positions(maps: Array, threshold: float) -> None:
    n, c, h, w = maps.shape
    above = [sum(maps[i, k, y, x] > threshold for i in range(n) for y in range(h) for x in range(w)) for k in range(c)]
    np.testing.assert_allclose(drift.active_share(maps, threshold), [count / (n * h * w) for count in above])


def test_a_channel_of_nan_is_never_active() -> None:
    maps = np.ones((1, 2, 2, 2), np.float32)
    maps[0, 1] = np.nan
    np.testing.assert_array_equal(drift.active_share(maps), [1, 0])


@few
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 300))
def test_sampled_positions_are_few_in_order_and_evenly_spread(n: int, h: int, w: int, at_most: int) -> None:
    positions = drift.sample_positions(n, h, w, at_most)
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert len(positions) % n == 0
    assert 1 <= len(positions) // n <= at_most
    image, place = np.divmod(positions, h * w)
    assert (np.bincount(image, minlength=n) == len(positions) // n).all()
    for taken, size in ((np.unique(place // w), h), (np.unique(place % w), w)):
        assert len(set(np.diff(taken))) <= 1
        # As much is left out before the first as after the last, but for one.
        assert abs(taken[0] - (size - 1 - taken[-1])) <= 1
    np.testing.assert_array_equal(positions, drift.sample_positions(n, h, w, at_most))


def test_all_positions_are_taken_where_they_are_few() -> None:
    np.testing.assert_array_equal(drift.sample_positions(2, 13, 13), np.arange(2 * 13 * 13))
    assert len(drift.sample_positions(1, 55, 55)) == 28 * 28

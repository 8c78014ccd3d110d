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


def slow_cka(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """HSIC of the centred Gram matrices, equation 3 of the paper, entry by entry."""
    p = len(x)

    def centred_gram(features: npt.NDArray[np.float64]) -> list[list[float]]:
        gram = [[math.fsum(features[i] * features[j]) for j in range(p)] for i in range(p)]
        rows = [math.fsum(row) / p for row in gram]
        mean = math.fsum(rows) / p
        return [[gram[i][j] - rows[i] - rows[j] + mean for j in range(p)] for i in range(p)]

    def hsic(k: list[list[float]], m: list[list[float]]) -> float:
        return math.fsum(k[i][j] * m[i][j] for i in range(p) for j in range(p))

    k, m = centred_gram(x), centred_gram(y)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(drift)
    assert results.attempted >= 8
    assert results.failed == 0


# --- filters -------------------------------------------------------------------------------------------------------


@few
@given(filters)
def test_norm_is_the_root_of_the_sum_of_squares(w: Array) -> None:
    expected = [math.sqrt(math.fsum(float(v) ** 2 for v in row.reshape(-1))) for row in w]
    np.testing.assert_allclose(drift.norm(w), expected, rtol=1e-12)


@few
@given(seeds, st.sampled_from([1e-3, 0.3, 10.0]))
def test_cosine_distance_agrees_with_the_definition(seed: int, moved: float) -> None:
    a, b = random_pair(seed, moved=moved)
    expected = [
        slow_cosine_distance(p.reshape(-1).astype(float).tolist(), q.reshape(-1).astype(float).tolist())
        for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(drift.cosine_distance(a, b), expected, atol=1e-14, rtol=1e-9)


def test_cosine_distance_keeps_small_angles() -> None:
    # 1 - cos loses an angle of 1e-9 (its square is below float64's resolution at 1); this must not.
    a = np.array([[1.0, 0.0]])
    b = np.array([[1.0, 1e-9]])
    assert drift.cosine_distance(a, b)[0] == pytest.approx(5e-19, rel=1e-6)
    assert slow_cosine_distance([1.0, 0.0], [1.0, 1e-9]) == 0.0


@few
@given(filters)
def test_a_filter_is_at_distance_0_from_itself(w: Array) -> None:
    assert (drift.cosine_distance(w, w) == 0).all()
    assert (drift.relative_l2(w, w) == 0).all()


@few
@given(seeds, st.floats(0.01, 100), st.floats(0.01, 100))
def test_cosine_distance_is_symmetric_and_blind_to_length(seed: int, p: float, q: float) -> None:
    a, b = random_pair(seed)
    there = drift.cosine_distance(a, b)
    np.testing.assert_allclose(drift.cosine_distance(b, a), there, rtol=1e-12)
    np.testing.assert_allclose(
        drift.cosine_distance(a.astype(np.float64) * p, b.astype(np.float64) * q), there, rtol=1e-9
    )
    np.testing.assert_allclose(drift.cosine_distance(a, -b), 2 - there, rtol=1e-9)


@few
@given(seeds)
def test_the_way_round_is_never_shorter(seed: int) -> None:
    a, b = random_pair(seed)
    c = random_pair(seed + 1)[0]
    length = drift.norm(a)
    direct = drift.relative_l2(a, c) * length
    assert (direct <= drift.relative_l2(a, b) * length + drift.relative_l2(b, c) * drift.norm(b) + 1e-9).all()
    # The angle, not the cosine distance, obeys the triangle inequality.
    angle = [np.arccos(np.clip(1 - drift.cosine_distance(p, q), -1, 1)) for p, q in ((a, c), (a, b), (b, c))]
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
    np.testing.assert_allclose(drift.relative_l2(a, b), expected, rtol=1e-12)


def test_zero_filters_are_told_apart() -> None:
    a = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(drift.cosine_distance(a, b), [0, 1, 1])
    np.testing.assert_array_equal(drift.relative_l2(a, b), [0, np.nan, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_own_filter_nan_and_no_other(bad: float) -> None:
    a, b = random_pair(3, (3, 2, 2, 2))
    b[1, 0, 1, 1] = bad
    for number in (drift.cosine_distance, drift.relative_l2):
        for value in (number(a, b), number(b, a)):
            np.testing.assert_array_equal(np.isnan(value), [False, True, False])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_tiny_and_huge_float32_filters_neither_vanish_nor_overflow(scale: float) -> None:
    a, b = ((np.array([row]) * scale).astype(np.float32) for row in ([3.0, 4.0], [4.0, 3.0]))
    assert drift.norm(a)[0] == pytest.approx(5 * scale, rel=1e-6)
    assert drift.cosine_distance(a, b)[0] == pytest.approx(1 - 24 / 25, rel=1e-5)
    assert drift.relative_l2(a, b)[0] == pytest.approx(math.sqrt(2) / 5, rel=1e-5)


def test_blocks_do_not_show() -> None:
    a, b = random_pair(5, (100, 40, 5, 5))  # several blocks
    one_by_one = [drift.cosine_distance(a[i : i + 1], b[i : i + 1])[0] for i in range(100)]
    np.testing.assert_array_equal(drift.cosine_distance(a, b), one_by_one)


def test_inputs_stay_as_they_are() -> None:
    a, b = random_pair(6)
    kept = a.copy(), b.copy()
    drift.cosine_distance(a, b)
    drift.relative_l2(a, b)
    drift.linear_cka(a.reshape(6, -1), b.reshape(6, -1))
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])


def test_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"one shape; got \[2, 3\] and \[3, 2\]"):
        drift.cosine_distance(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\].*got shape \[2, 2\]"):
        drift.active_share(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"same p; got \[2, 3\] and \[3, 2\]"):
        drift.linear_cka(np.ones((2, 3)), np.ones((3, 2)))


# --- feature maps --------------------------------------------------------------------------------------------------


@few
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=st.floats(-2, 2, width=32)),
    st.floats(-1, 1, width=32),
)
def test_active_and_dead_shares_count_positions(maps: Array, threshold: float) -> None:
    n, c, h, w = maps.shape
    above = [sum(maps[i, k, y, x] > threshold for i in range(n) for y in range(h) for x in range(w)) for k in range(c)]
    np.testing.assert_allclose(drift.active_share(maps, threshold), [count / (n * h * w) for count in above])
    assert drift.dead_share(maps, threshold) == pytest.approx(sum(count == 0 for count in above) / c)


def test_a_channel_of_nan_is_dead() -> None:
    maps = np.ones((1, 2, 2, 2), np.float32)
    maps[0, 1] = np.nan
    assert drift.dead_share(maps) == 0.5
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


# --- CKA -----------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(3, 12), st.integers(1, 9), st.integers(1, 9))
def test_cka_agrees_with_equation_3(seed: int, p: int, c1: int, c2: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((p, c1)) + 3, rng.standard_normal((p, c2))
    assert drift.linear_cka(x, y) == pytest.approx(slow_cka(x, y), abs=1e-12)


@pytest.mark.parametrize("shape", [(40, 3), (6, 30)], ids=["features", "gram"])
def test_cka_is_1_for_turned_mirrored_scaled_and_shifted_features(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    turned, _ = np.linalg.qr(rng.standard_normal((shape[1], shape[1])))
    assert drift.linear_cka(x, x) == 1.0
    assert drift.linear_cka(x, 7 * x @ turned + rng.standard_normal(shape[1])) == pytest.approx(1, abs=1e-12)
    stretched = x * np.linspace(1, 5, shape[1])
    assert drift.linear_cka(x, stretched) < 0.999  # it is not blind to just any linear map


@few
@given(seeds)
def test_cka_is_symmetric_bounded_and_blind_to_scale_and_rotation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((15, 4)), rng.standard_normal((15, 6))
    alike = drift.linear_cka(x, y)
    turned, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert 0 <= alike <= 1
    assert drift.linear_cka(y, x) == pytest.approx(alike, abs=1e-12)
    assert drift.linear_cka(1e-3 * x, 1e6 * y @ turned) == pytest.approx(alike, abs=1e-12)
    order = rng.permutation(15)
    assert drift.linear_cka(x[order], y[order]) == pytest.approx(alike, abs=1e-12)


def test_cka_of_features_with_nothing_in_common_is_0() -> None:
    x = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    assert drift.linear_cka(x, y) == 0.0


@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3)),
        np.full((7, 2), 0.1),  # its mean is not exactly 0.1
        np.zeros((5, 2)),
        np.array([[np.nan], [1.0], [2.0], [3.0], [4.0]]),
        np.array([[np.inf], [1.0], [2.0], [3.0], [4.0]]),
    ],
    ids=["one position", "constant", "zero", "nan", "inf"],
)
def test_cka_of_what_has_none_is_nan(x: npt.NDArray[np.float64]) -> None:
    other = np.random.default_rng(0).standard_normal((len(x), 2))
    assert math.isnan(drift.linear_cka(x, other))
    assert math.isnan(drift.linear_cka(other, x))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cka_of_tiny_and_huge_float32_features(scale: float) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 4))
    scaled = drift.linear_cka((x * scale).astype(np.float32), y.astype(np.float32))
    assert scaled == pytest.approx(drift.linear_cka(x, y), abs=1e-5)


def test_mean_of_finite() -> None:
    assert drift.mean_of_finite(np.array([[1.0, np.inf], [np.nan, 2.0]])) == 1.5
    assert math.isnan(drift.mean_of_finite([np.nan]))
    assert math.isnan(drift.mean_of_finite([]))

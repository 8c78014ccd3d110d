"""Debiased CKA: the paper's formula entry by entry, the laws that it keeps, and what noise of many shapes gives."""

from __future__ import annotations

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnlog.metrics import cka, products

Array = npt.NDArray[np.float64]

few = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def slow_hsic(x: Array, y: Array) -> float:
    """HSIC_1 of Song et al. 2012, equation 4, in plain loops."""
    n = len(x)
    k, m = ([[0.0 if i == j else math.fsum(f[i] * f[j]) for j in range(n)] for i in range(n)] for f in (x, y))
    trace = math.fsum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums_k, sums_m = [math.fsum(row) for row in k], [math.fsum(row) for row in m]
    both = math.fsum(a * b for a, b in zip(sums_k, sums_m, strict=True))
    whole = math.fsum(sums_k) * math.fsum(sums_m)
    return (trace + whole / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3))


def slow_cka(x: Array, y: Array) -> float:
    return slow_hsic(x, y) / math.sqrt(slow_hsic(x, x) * slow_hsic(y, y))


def features(seed: int, rows: int, channels: int) -> Array:
    """Like the maps after a ReLU: skewed, not centred, of unlike scales."""
    rng = np.random.default_rng(seed)
    drawn = np.maximum(rng.standard_normal((rows, channels)) + 0.3, 0) * rng.uniform(0.1, 4, channels)
    return np.asarray(drawn + rng.uniform(0, 1, channels))


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(cka)
    assert results.attempted >= 5
    assert results.failed == 0


@few
@given(seeds, st.integers(4, 14), st.integers(1, 9), st.integers(1, 9))
def test_it_is_the_papers_formula(seed: int, rows: int, c1: int, c2: int) -> None:
    x, y = features(seed, rows, c1), features(seed + 1, rows, c2)
    value = cka.debiased_cka(x, y)
    if np.isfinite(value):
        assert value == pytest.approx(min(max(slow_cka(x, y), -1), 1), abs=1e-7)


def test_large_products_in_tiles_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((130, 200))
    np.testing.assert_allclose(products.gram(x), x @ x.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(products.gram(x), products.gram(x).T)
    large = features(1, 70, 130)
    assert cka.debiased_cka(large, large[:, :90]) == pytest.approx(slow_cka(large, large[:, :90]), abs=1e-9)


@few
@given(seeds, st.integers(5, 40), st.integers(1, 30))
def test_reordered_shifted_scaled_and_turned_channels_leave_it_at_one(seed: int, rows: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    x = features(seed, rows, channels)
    if np.isnan(cka.debiased_cka(x, x)):
        return
    turned, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    assert cka.debiased_cka(x, x) == 1.0
    assert cka.debiased_cka(x, x[:, rng.permutation(channels)]) == pytest.approx(1, abs=1e-9)
    assert cka.debiased_cka(x, 7 * x - 3) == pytest.approx(1, abs=1e-9)
    assert cka.debiased_cka(x, x @ turned) == pytest.approx(1, abs=1e-7)


def test_a_half_with_itself_is_exactly_one_at_every_size() -> None:
    for seed, (rows, channels) in enumerate([(4, 1), (9, 3), (64, 512), (196, 64), (300, 5)]):
        half = cka.centred_gram(features(seed, rows, channels).astype(np.float16).astype(np.float32))
        assert cka.alignment(half, half.copy()) == 1.0
        np.testing.assert_allclose(half.sum(axis=0), 0, atol=1e-9 * np.abs(half).max() * rows)


@pytest.mark.parametrize(("rows", "channels"), [(36, 256), (49, 512), (49, 2048), (64, 1), (16, 8), (200, 3), (6, 40)])
def test_noise_is_around_nothing_and_within_its_band(rows: int, channels: int) -> None:
    rng = np.random.default_rng(3)
    values = np.array([cka.debiased_cka(*rng.standard_normal((2, rows, channels))) for _ in range(120)])
    band = cka.noise_band(rows, channels)
    assert abs(values.mean()) < 0.35 * band
    assert 0.88 <= (np.abs(values) <= band).mean() <= 0.995
    assert values.std() == pytest.approx(np.sqrt(2 / (rows * (rows - 3))), rel=0.3)


def test_the_biased_estimator_would_have_called_this_noise_alike() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 49, 512))
    k, m = ((f - f.mean(axis=0)) @ (f - f.mean(axis=0)).T for f in (x, y))
    assert (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m) > 0.85  # Kornblith et al. 2019, equation 3
    assert abs(cka.debiased_cka(x, y)) < 0.1


def test_the_band_is_the_same_at_every_call_and_narrows_with_rows() -> None:
    first = cka.noise_band(100, 64)
    cka._noise_deviations.cache_clear()
    assert cka.noise_band(100, 64) == first
    bands = [cka.noise_band(rows, 16) for rows in (4, 8, 20, 64, 256, 1024)]
    assert bands == sorted(bands, reverse=True)
    assert bands[0] <= 1
    assert bands[-1] < 0.005
    assert np.isnan(cka.noise_band(3, 16))


@pytest.mark.parametrize(
    "x",
    [
        np.arange(9.0).reshape(3, 3),  # too few rows
        np.full((20, 3), 0.1, np.float32),  # constant
        np.full((20, 3), 1e30) + 1e8,  # constant but for rounding
        np.where(np.arange(40).reshape(20, 2) == 7, np.nan, 1.0 * np.arange(40).reshape(20, 2)),
        np.where(np.arange(40).reshape(20, 2) == 7, np.inf, 1.0 * np.arange(40).reshape(20, 2)),
        np.zeros((20, 0)),
        np.eye(20)[:, 4:5],  # one row alone differs from the others
    ],
)
def test_what_is_undefined_is_nan_without_a_warning(x: Array) -> None:
    assert np.isnan(cka.debiased_cka(x, x))
    if len(x) == 20:
        assert np.isnan(cka.debiased_cka(features(0, 20, 3), x))


def test_one_channel_and_very_large_and_small_values_are_defined() -> None:
    x = features(0, 30, 1)
    assert cka.debiased_cka(x, 2 * x) == pytest.approx(1, abs=1e-12)
    assert cka.debiased_cka(1e150 * x, 1e-150 * x) == pytest.approx(1, abs=1e-9)


def test_unlike_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same n; got \[5, 2\] and \[6, 2\]"):
        cka.debiased_cka(np.zeros((5, 2)), np.zeros((6, 2)))
    with pytest.raises(ValueError, match=r"must have the same rows; got \[5, 5\] and \[6, 6\]"):
        cka.alignment(np.zeros((5, 5)), np.zeros((6, 6)))

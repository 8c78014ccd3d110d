"""Ranges that know all steps: what they cover, and how far differences are enlarged."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnlog.rendering import shared_ranges
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shared_ranges import (
    GAINS,
    Extremes,
    Magnitudes,
    change_limits,
    ends,
    in_words,
    shared_limits,
    tight_limits,
)
from cnnlog.snapshot import FloatArray


def seen(*steps: object) -> Extremes:
    extremes = Extremes()
    for step in steps:
        extremes.see(np.asarray(step, np.float32))
    return extremes


def test_a_channels_range_covers_all_its_finite_values() -> None:
    extremes = seen([[1, -2], [0.5, 0]], [[3, np.nan], [np.inf, 0.25]], [[-1, 0], [-np.inf, 0]])
    limits = shared_limits(extremes)
    assert limits.symmetric
    np.testing.assert_array_equal(limits.high, np.array([3, 0.5], np.float32))
    np.testing.assert_array_equal(limits.doubled, [0, 0])


def test_without_a_value_below_0_ranges_begin_at_0_unless_values_have_a_sign() -> None:
    extremes = seen([[1, 2], [0, 4]])
    assert not shared_limits(extremes).symmetric
    assert shared_limits(extremes, signed=True).symmetric
    assert shared_limits(seen([[1, 2], [0, 4]], [[1, 2], [-1e-30, 4]])).symmetric
    from_zero = shared_limits(seen([[1, 2], [-8, 4]]), signed=False)
    assert not from_zero.symmetric
    np.testing.assert_array_equal(from_zero.high, [2, 4])


def test_a_flat_channel_takes_the_median_of_the_others() -> None:
    limits = shared_limits(seen([[1.0], [0.0], [4.0], [np.nan], [3.0]]))
    np.testing.assert_array_equal(limits.high, [1, 3, 4, 3, 3])
    np.testing.assert_array_equal(shared_limits(seen([[0.0], [0.0]])).high, [1, 1])


def test_one_range_for_the_layer_is_the_largest() -> None:
    limits = shared_limits(seen([[1.0], [-4.0], [0.0]]), rule="layer")
    np.testing.assert_array_equal(limits.high, [4, 4, 4])


def test_sides_together_are_covered_and_another_number_of_channels_is_refused() -> None:
    both = Extremes.of_all([seen([[1.0], [-2.0]]), seen([[-3.0], [0.5]])])
    np.testing.assert_array_equal(shared_limits(both).high, [3, 2])
    extremes = seen([[1.0], [2.0]])
    with pytest.raises(ValueError, match="there were 2, now 3 arrived"):
        extremes.see(np.zeros((3, 1), np.float32))


def test_pictures_without_later_steps_have_ranges_that_just_hold_them() -> None:
    values = np.array([[1.0, -2.0], [0.5, np.nan], [0.0, 0.0]], np.float32)
    limits = tight_limits(values)
    assert limits.symmetric
    np.testing.assert_array_equal(limits.high, [2, 0.5, 1.25])
    np.testing.assert_array_equal(tight_limits(values, rule="layer").high, [2, 2, 2])
    assert not tight_limits(np.abs(values)).symmetric
    np.testing.assert_array_equal(tight_limits(np.zeros((2, 3), np.float32)).high, [1, 1])
    np.testing.assert_array_equal(tight_limits(np.array([3e38, 3e38, 0], np.float32)).high, np.float32(3e38))


def naive_gain(differences: FloatArray, largest: float) -> int:
    """The definition, with all values at hand."""
    values = differences[np.isfinite(differences) & (differences != 0)].astype(np.float64)
    for gain in (64, 16, 4):
        if not len(values) or np.mean(np.abs(values) > largest / gain) < 0.02:
            return gain
    return 1


@given(st.integers(0, 10_000), st.floats(1e-4, 3), st.floats(0.5, 2))
def test_the_gain_is_that_of_its_definition(seed: int, scale: float, largest: float) -> None:
    generator = np.random.default_rng(seed)
    steps = [(scale * step * generator.standard_normal((5, 40))).astype(np.float32) for step in range(4)]
    steps[1][0, :3] = np.nan, np.inf, 0
    counted = Magnitudes()
    for step in steps:
        counted.see(step)
    every = np.concatenate([step.reshape(-1) for step in steps])
    gain = counted.gain(largest)
    assert gain in GAINS
    # one bin, 1/128 of the end at most, is counted as beyond it
    assert gain in {naive_gain(every, largest), naive_gain(every, largest * (1 - 1 / 100))}
    values = every[np.isfinite(every) & (every != 0)]
    assert gain == 1 or np.mean(np.abs(values) > largest / gain) < 0.02


def test_what_is_alike_does_not_excuse_what_differs() -> None:
    """One filter of 100 has grown by 5 %: with gain 64 all of it would be beyond the end."""
    differences = np.zeros((100, 9), np.float32)
    differences[7] = np.linspace(0.005, 0.05, 9)
    counted = Magnitudes()
    counted.see(differences)
    assert counted.gain(1.0) == 16
    assert Magnitudes().gain(1.0) == 64


def test_differences_have_one_range_for_all_channels() -> None:
    limits = change_limits(0.5, 16, 3)
    np.testing.assert_array_equal(limits.high, np.full(3, 0.5 / 16, np.float32))
    assert limits.symmetric
    assert (change_limits(1e-45, 64, 2).high > 0).all()


@pytest.mark.parametrize(
    ("high", "symmetric", "low_end", "high_end", "words"),
    [
        ([0.5, 0.5], True, "−0.5", "0.5", "±0.5"),
        ([0.53, 0.12], True, "−0.12 to −0.53", "0.12 to 0.53", "±0.12 to ±0.53"),
        ([2.0, 1.5], False, "0", "1.5 to 2", "0 to 1.5 … 2"),
        ([1e-7], False, "0", "1e−07", "0 to 1e−07"),
    ],
)
def test_the_ends_of_a_scale_are_numbers(
    high: list[float], symmetric: bool, low_end: str, high_end: str, words: str
) -> None:
    limits = Limits(np.array(high, np.float32), symmetric, np.zeros(len(high), np.int64))
    assert ends(limits) == (low_end, high_end)
    assert in_words(limits) == words


def test_the_examples_hold() -> None:
    from cnnlog.rendering import ranges

    assert doctest.testmod(shared_ranges, extraglobs={"np": np, "Limits": ranges.Limits}).failed == 0

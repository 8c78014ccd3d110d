"""Ranges: what the ends of the colours stand for, and when that changes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cnnlog.rendering.ranges import AnchoredRange, ChangeRange, Limits, RangeRule, peak

FloatArray = npt.NDArray[np.float32]
few = settings(deadline=None, derandomize=True, max_examples=60)
anything = st.floats(width=32)
three_steps = hnp.arrays(
    np.float32, st.tuples(st.just(3), st.integers(1, 4), st.sampled_from([1, 3, 49, 50, 99, 150])), elements=anything
)
rules = st.sampled_from(["channel", "layer"])
LARGEST = float(np.finfo(np.float32).max)


def channel(*beyond: float, size: int, rest: float = 1.0) -> FloatArray:
    """One channel `[1, size]` of values that are `rest`, but for those given."""
    values = np.full((1, size), rest, np.float32)
    values[0, : len(beyond)] = beyond
    return values


def more_than_2_percent_beyond(values: FloatArray, high: float, *, symmetric: bool) -> bool:
    """The rule as DESIGN has it, for one channel, counted one by one."""
    finite = [float(value) for value in values.tolist() if math.isfinite(value)]
    beyond = sum(abs(value) > high if symmetric else value > high for value in finite)
    return beyond > 0.02 * len(finite) and (beyond >= 2 or len(finite) < 50)


def test_a_channels_range_is_one_and_a_half_times_its_peak_at_the_baseline() -> None:
    baseline = np.array([[0.5, -1.0], [0.25, 0.0], [0.0, 0.0], [np.nan, 3.0]], np.float32)
    first = AnchoredRange().update(baseline)
    assert first.symmetric
    np.testing.assert_array_equal(first.high, [1.5, 0.375, 1.5, 4.5])  # the flat one: median of 1.5, 0.375, 4.5
    np.testing.assert_array_equal(first.low, -first.high)
    np.testing.assert_array_equal(first.doubled, [0, 0, 0, 0])
    assert not first.notched.any()
    np.testing.assert_array_equal(AnchoredRange("layer").update(baseline).high, [4.5, 4.5, 4.5, 4.5])


def test_a_range_doubles_as_often_as_its_values_need() -> None:
    anchored = AnchoredRange()
    anchored.update(np.array([[0.5, -1.0], [0.25, -0.1], [0.0, 0.0], [np.nan, 3.0]], np.float32))
    later = anchored.update(np.array([[0.1, 1.5], [0.4, 0], [-4, 0], [np.inf, 10]], np.float32))
    np.testing.assert_array_equal(later.high, [1.5, 0.75, 6, 18])
    np.testing.assert_array_equal(later.doubled, [0, 1, 2, 2])
    np.testing.assert_array_equal(later.notched, [False, True, True, True])
    again = anchored.update(np.zeros((4, 2), np.float32))
    np.testing.assert_array_equal(again.high, later.high, err_msg="it never shrinks")


@pytest.mark.parametrize(
    ("beyond", "size", "doubles"),
    [
        ([1.6], 49, True),  # one of 49 is 2.04 %
        ([1.6], 50, False),  # one of 50 is 2 %, not more
        ([1.6, -1.7], 50, True),
        ([1.6, -1.7], 99, True),
        ([1.6, -1.7], 100, False),
        ([1.6, -1.7, 1.51], 100, True),
        ([1.6, np.nan, np.inf], 51, True),  # one of 49 that are finite
        ([1.6, np.nan, np.inf], 52, False),
        ([np.inf, np.nan, -np.inf], 51, False),
        ([1.5, -1.5, 1.5], 51, False),  # at the end is not beyond it
    ],
)
def test_only_more_than_2_percent_of_a_channel_outgrow_its_range(beyond: list[float], size: int, doubles: bool) -> None:
    anchored = AnchoredRange(signed=True)
    anchored.update(channel(size=size))
    limits = anchored.update(channel(*beyond, size=size))
    assert limits.doubled.tolist() == [int(doubles)]
    assert limits.high.tolist() == [3.0 if doubles else 1.5]


def test_what_may_stand_out_does_not_decide_how_often_a_range_doubles() -> None:
    anchored = AnchoredRange(signed=True)
    anchored.update(channel(size=100))
    limits = anchored.update(channel(1000, -900, 1.6, size=100))  # two may lie beyond whatever the range is
    assert limits.high.tolist() == [3.0]
    assert anchored.update(channel(1000, -900, 800, size=100)).high.tolist() == [1.5 * 2**10]


def test_one_range_for_the_layer_doubles_when_any_channel_outgrows_it() -> None:
    anchored = AnchoredRange("layer")
    anchored.update(np.array([[1.0, -1.0], [0.5, 0.5], [0.0, 0.0]], np.float32))
    limits = anchored.update(np.array([[0.1, 0.1], [0.1, -2.0], [0.0, 0.0]], np.float32))
    np.testing.assert_array_equal(limits.high, [3, 3, 3])
    assert limits.notched.all()


def test_a_fresh_range_each_step_on_request_has_no_room() -> None:
    anchored = AnchoredRange("step")
    anchored.update(np.array([[4.0], [-1.0]], np.float32))
    later = anchored.update(np.array([[1.0], [0.0]], np.float32))
    np.testing.assert_array_equal(later.high, [1, 1])
    assert later.symmetric
    assert not later.notched.any()
    np.testing.assert_array_equal(anchored.update(np.zeros((2, 1), np.float32)).high, [1, 1])


def test_positive_values_are_drawn_from_zero() -> None:
    limits = AnchoredRange().update(np.array([[0.0, 2.0], [1.0, 0.5]], np.float32))
    assert not limits.symmetric
    np.testing.assert_array_equal(limits.high, [3, 1.5])
    np.testing.assert_array_equal(limits.low, [0, 0])
    assert AnchoredRange(signed=True).update(np.ones((1, 2), np.float32)).symmetric


def test_a_layer_that_turns_negative_becomes_symmetric_once_and_stays_so() -> None:
    anchored = AnchoredRange()
    anchored.update(np.ones((2, 60), np.float32))
    assert not anchored.update(np.full((2, 60), -np.inf, np.float32)).symmetric, "only finite values tell"
    values = np.ones((2, 60), np.float32)
    values[1, 0] = -0.25
    turned = anchored.update(values)
    assert turned.symmetric
    assert turned.switched
    assert turned.notched.all()
    np.testing.assert_array_equal(turned.doubled, [0, 0])
    np.testing.assert_array_equal(turned.high, [1.5, 1.5])
    for again in (anchored, AnchoredRange.from_state(anchored.state())):
        later = again.update(np.ones((2, 60), np.float32))
        assert later.symmetric
        assert later.notched.all()


def test_below_zero_counts_where_a_layer_turns_negative() -> None:
    anchored = AnchoredRange()
    anchored.update(np.ones((1, 4), np.float32))
    limits = anchored.update(np.array([[-8.0, 1, 1, 1]], np.float32))
    assert (limits.symmetric, limits.high.tolist(), limits.doubled.tolist()) == (True, [12.0], [3])


@pytest.mark.parametrize("signed", [True, False])
def test_a_sign_that_was_asked_for_never_switches(signed: bool) -> None:
    anchored = AnchoredRange(signed=signed)
    anchored.update(np.ones((1, 3), np.float32))
    for again in (anchored, AnchoredRange.from_state(anchored.state())):
        limits = again.update(-np.ones((1, 3), np.float32))
        assert limits.symmetric is signed
        assert not limits.switched


def test_a_layer_that_is_flat_at_first_has_its_baseline_later() -> None:
    anchored = AnchoredRange()
    np.testing.assert_array_equal(anchored.update(np.zeros((2, 3), np.float32)).high, [1, 1])
    later = anchored.update(np.array([[0, 0, 0], [-0.3, 0, 0]], np.float32))
    assert later.symmetric
    np.testing.assert_allclose(later.high, [0.45, 0.45])
    assert not later.notched.any()


@few
@given(three_steps, rules, st.sampled_from([None, True, False]))
def test_a_range_never_shrinks_and_doubles_just_as_often_as_the_rule_says(
    steps: FloatArray, rule: RangeRule, signed: bool | None
) -> None:
    anchored = AnchoredRange(rule, signed=signed)
    before: Limits | None = None
    for values in steps:
        limits = anchored.update(values)
        assert np.isfinite(limits.high).all()
        assert (limits.high > 0).all()
        if before is not None:
            times = limits.doubled - before.doubled
            assert (times >= 0).all()
            exact = np.ldexp(before.high.astype(np.float64), times)
            np.testing.assert_array_equal(limits.high, np.minimum(exact, LARGEST).astype(np.float32))

            def outgrown(
                high: npt.NDArray[np.float64], values: FloatArray = values, limits: Limits = limits
            ) -> list[bool]:
                rows = zip(values, high.tolist(), strict=True)
                return [more_than_2_percent_beyond(row, end, symmetric=limits.symmetric) for row, end in rows]

            held = np.array(outgrown(limits.high.astype(np.float64)))
            needed = np.array(outgrown(exact / 2))
            assert not held.any()
            grown = times > 0
            assert (needed[grown].all() if rule == "channel" else needed.any()) or not grown.any()
        if anchored.state()["base"].any():
            before = limits


@few
@given(three_steps, st.sampled_from(["channel", "layer", "step"]))
def test_a_range_tells_its_limits_without_the_values(steps: FloatArray, rule: RangeRule) -> None:
    anchored = AnchoredRange(rule)
    assert anchored.limits() is None
    for values in steps:
        limits = anchored.update(values)
        again = AnchoredRange.from_state(anchored.state())
        told = again.limits()
        assert (told is None) == (rule == "step" or not anchored.state()["base"].any())
        for same in (told or again.update(values), AnchoredRange.from_state(anchored.state()).update(values)):
            assert (same.symmetric, same.switched) == (limits.symmetric, limits.switched)
            np.testing.assert_array_equal(same.high, limits.high, strict=True)
            np.testing.assert_array_equal(same.doubled, limits.doubled, strict=True)


@few
@given(three_steps, st.sampled_from(["channel", "layer", "step"]))
def test_a_restored_range_continues_as_the_first_would(steps: FloatArray, rule: RangeRule) -> None:
    for stop in range(len(steps)):
        anchored = AnchoredRange(rule)
        change = ChangeRange()
        for values in steps[:stop]:
            anchored.update(values)
            change.update(values)
        again, change_again = AnchoredRange.from_state(anchored.state()), ChangeRange.from_state(change.state())
        for one, other in ((anchored, again), (change, change_again)):
            for values in steps[stop:]:
                expected, got = one.update(values), other.update(values)
                np.testing.assert_array_equal(got.high, expected.high)
                np.testing.assert_array_equal(got.doubled, expected.doubled)
                assert (got.symmetric, got.switched) == (expected.symmetric, expected.switched)


def test_a_range_of_format_1_keeps_the_limits_it_was_drawn_with() -> None:
    state = {
        "rule": np.array([0]),
        "signed": np.array([1]),
        "base": np.array([1.0, 0.25], np.float32),
        "doubled": np.array([0, 2]),
    }
    restored = AnchoredRange.from_state(state)
    limits = restored.limits()
    assert limits is not None
    np.testing.assert_array_equal(limits.high, [1, 1])
    np.testing.assert_array_equal(limits.doubled, [0, 2])
    np.testing.assert_array_equal(restored.update(channel(1.1, size=100, rest=0.5).repeat(2, axis=0)).high, [1, 1])
    from_zero = AnchoredRange.from_state(state | {"signed": np.array([0])})
    assert from_zero.update(-np.ones((2, 4), np.float32)).switched


def test_a_change_range_of_format_1_keeps_the_limits_it_was_drawn_with() -> None:
    state = {"base": np.array([3.0], np.float32), "first": np.array([-2]), "doubled": np.array([1])}
    restored = ChangeRange.from_state(state)
    assert restored.update(np.full((2, 3), 1.4, np.float32)).high.tolist() == [1.5, 1.5]
    assert restored.update(np.full((2, 3), 1.6, np.float32)).high.tolist() == [3.0, 3.0]
    unset = ChangeRange.from_state(state | {"first": np.zeros(0, np.int64), "doubled": np.array([0])})
    assert unset.update(np.full((1, 3), 0.3, np.float32)).high.tolist() == [2.0]


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([1.0, -3.0, 2.0], 3.0),
        ([-1.0, 4.0], 4.0),
        ([np.nan, -2.0, 1.0], 2.0),
        ([np.inf, 2.0, -np.inf, -5.0], 5.0),
        ([np.nan, np.inf], 0.0),
        ([-0.0], 0.0),
        ([], 0.0),
    ],
)
def test_the_peak_is_the_largest_finite_magnitude(values: list[float], largest: float) -> None:
    found = peak(np.array(values, np.float32))
    assert found == largest
    assert math.copysign(1, found) == 1


def test_the_range_of_changes_is_a_power_of_two_with_room_for_four_times_the_first_change() -> None:
    change = ChangeRange()
    np.testing.assert_array_equal(change.update(np.zeros((2, 3), np.float32)).high, [1, 1])
    first = change.update(np.array([[0.3, -0.9, np.inf], [0, 0, np.nan]], np.float32))
    assert first.symmetric
    np.testing.assert_array_equal(first.high, [4, 4])  # 2 is below 3.6
    assert not first.notched.any()
    np.testing.assert_array_equal(change.update(np.array([[0.1], [np.nan]], np.float32)).high, [4, 4])
    later = change.update(np.array([[0.1], [-9.0]], np.float32))
    np.testing.assert_array_equal(later.high, [16, 16])
    np.testing.assert_array_equal(later.doubled, [2, 2])
    assert later.notched.all()
    few_of_many = np.concatenate([channel(50, 50, size=100), channel(size=100)])
    np.testing.assert_array_equal(change.update(few_of_many).high, [16, 16])
    assert ChangeRange().update(np.array([[0.25]], np.float32)).high.tolist() == [1.0]


@few
@given(three_steps)
def test_change_ranges_are_powers_of_two_that_keep_the_rule(steps: FloatArray) -> None:
    change = ChangeRange()
    before = 0.0
    for values in steps:
        was_set = change.is_set
        limits = change.update(values)
        high = float(limits.high[0])
        assert (limits.high == limits.high[0]).all()
        assert math.frexp(high)[0] == 0.5 or high == LARGEST
        if not was_set and change.is_set:
            assert high >= min(4 * peak(values), LARGEST)
            assert high / 2 < 4 * peak(values) or high == np.float32(2.0**-149)
        elif was_set:
            assert not any(more_than_2_percent_beyond(row, high, symmetric=True) for row in values)
            assert high >= before
            if high > before:
                assert any(more_than_2_percent_beyond(row, high / 2, symmetric=True) for row in values)
        before = high


def test_a_change_range_is_set_by_the_first_difference() -> None:
    was_set = []
    change = ChangeRange()
    for values in (np.zeros((1, 2)), np.full((1, 2), np.nan), np.ones((1, 2)), np.zeros((1, 2))):
        change.update(values)
        was_set.append(change.is_set)
    assert was_set == [False, False, True, True]


def test_ranges_stay_finite_at_the_end_of_float32() -> None:
    anchored = AnchoredRange()
    np.testing.assert_array_equal(anchored.update(np.array([[3e38], [0]], np.float32)).high, np.float32(LARGEST))
    np.testing.assert_array_equal(ChangeRange().update(np.array([[3e38]], np.float32)).high, np.float32(LARGEST))
    assert (AnchoredRange().update(np.array([[1e-45]], np.float32)).high > 0).all()


def test_ranges_refuse_what_they_cannot_take() -> None:
    anchored = AnchoredRange()
    anchored.update(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="the baseline had 3, now 2 arrived"):
        anchored.update(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="one of channel, layer, step; got 'image'"):
        AnchoredRange("image")  # type: ignore[arg-type]

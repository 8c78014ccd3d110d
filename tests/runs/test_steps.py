"""Steps of a strip: one distance from each other, from the baseline to the last step where that can be."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnlog.runs import steps as steps_of_strips
from cnnlog.runs.steps import Strided, strided

few = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([5], Strided((5,), 0, True)),
        ([0, 5], Strided((0, 5), 5, True)),
        ([0, 1, 2], Strided((0, 1, 2), 1, True)),
        (range(8), Strided(tuple(range(8)), 1, True)),
        (range(9), Strided((0, 2, 4, 6, 8), 2, True)),
        (range(10), Strided((0, 3, 6, 9), 3, True)),
        (range(12), Strided((0, 2, 4, 6, 8, 10), 2, True)),  # 11 has no divisor
        (range(21), Strided((0, 4, 8, 12, 16, 20), 4, True)),
        (range(32), Strided((0, 5, 10, 15, 20, 25, 30), 5, True)),  # 31 has no divisor, and 7 strides of 4 end at 28
        (range(3, 17), Strided((3, 5, 7, 9, 11, 13, 15), 2, True)),
        (range(0, 10_001, 500), Strided((0, 2000, 4000, 6000, 8000, 10_000), 2000, True)),
        (range(101), Strided((0, 20, 40, 60, 80, 100), 20, True)),
        (range(0, 48, 4), Strided((0, 8, 16, 24, 32, 40), 8, True)),  # a stride of 11 meets no stored step
        ([*range(0, 1201, 100), 1234], Strided(tuple(range(0, 1201, 200)), 200, True)),
        ([0, 1, 2, 4, 8], Strided((0, 2, 4, 8), 2, False)),
        ([*range(0, 1201, 100), 1250], Strided((0, 200, 500, 700, 1000, 1250), 250, False)),
        ([0, 1, 2, 5, 10, 20], Strided((0, 5, 10, 20), 4, False)),
        ([0, 1, 2, 5, 10, 20, 50, 100], Strided((0, 20, 50, 100), 20, False)),
        ([step for step in range(21) if step != 8], Strided((0, 5, 10, 15, 20), 5, True)),  # 4 would miss 8
        ([0, 1, 10, 100, 1000], Strided((0, 100, 1000), 200, False)),
    ],
)
def test_by_hand(steps: range | list[int], expected: Strided) -> None:
    assert strided(steps) == expected


@few
@given(st.integers(0, 50), st.integers(1, 40), st.integers(2, 300), st.integers(2, 12))
def test_regular_steps_are_shown_at_one_distance(first: int, gap: int, count: int, at_most: int) -> None:
    steps = range(first, first + gap * count, gap)
    chosen = strided(steps, at_most)
    assert chosen.is_even
    assert chosen.steps[0] == first
    assert 2 <= len(chosen.steps) <= at_most
    assert set(chosen.steps) <= set(steps)
    assert set(np.diff(chosen.steps).tolist()) == {chosen.stride}
    divided = [parts for parts in range(3, at_most) if (count - 1) % parts == 0]  # strides of 4 columns and more
    if divided:
        assert chosen.steps[-1] == steps[-1]
        assert len(chosen.steps) == max(divided) + 1
    else:
        assert chosen.stride == gap * -(-(count - 1) // (at_most - 1)), "the smallest with which all would reach it"


@few
@given(st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True))
def test_irregular_steps_are_the_stored_ones_and_begin_at_the_first(steps: list[int]) -> None:
    chosen = strided(sorted(steps))
    assert set(chosen.steps) <= set(steps)
    assert chosen.steps[0] == min(steps)
    assert list(chosen.steps) == sorted(set(chosen.steps))
    assert len(chosen.steps) <= 8
    if chosen.is_even and len(chosen.steps) > 1:
        assert set(np.diff(chosen.steps).tolist()) == {chosen.stride}


def test_one_column_is_no_strip() -> None:
    with pytest.raises(ValueError, match="at_most must be 2 or more; got 1"):
        strided(range(5), 1)


def test_the_examples_hold() -> None:
    assert doctest.testmod(steps_of_strips).failed == 0

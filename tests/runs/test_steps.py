"""Steps of a strip: one distance from each other, from the baseline to the last step where that can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnlog.runs.steps import Strided, strided

few = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([5], Strided((5,), 0, True)),
        ([0, 1, 2], Strided((0, 1, 2), 1, True)),
        (range(8), Strided(tuple(range(8)), 1, True)),
        (range(9), Strided((0, 2, 4, 6, 8), 2, True)),
        (range(10), Strided((0, 3, 6, 9), 3, True)),
        (range(12), Strided((0, 2, 4, 6, 8, 10), 2, True)),  # 11 has no divisor
        (range(101), Strided((0, 20, 40, 60, 80, 100), 20, True)),
        (range(0, 48, 4), Strided((0, 8, 16, 24, 32, 40), 8, True)),  # a stride of 11 meets no stored step
        ([*range(0, 1201, 100), 1234], Strided(tuple(range(0, 1201, 200)), 200, True)),
        ([0, 1, 2, 4, 8], Strided((0, 2, 4, 8), 2, False)),
        ([*range(0, 1201, 100), 1250], Strided((0, 200, 500, 700, 1000, 1250), 250, False)),
        ([0, 1, 10, 100, 1000], Strided((0, 100, 1000), 200, False)),
    ],
)
def test_by_hand(steps: range | list[int], expected: Strided) -> None:
    assert strided(steps) == expected


@few
@given(st.integers(0, 5), st.integers(1, 7), st.integers(2, 300))
def test_regular_steps_are_shown_at_one_distance(first: int, gap: int, count: int) -> None:
    steps = range(first, first + gap * count, gap)
    chosen = strided(steps)
    assert chosen.is_even
    assert chosen.steps[0] == first
    assert len(chosen.steps) <= 8
    assert set(np.diff(chosen.steps).tolist()) == {chosen.stride}
    divided = [parts for parts in range(3, 8) if (count - 1) % parts == 0]  # strides of 4 to 8 columns
    if divided:
        assert chosen.steps[-1] == steps[-1]
        assert len(chosen.steps) == max(divided) + 1
    else:
        assert chosen.stride == gap * -(-(count - 1) // 7), "the smallest that fits"


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

"""The columns of a strip: at even strides, the last step among them where a stride allows it."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnlog.reports import columns
from cnnlog.reports.columns import even_strides


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [
        (range(21), (0, 4, 8, 12, 16, 20)),
        (range(101), (0, 20, 40, 60, 80, 100)),
        (range(0, 10_001, 500), (0, 2000, 4000, 6000, 8000, 10_000)),
        (range(8), (0, 1, 2, 3, 4, 5, 6, 7)),
        (range(9), (0, 2, 4, 6, 8)),
        (range(12), (0, 2, 4, 6, 8, 10)),  # 11 has no divisor: the last step is left out
        (range(3, 17), (3, 5, 7, 9, 11, 13, 15)),
        ([5], (5,)),
        ([0, 5], (0, 5)),
        ([0, 1, 2, 5, 10, 20], (0, 5, 10, 20)),
    ],
)
def test_columns_are_as_far_apart_from_one_another(steps: Sequence[int], chosen: tuple[int, ...]) -> None:
    assert even_strides(steps, 8).steps == chosen


@given(st.integers(0, 50), st.integers(1, 40), st.integers(2, 300), st.integers(2, 12))
def test_regular_steps_have_one_distance_and_as_many_columns_as_fit(
    first: int, apart: int, count: int, at_most: int
) -> None:
    steps = range(first, first + apart * count, apart)
    found = even_strides(steps, at_most)
    assert found.steps[0] == first
    assert 2 <= len(found.steps) <= at_most
    assert set(found.steps) <= set(steps)
    assert {later - earlier for earlier, later in pairwise(found.steps)} == {found.stride}
    assert found.note == ""
    strides = [apart * factor for factor in range(1, count) if (count - 1) // factor + 1 <= at_most]
    ends = [one for one in strides if (steps[-1] - first) % one == 0 and (steps[-1] - first) // one >= 3]
    assert found.stride == (ends or strides)[0]


def test_where_steps_are_irregular_the_nearest_are_taken_and_this_is_said() -> None:
    found = even_strides([0, 1, 2, 5, 10, 20, 50, 100], 8)
    assert found.steps == (0, 20, 50, 100)
    assert found.note == "columns: of every 20 steps the nearest that is stored"
    damaged = [step for step in range(21) if step != 8]
    assert even_strides(damaged, 8).steps == (0, 4, 7, 12, 16, 20)


def test_one_column_is_no_strip() -> None:
    with pytest.raises(ValueError, match="at_most must be 2 or more; got 1"):
        even_strides(range(5), 1)


def test_the_examples_hold() -> None:
    assert doctest.testmod(columns).failed == 0

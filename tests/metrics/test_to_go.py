"""How far a layer still had to go: worked by hand, and what noise gives."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from cnnlog.metrics import to_go as module
from cnnlog.metrics.to_go import half_way, to_go


def test_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted >= 2


def test_a_straight_even_way_falls_evenly_and_a_detour_is_above_one() -> None:
    rng = np.random.default_rng(0)
    first, way = rng.standard_normal((2, 5, 3, 3))
    values = [to_go(first + step * way, first, first + 4 * way) for step in range(5)]
    assert values == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert to_go(first - way, first, first + 4 * way) == pytest.approx(1.25)
    assert half_way(range(5), values) == 2


def test_a_random_walk_falls_as_the_root_of_the_time_left() -> None:
    steps = np.random.default_rng(1).standard_normal((101, 4000)).cumsum(axis=0)
    for step in (25, 50, 75):
        assert to_go(steps[step], steps[0], steps[-1]) == pytest.approx(np.sqrt(1 - step / 100), abs=0.02)


def test_what_did_not_move_has_no_way_and_what_is_nan_is_left_out() -> None:
    still = np.ones((2, 3))
    assert np.isnan(to_go(still, still, still))
    first, last = np.zeros(3), np.array([2.0, 0.0, 5.0])
    assert to_go(np.array([1.0, 0.0, np.nan]), first, last) == 0.5
    assert half_way([0, 1, 2], [1.0, np.nan, 0.0]) == 2
    with pytest.raises(ValueError, match=r"one shape; got \[2\], \[3\], \[3\]"):
        to_go(np.ones(2), first, last)

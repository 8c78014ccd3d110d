"""A run that version 0.1 wrote, kept as files in tests/data: it stays readable, and says no more than it knows."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from support.measuring import weight_numbers
from support.pages import written
from support.stored_runs import moving

from cnnlog.comparison.comparison import compare
from cnnlog.metrics.drift import change
from cnnlog.runs import numbers
from cnnlog.runs.finding import open_run
from cnnlog.runs.run import Run

FOLDER = Path(__file__).parents[1] / "data" / "format1"


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(FOLDER)


def filters_at(step: int) -> dict[str, np.ndarray]:
    """What the run was made of: one filter of conv2 is near zero, and turned round after the baseline."""
    filters = {name: array.copy() for name, array in moving(1, 0.05)(step)[0].items()}
    filters["conv2"][1] *= 1e-5 if step == 0 else -1e-5
    return filters


def test_it_is_of_format_1_and_its_arrays_are_as_they_were(run: Run) -> None:
    assert run.manifest.version == 1
    assert run.measured == run.layers == ("conv1", "conv2")
    assert run.steps == (0, 1, 3)
    np.testing.assert_array_equal(run.filters("conv2"), filters_at(3)["conv2"])
    assert run.probe().shape == (1, 3, 16, 16)
    assert run.outputs("baseline")[0]["conv1"].shape == (64, 4)


def test_angles_and_the_change_of_the_weights_are_derived(run: Run) -> None:
    for step in (0, 1, 3):
        for layer in run.layers:
            expected = weight_numbers(filters_at(0)[layer], filters_at(step)[layer], None, 1, False)
            np.testing.assert_allclose(
                run.numbers("filter_angle", layer, step), expected["filter_angle"], rtol=1e-4, atol=1e-3
            )
            assert run.numbers("weight_change", layer, step)[0] == pytest.approx(expected["weight_change"][0], rel=1e-5)
    assert np.isnan(run.numbers("filter_angle", "conv2")[1])


def test_what_it_does_not_know_is_not_there(run: Run) -> None:
    for number in ("cka_positions", "dead_share", "function_change", "update_ratio", "mean_update_ratio"):
        with pytest.raises(
            ValueError, match=f"has no '{number}' of conv1 at step 3; it has weight_change, filter_angle"
        ):
            run.numbers(number, "conv1")
    row = compare(FOLDER).rows()[0]
    assert {row.cka_positions, row.dead_share, row.function_change} == {(None, None)}
    assert row.half_way[1] is not None
    assert compare(FOLDER).verdict().startswith("conv1 changed most: its weights by 15 %")


def test_old_names_give_what_is_stored(run: Run) -> None:
    first, last = filters_at(0)["conv2"], filters_at(3)["conv2"]
    with pytest.warns(FutureWarning, match="'cosine' is replaced"):
        np.testing.assert_allclose(run.numbers("cosine", "conv2"), change(first, last).cosine, rtol=1e-6)
    with pytest.warns(FutureWarning, match="'cka' is replaced by 'cka_positions', which is debiased"):
        assert 0 < run.numbers("cka", "conv2")[0] < 1
    with pytest.warns(FutureWarning, match="'update' is replaced"):
        assert run.numbers("update", "conv2").shape == (6,)


def test_it_is_compared_with_itself_and_shown_on_a_page(tmp_path: Path) -> None:
    c = compare(FOLDER, f"{FOLDER}@1")
    row = c.rows()[0]
    assert row.weight_distance[0] == pytest.approx(
        np.linalg.norm(filters_at(1)["conv1"] - filters_at(3)["conv1"]) / np.linalg.norm(filters_at(3)["conv1"]),
        rel=1e-5,
    )
    assert row.shown_weights
    assert row.shown_outputs
    _, seen = written(c, tmp_path / "page.html")
    assert seen.wrong == []
    assert "1 of 6 left out" in seen.text


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(numbers).failed == 0
    assert doctest.testmod(numbers).attempted > 0

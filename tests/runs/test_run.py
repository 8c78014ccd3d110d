"""A stored run read back: kinds are given by name or by the enum, and a wrong one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.stored_runs import write_run

from cnnlog.kinds import Kind
from cnnlog.runs.finding import open_run
from cnnlog.runs.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(write_run(tmp_path, maps_every=2))


def words_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_a_kind_is_given_by_name_or_by_the_enum(run: Run) -> None:
    assert run.holding("conv1", "filters", 3) == run.holding("conv1", Kind.FILTERS, 3) == 3
    assert run.holding("conv1", "feature_maps", 3) == run.holding("conv1", Kind.FEATURE_MAPS, 3) == 2
    np.testing.assert_array_equal(
        run.limits("conv1", "feature_maps", 2).high, run.limits("conv1", Kind.FEATURE_MAPS, 2).high
    )
    titles = {words_of(run.figure("conv1", 2, kind)) for kind in ("feature_maps", Kind.FEATURE_MAPS)}
    assert len(titles) == 1
    assert "Feature maps of conv1" in titles.pop()
    assert "Filters of conv1" in words_of(run.figure("conv1"))


def test_a_step_whose_file_says_no_range_has_the_one_that_just_holds_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = np.abs(run.filters("conv1", 2))
    with_room = run.limits("conv1", "filters", 2).high
    record = replace(run.record(2), ranges={})
    monkeypatch.setattr(Run, "record", lambda *_: record)
    tight = run.limits("conv1", "filters", 2)
    assert tight.symmetric
    np.testing.assert_array_equal(tight.high, filters.reshape(len(filters), -1).max(axis=1))
    assert (tight.high < with_room).all()


@pytest.mark.parametrize("wrong", ["maps", "Filters", "", None])
def test_a_wrong_kind_is_refused_with_the_kinds_there_are(run: Run, wrong: Any) -> None:
    said = "kind must be one of filters, feature_maps; got "
    with pytest.raises(ValueError, match=said):
        run.figure("conv1", kind=wrong)
    with pytest.raises(ValueError, match=said):
        run.limits("conv1", wrong, 0)
    with pytest.raises(ValueError, match=said):
        run.holding("conv1", wrong, 0)

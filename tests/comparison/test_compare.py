"""Stored runs and weights side by side: what is aligned with what, and numbers that are right."""

from __future__ import annotations

import copy
import doctest
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.measuring import debiased, rows_of
from support.pages import written
from support.stored_runs import MAPS, Arrays, moving, write_run
from torch import nn

import cnnlog
from cnnlog import kinds, messages
from cnnlog.comparison import matching, rows, settling, sides, verdict
from cnnlog.comparison.comparison import Comparison, compare
from cnnlog.comparison.matching import align
from cnnlog.metrics.cka import noise_band
from cnnlog.metrics.drift import change
from cnnlog.models import files
from cnnlog.runs import spread as spread_module
from cnnlog.runs import steps as steps_module
from cnnlog.runs import table as table_module
from cnnlog.runs.finding import open_run
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.numbers import SHOWN
from cnnlog.runs.run import Run
from cnnlog.runs.spread import Spread
from cnnlog.runs.store import RunStore
from cnnlog.runs.table import Table
from cnnlog.snapshot import FloatArray


def fixed(filters: dict[str, Any], maps: dict[str, Any] | None = None) -> Any:
    """The same filters and feature maps at every step."""
    f = {name: np.asarray(value, np.float32) for name, value in filters.items()}
    m = {name: np.asarray(value, np.float32) for name, value in (maps or {}).items()}
    return lambda step: (f, m)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs from one baseline; the second goes on for longer and moves three times as fast."""
    folder = tmp_path_factory.mktemp("runs")
    slow = write_run(folder / "slow", moving(0, 0.1))
    return slow, write_run(folder / "fast", moving(1, 0.3), steps=range(6))


@pytest.fixture(scope="module")
def comparison(runs: tuple[Path, Path]) -> Comparison:
    return compare(*runs)


# --- one run


def test_a_run_is_found_from_its_folder_and_from_any_parent_of_it_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "logs" / "lightning_logs" / "version_0")
    for given in (folder / "cnnlog", folder, str(tmp_path / "logs"), tmp_path):
        run = cnnlog.open_run(given)
        assert Path(run.path) == folder / "cnnlog"
        assert run.name == "lightning_logs/version_0"
    (tmp_path / ".hidden").mkdir()
    write_run(tmp_path / ".hidden" / "run")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web app"}')
    assert Path(open_run(tmp_path).path) == folder / "cnnlog"


def test_a_run_is_found_in_object_stores() -> None:
    store = RunStore("memory://bucket/exp/cnnlog", open_run_manifest())
    store.create()
    with pytest.raises(ValueError, match="holds a run without a step"):
        open_run("memory://bucket/exp")


def open_run_manifest() -> Any:
    from support.records import manifest

    return manifest()


def test_no_run_and_several_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give a run's folder, <log_dir>/cnnlog"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no cnnlog run: no manifest\.json of ours in it or below"):
        open_run(tmp_path)
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    with pytest.raises(ValueError, match=f"holds 2 runs, and one is needed; give one of {one}/cnnlog, {two}/cnnlog"):
        open_run(tmp_path)


def test_a_newer_store_is_refused_by_its_version(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run") / "cnnlog"
    text = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**text, "version": 99}))
    with pytest.raises(ValueError, match=r"format version 99, and this cnnlog reads up to 2; upgrade cnnlog"):
        open_run(tmp_path)


def test_arrays_and_numbers_of_a_run_are_those_that_were_recorded(runs: tuple[Path, Path]) -> None:
    run, (filters, maps) = open_run(runs[0]), moving(0, 0.1)(2)
    assert run.steps == (0, 1, 2, 3)
    assert run.layers == ("conv1", "conv2")
    np.testing.assert_array_equal(run.filters("conv1", 2), filters["conv1"])
    np.testing.assert_array_equal(run.feature_maps("conv2", 2), maps["conv2"])
    norms = np.sqrt((filters["conv2"].astype(np.float64) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(run.numbers("norm", "conv2", 2), norms, rtol=1e-6)
    weights, step = run.weights("last")
    np.testing.assert_array_equal(weights["conv2"], moving(0, 0.1)(3)[0]["conv2"])
    assert step == 3
    assert run.probe().shape == (1, 3, 16, 16)
    assert run.probe_picture().shape == (16, 16, 3)
    assert repr(run) == "Run('slow', 2 layers, 4 steps to 3)"


def test_what_a_run_does_not_have_is_refused_with_what_it_has(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    run = open_run(runs[0])
    with pytest.raises(ValueError, match=r"slow watched no layer 'conv3'; there is conv\d, conv\d"):
        run.filters("conv3")
    with pytest.raises(ValueError, match=r"slow has no step 9; the nearest is 3, of 4 from 0 to 3"):
        run.filters("conv1", 9)
    with pytest.raises(
        ValueError, match=r"slow has no 'loss' of conv1 at step 3; it has function_change, weight_change"
    ):
        run.numbers("loss", "conv1")
    with pytest.raises(ValueError, match="name must be one of function_change, weight_change, filter_angle"):
        run.over_steps("loss")  # type: ignore[arg-type]
    every_other = open_run(write_run(tmp_path / "run", steps=range(4), maps_every=2))
    with pytest.raises(
        ValueError, match="holds no feature maps of conv1 at step 3; the last step that holds them is 2"
    ):
        every_other.feature_maps("conv1", 3)
    with pytest.raises(ValueError, match=r"image must be from 0 to 0, the probe's images; got 1"):
        run.figure("conv1", kind="feature_maps", image=1)


def test_the_numbers_of_a_run_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    start = np.zeros((2, 1, 2, 1), np.float32)
    start[:, 0, 0] = 1  # both filters are (1, 0)

    def turning(step: int) -> tuple[Arrays, Arrays]:
        now = start.copy()
        if step:
            now[1, 0] = [[0], [1]]  # the second one turns to (0, 1), a right angle
        return {"conv": now}, {}

    run = open_run(write_run(tmp_path / "run", turning, steps=(0, 1)))
    table = run.over_steps("filter_angle")
    assert isinstance(table, Table)
    assert table.columns == ("step", "layer", "mean", "lower_quartile", "median", "upper_quartile", "left_out")
    assert table.rows == ((0, "conv", 0, 0, 0, 0, 0), (1, "conv", 45, 22.5, 45, 67.5, 0))
    assert run.over_steps("filter_angle", "conv").rows == ((0, 0, 0.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 90.0))
    changed = run.over_steps("weight_change")
    assert changed.columns == ("step", "layer", "value")
    assert [row[:2] for row in changed.rows] == [(0, "conv"), (1, "conv")]
    assert changed.rows[1][2] == pytest.approx(1)  # |(0, 0, -1, 1)| / |(1, 0, 1, 0)|
    assert len(run.over_steps("mean_update_ratio").rows) == 1  # there is no update before the first
    with pytest.raises(ValueError, match="run has no 'cka_positions' of any layer"):
        run.over_steps("cka_positions")
    lines = str(table).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["0", "conv", "0", "0", "0", "0", "0"],
        ["1", "conv", "45.0", "22.5", "45.0", "67.5", "0"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_table_is_a_data_frame_where_pandas_is_installed(runs: tuple[Path, Path]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = open_run(runs[0]).over_steps("dead_share")
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["step", "layer", "value"]
    assert list(table["step"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(table["layer"]) == ["conv1", "conv2"] * 4
    assert table["value"].dtype == float
    assert table["value"].between(0, 1).all()


def test_quartiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(3).standard_normal(37)
    spread = Spread.of(values)
    assert [spread.lower, spread.median, spread.upper] == pytest.approx(list(np.quantile(values, [0.25, 0.5, 0.75])))
    assert spread.mean == pytest.approx(values.mean())
    assert math.isnan(Spread.of([np.nan, np.inf]).mean)
    assert Spread.of([np.nan, 2.0]).finite == 1


def test_figures_and_notebooks(runs: tuple[Path, Path], comparison: Comparison) -> None:
    run = open_run(runs[0])
    for figure in (
        run.figure("conv1"),
        run.figure("conv1", 1, "feature_maps"),
        comparison.figure("conv2"),
        comparison.figure("conv2", "feature_maps", side=1),
    ):
        assert type(figure).__name__ == "Figure"
        assert figure.axes
    html = run._repr_html_()
    assert "<td>conv2</td><td>Conv2d</td><td>6x4x3x3</td><td>1x6x4x4</td>" in html
    assert comparison.verdict() in comparison._repr_html_()
    with pytest.raises(ValueError, match="the comparison has no layer 'conv9'; it has conv1, conv2"):
        comparison.figure("conv9")


def test_names_from_checkpoints_are_escaped_in_notebooks(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script>"
    run = open_run(write_run(tmp_path / "a<b>", fixed({odd: np.ones((2, 3, 3, 3))}), steps=(0, 1)))
    for html in (run._repr_html_(), compare(run)._repr_html_(), run.over_steps("filter_norm")._repr_html_()):
        assert "<script>" not in html
        assert "a<b>" not in html
    assert "&lt;script&gt;" in run._repr_html_()


# --- steps


def test_a_run_that_ended_is_held_at_its_last_step_and_said_to_be(comparison: Comparison) -> None:
    assert comparison.steps == (0, 1, 2, 3, 4, 5)
    assert [comparison.step_of(0, step) for step in comparison.steps] == [0, 1, 2, 3, 3, 3]
    assert [comparison.held(0, step) for step in comparison.steps] == [False] * 4 + [True] * 2
    assert not any(comparison.held(1, step) for step in comparison.steps)
    assert "slow ends at step 3 and is held there up to step 5" in comparison.notes
    assert "A: slow (step 3, held there)" in comparison.to_text()


def test_between_its_steps_a_run_shows_the_one_before(tmp_path: Path) -> None:
    sparse = write_run(tmp_path / "sparse", steps=(0, 4, 8))
    dense = write_run(tmp_path / "dense", moving(1, 0.1), steps=range(2, 7))
    c = compare(sparse, dense)
    assert c.steps == (0, 2, 3, 4, 5, 6, 8)
    assert [c.step_of(0, step) for step in c.steps] == [0, 0, 0, 4, 4, 4, 8]
    assert [c.step_of(1, step) for step in c.steps] == [None, 2, 3, 4, 5, 6, 6]
    conv1 = c.layer("conv1")
    assert c.shown(1, conv1, "filters", 0) is None
    assert c.difference(conv1, "filters", 0) is None
    np.testing.assert_array_equal(c.shown(0, conv1, "filters", 3), moving(0, 0.1)(0)[0]["conv1"])


def test_feature_maps_kept_at_every_other_step_stand_until_the_next(tmp_path: Path) -> None:
    c = compare(write_run(tmp_path / "run", steps=range(4), maps_every=2))
    shown = c.shown(1, c.layer("conv1"), "feature_maps", 3)
    np.testing.assert_array_equal(shown, moving(0, 0.1)(2)[1]["conv1"])
    assert c.limits(1, c.layer("conv1"), "feature_maps", 3) is not None
    assert c.rows()[0].cka_positions[1] is not None


def test_one_run_alone_is_compared_with_its_baseline(runs: tuple[Path, Path]) -> None:
    c = compare(runs[0])
    assert [side.label for side in c.sides] == ["slow@baseline", "slow"]
    assert [c.step_of(0, step) for step in c.steps] == [0, 0, 0, 0]
    assert [c.step_of(1, step) for step in c.steps] == [0, 1, 2, 3]
    for row in c.rows():  # what lies between them is what the run says itself
        assert {row.weight_distance, row.function_distance, row.cka_between} == {(None,)}
        assert row.angle_between == (None,)
        assert {row.weight_change[0], row.function_change[0]} == {None}
        assert row.filter_angle[0] is None
        assert row.weight_change[1] is not None
        assert row.function_change[1] is not None
    columns = c.table().columns
    assert columns == ("layer", "output B %", "turned B °", "CKA B")
    assert set(c.curves()) == {
        *("function_change", "weight_change", "filter_angle", "cka_positions"),
        *("mean_update_ratio", "dead_share", "to_go"),
    }
    assert re.match(r"conv\d changed most: its output on the probe by \d+ %, .* as conv\d, its filters by", c.verdict())
    assert open_run(runs[0]).name == "slow"


def test_pinned_sides_stand_still(runs: tuple[Path, Path]) -> None:
    slow, fast = runs
    c = compare(f"{slow}@1", f"{fast}@last")
    assert c.steps == (5,)
    assert [side.step for side in c.sides] == [1, 5]
    assert [side.label for side in c.sides] == ["slow@1", "fast@last"]
    assert compare(f"{slow}@baseline", fast).steps == (0, 1, 2, 3, 4, 5)
    assert compare(f"{slow}@2").sides[1].step == 2
    assert any("are of the shown filters of conv1, conv2: all are stored at" in note for note in noted(c))


def noted(c: Comparison) -> tuple[str, ...]:
    c.rows()
    return c.notes


def test_a_step_that_is_not_there_is_refused_with_the_nearest(runs: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="fast has no step 70; the nearest is 5, of 6 from 0 to 5"):
        compare(runs[0], f"{runs[1]}@70")
    with pytest.raises(ValueError, match=r"expected a step's number, baseline or last behind the @ of '.*@first'"):
        compare(f"{runs[0]}@first")
    with pytest.raises(ValueError, match="expected a run, or two or more runs and files of weights, to compare; got"):
        compare()


def test_a_folder_with_an_at_sign_in_its_name_is_a_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "run@3")
    assert compare(tmp_path / "run@3").sides[1].label == "run@3"
    assert compare(f"{tmp_path}/run@3@2").sides[1].label == "run@3@2"


def test_sides_of_one_name_are_told_apart(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a" / "logs" / "version_0"), write_run(tmp_path / "b" / "logs" / "version_0")
    assert [side.label for side in compare(a, b).sides] == ["a/logs/version_0", "b/logs/version_0"]
    assert len({side.label for side in compare(a, a).sides}) == 2


# --- layers


@pytest.mark.parametrize(
    ("reference", "names", "pairs", "said"),
    [
        (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}, ""),
        (["model.a", "model.b"], ["a", "b"], {"a": "model.a", "b": "model.b"}, "without the prefix 'model.'"),
        (["a", "b"], ["net.cnn.a", "net.cnn.c"], {"net.cnn.a": "a"}, "without the prefix 'net.cnn.'"),
        (["model.a"], ["module.a"], {"module.a": "model.a"}, "without the prefixes 'model.' and 'module.'"),
        (["a.b"], ["_orig_mod.a.b"], {"_orig_mod.a.b": "a.b"}, "without the prefix '_orig_mod.'"),
        (["a.b"], ["a._orig_mod.b"], {"a._orig_mod.b": "a.b"}, "without the prefix '_orig_mod.'"),
        (["a", "b"], ["a", "x.b"], {"a": "a"}, ""),
        (["enc.a"], ["dec.a"], {}, ""),
        (["a"], ["ba"], {}, ""),
    ],
)
def test_names_are_aligned(reference: list[str], names: list[str], pairs: dict[str, str], said: str) -> None:
    assert align(reference, names) == (pairs, said)


def test_a_common_prefix_is_matched_and_said(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    wrapped = write_run(tmp_path / "wrapped", moving(1, 0.3, "model."))
    c = compare(wrapped, runs[1])
    assert [layer.names for layer in c.layers] == [("model.conv1", "conv1"), ("model.conv2", "conv2")]
    assert "wrapped and fast are matched without the prefix 'model.'" in c.notes
    assert all(row.weight_distance[0] is not None for row in c.rows())


def test_what_a_side_lacks_is_listed_and_not_fatal(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    other = fixed({"conv2": np.ones((6, 4, 3, 3)), "extra": np.ones((2, 3, 3, 3))}, {"conv2": np.ones(MAPS["conv2"])})
    c = compare(runs[0], write_run(tmp_path / "other", other))
    assert [(layer.name, layer.tag, layer.names) for layer in c.layers] == [
        ("conv1", "00_conv1", ("conv1", None)),
        ("conv2", "01_conv2", ("conv2", "conv2")),
        ("extra", "02_extra", (None, "extra")),
    ]
    assert {"slow lacks extra", "other lacks conv1"} <= set(c.notes)
    assert c.rows()[0].weight_distance == c.rows()[0].function_distance == (None,)
    assert c.layers[2].has_filters
    assert not c.layers[2].has_maps


def test_layers_of_unlike_shapes_have_no_distance_and_this_is_said(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    head = fixed({"conv1": np.ones((4, 3, 5, 5)), "conv2": np.ones((9, 4, 3, 3))})
    c = compare(runs[0], write_run(tmp_path / "other", head))
    assert c.rows()[1].weight_distance == (None,)
    assert c.rows()[1].angle_between == (None,)
    assert c.difference(c.layer("conv2"), "filters", 0) is None
    assert "conv2 has 6x4x3x3 filters in slow and 9x4x3x3 in other, so there is no distance" in c.notes


def test_no_layer_in_common_is_refused_with_the_names(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    other = write_run(tmp_path / "other", fixed({"stem": np.ones((2, 3, 3, 3))}))
    with pytest.raises(ValueError, match="no layer in common: slow has conv1, conv2; other has stem"):
        compare(runs[0], other)


# --- numbers


def test_distances_worked_by_hand(tmp_path: Path) -> None:
    start = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]).reshape(4, 1, 2, 1)
    there = np.array([[4.0, -3.0], [3.0, 0.0], [0.0, 2.0], [-2.0, 0.0]]).reshape(4, 1, 2, 1)
    maps = np.arange(32.0).reshape(1, 2, 4, 4)

    def one(step: int) -> tuple[Arrays, Arrays]:
        return {"conv": np.float32(there if step else start)}, {"conv": np.float32(maps * (1 + step))}

    run = write_run(tmp_path / "run", one, steps=(0, 1))
    c = compare(f"{run}@0", write_run(tmp_path / "b", one, steps=(0, 1)))
    (row,) = c.rows()
    angle = row.angle_between[0]
    assert angle is not None
    assert (angle.mean, angle.lower, angle.median, angle.upper) == pytest.approx((67.5, 0, 45, 112.5))  # 90, 0, 0, 180
    assert row.weight_distance[0] == pytest.approx(math.sqrt((50 + 4 + 0 + 16) / (25 + 1 + 4 + 4)))
    assert row.function_distance[0] == pytest.approx(1)
    assert row.cka_between[0] == pytest.approx(1)
    assert not row.shown_weights
    assert not row.shown_outputs
    own = compare(run).rows()[0]
    assert own.weight_change[1] == pytest.approx(row.weight_distance[0])
    assert own.function_change[1] == pytest.approx(row.function_distance[0])


def test_a_distance_is_relative_to_the_first_side_and_an_angle_is_symmetric(runs: tuple[Path, Path]) -> None:
    one, two = compare(*runs).rows(), compare(*runs[::-1]).rows()
    filters = [moving(0, 0.1)(3)[0]["conv1"], moving(1, 0.3)(5)[0]["conv1"]]
    maps = [rows_of(moving(0, 0.1)(3)[1]["conv1"]), rows_of(moving(1, 0.3)(5)[1]["conv1"])]
    for row, at in ((one[0], 0), (two[0], 1)):
        for arrays, found in ((filters, row.weight_distance[0]), (maps, row.function_distance[0])):
            a, b = (array.astype(np.float64) for array in arrays)
            expected = np.linalg.norm(b - a) / np.linalg.norm((a, b)[at])
            assert found == pytest.approx(float(expected), rel=1e-6)
    for there, back in zip(one, two, strict=True):
        assert there.angle_between[0] is not None
        assert back.angle_between[0] is not None
        assert there.angle_between[0].median == pytest.approx(back.angle_between[0].median, rel=1e-6)
        assert there.cka_between[0] == pytest.approx(back.cka_between[0], rel=1e-9)


def test_alike_runs_are_not_apart(runs: tuple[Path, Path]) -> None:
    c = compare(runs[0], runs[0])
    for row in c.rows():
        assert row.angle_between[0] == Spread(0, 0, 0, 0, row.filters or 0)
        assert row.weight_distance[0] == row.function_distance[0] == 0
        assert row.cka_between[0] == 1
    assert not any(np.any(c.difference(layer, "filters", 2)) for layer in c.layers)
    assert compare(f"{runs[0]}@0", f"{runs[0]}@0").verdict() == "No layer changed."


def test_longer_filters_are_at_the_same_angle_and_before_a_norm_no_change(
    tmp_path: Path, runs: tuple[Path, Path]
) -> None:
    longer = write_run(tmp_path / "longer", moving(0, 0.1, scale=3.0), normalised=("conv2",))
    plain, normed = compare(runs[0], longer).rows()
    for row in (plain, normed):
        assert row.angle_between[0] is not None
        assert row.angle_between[0].mean == pytest.approx(0, abs=1e-5)
    assert plain.weight_distance[0] == pytest.approx(2, rel=1e-6)
    assert normed.weight_distance[0] == pytest.approx(0, abs=1e-6)


def test_cka_between_the_sides_is_the_debiased_one(comparison: Comparison) -> None:
    x, y = (
        rows_of(moving(seed, amount)(step)[1]["conv2"]).astype(np.float64)
        for seed, amount, step in ((0, 0.1, 3), (1, 0.3, 5))
    )
    row = comparison.rows()[1]
    assert row.cka_between[0] == pytest.approx(debiased(x, y), rel=1e-6)
    assert row.noise_between[0] == noise_band(16, 6)


def test_own_numbers_are_those_stored_at_each_sides_own_step(runs: tuple[Path, Path], comparison: Comparison) -> None:
    slow, fast = open_run(runs[0]), open_run(runs[1])
    row = comparison.rows()[0]
    for index, (run, step) in enumerate(((slow, 3), (fast, 5))):
        assert row.filter_angle[index] == Spread.of(run.numbers("filter_angle", "conv1", step))
        for number in ("weight_change", "function_change", "mean_update_ratio", "dead_share", "cka_positions"):
            assert getattr(row, number)[index] == run.numbers(number, "conv1", step)[0]
        assert row.update_ratio == (None, None)
        assert row.noise[index] == noise_band(64, 4)
    early = comparison.rows(2)[0]
    assert early.filter_angle[1] == Spread.of(fast.numbers("filter_angle", "conv1", 2))
    assert early.shown_weights
    assert early.shown_outputs


def test_curves_hold_every_step_of_every_side(runs: tuple[Path, Path], comparison: Comparison) -> None:
    curves = comparison.curves()
    assert set(curves) == {
        *("function_change", "weight_change", "filter_angle", "mean_update_ratio", "dead_share", "cka_positions"),
        *("to_go", "function_distance", "weight_distance", "angle_between", "cka_between"),
        *("shown_function_distance", "shown_weight_distance", "shown_angle_between", "shown_cka_between"),
    }
    fast = open_run(runs[1])
    angles = curves["filter_angle"]["conv1"]
    assert [step for step, _ in angles["fast"]] == [*range(6)]
    expected = [np.median(fast.numbers("filter_angle", "conv1", step)) for step in range(6)]
    assert [value for _, value in angles["fast"]] == pytest.approx(expected)
    assert [step for step, _ in angles["slow"]] == [0, 1, 2, 3]
    assert [step for step, _ in curves["mean_update_ratio"]["conv1"]["fast"]] == [1, 2, 3, 4, 5]
    apart = curves["shown_weight_distance"]["conv2"]["fast"]
    assert [step for step, _ in apart] == [0, 1, 2, 3, 4, 5]
    assert apart[0][1] == 0
    assert apart[-1][1] == pytest.approx(comparison.rows()[1].weight_distance[0], rel=1e-6)  # everything is shown here
    assert [step for step, _ in curves["weight_distance"]["conv2"]["fast"]] == [0, 5]
    # Filters that move by the same amount each step; maps end at 0, so they are not as even.
    still_to_go = curves["to_go"]["conv1"]["fast"]
    assert [step for step, _ in still_to_go] == [*range(6)]
    assert (still_to_go[0][1], still_to_go[-1][1]) == pytest.approx((1, 0))
    assert [value for _, value in still_to_go] == sorted((value for _, value in still_to_go), reverse=True)


def test_half_way_is_the_step_from_which_on_half_of_the_way_was_to_go(tmp_path: Path) -> None:
    def one(step: int) -> tuple[Arrays, Arrays]:
        early, late = min(step, 1) * 4 + step, step  # jumps at first and creeps then; walks evenly
        return {"early": column(1, early), "late": column(1, late)}, {}

    c = compare(write_run(tmp_path / "run", one, steps=range(5)))
    early, late = c.rows()
    assert (early.half_way, late.half_way) == ((None, 1), (None, 2))
    assert [value for _, value in c.curves()["to_go"]["late"]["run"]] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert c.rows(1)[0].to_go[1] == pytest.approx(3 / 8)
    frozen = write_run(tmp_path / "frozen", lambda step: one(0), steps=(0, 1))
    assert compare(frozen).rows()[0].half_way == (None, None)


def column(*values: float) -> FloatArray:
    """Two filters `[2, 1, n, 1]` of these values."""
    return np.tile(np.array(values, np.float32)[:, None], (2, 1, 1, 1))


def test_the_sentence_names_the_layers_that_changed_most_and_least(tmp_path: Path) -> None:
    def one(step: int) -> tuple[Arrays, Arrays]:
        still = column(1, 0)
        turned = column(1, 0.05 * step)
        far = column(1, 3 * step)
        return {"first": turned, "second": still, "third": far}, {}

    run = write_run(tmp_path / "run", one, steps=(0, 1))
    assert compare(run).verdict() == (
        "third changed most: its weights by 300 %, its filters by 72 degrees; 1 of 3 layers did not change at all."
    )
    other = write_run(tmp_path / "other", lambda step: one(0), steps=(0, 1))
    assert compare(run, other).verdict() == (
        "third changed most in run: its weights by 300 %, its filters by 72 degrees; 1 of 3 layers did not change at "
        "all; in other no layer changed; third differs most from run to other (95 %)."
    )
    moving_all = write_run(
        tmp_path / "all", lambda step: ({k: v for k, v in one(step)[0].items() if k != "second"}, {})
    )
    assert (
        compare(moving_all)
        .verdict()
        .startswith("third changed most: its weights by 900 %, 60 times as much as first, its filters by 84 degrees")
    )


def test_the_output_on_the_probe_decides_not_the_weights(tmp_path: Path) -> None:
    at = moving(1, 0.1)

    def one(step: int) -> tuple[Arrays, Arrays]:
        filters, maps = at(step)
        return filters, {"conv1": maps["conv1"] * (1 + step), "conv2": at(0)[1]["conv2"]}

    said = compare(write_run(tmp_path / "run", one, steps=(0, 1))).verdict()
    assert said.startswith("conv1 changed most: its output on the probe by 1")
    assert said.endswith("; 1 of 2 layers did not change at all.")


def test_a_filter_near_zero_that_turns_round_does_not_lead_the_sentence(tmp_path: Path) -> None:
    start = {name: np.random.default_rng(i).standard_normal((32, 3, 3, 3)) for i, name in enumerate(("last", "middle"))}
    start["last"][7] *= 1e-4

    def one(step: int) -> tuple[Arrays, Arrays]:
        now = {name: array.astype(np.float32) for name, array in start.items()}
        if step:
            now["last"][7] *= -1
            now["middle"] *= np.float32(1.05)
        return now, {}

    c = compare(write_run(tmp_path / "last", one, steps=(0, 1)))
    assert c.verdict().startswith("middle changed most: its weights by 5.0 %")
    angle = c.rows()[0].filter_angle[1]
    assert angle is not None
    assert (angle.median, angle.left_out, angle.finite) == (0, 1, 31)


def test_frozen_layers_are_counted_and_exactly_zero(tmp_path: Path) -> None:
    def one(step: int) -> tuple[Arrays, Arrays]:
        frozen = {f"layer{i}": np.random.default_rng(i).standard_normal((4, 3, 3, 3)) for i in range(25)}
        head = np.random.default_rng(99).standard_normal((4, 3, 3, 3)) + step
        maps = {"layer0": np.random.default_rng(5).standard_normal((1, 4, 8, 8)), "head": np.ones((1, 4, 8, 8)) + step}
        return {k: np.float32(v) for k, v in {**frozen, "head": head}.items()}, {
            k: np.float32(v) for k, v in maps.items()
        }

    c = compare(write_run(tmp_path / "run", one, steps=(0, 1)))
    row = c.rows()[0]
    assert row.weight_change[1] == row.function_change[1] == 0
    assert row.cka_positions[1] == pytest.approx(1)
    assert row.filter_angle[1] == Spread(0, 0, 0, 0, 4)
    assert sum(row.weight_change[1] == 0 for row in c.rows()) == 25
    assert c.verdict().startswith("head changed most: its output on the probe by 100 %")
    assert "did not change at all" in c.verdict()


def test_a_verdict_has_at_most_two_lines_however_many_runs(tmp_path: Path) -> None:
    names = [f"a/very/long/name/of/a/run/number_{i}" for i in range(6)]
    folders = [write_run(tmp_path / name, moving(i, 0.1 + 0.1 * i), steps=(0, 1)) for i, name in enumerate(names)]
    for few in (1, 2, 3, 6):
        said = compare(*folders[:few]).verdict()
        assert re.match(r"conv\d changed most", said)
        assert len(said) <= 220, said


def test_runs_of_different_starts_have_no_distances_and_say_why(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    def elsewhere(step: int) -> tuple[Arrays, Arrays]:
        filters, maps = moving(3, 0.1)(step)
        rng = np.random.default_rng(77)
        return {k: np.float32(rng.standard_normal(v.shape) + 0.1 * step) for k, v in filters.items()}, maps

    c = compare(runs[0], write_run(tmp_path / "scratch", elsewhere))
    for row in c.rows():
        assert {row.weight_distance, row.function_distance} == {(None,)}
        assert row.angle_between == (None,)
        assert row.cka_between[0] is not None
        assert row.weight_change[1] is not None
    assert any("did not start from the same weights" in note for note in c.notes)
    assert not [name for name in c.curves() if name.endswith(("weight_distance", "angle_between", "function_distance"))]
    assert "A-B" not in " ".join(column for column in c.table().columns if not column.startswith("CKA"))
    assert "is least alike in slow and scratch (CKA 0." in c.verdict()
    assert len(c.verdict()) <= 220


def test_a_curve_and_a_table_have_one_name_for_one_value(tmp_path: Path) -> None:
    run, other = (write_run(tmp_path / str(seed), moving(seed, 0.2), max_filters=2) for seed in (1, 2))
    c = compare(run, other, f"{other}@1")  # not all filters are shown, and step 1 stores no more than these
    row, curves, label = c.rows()[0], c.curves(), c.sides[1].label
    for name in ("weight_distance", "angle_between", "function_distance", "cka_between"):
        (_, start), (step, end) = curves[name]["conv1"][label]
        value = getattr(row, name)[0]
        assert (step, end) == (3, value.median if isinstance(value, Spread) else value)
        shown = dict(curves[f"shown_{name}"]["conv1"][label])
        assert [*shown] == [0, 1, 2, 3]
        assert start == pytest.approx(shown[0], abs=1e-6)
        assert c.sides[2].label not in curves[name]["conv1"]
        assert [*dict(curves[f"shown_{name}"]["conv1"][c.sides[2].label])] == [0, 1, 2, 3]
    assert dict(curves["shown_weight_distance"]["conv1"][label])[3] != pytest.approx(row.weight_distance[0], rel=1e-4)
    assert row.shown_weights_between == row.shown_outputs_between == (False, True)
    columns = c.table().columns
    assert {"output A-B %", "turned A-B °", "CKA A-B", "shown output A-C %", "shown turned A-C °"} <= set(columns)
    assert json.loads(json.dumps(c.to_dict()))["layers"][0]["shown_weights_between"] == [False, True]
    assert "of what is shown" not in compare(run, other).verdict()
    assert re.search(r"differs most from .* to .* \([\d.]+ % of what is shown\)", compare(run, f"{other}@1").verdict())


def test_one_quantity_has_one_value_in_a_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", moving(1, 0.2), max_filters=2)  # what is shown differs from what is measured
    c = compare(f"{run}@baseline", run, f"{run}@1")
    row = c.rows()[0]
    assert (row.weight_distance, row.function_distance, row.cka_between) == ((None, None),) * 3
    assert not any(column.split()[1] == "A-B" for column in c.table().columns[1:])
    other = write_run(tmp_path / "other", moving(2, 0.2), max_filters=2)
    apart = compare(run, other).rows()[0]
    a, b = (moving(seed, 0.2)(3)[0]["conv1"].astype(np.float64) for seed in (1, 2))
    assert apart.weight_distance[0] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
    assert not apart.shown_weights
    assert not apart.shown_outputs


def test_layers_without_pictures_have_numbers(tmp_path: Path) -> None:
    def also(seed: int) -> Any:
        start, way = np.random.default_rng(8).standard_normal((10, 6)), np.random.default_rng(seed)
        to = way.standard_normal((10, 6))
        return lambda step: ({"fc": np.float32(start + step * to)}, {"fc": np.float32(np.eye(10, 10) * (1 + step))})

    a, b = (write_run(tmp_path / str(seed), moving(seed, 0.1), also=also(seed)) for seed in (1, 2))
    c = compare(a, b)
    assert [layer.name for layer in c.layers] == ["conv1", "conv2", "fc"]
    fc = c.layer("fc")
    assert not fc.has_filters
    assert not fc.has_maps
    assert c.shown(0, fc, "filters", 1) is None
    assert c.difference(fc, "filters", 1) is None
    row = c.rows()[2]
    assert row.filters == 10
    assert [*row.function_change] == pytest.approx([3, 3])
    assert row.function_distance[0] == 0
    expected = [also(seed)(3)[0]["fc"].astype(np.float64) for seed in (1, 2)]
    assert row.weight_distance[0] == pytest.approx(
        np.linalg.norm(expected[1] - expected[0]) / np.linalg.norm(expected[0]), rel=1e-6
    )
    assert row.half_way == (None, None)
    assert "fc changed most" in c.verdict()
    run = open_run(a)
    assert run.layers == ("conv1", "conv2")
    assert run.measured == ("conv1", "conv2", "fc")
    assert run.layer("fc").weight_shape is None
    assert len(run.over_steps("weight_change", "fc")) == 4
    with pytest.raises(ValueError, match="holds no filters of fc at step 3; they were not watched"):
        run.filters("fc")


def test_of_a_large_layer_some_filters_are_measured(tmp_path: Path) -> None:
    some = {"conv2": (1, 4), "fc": (0, 2, 3)}

    def also(step: int) -> tuple[Arrays, Arrays]:
        return {"fc": np.float32(np.random.default_rng(4).standard_normal((5, 6)) + 0.1 * step)}, {}

    large = write_run(tmp_path / "large", moving(1, 0.1), also=also, only=some)
    run = open_run(large)
    assert run.numbers("filter_angle", "conv2").shape == (2,)
    assert run.weights("last")[0]["fc"].shape == (3, 6)
    other = write_run(tmp_path / "other", moving(2, 0.1), also=lambda step: also(3 * step))
    for sides_of in ((large, other), (other, large)):
        c = compare(*sides_of)
        conv2 = c.rows()[1]
        a, b = (moving(seed, 0.1)(3)[0]["conv2"][[1, 4]].astype(np.float64) for seed in (1, 2))
        if sides_of[0] == other:
            a, b = b, a
        assert conv2.weight_distance[0] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
        assert conv2.angle_between[0] is not None
        assert conv2.angle_between[0].finite == 2
    fc = compare(large, other).rows()[2]
    a, b = (also(step)[0]["fc"][[0, 2, 3]].astype(np.float64) for step in (3, 9))
    assert fc.weight_distance[0] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
    _, seen = written(compare(large), tmp_path / "page.html")
    assert {channel for layer, channel, _ in seen.data["moved"][1] if layer == 1} == {1, 4}


def test_what_is_pictured_and_not_measured_stands_behind_the_layer_before_it(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", moving(1, 0.1), also=lambda step: ({"fc": np.eye(3, dtype="f4")}, {})))
    manifest = replace(
        run.manifest,
        layers=(run.manifest.layers[0], WatchedLayer("relu", "01_relu", "ReLU"), *run.manifest.layers[1:]),
    )
    found = Run(RunStore(run.path, manifest), "run")
    assert found.layers == ("conv1", "relu", "conv2")
    assert found.measured == ("conv1", "relu", "conv2", "fc")


def test_nothing_but_nan_has_no_number_and_stops_nothing(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    lost = fixed({"conv1": np.full((4, 3, 5, 5), np.nan)}, {"conv1": np.full((1, 4, 8, 8), np.nan)})
    start = fixed(*({"conv1": arrays["conv1"]} for arrays in moving(0, 0.1)(0)))
    c = compare(runs[0], write_run(tmp_path / "lost", lambda step: (lost if step else start)(step)))
    row = c.rows()[0]
    angle = row.angle_between[0]
    assert angle is not None
    assert (angle.finite, angle.left_out) == (0, 4)
    assert math.isnan(row.cka_between[0] or 0)
    assert math.isnan(row.weight_change[1] or 0)
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["layers"][0]["cka_between"] == [None]
    assert all(math.isnan(values[1] or 0) for values in (row.weight_change, row.function_change))
    assert math.isnan(row.weight_distance[0] or 0)
    assert "in lost every output of conv1 is NaN or infinite" in c.verdict()


@pytest.mark.filterwarnings("ignore:.*are NaN or infinite")
def test_what_was_left_out_of_an_earlier_step_is_not_counted_at_one_that_has_recovered(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    whole = model.get_parameter("0.weight").detach().clone()
    with cnnlog.watch(model, cnnlog.Probe.chart(32), tmp_path, tensorboard=False) as watcher:
        for step, broken in enumerate((False, True, False)):
            with torch.no_grad():
                model.get_parameter("0.weight").copy_(whole + 0.1 * step)
                if broken:
                    model.get_parameter("0.weight")[1:3] = float("nan")
            watcher.snapshot(step)
    c = compare(tmp_path)
    assert [(row.filters_left_out[1], row.channels_left_out[1]) for row in c.rows()] == [(0, 0), (0, 0)]
    assert [row.filters_left_out[1] for row in c.rows(1)] == [2, 0]


@pytest.mark.filterwarnings("ignore:.*are NaN or infinite")
def test_a_run_that_is_all_nan_does_not_read_like_one_that_stands_still(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with cnnlog.watch(model, cnnlog.Probe.chart(32), tmp_path, tensorboard=False) as watcher:
        watcher.snapshot(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        watcher.snapshot(1)
    assert "every output of all layers is NaN or infinite" in compare(tmp_path).verdict()


def test_a_layer_that_began_at_0_is_not_said_to_be_nan(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    with cnnlog.watch(model, cnnlog.Probe.chart(32), tmp_path, tensorboard=False) as watcher:
        watcher.snapshot(0)
        with torch.no_grad():
            model.get_parameter("2.weight").fill_(0.1)
        watcher.snapshot(1)
    said = compare(tmp_path).verdict()
    assert "NaN" not in said
    assert "No layer changed" not in said


def test_what_is_kept_for_to_go_meets_every_column() -> None:
    for shape in ((1, 64, 32, 32), (1, 64, 64, 64), (1, 10, 40, 40), (64, 3, 7, 7)):
        columns = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
        kept = settling._some_of(columns)
        assert set(kept.tolist()) == set(range(shape[-1])), shape
        assert kept.size <= 1024


def test_what_is_nan_is_left_out_of_a_value_and_counted_beside_it(tmp_path: Path) -> None:
    at = moving(1, 0.1)

    def broken(step: int) -> tuple[Arrays, Arrays]:
        filters, maps = at(step)
        if step:
            filters = {**filters, "conv2": filters["conv2"].copy()}
            filters["conv2"][[0, 3], 0, 1, 1] = np.nan
            maps = {**maps, "conv2": maps["conv2"].copy()}
            maps["conv2"][0, 5] = np.inf
        return filters, maps

    c = compare(write_run(tmp_path / "run", broken, steps=(0, 1)))
    row = c.rows()[1]
    first, last = (at(step)[0]["conv2"].astype(np.float64)[[1, 2, 4, 5]] for step in (0, 1))
    assert row.weight_change[1] == pytest.approx(np.linalg.norm(last - first) / np.linalg.norm(first), rel=1e-6)
    assert (row.filters_left_out[1], row.channels_left_out[1]) == (2, 1)
    assert row.filter_angle[1] is not None
    assert (row.filter_angle[1].finite, row.filter_angle[1].left_out) == (4, 2)
    cells = dict(zip(c.table().columns, c.table().rows[1], strict=True))
    assert cells["turned B °"].endswith(" (2 of 6 left out)")
    assert cells["output B %"].endswith(" (1 of 6 left out)")
    head, *lines = (line.split(",") for line in c.to_csv().splitlines())
    csv = dict(zip(head, lines[1], strict=True))
    assert (csv["filters_left_out_B"], csv["channels_left_out_B"], csv["filter_angle_B_left_out"]) == ("2", "1", "2")
    assert c.to_dict()["layers"][1]["filters_left_out"] == [0, 2]


def test_old_names_warn_and_give_what_can_be_derived(runs: tuple[Path, Path], comparison: Comparison) -> None:
    a, b = moving(0, 0.1)(3)[0]["conv1"], moving(1, 0.3)(5)[0]["conv1"]
    first = moving(1, 0.3)(0)[0]["conv1"]
    row, curves = comparison.to_dict()["layers"][0], comparison.curves()
    with pytest.warns(
        FutureWarning, match="'drift_cosine' is replaced by 'filter_angle'; it goes with the next release"
    ):
        assert row["drift_cosine"][1]["mean"] == pytest.approx(change(first, b).cosine.mean(), rel=1e-4)
    with pytest.warns(FutureWarning, match="'drift_l2' is replaced by 'weight_change'"):
        assert row["drift_l2"][1]["median"] == pytest.approx(np.median(change(first, b).l2), rel=1e-4)
    with pytest.warns(FutureWarning, match="'distance_cosine' is replaced by 'angle_between'"):
        assert row["distance_cosine"][0]["mean"] == pytest.approx(change(a, b).cosine.mean(), rel=1e-4)
    with pytest.warns(FutureWarning, match="'drift_cosine'"):
        assert [step for step, _ in curves["drift_cosine"]["conv1"]["slow"]] == [0, 1, 2, 3]
    with pytest.warns(FutureWarning, match="'distance_l2' is replaced by 'shown_weight_distance'"):
        assert curves["distance_l2"]["conv1"]["fast"][0] == (0, 0.0)
    with pytest.raises(KeyError, match="'update_l2' is no longer measured; take 'update_ratio'"):
        row["update_l2"]
    with pytest.raises(KeyError, match="nothing"):
        row["nothing"]
    written = json.dumps(comparison.to_dict())
    assert not [name for name in ("drift", "cosine", '"cka"', "update_l2") if name in written]


def test_the_warning_of_an_old_name_names_the_readers_line(comparison: Comparison) -> None:
    row, curves = comparison.to_dict()["layers"][0], comparison.curves()
    for ask in (lambda: row["drift_l2"], lambda: row.get("drift_l2"), lambda: curves.get("drift_l2", {})):
        with pytest.warns(FutureWarning, match="'drift_l2' is replaced") as warned:
            assert ask()
        assert [warning.filename for warning in warned] == [__file__]
    assert row.get("update_l2", "nothing") == row.get("none", "nothing") == "nothing"
    assert row.get("layer") == "conv1"


def test_tables_and_curves_have_the_numbers_of_a_run_in_their_order() -> None:
    assert tuple(column.number for column in rows.OF_A_SIDE) == (*SHOWN, "half_way")


def test_plain_values_can_be_pickled_and_copied(comparison: Comparison) -> None:
    values = comparison.to_dict()
    for copied in (pickle.loads(pickle.dumps(values)), copy.deepcopy(values)):
        assert json.dumps(copied) == json.dumps(values)
        assert copied["layers"][0] is not values["layers"][0]
        assert type(copied["layers"][0]) is type(copied["curves"]) is dict


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00994, "0.0099"),
        (0.00999, "0.010"),
        (0.0994, "0.099"),
        (0.0999, "0.10"),
        (0.994, "0.99"),
        (0.999, "1.0"),
        (9.94, "9.9"),
        (9.99, "10"),
        (99.4, "99"),
        (99.9, "100"),
        (999.6, "1,000"),
        (1234, "1,200"),
    ],
)
def test_what_a_verdict_says_has_two_digits(value: float, text: str) -> None:
    assert verdict.percent(value / 100) == f"{text} %"
    if value >= 2.05:
        assert verdict.times(value) == f"{text} times as much"


def test_old_numbers_of_a_run_warn_and_give_what_can_be_derived(runs: tuple[Path, Path]) -> None:
    run = open_run(runs[1])
    first, last = moving(1, 0.3)(0)[0]["conv2"], moving(1, 0.3)(5)[0]["conv2"]
    expected = change(first, last)
    with pytest.warns(FutureWarning, match="'cosine' is replaced by 'filter_angle', the angle in degrees"):
        np.testing.assert_allclose(run.numbers("cosine", "conv2"), expected.cosine, rtol=1e-4)
    with pytest.warns(FutureWarning, match="'l2' is replaced by 'weight_change'"):
        np.testing.assert_allclose(run.numbers("l2", "conv2"), expected.l2, rtol=1e-4)
    with (
        pytest.warns(FutureWarning, match="'update' is replaced"),
        pytest.raises(ValueError, match="no 'update' of conv2 at step 5; take 'update_ratio' and 'mean_update_ratio'"),
    ):
        run.numbers("update", "conv2")
    with (
        pytest.warns(FutureWarning, match="'cka' is replaced by 'cka_positions', which is debiased"),
        pytest.raises(ValueError, match="take 'cka_positions'"),
    ):
        run.numbers("cka", "conv2")
    with pytest.warns(
        FutureWarning, match=r"run\.drift\('cosine'\) is replaced by run\.over_steps\(\), with 'filter_angle'"
    ):
        table = run.drift()
    assert list(table.columns) == ["step", "layer", "mean", "lower_quartile", "median", "upper_quartile"]
    assert list(table["mean"])[-1] == pytest.approx(expected.cosine.mean(), rel=1e-4)


# --- differences


def test_a_difference_is_the_second_side_minus_the_first(comparison: Comparison) -> None:
    for kind, index in (("filters", 0), ("feature_maps", 1)):
        expected = moving(1, 0.3)(4)[index]["conv1"] - moving(0, 0.1)(3)[index]["conv1"]
        found = comparison.difference(comparison.layer("conv1"), kind, 4)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)


def test_feature_maps_of_different_probes_have_no_difference(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    c = compare(runs[0], write_run(tmp_path / "other", moving(1, 0.1), probe="another"))
    assert c.difference(c.layer("conv1"), "feature_maps", 1) is None
    assert c.shown(1, c.layer("conv1"), "feature_maps", 1) is not None
    assert c.rows()[0].cka_between == (None,)
    assert any("slow and other are of different probes" in note for note in c.notes)


# --- damage


def test_a_truncated_step_is_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", steps=range(5))
    for step in (2, 4):
        file = folder / "cnnlog" / f"step-{step:08d}.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    c = compare(folder)
    assert c.steps == (0, 1, 3)
    assert sum("skipped: " in note and "is truncated" in note for note in c.notes) == 2
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [row[0] for row in open_run(folder).over_steps("filter_angle", "conv1").rows[::4]] == [0, 1, 3]
    pinned = compare(f"{folder}@last")
    assert pinned.sides[1].step == 3
    with pytest.raises(ValueError, match=r"step-00000002\.safetensors is truncated"):
        compare(f"{folder}@2")


def test_without_whole_weights_the_shown_filters_stand_in(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    folder = write_run(tmp_path / "run", moving(1, 0.1), max_filters=2)
    for name in ("weights-latest", "outputs-latest"):
        (folder / "cnnlog" / f"{name}.safetensors").write_bytes(b"not much")
    c = compare(write_run(tmp_path / "other", max_filters=2), folder)
    (row, _) = c.rows()
    first, last = (moving(seed, 0.1)(3)[0]["conv1"].astype(np.float64)[:2] for seed in (0, 1))
    assert row.shown_weights
    assert row.shown_outputs
    assert row.weight_distance[0] == pytest.approx(np.linalg.norm(last - first) / np.linalg.norm(first), rel=1e-5)
    assert any("skipped: " in note and "weights-latest" in note for note in c.notes)
    assert any("are of the shown feature maps of conv1, conv2: all are stored at" in note for note in c.notes)


def test_steps_are_read_once_each_and_few_are_kept(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[tuple[str, int, bool], int] = {}
    read = RunStore.read_record

    def counted(self: RunStore, step: int, *, numbers_only: bool = False) -> Any:
        key = (self.folder, step, numbers_only)
        counts[key] = counts.get(key, 0) + 1
        return read(self, step, numbers_only=numbers_only)

    monkeypatch.setattr(RunStore, "read_record", counted)
    a, b = write_run(tmp_path / "a", steps=range(30)), write_run(tmp_path / "b", moving(1, 0.1), steps=range(30))
    counts.clear()
    c = compare(a, b)
    c.measure()
    c.to_dict()
    for (_, _, numbers_only), count in counts.items():
        assert count <= (1 if numbers_only else 2)  # to find the damaged ones; to compare, and the last for the table
    for side in c.sides:
        assert isinstance(side.run, Run)
        assert len(side.run._records) <= 4


def test_no_step_is_read_for_what_was_never_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = moving(0, 0.1)
    run = open_run(write_run(tmp_path / "run", lambda step: (at(step)[0], {}), steps=range(20)))
    assert run.holding("conv1", "filters", 12) == 12
    monkeypatch.setattr(RunStore, "read_record", lambda *args, **kwargs: pytest.fail("read"))
    assert run.holding("conv1", "feature_maps", 19) is None
    assert run.holding("conv9", "filters", 19) is None


# --- text


def test_text_json_and_csv_hold_the_same_numbers(comparison: Comparison) -> None:
    held = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    lines = [line.split(",") for line in comparison.to_csv().splitlines()]
    by_layer = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}
    table = comparison.table()
    for row, layer in zip(table.rows, held["layers"], strict=True):
        cells = dict(zip(table.columns, row, strict=True))
        csv = by_layer[layer["layer"]]
        assert cells["layer"] == layer["layer"]
        for column, part, number, times in (
            ("output B %", layer["function_change"][1], "function_change_B", 100),
            ("turned B °", layer["filter_angle"][1]["median"], "filter_angle_B_median", 1),
            ("turned A-B °", layer["angle_between"][0]["median"], "angle_between_B_median", 1),
            ("output A-B %", layer["function_distance"][0], "function_distance_B", 100),
            ("CKA A-B", layer["cka_between"][0], "cka_between_B", 1),
        ):
            assert cells[column] == times * part == pytest.approx(times * float(csv[number]))
        assert csv["filters"] == str(layer["filters"])
    assert held["format"] == "cnnlog-comparison"
    assert held["steps"] == [0, 1, 2, 3, 4, 5]
    assert [side["step"] for side in held["sides"]] == [3, 5]
    assert held["curves"]["weight_change"]["conv1"]["slow"][0] == [0, 0]
    assert held["version"] == 2


def test_the_terminal_shows_an_aligned_table_and_the_sentence(comparison: Comparison) -> None:
    lines = comparison.to_text().splitlines()
    assert lines[:2] == ["A: slow (step 3, held there)", "B: fast (step 5)"]
    head, rule, *rows = lines[3:7]
    assert head.split("  ")[0] == "layer"
    assert "output A-B %" in head
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert lines[-1] == comparison.verdict()
    assert max(map(len, lines[7:-1])) <= 100
    assert len(head) <= 130


def test_three_sides_are_each_compared_with_the_first(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    third = write_run(tmp_path / "third", moving(2, 0.2))
    c = compare(*runs, third)
    row = c.rows()[0]
    assert len(row.filter_angle) == 3
    assert row.angle_between[0] == compare(*runs).rows()[0].angle_between[0]
    assert row.angle_between[1] == compare(runs[0], f"{third}@last").rows()[0].angle_between[0]
    columns = c.table().columns
    assert columns[1:4] == ("output A %", "output B %", "output C %")
    assert {"output A-B %", "output A-C %"} <= set(columns)


# --- without torch


def test_stored_runs_are_compared_without_torch(runs: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['lightning'] = None\n"
        "import cnnlog, pathlib\n"
        "from cnnlog.reports.tensorboard_run import write_board\n"
        f"c = cnnlog.compare({str(runs[0])!r}, {str(runs[1])!r})\n"
        f"write_board(c, pathlib.Path({str(tmp_path / 'board')!r}))\n"
        f"cnnlog.open_run({str(runs[0])!r}).figure('conv1')\n"
        "print(c.verdict())\n"
        f"try: cnnlog.compare({str(runs[0])!r}, 'weights.pt')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    verdict, refusal = done.stdout.splitlines()
    assert re.match(r"conv\d changed most in fast: its output on the probe by", verdict)
    assert refusal.startswith("weights.pt is weights, and reading them needs torch and torchvision")


def test_the_public_function_stays_a_function() -> None:
    code = (
        "import cnnlog; a = cnnlog.compare; import cnnlog.comparison.comparison; "
        "print(a is cnnlog.compare, callable(a))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (kinds, matching, messages, rows, verdict, spread_module, steps_module, table_module):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0


def test_every_file_that_weights_are_read_from_may_be_a_side() -> None:
    assert set(sides.WEIGHT_SUFFIXES) == set(files.SUFFIXES)


def test_cka_that_noise_gives_is_said_to_be_noise(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    def noise(step: int) -> tuple[Arrays, Arrays]:
        drawn = np.random.default_rng(50 + step).standard_normal(MAPS["conv2"]).astype(np.float32)
        return moving(0, 0.1)(step)[0], {**moving(0, 0.1)(step)[1], "conv2": drawn}

    c = compare(write_run(tmp_path / "noise", noise, steps=(0, 1)))
    row = c.rows()[1]
    assert row.noise[1] is not None
    assert abs(row.cka_positions[1] or 0) <= row.noise[1]
    assert c.table().rows[1][c.table().columns.index("CKA B")].endswith(" (noise)")
    assert c.verdict().startswith("conv2 changed most: its output on the probe by 1")
    assert c.verdict().endswith(", and its CKA is within what noise of that shape gives.")

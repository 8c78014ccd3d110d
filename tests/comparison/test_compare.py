"""Stored runs and weights side by side: what is aligned with what, and numbers that are right."""

from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stored_runs import MAPS, Arrays, moving, write_run

import cnnlog
from cnnlog import kinds, messages
from cnnlog.comparison import matching, sides
from cnnlog.comparison.comparison import Comparison, compare
from cnnlog.comparison.matching import align
from cnnlog.models import files
from cnnlog.runs import spread as spread_module
from cnnlog.runs import steps as steps_module
from cnnlog.runs import table as table_module
from cnnlog.runs.finding import open_run
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
    with pytest.raises(ValueError, match=r"slow has no 'loss' of conv1 at step 3; it has cosine, l2, update"):
        run.numbers("loss", "conv1")
    with pytest.raises(ValueError, match="measure must be one of cosine, l2, update"):
        run.drift("loss")  # type: ignore[arg-type]
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
    table = run.drift("cosine")
    assert isinstance(table, Table)
    assert table.columns == ("step", "layer", "mean", "lower_quartile", "median", "upper_quartile")
    assert table.rows == ((0, "conv", 0, 0, 0, 0), (1, "conv", 0.5, 0.25, 0.5, 0.75))
    assert run.drift("cosine", "conv").rows == ((0, 0, 0.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0))
    assert run.drift("l2").rows[1][2] == pytest.approx(math.sqrt(2) / 2)
    assert run.drift("update").rows == run.drift("l2").rows[1:]  # there is no update before the first
    with pytest.raises(ValueError, match="run has no 'cka' of any layer"):
        run.drift("cka")
    lines = str(table).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["0", "conv", "0", "0", "0", "0"],
        ["1", "conv", "0.500", "0.250", "0.500", "0.750"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_table_is_a_data_frame_where_pandas_is_installed(runs: tuple[Path, Path]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = open_run(runs[0]).drift("dead_share")
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["step", "layer", "mean", "lower_quartile", "median", "upper_quartile"]
    assert list(table["step"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(table["layer"]) == ["conv1", "conv2"] * 4
    assert table["mean"].dtype == float
    assert table["mean"].between(0, 1).all()


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
    for html in (run._repr_html_(), compare(run)._repr_html_(), run.drift()._repr_html_()):
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
    assert c.rows()[0].cka[1] is not None


def test_one_run_alone_is_compared_with_its_baseline(runs: tuple[Path, Path]) -> None:
    c = compare(runs[0])
    assert [side.label for side in c.sides] == ["slow@baseline", "slow"]
    assert [c.step_of(0, step) for step in c.steps] == [0, 0, 0, 0]
    assert [c.step_of(1, step) for step in c.steps] == [0, 1, 2, 3]
    for row in c.rows():  # what lies between them is the drift
        assert row.distance_cosine[0] is not None
        assert row.drift_cosine[1] is not None
        assert row.distance_cosine[0].median == pytest.approx(row.drift_cosine[1].median, rel=1e-5)
        assert row.cka_between[0] == pytest.approx(row.cka[1], rel=1e-5)
        assert row.drift_cosine[0] is not None
        assert row.drift_cosine[0].mean == 0
    assert c.verdict().startswith("Between slow@baseline and slow, conv1 moved most (cosine distance 0.0")
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
    assert all(row.distance_cosine[0] is not None for row in c.rows())


def test_what_a_side_lacks_is_listed_and_not_fatal(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    other = fixed({"conv2": np.ones((6, 4, 3, 3)), "extra": np.ones((2, 3, 3, 3))}, {"conv2": np.ones(MAPS["conv2"])})
    c = compare(runs[0], write_run(tmp_path / "other", other))
    assert [(layer.name, layer.tag, layer.names) for layer in c.layers] == [
        ("conv1", "00_conv1", ("conv1", None)),
        ("conv2", "01_conv2", ("conv2", "conv2")),
        ("extra", "02_extra", (None, "extra")),
    ]
    assert {"slow lacks extra", "other lacks conv1"} <= set(c.notes)
    assert c.rows()[0].distance_cosine == (None,)
    assert c.table().rows[0][3:5] == (None, None)
    assert c.layers[2].has_filters
    assert not c.layers[2].has_maps


def test_layers_of_unlike_shapes_have_no_distance_and_this_is_said(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    head = fixed({"conv1": np.ones((4, 3, 5, 5)), "conv2": np.ones((9, 4, 3, 3))})
    c = compare(runs[0], write_run(tmp_path / "other", head))
    assert c.rows()[1].distance_cosine == (None,)
    assert c.difference(c.layer("conv2"), "filters", 0) is None
    assert "conv2 has 6x4x3x3 filters in slow and 9x4x3x3 in other, so there is no distance" in c.notes


def test_no_layer_in_common_is_refused_with_the_names(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    other = write_run(tmp_path / "other", fixed({"stem": np.ones((2, 3, 3, 3))}))
    with pytest.raises(ValueError, match="no layer in common: slow has conv1, conv2; other has stem"):
        compare(runs[0], other)


# --- numbers


def test_distances_worked_by_hand(tmp_path: Path) -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]).reshape(4, 1, 2, 1)
    b = np.array([[4.0, -3.0], [3.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]).reshape(4, 1, 2, 1)

    def moved(step: int) -> tuple[Arrays, Arrays]:
        return {"conv": (b if step else a).astype(np.float32)}, {}

    c = compare(write_run(tmp_path / "a", fixed({"conv": a})), write_run(tmp_path / "b", moved))
    (row,) = c.rows()
    cosine, l2 = row.distance_cosine[0], row.distance_l2[0]
    assert cosine is not None
    assert (cosine.mean, cosine.lower, cosine.median, cosine.upper) == pytest.approx(
        (0.75, 0, 0.5, 1.25)
    )  # of 1, 0, 0, 2
    assert l2 is not None
    assert l2.mean == pytest.approx((math.sqrt(50) / 5 + 2 + 0 + 2) / 4)
    assert not row.shown_only


def test_relative_l2_is_relative_to_the_first_side_and_cosine_is_symmetric(runs: tuple[Path, Path]) -> None:
    one, two = compare(*runs).rows(), compare(*runs[::-1]).rows()
    filters = [moving(0, 0.1)(3)[0]["conv1"], moving(1, 0.3)(5)[0]["conv1"]]
    a, b = (f.reshape(4, -1).astype(np.float64) for f in filters)
    apart = np.linalg.norm(b - a, axis=1)
    for row, length in ((one[0], np.linalg.norm(a, axis=1)), (two[0], np.linalg.norm(b, axis=1))):
        assert row.distance_l2[0] is not None
        assert row.distance_l2[0].mean == pytest.approx(float((apart / length).mean()), rel=1e-6)
    for there, back in zip(one, two, strict=True):
        assert there.distance_cosine[0] is not None
        assert back.distance_cosine[0] is not None
        assert there.distance_cosine[0].mean == pytest.approx(back.distance_cosine[0].mean, rel=1e-9)
        assert there.cka_between[0] == pytest.approx(back.cka_between[0], rel=1e-9)


def test_alike_runs_are_not_apart(runs: tuple[Path, Path]) -> None:
    c = compare(runs[0], runs[0])
    for row in c.rows():
        assert row.distance_cosine[0] == Spread(0, 0, 0, 0, row.filters or 0)
        assert row.distance_l2[0] == Spread(0, 0, 0, 0, row.filters or 0)
        assert row.cka_between[0] == pytest.approx(1)
    assert not any(np.any(c.difference(layer, "filters", 2)) for layer in c.layers)
    assert compare(f"{runs[0]}@1", f"{runs[0]}@1").verdict().endswith("no layer moved.")


def test_longer_filters_are_at_the_same_angle(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    c = compare(runs[0], write_run(tmp_path / "longer", moving(0, 0.1, scale=3.0)))
    for row in c.rows():
        assert row.distance_cosine[0] is not None
        assert row.distance_cosine[0].mean == pytest.approx(0, abs=1e-12)
        assert row.distance_l2[0] is not None
        assert row.distance_l2[0].mean == pytest.approx(2, rel=1e-6)


def test_cka_between_the_sides_is_that_of_the_gram_matrices(comparison: Comparison) -> None:
    x, y = (
        moving(seed, amount)(step)[1]["conv2"][0].reshape(6, -1).T.astype(np.float64)
        for seed, amount, step in ((0, 0.1, 3), (1, 0.3, 5))
    )
    centre = np.eye(16) - 1 / 16
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert comparison.rows()[1].cka_between[0] == pytest.approx(expected, rel=1e-6)


def test_own_numbers_are_those_stored_at_each_sides_own_step(runs: tuple[Path, Path], comparison: Comparison) -> None:
    slow, fast = open_run(runs[0]), open_run(runs[1])
    row = comparison.rows()[0]
    for index, (run, step) in enumerate(((slow, 3), (fast, 5))):
        assert row.drift_cosine[index] == Spread.of(run.numbers("cosine", "conv1", step))
        assert row.drift_l2[index] == Spread.of(run.numbers("l2", "conv1", step))
        assert row.update_l2[index] == Spread.of(run.numbers("update", "conv1", step))
        assert row.dead_share[index] == run.numbers("dead_share", "conv1", step)[0]
        assert row.cka[index] == run.numbers("cka", "conv1", step)[0]
    early = comparison.rows(2)[0]
    assert early.drift_cosine[1] == Spread.of(fast.numbers("cosine", "conv1", 2))
    assert early.shown_only


def test_curves_hold_every_step_of_every_side(runs: tuple[Path, Path], comparison: Comparison) -> None:
    curves = comparison.curves()
    assert set(curves) == {
        *("drift_cosine", "drift_l2", "update_l2", "dead_share", "cka"),
        *("distance_cosine", "distance_l2", "cka_between"),
    }
    fast = open_run(runs[1])
    drift = curves["drift_cosine"]["conv1"]
    assert [step for step, _ in drift["fast"]] == [*range(6)]
    expected = [fast.numbers("cosine", "conv1", step).mean() for step in range(6)]
    assert [value for _, value in drift["fast"]] == pytest.approx(expected)
    assert [step for step, _ in drift["slow"]] == [0, 1, 2, 3]
    assert [step for step, _ in curves["update_l2"]["conv1"]["fast"]] == [1, 2, 3, 4, 5]
    apart = curves["distance_cosine"]["conv2"]["fast"]
    assert [step for step, _ in apart] == [0, 1, 2, 3, 4, 5]
    assert apart[0][1] == 0
    assert apart[-1][1] == pytest.approx(comparison.table().rows[1][4], rel=1e-6)  # everything is shown here


def column(*values: float) -> FloatArray:
    """Two filters `[2, 1, n, 1]` of these values."""
    return np.tile(np.array(values, np.float32)[:, None], (2, 1, 1, 1))


def test_the_sentence_names_the_layers_that_moved_most_and_least(tmp_path: Path) -> None:
    def one(step: int) -> tuple[Arrays, Arrays]:
        still = column(1, 0)
        turned = column(1, 0.5 * step)
        far = column(1, 3 * step)
        return {"first": turned, "second": still, "third": far}, {}

    run = write_run(tmp_path / "run", one, steps=(0, 1))
    cosine = 1 - 1 / math.sqrt(10)
    said = f"third moved most (cosine distance {cosine:.3g}) and second least (0)"
    assert compare(run).verdict() == f"Between run@baseline and run, {said}."
    other = write_run(tmp_path / "other", lambda step: one(0), steps=(0, 1))
    assert compare(run, other).verdict() == (
        f"In run, {said}; in other, no layer moved; between run and other, "
        f"third differs most (cosine distance {cosine:.3g}) and second least (0)."
    )


def test_nothing_but_nan_has_no_number_and_stops_nothing(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    lost = fixed({"conv1": np.full((4, 3, 5, 5), np.nan)}, {"conv1": np.full((1, 4, 8, 8), np.nan)})
    start = fixed(*({"conv1": arrays["conv1"]} for arrays in moving(0, 0.1)(0)))
    c = compare(runs[0], write_run(tmp_path / "lost", lambda step: (lost if step else start)(step)))
    row = c.rows()[0]
    assert row.distance_cosine[0] is not None
    assert row.distance_cosine[0].finite == 0
    assert math.isnan(row.cka_between[0] or 0)
    assert "no number says how far the layers are apart" in c.verdict()
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["layers"][0]["cka_between"] == [None]


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
    assert [row[0] for row in open_run(folder).drift("cosine", "conv1").rows[::4]] == [0, 1, 3]
    pinned = compare(f"{folder}@last")
    assert pinned.sides[1].step == 3
    with pytest.raises(ValueError, match=r"step-00000002\.safetensors is truncated"):
        compare(f"{folder}@2")


def test_without_whole_weights_the_shown_filters_stand_in(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", max_filters=2)
    (folder / "cnnlog" / "weights-latest.safetensors").write_bytes(b"not much")
    c = compare(folder)
    (row, _) = c.rows()
    first, last = (moving(0, 0.1)(step)[0]["conv1"].reshape(4, -1).astype(np.float64)[:2] for step in (0, 3))
    cosine = 1 - (first * last).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(last, axis=1)
    assert row.shown_only
    assert row.distance_cosine[0] is not None
    assert row.distance_cosine[0].mean == pytest.approx(cosine.mean(), rel=1e-5)
    assert any("skipped: " in note and "weights-latest" in note for note in c.notes)


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
        for column, part, number in (
            ("drift B", layer["drift_cosine"][1]["mean"], "drift_cosine_B_mean"),
            ("A to B", layer["distance_cosine"][0]["mean"], "distance_cosine_B_mean"),
            ("dead A", layer["dead_share"][0], "dead_share_A"),
            ("CKA A-B", layer["cka_between"][0], "cka_between_B"),
        ):
            assert cells[column] == part == float(csv[number])
        assert csv["filters"] == str(layer["filters"])
    assert held["format"] == "cnnlog-comparison"
    assert held["steps"] == [0, 1, 2, 3, 4, 5]
    assert [side["step"] for side in held["sides"]] == [3, 5]
    assert held["curves"]["drift_cosine"]["conv1"]["slow"][0] == [0, 0]


def test_the_terminal_shows_an_aligned_table_and_the_sentence(comparison: Comparison) -> None:
    lines = comparison.to_text().splitlines()
    assert lines[:2] == ["A: slow (step 3, held there)", "B: fast (step 5)"]
    head, rule, *rows = lines[3:7]
    assert head.split("  ")[0] == "layer"
    assert "A to B" in head
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert lines[-1] == comparison.verdict()
    assert max(map(len, lines[:-1])) <= 100


def test_three_sides_are_each_compared_with_the_first(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    third = write_run(tmp_path / "third", moving(2, 0.2))
    c = compare(*runs, third)
    row = c.rows()[0]
    assert len(row.drift_cosine) == 3
    assert row.distance_cosine[0] == compare(*runs).rows()[0].distance_cosine[0]
    assert row.distance_cosine[1] == compare(runs[0], f"{third}@last").rows()[0].distance_cosine[0]
    columns = c.table().columns
    assert columns[2:7] == ("drift A", "drift B", "drift C", "A to B", "A to C")
    assert "between slow and third" in c.verdict()


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
    assert verdict.startswith("In slow, conv1 moved most")
    assert refusal.startswith("weights.pt is weights, and reading them needs torch and torchvision")


def test_the_public_function_stays_a_function() -> None:
    code = (
        "import cnnlog; a = cnnlog.compare; import cnnlog.comparison.comparison; "
        "print(a is cnnlog.compare, callable(a))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (kinds, matching, messages, spread_module, steps_module, table_module):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0


def test_every_file_that_weights_are_read_from_may_be_a_side() -> None:
    assert set(sides.WEIGHT_SUFFIXES) == set(files.SUFFIXES)

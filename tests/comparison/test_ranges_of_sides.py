"""What colours mean between sides: one range over all steps and sides, and no difference where it means nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stored_runs import Arrays, moving, write_run

from cnnlog.comparison.comparison import Comparison, compare
from cnnlog.comparison.pictures import pictures
from cnnlog.kinds import Kind
from cnnlog.rendering.ranges import Limits
from cnnlog.runs.finding import open_run
from cnnlog.runs.store import RunStore

SLOW, FAST = moving(0, 0.1), moving(1, 0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "slow", SLOW), write_run(folder / "fast", FAST, steps=range(6))


def limits(comparison: Comparison, side: int, layer: str, kind: Any, step: int) -> Limits:
    found = comparison.limits(side, comparison.layer(layer), kind, step)
    assert found is not None
    return found


def peaks(*arrays: np.ndarray) -> np.ndarray:
    return np.max([np.abs(array.reshape(len(array), -1)).max(axis=1) for array in arrays], axis=0)


def test_a_range_covers_all_steps_of_all_sides(runs: tuple[Path, Path]) -> None:
    comparison = compare(*runs)
    expected = peaks(*(SLOW(step)[0]["conv1"] for step in range(4)), *(FAST(step)[0]["conv1"] for step in range(6)))
    for side in range(2):
        for step in range(6):
            np.testing.assert_array_equal(limits(comparison, side, "conv1", "filters", step).high, expected)
    maps = peaks(*(SLOW(step)[1]["conv2"][0] for step in range(4)), *(FAST(step)[1]["conv2"][0] for step in range(6)))
    found = limits(comparison, 0, "conv2", "feature_maps", 0)
    np.testing.assert_array_equal(found.high, maps)
    assert not found.symmetric


def test_own_ranges_cover_all_steps_of_one_side(runs: tuple[Path, Path]) -> None:
    comparison = compare(*runs, ranges="own")
    for side, at, steps in ((0, SLOW, 4), (1, FAST, 6)):
        expected = peaks(*(at(step)[0]["conv1"] for step in range(steps)))
        for step in (0, 5):
            np.testing.assert_array_equal(limits(comparison, side, "conv1", "filters", step).high, expected)
    with pytest.raises(ValueError, match="ranges must be 'shared' or 'own'; got 'mine'"):
        compare(*runs, ranges="mine")  # type: ignore[arg-type]


def test_a_pinned_side_brings_its_one_step(runs: tuple[Path, Path]) -> None:
    comparison = compare(f"{runs[0]}@1", f"{runs[1]}@2")
    expected = peaks(SLOW(1)[0]["conv1"], FAST(2)[0]["conv1"])
    np.testing.assert_array_equal(limits(comparison, 0, "conv1", "filters", 2).high, expected)


def test_a_side_that_is_below_0_anywhere_changes_the_palette_of_all(tmp_path: Path) -> None:
    def below(step: int) -> tuple[Arrays, Arrays]:
        filters, maps = FAST(step)
        return filters, {name: array - (1 if step == 2 else 0) for name, array in maps.items()}

    comparison = compare(write_run(tmp_path / "a", SLOW), write_run(tmp_path / "b", below), ranges="own")
    assert all(limits(comparison, side, "conv1", "feature_maps", 0).symmetric for side in range(2))


def test_sides_of_other_shapes_share_no_range(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    def wider(step: int) -> tuple[Arrays, Arrays]:
        filters, maps = FAST(step)
        return {**filters, "conv2": 9 * np.ones((6, 5, 3, 3), np.float32)}, maps

    comparison = compare(runs[0], write_run(tmp_path / "wider", wider), runs[1])
    alone = compare(runs[0], runs[1])
    for side, other in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(
            limits(comparison, side, "conv2", "filters", 0).high, limits(alone, other, "conv2", "filters", 0).high
        )
    np.testing.assert_array_equal(limits(comparison, 1, "conv2", "filters", 0).high, np.full(6, 9))
    conv2 = comparison.layer("conv2")
    assert comparison.why_no_difference(1, conv2, "filters") == "their shapes are not the same"
    assert comparison.why_no_difference(2, conv2, "filters") == ""


def test_one_range_for_the_layer_where_the_run_has_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SLOW)
    manifest = folder / "cnnlog" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["settings"]["filters"]["value_range"] = "layer"
    manifest.write_text(json.dumps(facts))
    comparison = compare(folder)
    top = max(float(np.abs(SLOW(step)[0]["conv1"]).max()) for step in range(4))
    np.testing.assert_array_equal(limits(comparison, 1, "conv1", "filters", 1).high, np.full(4, top, np.float32))
    np.testing.assert_array_equal(open_run(folder).limits_over_steps("conv1", "filters").high, np.full(4, top))


# --- differences


def test_differences_of_a_row_share_one_range(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    near = write_run(tmp_path / "near", moving(2, 0.0003), steps=range(4))
    comparison = compare(runs[0], runs[1], near)
    conv1 = comparison.layer("conv1")
    largest = float(limits(comparison, 0, "conv1", "filters", 0).high.max())
    gain = comparison.gain(conv1, "filters")
    assert gain in (1, 4, 16, 64)
    for side in (1, 2):
        for step in (0, 3, 5):
            found = comparison.difference_limits(conv1, "filters", step, side)
            assert found is not None
            np.testing.assert_array_equal(found.high, np.full(4, np.float32(largest / gain)))
    beyond = [
        (np.abs(change[change != 0]) > largest / gain).mean()
        for side in (1, 2)
        for step in (3, 5)
        if (change := comparison.difference(conv1, "filters", step, side)) is not None
    ]
    assert np.mean(beyond) < 0.02
    small = compare(write_run(tmp_path / "same", moving(2, 0), steps=range(4)), near)
    assert small.gain(small.layer("conv1"), "filters") == 64


def test_the_ranges_do_not_depend_on_who_asks_when(runs: tuple[Path, Path]) -> None:
    forward, backward = compare(*runs), compare(*runs)
    for step in forward.steps:
        forward.limits(1, forward.layer("conv2"), "filters", step)
    backward.rows()
    for kind in Kind:
        one, other = forward.layer("conv2"), backward.layer("conv2")
        first, second = forward.limits(0, one, kind, 0), backward.limits(0, other, kind, 5)
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.high, second.high)
        assert forward.gain(one, kind) == backward.gain(other, kind)


def test_ranges_and_distances_are_found_in_one_pass(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare(*runs)
    read, whole = RunStore.read_record, []

    def counted(self: RunStore, step: int, *, numbers_only: bool = False) -> Any:
        whole.append((self.folder, step))
        return read(self, step, numbers_only=numbers_only)

    monkeypatch.setattr(RunStore, "read_record", counted)
    comparison.measure()
    limits(comparison, 1, "conv1", "filters", 5)
    comparison.difference_limits(comparison.layer("conv1"), "filters", 5)
    comparison.gain(comparison.layer("conv1"), "filters")
    assert len(whole) == len(set(whole)) == 4 + 6


def test_all_sides_have_the_colours_of_the_first_run(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    folder = write_run(tmp_path / "gray", FAST)
    manifest = folder / "cnnlog" / "manifest.json"
    facts = json.loads(manifest.read_text())
    for kind in Kind:
        facts["settings"][kind]["cmap"] = "gray"
    manifest.write_text(json.dumps(facts))
    for order, cmap in (((folder, runs[0]), "gray"), ((runs[0], folder), "auto")):
        found = {picture.cmap for key, picture in pictures(compare(*order), 1) if not key.change}
        assert found == {cmap}


# --- starts


def other_start(step: int) -> tuple[Arrays, Arrays]:
    """conv1 is that of the other runs, conv2 a layer of its own, as the new head of a fine-tuning is."""
    filters, maps = FAST(step)
    drawn = np.random.default_rng(99).standard_normal(filters["conv2"].shape)
    return {**filters, "conv2": (drawn + 0.01 * step).astype(np.float32)}, maps


def test_layers_of_another_start_have_no_difference_and_say_why(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    comparison = compare(runs[0], write_run(tmp_path / "other", other_start))
    conv1, conv2 = comparison.layer("conv1"), comparison.layer("conv2")
    assert comparison.same_start(1, conv1)
    assert not comparison.same_start(1, conv2)
    assert comparison.difference(conv1, "filters", 2) is not None
    for kind in Kind:
        assert comparison.difference(conv2, kind, 2) is None
        assert comparison.difference_limits(conv2, kind, 2) is None
    why = "did not start from the same weights, so filter 3 of one has nothing to do with filter 3 of the other"
    assert comparison.why_no_difference(1, conv2, "filters") == f"the filters of slow and other {why}"
    assert f"the filters of slow and other in conv2 {why}" in comparison.notes
    with pytest.raises(ValueError, match="to draw for other minus slow at step 3: the filters of slow and other did"):
        comparison.figure("conv2")
    row = comparison.rows()[1]
    assert row.weight_distance == (None,)
    assert row.angle_between == (None,)
    assert row.cka_between[0] is not None, "CKA does not care for the order of the channels"


def test_runs_of_one_start_are_not_noted(runs: tuple[Path, Path]) -> None:
    comparison = compare(*runs)
    assert all(comparison.same_start(1, layer) for layer in comparison.layers)
    assert not any("start" in note for note in comparison.notes)


def test_all_layers_of_another_start_are_noted_once(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    def apart(step: int) -> tuple[Arrays, Arrays]:
        generator = np.random.default_rng(7)
        filters, maps = FAST(step)
        return {n: generator.standard_normal(f.shape).astype(np.float32) for n, f in filters.items()}, maps

    comparison = compare(runs[0], write_run(tmp_path / "apart", apart))
    (note,) = (note for note in comparison.notes if "start" in note)
    assert note.startswith("the filters of slow and apart did not start from the same weights")


def test_without_all_filters_the_shown_ones_tell_the_start(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, at, max_filters=3) for name, at in (("a", SLOW), ("b", other_start))]
    for folder in folders:
        (folder / "cnnlog" / "weights-baseline.safetensors").unlink()
    comparison = compare(*folders)
    assert [comparison.same_start(1, layer) for layer in comparison.layers] == [True, False]

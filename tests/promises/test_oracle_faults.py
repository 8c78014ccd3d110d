"""The oracle fails where it should: one planted fault of each kind, in a copy of what was written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import formulas, oracle, oracle_between, oracle_board, oracle_exports, oracle_pages, oracle_ranges
from support.oracle import Page, Stored
from support.oracle_between import BETWEEN, SHOWN
from support.oracle_board import Board
from support.oracle_checks import Tally
from support.oracle_runs import (
    Exported,
    Runs,
    board_of,
    check_exports,
    exports_of,
    in_lightning,
    json_of,
    page_of,
    sides_of,
)

LAST = 4

pytestmark = pytest.mark.once  # what is tested is the oracle, not the package


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("faults"))


def of(number: str, layer: str) -> Callable[[Stored], Any]:
    return lambda run: run.steps[LAST][f"numbers/{number}/{layer}"]


def scaled(number: str, layer: str) -> Callable[[Stored, Runs], None]:
    def plant(run: Stored, _: Runs) -> None:
        values = run.steps[LAST][f"numbers/{number}/{layer}"]
        values[-1] = values[-1] * 1.001 if values[-1] else 0.01

    return plant


def one_more(number: str, layer: str) -> Callable[[Stored, Runs], None]:
    def plant(run: Stored, _: Runs) -> None:
        step = next(step for step in run.steps.values() if f"numbers/{number}/{layer}" in step)
        step[f"numbers/{number}/{layer}"] += 1

    return plant


def gone(number: str, layer: str) -> Callable[[Stored, Runs], None]:
    def plant(run: Stored, _: Runs) -> None:
        del run.steps[LAST][f"numbers/{number}/{layer}"]

    return plant


def of_all_weights(run: Stored, runs: Runs) -> None:
    """The change of the raw weights, though a norm follows."""
    first, *_, last = (state.weights["body.0"] for state in runs["batch_norm"].states)
    change = formulas.weight_change(first, last, normalised=False)
    run.steps[LAST]["numbers/weight_change/body.0"][:] = change


def biased(run: Stored, runs: Runs) -> None:
    first, *_, last = (
        formulas.sampled(state.outputs["body.0"], channels_last=False) for state in runs["batch_norm"].states
    )
    run.steps[LAST]["numbers/cka_positions/body.0"][:] = formulas.biased_cka(first, last)


def before_the_activation(run: Stored, runs: Runs) -> None:
    """The dead channels of the layer's own output, not of what comes behind the activation."""
    output = runs["dead"].states[-1].outputs["body.0"]
    run.steps[LAST]["numbers/dead_share/body.0"][:] = formulas.dead_share(np.abs(np.moveaxis(output, 1, 0)))


def not_by_steps(run: Stored, _: Runs) -> None:
    run.steps[LAST]["numbers/mean_update_ratio/body.0"] *= 6


def edited(key: str) -> Callable[[Stored, Runs], None]:
    """One stored value is the next float."""

    def plant(run: Stored, _: Runs) -> None:
        array = run.steps[LAST][key]
        array.flat[5] = np.nextafter(array.flat[5], np.float32(np.inf))

    return plant


def stale(run: Stored, _: Runs) -> None:
    """Maps of the step before, as of a copy that came too late."""
    run.steps[LAST]["feature_maps/body.3"] = run.steps[2]["feature_maps/body.3"]


def swapped(run: Stored, _: Runs) -> None:
    run.steps[LAST]["feature_maps/body.3"][:, :2] = run.steps[LAST]["feature_maps/body.3"][:, 1::-1]


def filed(name: str, layer: str) -> Callable[[Stored, Runs], None]:
    def plant(run: Stored, _: Runs) -> None:
        run.files[name][layer] = np.roll(run.files[name][layer], 1, axis=0)

    return plant


def other_scalar(run: Stored, _: Runs) -> None:
    key = next(key for key in run.scalars if key[0].startswith("numbers/filter_angle/") and key[1] == LAST)
    run.scalars[key] *= 1.001


def no_picture(run: Stored, _: Runs) -> None:
    del run.images[next(key for key in run.images if key[0].startswith("filters/"))]


def painted(kind: str, paint: Callable[[dict[str, Any], Any], None]) -> Callable[[Stored, Runs], None]:
    """One picture of a kind, with other pixels."""

    def plant(run: Stored, _: Runs) -> None:
        key = next(key for key in run.images if key[0].split("/")[0] == kind and key[1] == LAST)
        facts, pixels = oracle.facts_and_pixels(run.images[key])
        pixels = pixels.copy()
        paint(facts, pixels)
        run.images[key] = oracle.with_pixels(run.images[key], pixels)

    return plant


def cell(facts: dict[str, Any], pixels: Any, number: int) -> Any:
    top, left = oracle.corner(facts, number)
    (h, w), factor = facts["cell"], facts["factor"]
    return pixels[top : top + h * factor, left : left + w * factor]


def shifted(facts: dict[str, Any], pixels: Any) -> None:
    """A cell a shade lighter or darker."""
    one = cell(facts, pixels, 1)
    step = 4 if pixels.ndim == 3 else 1
    middle = (facts["first"] + facts["last"]) // 2
    inside = (one >= facts["first"]) & (one <= facts["last"])
    one[inside] = np.where(one > middle, one - step, one + step)[inside]


def exchanged(facts: dict[str, Any], pixels: Any) -> None:
    """Two cells in each other's places."""
    first, second = cell(facts, pixels, 0), cell(facts, pixels, facts["cells"])
    first[:], second[:] = second.copy(), first.copy()


def one_pixel(facts: dict[str, Any], pixels: Any) -> None:
    one = cell(facts, pixels, 0)
    one[-1, -1] = np.where(one[-1, -1] == facts["first"], facts["last"], facts["first"])


def on_the_gap(facts: dict[str, Any], pixels: Any) -> None:
    pixels[0, 0] = facts["last"]


def a_notch(facts: dict[str, Any], pixels: Any) -> None:
    top, left = oracle.corner(facts, 0)
    above = pixels[top - 1, left : left + facts["cell"][1] * facts["factor"]]
    colour: Any = (255, 255, 255) if pixels.ndim == 3 else facts["notch"]
    gap: Any = (0, 0, 0) if pixels.ndim == 3 else facts["gap"]
    above[:] = gap if (above == np.array(colour)).any() else colour


def as_a_number(facts: dict[str, Any], pixels: Any) -> None:
    """What is NaN, or beyond the range, drawn as a value."""
    one = cell(facts, pixels, 1)
    one[:] = facts["last"]


KINDS = ("filters", "filters_change", "filters_strip", "feature_maps", "feature_maps_change", "feature_maps_strip")
FAULTS = [
    *((name, "batch_norm", scaled(name, "body.0")) for name in ("filter_norm", "filter_angle", "weight_change")),
    *((name, "batch_norm", scaled(name, "body.0")) for name in ("mean_update_ratio", "function_change")),
    *((name, "batch_norm", scaled(name, "body.3")) for name in ("map_mean", "map_max", "map_active")),
    ("dead_share", "dead", scaled("dead_share", "body.2")),
    ("cka_positions", "batch_norm", scaled("cka_positions", "body.3")),
    ("filters_left_out", "near_zero", one_more("filters_left_out", "body.3")),
    ("channels_left_out", "not_finite", one_more("channels_left_out", "left")),
    ("function_change", "batch_norm", gone("function_change", "head")),
    ("weight_change", "batch_norm", of_all_weights),
    ("cka_positions", "batch_norm", biased),
    ("dead_share", "dead", before_the_activation),
    ("mean_update_ratio", "batch_norm", not_by_steps),
    ("stored filters", "batch_norm", edited("filters/body.0")),
    ("stored feature_maps", "batch_norm", edited("feature_maps/body.0")),
    ("stored feature_maps", "batch_norm", stale),
    ("stored feature_maps", "batch_norm", swapped),
    *(("stored weights", "batch_norm", filed(f"weights-{which}", "body.3")) for which in ("baseline", "latest")),
    *(("stored outputs", "batch_norm", filed(f"outputs-{which}", "body.3")) for which in ("baseline", "latest")),
    ("scalar", "batch_norm", other_scalar),
    ("tag", "batch_norm", no_picture),
    *((kind, "batch_norm", painted(kind, shifted)) for kind in KINDS),
    *((kind, "batch_norm", painted(kind, exchanged)) for kind in KINDS),
    *((kind, "batch_norm", painted(kind, one_pixel)) for kind in KINDS),
    *((kind, "batch_norm", painted(kind, on_the_gap)) for kind in KINDS[:4]),
    *((kind, "batch_norm", painted(kind, a_notch)) for kind in KINDS[:4]),
    ("feature_maps", "not_finite", painted("feature_maps", as_a_number)),
]


@pytest.mark.parametrize(
    "number", range(len(FAULTS)), ids=[f"{number} {what}" for number, (what, *_) in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found(runs: Runs, number: int) -> None:
    what, name, plant = FAULTS[number]
    found, run = runs[name], copy.deepcopy(runs[name].run)
    plant(run, runs)
    sound, faults = set(found.tally.faults), found.check(run).faults
    assert any(fault.startswith(f"{what} of ") for fault in faults if fault not in sound), faults
    assert {fault.split(" of ")[0] for fault in faults if fault not in sound} == {what}


@pytest.mark.parametrize(
    ("kind", "fact"),
    [
        *((kind, fact) for kind in KINDS for fact in ("high", "low", "doubled", "symmetric")),
        *((kind, "channels") for kind in KINDS if kind.endswith("strip")),
    ],
)
def test_a_range_that_breaks_its_rule_is_found(runs: Runs, kind: str, fact: str) -> None:
    found, run, tally = runs["batch_norm"], copy.deepcopy(runs["batch_norm"].run), Tally()
    key = next(key for key in run.images if key[0].split("/")[0] == kind and key[1] == LAST)
    facts, pixels = oracle.facts_and_pixels(run.images[key])
    other = {
        "high": [facts["high"][0] * 1.001, *facts["high"][1:]],
        "low": [facts["low"][0] - 0.001, *facts["low"][1:]],
        "doubled": {"0": 9},
        "symmetric": not facts["symmetric"],
        "channels": facts["channels"][::-1],
    }[fact]
    run.images[key] = oracle.with_pixels(run.images[key], pixels, **{fact: other})
    oracle_ranges.check_ranges(run, found.states, tally)
    assert tally.faults
    assert all(fault.startswith(("range of ", "rows of strips")) for fault in tally.faults)


def test_an_update_ratio_of_another_step_is_found(tmp_path: Path) -> None:
    found = in_lightning("batch_norm", tmp_path)
    assert found.tally.faults == []
    run = copy.deepcopy(found.run)
    run.steps[3]["numbers/update_ratio/net.body.0"] = run.steps[2]["numbers/update_ratio/net.body.0"]
    assert [fault.split(" of ")[0] for fault in found.check(run).faults] == ["update_ratio"]


# --- pages -----------------------------------------------------------------------------------------------------------


def reel_of(page: Page, kind: str, letter: str) -> dict[str, Any]:
    found: dict[str, Any] = page.data["pictures"][f"1-{kind}-{letter}"]["reels"][0]
    return found


def byte_of(kind: str, letter: str) -> Callable[[Page], None]:
    """A pixel of the first frame, and so of all that follow, is two shades off."""

    def plant(page: Page) -> None:
        block = reel_of(page, kind, letter)["block"]
        packed = bytearray(page.blocks[block])
        packed[0] = packed[0] - 2 if packed[0] > 30 else packed[0] + 2
        page.blocks[block] = bytes(packed)

    return plant


def reversed_steps(page: Page) -> None:
    reel_of(page, "filters", "s0")["steps"].reverse()


def wider(page: Page) -> None:
    reel_of(page, "feature_maps", "s0")["high"][0] *= 1.01


def own_gain(page: Page) -> None:
    reel = reel_of(page, "feature_maps", "d1")
    reel["high"] = [high * 2 for high in reel["high"]]


def other_life(page: Page) -> None:
    entry = page.data["numbers"]["1"]["0"]
    packed = bytearray(page.blocks[entry["block"]])
    packed[0] ^= 1
    page.blocks[entry["block"]] = bytes(packed)


def no_reel(page: Page) -> None:
    del page.data["pictures"]["1-filters-d1"]


def flipped(page: Page) -> None:
    reel_of(page, "filters", "s1")["symmetric"] = False


PAGE_FAULTS: list[tuple[str, Callable[[Page], None]]] = [
    ("page filters", byte_of("filters", "s0")),
    ("page filters", byte_of("filters", "s1")),
    ("page feature_maps", byte_of("feature_maps", "s1")),
    ("page filters difference", byte_of("filters", "d1")),
    ("page feature_maps difference", byte_of("feature_maps", "d1")),
    ("page filters", reversed_steps),
    ("page range", wider),
    ("page range", own_gain),
    ("page range", flipped),
    ("page norm", other_life),
    ("page", no_reel),
]


@pytest.fixture(scope="module")
def sound_page(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(runs, "batch_norm", tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize(
    "number", range(len(PAGE_FAULTS)), ids=[f"{number} {what}" for number, (what, _) in enumerate(PAGE_FAULTS)]
)
def test_a_fault_planted_in_a_page_is_found(runs: Runs, sound_page: Page, number: int, tmp_path: Path) -> None:
    what, plant = PAGE_FAULTS[number]
    page, tally = copy.deepcopy(sound_page), Tally()
    plant(page)
    oracle_pages.check_page(page, sides_of(runs, "batch_norm"), tally)
    assert any(fault.startswith(f"{what} of ") for fault in tally.faults), tally.faults


# --- JSON ------------------------------------------------------------------------------------------------------------

STORED = tuple(measure for measure in oracle_pages.OF_A_SIDE if measure != "update_ratio")


@pytest.mark.parametrize("measure", [*STORED, *BETWEEN])
def test_a_fault_planted_in_a_comparison_is_found(runs: Runs, measure: str) -> None:
    sound = json_of(runs, "batch_norm")
    if sound["version"] < 2:
        pytest.skip("the comparison here still has the numbers of format 1")
    json, tally = copy.deepcopy(sound), Tally()
    cell = json["layers"][0][measure]
    cell[-1] = {**cell[-1], "median": 1.001 * cell[-1]["median"]} if isinstance(cell[-1], dict) else cell[-1] + 0.001
    oracle_pages.check_json(json, sides_of(runs, "batch_norm"), tally)
    assert [fault.split(" of ")[0] for fault in tally.faults] == [f"json {measure}"]


@pytest.mark.parametrize("measure", STORED)
def test_a_fault_planted_in_a_curve_is_found(runs: Runs, sound_page: Page, measure: str) -> None:
    json, page, tally = json_of(runs, "batch_norm"), copy.deepcopy(sound_page), Tally()
    if json["version"] < 2:
        pytest.skip("the comparison here still has the numbers of format 1")
    next(iter(json["curves"][measure]["body.0"].values()))[-1][1] += 0.002
    page.data["curves"][measure][0][0][-1][1] += 0.2
    oracle_pages.check_json(json, sides_of(runs, "batch_norm"), tally)
    oracle_pages.check_curves(page, sides_of(runs, "batch_norm"), tally)
    assert [fault.split(" of ")[0] for fault in tally.faults] == [f"json curve {measure}", f"page curve {measure}"]


@pytest.mark.parametrize("measure", ["to_go", *BETWEEN, *SHOWN])
def test_a_fault_planted_in_a_curve_between_sides_is_found(runs: Runs, sound_page: Page, measure: str) -> None:
    json, page, tally = copy.deepcopy(json_of(runs, "batch_norm")), copy.deepcopy(sound_page), Tally()
    [*json["curves"][measure]["body.3"].values()][-1][1][1] += 0.002
    faults = [f"json curve {measure}"]
    if measure in page.data["curves"]:
        page.data["curves"][measure][1][1][1][1] += 0.2
        faults.append(f"page curve {measure}")
    oracle_between.check_between_json(json, sides_of(runs, "batch_norm"), tally)
    oracle_between.check_between_page(page, sides_of(runs, "batch_norm"), tally)
    found = {fault.split(" of ")[0] for fault in tally.faults}
    assert found - {f"json {measure}"} == {*faults}
    assert (len(faults) == 2) == (measure not in BETWEEN)


def test_a_curve_of_what_is_shown_is_not_taken_for_the_table_s(runs: Runs, sound_page: Page) -> None:
    """One name for two estimates, as it once was, in JSON and on a page."""
    json, page, tally = copy.deepcopy(json_of(runs, "batch_norm")), copy.deepcopy(sound_page), Tally()
    for measure in BETWEEN:
        json["curves"][measure] = json["curves"].pop(f"shown_{measure}")
        page.data["curves"][measure] = page.data["curves"].pop(f"shown_{measure}")
    oracle_between.check_between_json(json, sides_of(runs, "batch_norm"), tally)
    oracle_between.check_between_page(page, sides_of(runs, "batch_norm"), tally)
    found = {fault.split(" of ")[0] for fault in tally.faults}
    assert {f"{where} curve {measure}" for where in ("json", "page") for measure in BETWEEN} <= found


def no_floor(row: dict[str, Any]) -> None:
    row["noise"][1] = None


def other_floor(row: dict[str, Any]) -> None:
    row["noise"][0] *= 1.5


def other_floor_between(row: dict[str, Any]) -> None:
    row["noise_between"][0] /= 1.5


def other_way(row: dict[str, Any]) -> None:
    row["to_go"][1] += 0.01


def later(row: dict[str, Any]) -> None:
    row["half_way"][0] += 1


ROW_FAULTS = [
    *(("json noise", plant) for plant in (no_floor, other_floor)),
    ("json noise_between", other_floor_between),
    ("json to_go", other_way),
    ("json half_way", later),
]


@pytest.mark.parametrize("number", range(len(ROW_FAULTS)), ids=[plant.__name__ for _, plant in ROW_FAULTS])
def test_a_fault_planted_in_a_row_is_found(runs: Runs, number: int) -> None:
    what, plant = ROW_FAULTS[number]
    json, tally = copy.deepcopy(json_of(runs, "batch_norm")), Tally()
    plant(json["layers"][0])
    oracle_between.check_between_json(json, sides_of(runs, "batch_norm"), tally)
    assert [fault.split(" of ")[0] for fault in tally.faults] == [what]


@pytest.mark.parametrize(("digits", "other"), [("noise ±", "sound ±"), ("noise ±0.0", "noise ±0.1")])
def test_a_floor_that_a_page_does_not_print_is_found(runs: Runs, tmp_path: Path, digits: str, other: str) -> None:
    page_of(runs, "batch_norm", tmp_path)
    page, tally = tmp_path / "page.html", Tally()
    page.write_text(page.read_text("utf-8").replace(digits, other, 1), "utf-8")
    oracle_between.check_table(page, json_of(runs, "batch_norm"), tally)
    assert [fault.split(" of ")[0] for fault in tally.faults] == ["page noise"]


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exports(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    found = exports_of(runs, "batch_norm", tmp_path_factory.mktemp("exports"))
    assert check_exports(found, runs["batch_norm"]).faults == []
    return found


def area(export: Exported, runs: Runs, frame: int) -> Any:
    """The first grid of a frame: a part of its pixels that may be painted over."""
    side = sides_of(runs, "batch_norm")[0]
    expected = oracle_exports.Export(side)
    layer = expected.layers[0] if not export.layer else side.facts(export.layer, "layers")
    top, left, grid = oracle_exports.grids_of(export.frames[frame], expected.gap_of(layer, export.kind or "filters"))[0]
    return export.frames[frame][top : top + grid.shape[0], left : left + grid.shape[1]]


def two_shades(export: Exported, runs: Runs) -> None:
    """One value of the last frame has the colour of another one."""
    pixels = area(export, runs, -1)
    down, across = (int(np.flatnonzero((pixels == pixels[0, 0]).all(-1).all(axis))[1]) for axis in (1, 0))
    colours = pixels[1:down, 1:across].reshape(-1, 3)
    other = colours[np.abs(colours.astype(int) - colours[0]).sum(axis=1).argmax()]
    value = (pixels[1:down, 1:across] == colours[0]).all(axis=-1)
    pixels[1:down, 1:across][value] = other


def cells_exchanged(export: Exported, runs: Runs) -> None:
    pixels = area(export, runs, -1)
    across = int(np.flatnonzero((pixels == pixels[0, 0]).all(-1).all(0))[1])
    first, second = pixels[:, 1:across].copy(), pixels[:, 1 + across : 2 * across].copy()
    pixels[:, 1:across], pixels[:, 1 + across : 2 * across] = second, first


def no_frame(export: Exported, runs: Runs) -> None:
    area(export, runs, -1)[3:, 0] = 255


def frames_exchanged(export: Exported, _: Runs) -> None:
    export.frames[1], export.frames[2] = export.frames[2], export.frames[1]


def frame_gone(export: Exported, _: Runs) -> None:
    del export.frames[1]


def in_a_hurry(export: Exported, _: Runs) -> None:
    export.durations[0] = export.durations[1]


EXPORT_FAULTS: list[tuple[str, str, str, Callable[[Exported, Runs], None]]] = [
    *(
        (form, form, kind, plant)
        for form, kind in (("strip", "filters"), ("strip", "feature_maps"), ("sheet", ""))
        for plant in (two_shades, cells_exchanged, no_frame)
    ),
    *(
        ("animation", form, kind, plant)
        for form, kind in (("apng", "filters"), ("gif", "filters"), ("gif", "feature_maps"))
        for plant in (two_shades, cells_exchanged, no_frame, frames_exchanged, frame_gone, in_a_hurry)
    ),
]


@pytest.mark.parametrize(
    "number", range(len(EXPORT_FAULTS)), ids=[f"{form} {kind} {p.__name__}" for _, form, kind, p in EXPORT_FAULTS]
)
def test_a_fault_planted_in_an_export_is_found(runs: Runs, exports: list[Exported], number: int) -> None:
    what, form, kind, plant = EXPORT_FAULTS[number]
    chosen = copy.deepcopy(next(one for one in exports if (one.form, one.kind) == (form, kind)))
    plant(chosen, runs)
    faults = check_exports([chosen], runs["batch_norm"]).faults
    assert faults
    assert {fault.split(" of ")[0] for fault in faults} == {what}


def of_another_range(pictures: Board) -> None:
    """A picture of a board drawn in a range that is not that of all sides."""
    key = next(key for key in pictures.images if key[0].startswith("compare_filters") and key[0].endswith("/A"))
    facts, pixels = oracle.facts_and_pixels(pictures.images[key])
    wider = {end: [2 * value for value in facts[end]] for end in ("high", "low")}
    pictures.images[key] = oracle.with_pixels(pictures.images[key], pixels, **wider)


def a_shade_off(whose: str) -> Callable[[Board], None]:
    def plant(pictures: Board) -> None:
        key = next(key for key in pictures.images if f"/{whose}" in key[0] and key[1] == LAST)
        facts, pixels = oracle.facts_and_pixels(pictures.images[key])
        pixels = pixels.copy()
        shifted(facts, pixels)
        pictures.images[key] = oracle.with_pixels(pictures.images[key], pixels)

    return plant


def side_b_as_a(pictures: Board) -> None:
    for tag, step in [key for key in pictures.images if "/A" in key[0]]:
        pictures.images[tag, step] = pictures.images[tag.replace("/A", "/B"), step]


def no_difference(pictures: Board) -> None:
    del pictures.images[next(key for key in pictures.images if "B-A" in key[0])]


def other_number(pictures: Board) -> None:
    tag = next(tag for tag in pictures.scalars if "shown_angle" in tag)
    pictures.scalars[tag] = [(step, 1.001 * value + 0.001) for step, value in pictures.scalars[tag]]


def number_of_the_shown(pictures: Board) -> None:
    """The table's name for a number of what is shown."""
    for tag in [tag for tag in pictures.scalars if "shown_" in tag]:
        pictures.scalars[tag.replace("shown_", "")] = pictures.scalars[tag]


BOARD_FAULTS: list[tuple[set[str], Callable[[Board], None]]] = [
    ({"board", "board range"}, of_another_range),
    *(({"board"}, a_shade_off(whose)) for whose in ("A", "B-A")),
    ({"board"}, side_b_as_a),
    ({"board tag"}, no_difference),
    *(({"board number"}, plant) for plant in (other_number, number_of_the_shown)),
]


@pytest.fixture(scope="module")
def board(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Board:
    return board_of(runs, "batch_norm", tmp_path_factory.mktemp("board"))


@pytest.mark.parametrize("number", range(len(BOARD_FAULTS)))
def test_a_fault_planted_in_a_board_is_found(runs: Runs, board: Board, number: int) -> None:
    what, plant = BOARD_FAULTS[number]
    pictures, tally = copy.deepcopy(board), Tally()
    plant(pictures)
    oracle_board.check_board(pictures, sides_of(runs, "batch_norm"), tally)
    assert {fault.split(" of ")[0] for fault in tally.faults} == what, tally.faults

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.numpy import save_file
from support.pages import Seen, written
from support.stored_runs import moving, write_run

import cnnlog
from cnnlog.rendering.colours import NOT_FINITE, ZERO
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.views import ResolvedView
from cnnlog.reports.page import charts
from cnnlog.reports.page.page import write_report
from cnnlog.reports.page.reels import DETAILS, Detail, Reel, fitting, strongest
from cnnlog.runs.steps import evenly


def unpacked(seen: Seen, reel: dict[str, Any]) -> np.ndarray:
    """A reel's frames `[frames, bytes]`."""
    raw = zlib.decompress(base64.b64decode(seen.scripts[reel["block"]]), wbits=-15)
    frames_of = np.frombuffer(raw, np.uint8).reshape(len(reel["steps"]), -1)
    return np.cumsum(frames_of, axis=0, dtype=np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    tuned = write_run(root / "tuned", moving(1, 0.05), steps=range(5))
    scratch = write_run(root / "scratch", moving(2, 0.4), steps=range(3))
    return tuned, scratch


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return written(cnnlog.compare(*runs), tmp_path_factory.mktemp("page") / "report.html")[1]


# --- frames


def picture(values: np.ndarray, high: float = 1.0, view: ResolvedView | None = None) -> Picture:
    n = len(values)
    return Picture(values, Limits(np.full(n, high, np.float32), True, np.zeros(n, np.int64)), view)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-2, 2, width=32) | st.just(float("nan")),
    )
)
def test_a_reel_gives_back_the_frames_that_went_in(steps: np.ndarray) -> None:
    reel = Reel()
    for number, values in enumerate(steps):
        reel.add(picture(values), number)
    raw = zlib.decompress(reel.pack(), wbits=-15)
    back = np.cumsum(np.frombuffer(raw, np.uint8).reshape(len(steps), -1), axis=0, dtype=np.uint8)
    for values, pixels in zip(steps, back, strict=True):
        drawn = maps_grid(values, picture(values).limits, width=None, bare=True)
        assert pixels.tobytes() == drawn.pixels.tobytes()


def test_a_held_step_adds_no_frame() -> None:
    reel = Reel()
    reel.hold()
    reel.add(picture(np.ones((2, 3, 3), np.float32)), 4)
    reel.hold()
    assert reel.at == [-1, 0, 0]
    assert reel.steps == [4]


def test_a_reel_refuses_a_frame_of_another_range() -> None:
    reel = Reel()
    reel.add(picture(np.zeros((2, 3, 3), np.float32)), 0)
    with pytest.raises(ValueError, match="step 1 has another than those before it"):
        reel.add(picture(np.zeros((2, 3, 3), np.float32), high=2.0), 1)


def test_a_reel_refuses_a_frame_of_another_shape() -> None:
    reel = Reel()
    reel.add(picture(np.ones((2, 3, 3), np.float32)), 0)
    with pytest.raises(ValueError, match=r"one shape; they had \[3, 7\] and step 1 has \[4, 9\]"):
        reel.add(picture(np.ones((2, 4, 4), np.float32)), 1)


def test_details_become_coarser_and_keep_the_first_channels() -> None:
    for finer, coarser in itertools.pairwise(DETAILS):
        assert all(b <= a for a, b in zip(vars(finer).values(), vars(coarser).values(), strict=True))
        assert finer != coarser
    maps = np.arange(20 * 30 * 30, dtype=np.float32).reshape(20, 30, 30)
    kept = Detail(cell=10, maps=7, filters=64, slices=16).kept(picture(maps))
    np.testing.assert_allclose(kept.values, maps[:7].reshape(7, 10, 3, 10, 3).mean(axis=(2, 4)), rtol=1e-5)
    assert len(kept.limits.high) == 7
    slices = Detail(10, 7, 64, 6).kept(picture(np.zeros((16, 16, 3, 3), np.float32), view="slices"))
    assert slices.values.shape == (6, 6, 3, 3)


def test_more_bytes_give_finer_pictures_and_few_give_fewer_steps() -> None:
    rng = np.random.default_rng(0)

    def pair() -> tuple[dict[str, Picture], dict[str, Picture]]:
        first, second = (picture(rng.uniform(-1, 1, (64, 40, 40)).astype(np.float32)) for _ in range(2))
        return {"a": first}, {"a": second}

    chosen = [fitting([pair()], steps=100, budget=budget) for budget in (20_000_000, 2_000_000, 300_000, 9_000)]
    positions = [position for position, _ in chosen]
    assert positions[0] == 0
    assert positions == sorted(positions)
    assert [steps for _, steps in chosen[:3]] == [100, 100, 100]
    assert 2 <= chosen[3][1] < 100


def test_steps_at_even_distances_keep_both_ends() -> None:
    assert evenly(tuple(range(100)), 4) == (0, 33, 66, 99)
    assert evenly((3, 5), 9) == (3, 5)


def test_the_strongest_of_three_colours_keeps_its_sign() -> None:
    difference = np.array([[[[1.0, 0.0]], [[-3.0, 0.0]], [[2.0, np.nan]]]], np.float32)
    np.testing.assert_array_equal(strongest(difference), [[[[-3.0, np.nan]]]])


# --- charts


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3))
def test_ticks_are_round_and_span_the_range(low: float, width: float) -> None:
    found = charts.ticks(low, low + width)
    assert found[0] <= low + 1e-6 * width
    assert found[-1] >= low + width - 1e-6 * width
    assert 2 <= len(found) <= 12
    assert len({f"{b - a:.3g}" for a, b in itertools.pairwise(found)}) <= 2


def test_a_chart_scales_values_and_leaves_gaps() -> None:
    chart = charts.chart([("a", 0, [(0, 0.0), (1, 1.0), (2, float("nan")), (4, 2.0)])], steps=(0, 4), values=(0, 2))
    left, right, top, bottom = chart.left, chart.right, chart.top, chart.bottom
    quarter = left + (right - left) / 4
    assert chart.lines[0].path == f"M{left} {bottom}L{quarter:g} {(top + bottom) / 2:g}M{right} {top}"
    assert charts.extent([[(0, float("nan"))]]) == (0.0, 1.0)
    assert charts.extent([[(0, 0.5), (1, 3.0)]]) == (0.0, 3.0)


# --- the page


def test_the_page_is_whole_and_reaches_for_nothing(page: Seen) -> None:
    assert page.wrong == []
    assert page.open == []
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)


def test_only_its_own_script_may_run(page: Seen) -> None:
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[""].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def shared(runs: tuple[Path, Path], layer: str) -> Limits:
    """The range that covers a layer's filters in all steps of both runs, by NumPy alone."""
    every = [run.filters(layer, step) for run in map(cnnlog.open_run, runs) for step in run.steps]
    high = np.max([np.abs(filters).max(axis=(1, 2, 3)) for filters in every], axis=0)
    return Limits(high, True, np.zeros(len(high), np.int64))


def test_every_scale_has_two_numbers(page: Seen, runs: tuple[Path, Path]) -> None:
    reels = {key: one["reels"][0] for key, one in page.data["pictures"].items()}
    for key in ("0-filters", "1-filters", "0-feature_maps", "1-feature_maps"):
        assert reels[f"{key}-s0"]["high"] == reels[f"{key}-s1"]["high"]
        assert all(math.isfinite(high) and high > 0 for reel in reels.values() for high in reel["high"])
    high = shared(runs, "conv1").high
    np.testing.assert_allclose(reels["0-filters-s0"]["high"], high, rtol=1e-3)
    ends = f"{high.min():.3g} to {high.max():.3g}"
    negative = f"−{high.min():.3g} to −{high.max():.3g}"
    assert page.text.count(ends) == page.text.count(negative) == 2, "once for each side"
    assert "own range" not in page.text
    gains = [a for tag, a in page.elements if a.get("class") == "gain"]
    assert len(gains) == 4, "one for each difference"


def test_filters_of_another_start_have_no_difference_and_say_why(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    def apart(step: int) -> Any:
        filters, maps = moving(2, 0.1)(step)
        other = np.random.default_rng(3).standard_normal(filters["conv2"].shape).astype(np.float32)
        return {**filters, "conv2": other}, maps

    write_run(tmp_path / "apart", apart)
    _, seen = written(cnnlog.compare(runs[0], tmp_path / "apart"), tmp_path / "page.html")
    why = (
        "the filters of tuned and apart did not start from the same weights, so filter 3 of one has nothing to do with"
    )
    assert f"Filters of conv2: no difference, for {why} filter 3 of the other." in seen.text
    assert "in conv2 did not start from the same weights" in seen.text
    assert {"0-filters-d1", "1-filters-s1"} <= seen.data["pictures"].keys()
    assert "1-filters-d1" not in seen.data["pictures"]


def test_every_picture_has_a_text(page: Seen) -> None:
    alternatives = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert "Filters of conv1, tuned, epoch 4: 4 of 5 by 5 pixels" in alternatives
    assert all(alternatives)


def test_differences_are_those_of_the_raw_values(page: Seen, runs: tuple[Path, Path]) -> None:
    tuned, scratch = (cnnlog.open_run(run) for run in runs)
    for layer, name in enumerate(["conv1", "conv2"]):
        for kind in ("filters", "feature_maps"):
            reel = page.data["pictures"][f"{layer}-{kind}-d1"]["reels"][0]
            pixels = unpacked(page, reel)
            (high,) = set(reel["high"])
            every = [getattr(run, kind)(name, step) for run in (tuned, scratch) for step in run.steps]
            gain = max(np.abs(values).max() for values in every) / high
            assert min(abs(gain / possible - 1) for possible in (1, 4, 16, 64)) < 1e-3
            for step in range(5):
                one, other = (getattr(run, kind)(name, min(step, run.steps[-1])) for run in (tuned, scratch))
                change = (other - one).astype(np.float64)
                if kind == "filters" and name == "conv1":
                    change = np.take_along_axis(change, np.abs(change).argmax(axis=1)[:, None], axis=1)
                cells = change.reshape(-1, *change.shape[-2:])
                columns = reel["layout"]["columns"]
                h, w = cells.shape[1:]
                expected = ZERO + ZERO * np.clip(cells / high, -1, 1)
                seen = pixels[reel["at"][step]].reshape(-1, columns * (w + 1) - 1)
                for cell, values in enumerate(expected):
                    y, x = cell // columns * (h + 1), cell % columns * (w + 1)
                    np.testing.assert_allclose(seen[y : y + h, x : x + w], values, atol=0.51)


def test_a_run_that_ended_is_held_and_said_to_be(page: Seen) -> None:
    reel = page.data["pictures"]["0-filters-s1"]["reels"][0]
    assert reel["at"] == [0, 1, 2, 2, 2]
    assert reel["steps"] == [0, 1, 2]
    assert [side["last"] for side in page.data["sides"]] == [4, 2]
    assert "epoch 2 (its last)" in page.text
    assert "scratch ends at step 2 and is held there up to step 4" in page.text


def test_the_static_pictures_are_those_of_the_last_step(page: Seen, runs: tuple[Path, Path]) -> None:
    run = cnnlog.open_run(runs[0])
    source = next(a["src"] for t, a in page.elements if t == "img" and a["alt"].startswith("Filters of conv2, tuned"))
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    grid = filters_grid(run.filters("conv2"), shared(runs, "conv2"), view="slices", bare=True)
    assert grid.palette is not None
    np.testing.assert_array_equal(pixels, np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[grid.pixels])


def test_numbers_of_filters_are_kept_to_16_bits(page: Seen, runs: tuple[Path, Path]) -> None:
    run = cnnlog.open_run(runs[0])
    entry = page.data["numbers"]["1"]["0"]
    raw = zlib.decompress(base64.b64decode(page.scripts[entry["block"]]), wbits=-15)
    measure = next(m for m in entry["measures"] if m["name"] == "angle")
    before = sum(2 * 5 * m["n"] for m in entry["measures"][: entry["measures"].index(measure)])
    planes = np.frombuffer(raw, np.uint8)[before : before + 2 * 5 * measure["n"]].reshape(2, 5, measure["n"])
    values = measure["low"] + (measure["high"] - measure["low"]) * (planes[0] * 256.0 + planes[1]) / 65534
    expected = np.stack([run.numbers("filter_angle", "conv2", step) for step in range(5)])[:, : measure["n"]]
    np.testing.assert_allclose(values, expected, atol=1e-4 * expected.max())


def test_the_farthest_filters_come_first(page: Seen) -> None:
    for rows in page.data["moved"]:
        angles = [angle for _, _, angle in rows]
        assert angles == sorted(angles, reverse=True)
        assert len(rows) == 10


def test_what_is_nan_keeps_its_own_colour(tmp_path: Path) -> None:
    at = moving(1, 0.1)

    def broken(step: int) -> Any:
        filters, maps = at(step)
        if step:
            filters["conv2"][0, 0, 1, 1] = np.nan
        return filters, maps

    write_run(tmp_path / "a", broken)
    write_run(tmp_path / "b", moving(2, 0.1))
    _, seen = written(cnnlog.compare(tmp_path / "a", tmp_path / "b"), tmp_path / "page.html")
    for key in ("1-filters-s0", "1-filters-d1"):
        reel = seen.data["pictures"][key]["reels"][0]
        lost = unpacked(seen, reel)[reel["at"][3]] == NOT_FINITE
        assert lost.sum() == 1
    assert "NaN" not in seen.scripts["data"]


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '</script><script>alert("x")</script><b>'
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    write_run(folder, moving(1, 0.1, prefix=evil))
    _, seen = written(cnnlog.compare(folder), tmp_path / "page.html", title=evil)
    assert seen.wrong == []
    assert [tag for tag, _ in seen.elements].count("script") == 2 + len([k for k in seen.scripts if k.startswith("b")])
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in seen.elements)
    assert [tag for tag, _ in seen.elements].count("b") == len(seen.data["sides"])
    assert evil in seen.text
    assert [layer["name"] for layer in seen.data["layers"]] == [f"{evil}conv1", f"{evil}conv2"]
    assert "<" not in seen.scripts["data"]


def test_one_run_is_compared_with_its_baseline(tmp_path: Path) -> None:
    write_run(tmp_path / "run", moving(1, 0.1))
    _, seen = written(cnnlog.compare(tmp_path / "run"), tmp_path / "page.html")
    assert seen.data["steps"] == [0, 1, 2, 3]
    assert seen.data["pictures"]["0-filters-s0"]["reels"][0]["at"] == [0, 0, 0, 0]
    assert seen.data["pictures"]["0-filters-s1"]["reels"][0]["at"] == [0, 1, 2, 3]


def test_three_runs_have_two_differences(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), moving(seed, 0.1))
    comparison = cnnlog.compare(*(tmp_path / str(seed) for seed in range(3)))
    _, seen = written(comparison, tmp_path / "page.html")
    keys = {f"0-filters-{part}" for part in ("s0", "s1", "s2", "d1", "d2")}
    assert keys <= seen.data["pictures"].keys()


def test_what_has_no_difference_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "a", moving(1, 0.1))
    write_run(tmp_path / "b", moving(2, 0.1), probe="another probe")
    _, seen = written(cnnlog.compare(tmp_path / "a", tmp_path / "b"), tmp_path / "page.html")
    assert "Feature maps of conv1: no difference, for the probes are not the same." in seen.text


def test_the_difference_of_weights_to_a_run_moves_with_the_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    start = {f"{name}.weight": values for name, values in moving(1, 0.05)(0)[0].items()}
    save_file(start, tmp_path / "start.safetensors")
    _, seen = written(cnnlog.compare(runs[0], tmp_path / "start.safetensors"), tmp_path / "page.html")
    (reel,) = seen.data["pictures"]["1-filters-d1"]["reels"]
    assert reel["steps"] == [0, 1, 2, 3, 4]
    frames_of = unpacked(seen, reel).astype(int)
    (grid,) = {int(frames_of[0][0])}  # white at 0
    levels = [int(np.abs(frame[frames_of[0] == grid] - grid).sum()) for frame in frames_of]
    assert levels[0] == 0
    np.testing.assert_allclose(levels, [levels[1] * step for step in range(5)], rtol=0.05)


def test_maps_that_are_kept_at_some_steps_only_are_held(tmp_path: Path) -> None:
    write_run(tmp_path / "a", moving(1, 0.1), steps=range(5), maps_every=2)
    write_run(tmp_path / "b", moving(2, 0.1), steps=range(5))
    _, seen = written(cnnlog.compare(tmp_path / "a", tmp_path / "b"), tmp_path / "page.html")
    reel = seen.data["pictures"]["0-feature_maps-s0"]["reels"][0]
    assert (reel["at"], reel["steps"]) == ([0, 0, 1, 1, 2], [0, 2, 4])


def test_a_side_that_is_one_step_is_not_said_to_have_ended(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", moving(0, 0.1), steps=range(3))
    _, seen = written(cnnlog.compare(run), tmp_path / "page.html")
    assert [side["pinned"] for side in seen.data["sides"]] == [True, False]
    assert "epoch 0" in seen.text
    assert "its last" not in seen.text


def test_few_bytes_make_a_small_page_that_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def wide(step: int) -> Any:
        return {}, {"conv1": rng.uniform(0, 1, (1, 64, 40, 40)).astype(np.float32)}

    for name in ("a", "b"):
        write_run(tmp_path / name, wide, steps=range(4))
    comparison = cnnlog.compare(tmp_path / "a", tmp_path / "b")
    whole, _ = written(comparison, tmp_path / "whole.html")
    small, seen = written(comparison, tmp_path / "small.html", page_bytes=100_000)
    blocks = sum(len(text) for name, text in seen.scripts.items() if re.fullmatch(r"b\d+", name))
    assert blocks < 110_000
    assert whole.detail == "All shown cells of the runs, at the size they are stored in."
    assert re.match(r"Feature maps are averaged by area to at most \d+ × \d+ pixels\.", small.detail)
    assert small.detail in seen.text
    assert small.bytes == (tmp_path / "small.html").stat().st_size < whole.bytes


def test_the_same_runs_give_the_same_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(cnnlog.compare(*runs), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_progress_reaches_its_end(runs: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_report(cnnlog.compare(*runs), tmp_path / "page.html", progress=lambda *done: told.append(done))
    assert told[-1] == ("drawing", 5, 5)


# --- files


def test_an_existing_page_is_not_replaced_unless_asked(runs: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match=r"page\.html' exists; give another name"):
        write_report(cnnlog.compare(*runs), target)
    assert target.read_text() == "mine"
    write_report(cnnlog.compare(*runs), target, force=True)
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_failure_leaves_nothing_behind(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = cnnlog.compare(*runs)

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(comparison, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told_before_the_work(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(cnnlog.compare(*runs), tmp_path / "no" / "page.html")

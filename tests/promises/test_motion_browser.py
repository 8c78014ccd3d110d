"""What moves on the page moved in the network, by as much: read from the pixels of a real browser."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from support.motion import STEADY_STEPS, grown, steady, unsteadiness
from support.stored_runs import moving, write_run

import cnnlog
from cnnlog.rendering.colours import GAP, TOP, palette
from cnnlog.reports.page.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.once]

SHAPES = {"conv1": (16, 3, 7, 7), "conv2": (16, 16, 3, 3)}
RDBU = np.frombuffer(palette("auto", True), np.uint8).reshape(-1, 3)[: TOP + 1].astype(int)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 4000})
    yield context.new_page()
    context.close()


def wait(page: Page, expression: str, arg: Any = None) -> None:
    deadline = time.monotonic() + 20
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"still not true: {expression}"
        page.wait_for_timeout(30)


def shows(page: Page, step: int) -> None:
    wait(
        page,
        "step => document.querySelectorAll('.picture .box').length == document.querySelectorAll('.box canvas').length"
        " && [...document.querySelectorAll('.picture:not(.difference)')].every(one => one.dataset.step == step)",
        str(step),
    )


def pixels(page: Page, key: str) -> np.ndarray:
    """What a picture's canvas holds, `[H, W, 3]`."""
    address: str = page.eval_on_selector(f"[data-picture='{key}'] canvas", "canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def levels(colours: np.ndarray) -> np.ndarray:
    """Colours of the palette as levels, -31 to 31."""
    near: np.ndarray = np.argmin(np.abs(colours[..., None, :].astype(int) - RDBU).sum(-1), axis=-1) - 31
    return near


def test_steady_motion_is_steady_on_the_page(page: Page, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, steady(SHAPES), steps=range(STEADY_STEPS + 1)) for name in ("a", "b")]
    write_report(cnnlog.compare(*runs), tmp_path / "page.html")
    page.goto(f"{(tmp_path / 'page.html').as_uri()}#step=0")
    frames: dict[str, list[np.ndarray]] = {"0-filters-s0": [], "1-filters-s1": []}
    for step in range(STEADY_STEPS + 1):
        page.eval_on_selector("#step", "(e, i) => {e.value = i; e.dispatchEvent(new Event('input'))}", step)
        shows(page, step)
        for key, found in frames.items():
            found.append(pixels(page, key))
    assert {key: unsteadiness(found) for key, found in frames.items() if unsteadiness(found) > 1.5} == {}


def test_what_is_the_same_is_drawn_the_same_and_what_differs_by_as_much(page: Page, tmp_path: Path) -> None:
    """Two runs of one baseline, and one filter of the second grown by 5 %."""
    shapes = {"conv": (16, 16, 3, 3)}
    runs = [write_run(tmp_path / str(by), grown(by, "conv", 6, shapes), steps=(0, 1)) for by in (0, 0.05)]
    write_report(cnnlog.compare(*runs), tmp_path / "page.html")
    page.goto((tmp_path / "page.html").as_uri())
    shows(page, 1)
    a, b, difference = (pixels(page, f"0-filters-{which}") for which in ("s0", "s1", "d1"))
    side = (350 - 15) // 16 // 3 * 3  # 16 rows of 16 cells of 3 x 3
    rows = [slice(filter_ * (side + 1), filter_ * (side + 1) + side) for filter_ in range(16)]
    for number, row in enumerate(rows):
        if number != 6:
            np.testing.assert_array_equal(a[row], b[row])
    cells = np.ones(a.shape[1], bool)
    cells[side :: side + 1] = False  # the gaps
    first, second = (grown(by, "conv", 6, shapes)(1)[0]["conv"][6] for by in (0, 0.05))
    true = float(np.abs(second - first).mean())
    high = float(np.abs(second).max())
    seen = float(np.abs(levels(b[rows[6]][:, cells]) - levels(a[rows[6]][:, cells])).mean()) / 31 * high
    assert true / 2 <= seen <= 2 * true
    end = float(page.text_content("[data-picture='0-filters-d1'] .scale .high") or "nan")
    drawn = float(np.abs(levels(difference[rows[6]][:, cells])).mean()) / 31 * end
    assert true / 2 <= drawn <= 2 * true


def scales(page: Page) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.picture:has(.scale)')].map(one => [one.dataset.picture,"
        " [one.querySelector('.low').textContent, one.querySelector('.high').textContent]]))"
    )
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_every_scale_has_two_finite_numbers(page: Page, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), moving(seed, 0.3)) for seed in (1, 2)]
    write_report(cnnlog.compare(*runs), tmp_path / "page.html")
    page.goto(f"{(tmp_path / 'page.html').as_uri()}#step=2")
    shows(page, 2)
    found = scales(page)
    assert len(found) == 12
    for ends in found.values():
        numbers = [number(part) for end in ends for part in end.split(" to ")]
        assert all(math.isfinite(one) for one in numbers)
    for group in ("0-filters", "1-filters", "0-feature_maps", "1-feature_maps"):
        assert found[f"{group}-s0"] == found[f"{group}-s1"]
    page.locator("[data-picture='0-filters-s0'] .box").click(position={"x": 5, "y": 5})
    wait(page, "document.querySelectorAll('#life .strip .scale').length == 4")
    for _ in range(2):
        ends = page.eval_on_selector_all("#life .strip .scale", "all => all.map(one => one.textContent)")
        assert ends[0] == ends[1]
        assert ends[2] == ends[3]
    expected = max(
        float(np.abs(cnnlog.open_run(run).filters("conv1", step)[0]).max()) for run in runs for step in range(4)
    )
    low, high = (page.text_content(f"#life .strip .scale .{end}") or "" for end in ("low", "high"))
    assert (number(low), number(high)) == pytest.approx((-expected, expected), rel=5e-3)


@pytest.mark.parametrize(("ranges", "told"), [("shared", ["visible", "hidden"]), ("own", ["visible", "visible"])])
def test_in_swipe_both_sides_have_one_range_or_both_are_told(
    page: Page, tmp_path: Path, ranges: Any, told: list[str]
) -> None:
    runs = [write_run(tmp_path / str(seed), moving(seed, 0.3)) for seed in (1, 2)]
    write_report(cnnlog.compare(*runs, ranges=ranges), tmp_path / "page.html")
    page.goto(f"{(tmp_path / 'page.html').as_uri()}#step=2&mode=swipe")
    shows(page, 2)
    found = scales(page)
    assert (found["0-filters-s0"] == found["0-filters-s1"]) == (ranges == "shared")
    seen = page.evaluate(
        "['s0', 's1'].map(side => getComputedStyle(document.querySelector("
        "`[data-picture='0-filters-${side}'] .scale`)).visibility)"
    )
    assert seen == told
    if ranges == "own":
        left, right = (page.locator(f"[data-picture='0-filters-{one}'] .scale").bounding_box() for one in ("s0", "s1"))
        assert left is not None
        assert right is not None
        assert left["x"] + left["width"] <= right["x"]


def middles(canvas: np.ndarray) -> list[float]:
    """Where the columns of a strip stand: the middle of each run of pixels that are no gap and not transparent."""
    gap = np.frombuffer(palette("auto", True), np.uint8).reshape(-1, 3)[GAP]
    cells = (canvas[..., 3] > 0) & (canvas[..., :3] != gap).any(axis=-1)
    there = np.concatenate([[0], cells.any(axis=0).astype(int), [0]])
    begins, ends = np.flatnonzero(np.diff(there) == 1), np.flatnonzero(np.diff(there) == -1)
    return [float(one) for one in (begins + ends) / 2]


@pytest.mark.parametrize(
    ("steps", "columns"),
    [
        (range(13), range(13)),
        (range(101), range(0, 101, 4)),
        ([0, 1, 2, 5, 10, 20], range(0, 21, 1)),
        ([0, 500, 1000, 1500], range(0, 1501, 500)),
    ],
)
def test_strips_and_curves_share_their_axis(page: Page, tmp_path: Path, steps: Any, columns: range) -> None:
    shapes = {"conv": (4, 1, 7, 7)}
    run = write_run(tmp_path / "run", steady(shapes), steps=steps)
    write_report(cnnlog.compare(run), tmp_path / "page.html")
    page.goto(f"{(tmp_path / 'page.html').as_uri()}#life=conv:1")
    wait(page, "document.querySelectorAll('#life .strip canvas').length == 2")
    wait(page, "[...document.querySelectorAll('#life .strip canvas')].every(one => one.picture)")
    wait(page, "document.querySelector('#life .life-charts .chart')")
    ticks: dict[str, float] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#life .life-charts .chart')].flatMap(chart =>"
        " [...chart.querySelectorAll('.ticks.x text')].map(text => [text.textContent,"
        " text.getBoundingClientRect().left + text.getBoundingClientRect().width / 2])))"
    )
    for strip in page.query_selector_all("#life .strip canvas"):
        address: str = strip.evaluate("canvas => canvas.toDataURL()")
        left: float = strip.evaluate("canvas => canvas.getBoundingClientRect().left")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            found = middles(np.asarray(picture.convert("RGBA")))
        assert len(found) == len(columns)
        assert np.ptp(np.diff(found)) <= 1
        for step, middle in zip(columns, found, strict=True):
            if str(step) in ticks:
                assert abs(left + middle - ticks[str(step)]) <= 1
    assert len(ticks) >= 4
    overflow = page.evaluate(
        "document.querySelector('#life').scrollWidth - document.querySelector('#life').clientWidth"
    )
    assert overflow <= 0

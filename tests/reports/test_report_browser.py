from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

import numpy as np
import pytest
from PIL import Image
from support.stored_runs import moving, write_run

import cnnlog
from cnnlog.rendering.colours import GAP, TOP, ZERO, palette
from cnnlog.rendering.grids import filters_grid
from cnnlog.rendering.ranges import Limits
from cnnlog.reports.page.page import write_report
from cnnlog.runs.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.once]

STEPS = 6
EVIL = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    tuned = write_run(root / "tuned", moving(1, 0.1, prefix=EVIL), steps=range(STEPS))
    scratch = write_run(root / f"scratch {EVIL.replace('/', '')}", moving(2, 0.4, prefix=EVIL), steps=range(STEPS))
    return tuned, scratch


@pytest.fixture(scope="module")
def address(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(cnnlog.compare(*runs), path)
    return path.as_uri()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not say a word on the console, and asks for nothing but itself."""
    context = browser.new_context(viewport={"width": 1280, "height": 4000})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.title() != "hacked"
    context.close()


def wait(page: Page, expression: str, arg: Any = None) -> None:
    """Until an expression, or a function of `arg`, is true; Playwright's own way is what the page's policy forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"still not true: {expression}"
        page.wait_for_timeout(30)


def shows(page: Page, step: int) -> None:
    """Wait until every picture shows a step."""
    wait(
        page,
        "step => document.querySelectorAll('.picture').length == document.querySelectorAll('.picture canvas').length"
        " && [...document.querySelectorAll('.picture')].every(figure => figure.dataset.step == step)",
        arg=str(step),
    )


def pixels(page: Page, key: str) -> np.ndarray:
    """What a picture's canvas holds, `[H, W, 3]`."""
    return drawn(page, f"[data-picture='{key}'] canvas")


def drawn(page: Page, selector: str) -> np.ndarray:
    """What the first such canvas holds, `[H, W, 3]`."""
    address: str = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def all_pixels(page: Page) -> dict[str, bytes]:
    keys = page.eval_on_selector_all(".picture", "figures => figures.map(figure => figure.dataset.picture)")
    return {key: pixels(page, key).tobytes() for key in keys}


def to(page: Page, position: int) -> None:
    page.eval_on_selector("#step", "(e, i) => {e.value = i; e.dispatchEvent(new Event('input'))}", position)


def test_the_slider_moves_every_picture(page: Page, address: str) -> None:
    page.goto(address)
    shows(page, STEPS - 1)
    last = all_pixels(page)
    assert len(last) == 2 * 2 * 3
    to(page, 2)
    shows(page, 2)
    second = all_pixels(page)
    assert all(last[key] != second[key] for key in last)
    to(page, STEPS - 1)
    shows(page, STEPS - 1)
    assert all_pixels(page) == last


def test_the_pixels_are_those_of_the_stored_values(page: Page, address: str, runs: tuple[Path, Path]) -> None:
    page.goto(f"{address}#step=3")
    shows(page, 3)
    one, other = (cnnlog.open_run(run) for run in runs)
    name = f"{EVIL}conv2"
    limits = shared(one, other, name)
    grid = filters_grid(one.filters(name, 3), limits, view="slices", bare=True)
    assert grid.palette is not None
    table = np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(pixels(page, "1-filters-s0"), table[grid.pixels])
    rgb = filters_grid(one.filters(f"{EVIL}conv1", 3), shared(one, other, f"{EVIL}conv1"), view="rgb", bare=True)
    np.testing.assert_array_equal(pixels(page, "0-filters-s0"), rgb.pixels)

    # the difference, by hand: the range that the page names, 63 levels from blue over white at 0 to red
    change = other.filters(name, 3).astype(np.float64) - one.filters(name, 3)
    high = float(page.text_content("[data-picture='1-filters-d1'] .scale .high") or "nan")
    gain = int((page.text_content("[data-picture='1-filters-d1'] .scale .gain") or "").removeprefix("×"))
    assert high == pytest.approx(float(limits.high.max()) / gain, rel=5e-3)
    seen = pixels(page, "1-filters-d1")
    factor = (seen.shape[0] + 1) // len(change) // 3
    wide = 3 * factor + 1
    levels = np.argmin(np.abs(seen[..., None, :].astype(int) - table[: TOP + 1].astype(int)).sum(-1), axis=-1)
    for row in range(change.shape[0]):
        for column in range(change.shape[1]):
            cell = levels[row * wide : row * wide + 3 * factor, column * wide : column * wide + 3 * factor]
            expected = 31 + 31 * np.clip(change[row, column] / high, -1, 1)
            np.testing.assert_allclose(cell[::factor, ::factor], expected, atol=0.8)
    zero = table[ZERO]
    assert zero.tolist() == [255, 255, 255]


def shared(one: Run, other: Run, name: str) -> Limits:
    """The range of a layer's filters over all steps of both runs, by NumPy alone."""
    every = [run.filters(name, step) for run in (one, other) for step in run.steps]
    high = np.max([np.abs(filters).max(axis=(1, 2, 3)) for filters in every], axis=0)
    return Limits(high, True, np.zeros(len(high), np.int64))


def test_alike_filters_have_a_white_difference(page: Page, address: str) -> None:
    page.goto(f"{address}#step=0")  # both runs begin with the same values
    shows(page, 0)
    for key in ("0-filters-d1", "1-feature_maps-d1"):
        seen = pixels(page, key)
        gap = palette("auto", True)[3 * GAP : 3 * GAP + 3]
        colours = {tuple(colour) for colour in seen.reshape(-1, 3).tolist()}
        assert colours <= {(255, 255, 255), tuple(gap)}
        assert (255, 255, 255) in colours


def test_keys_move_the_step(page: Page, address: str) -> None:
    page.goto(f"{address}#step=1")
    shows(page, 1)
    page.keyboard.press("ArrowRight")
    shows(page, 2)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shows(page, 0)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowRight")
    shows(page, STEPS - 1)
    page.focus("#step")
    page.keyboard.press("Home")
    shows(page, 0)
    assert page.get_attribute("#step", "aria-valuetext") == "epoch 0"


def test_play_runs_to_the_end_and_stops(page: Page, address: str) -> None:
    page.goto(f"{address}#step=1")
    shows(page, 1)
    page.evaluate(
        "() => {window.seen = []; new MutationObserver(() => seen.push(document.querySelector('#now b').textContent))"
        ".observe(document.querySelector('#now'), {childList: true})}"
    )
    page.select_option("#speed", "2")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    wait(page, "document.querySelector('#play').getAttribute('aria-pressed') == 'false'")
    shows(page, STEPS - 1)
    seen = [int(step) for step in page.evaluate("seen")]
    assert list(dict.fromkeys(seen)) == [2, 3, 4, 5]  # also of a browser that is held up, for then it waits
    page.click("#play")  # at the end it begins again
    wait(page, "Number(document.querySelector('#now b').textContent) < 5")
    page.keyboard.press("p")
    assert page.get_attribute("#play", "aria-pressed") == "false"


def test_a_click_opens_the_life_of_that_filter(page: Page, address: str, runs: tuple[Path, Path]) -> None:
    page.goto(f"{address}#step=4")
    shows(page, 4)
    box = page.locator("[data-picture='0-filters-s0'] canvas").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])  # the second of 2 x 2
    assert page.text_content("#life-title") == f"{EVIL}conv1 · filter 1"
    page.wait_for_selector("#life .life-charts .chart")
    assert page.locator("#life .strip canvas").count() == 4
    assert page.locator("#life .life-charts .panel").count() == 3
    norm = cnnlog.open_run(runs[0]).numbers("norm", f"{EVIL}conv1", 4)[1]
    assert f"norm {norm:.3g}" in (page.text_content("#life-now") or "")
    assert len(np.unique(drawn(page, "#life .strip canvas").reshape(-1, 3), axis=0)) > 20
    page.keyboard.press("ArrowLeft")
    wait(page, "document.querySelector('#life-now').textContent.startsWith('epoch 3')")
    page.keyboard.press("PageDown")
    assert page.text_content("#life-title") == f"{EVIL}conv1 · filter 2"
    page.locator("#life .strip canvas").first.click(position={"x": 2, "y": 5})
    wait(page, "document.querySelector('#life-now').textContent.startsWith('epoch 0')")
    page.keyboard.press("Escape")
    wait(page, "!document.querySelector('#life').open")


def test_play_goes_on_where_it_was_when_nobody_was_looking(page: Page, address: str) -> None:
    """Browsers draw no frame of a tab that is hidden: here the next one comes a minute later."""
    page.add_init_script(
        "window.ahead = 0; const now = performance.now.bind(performance), ask = requestAnimationFrame;"
        "performance.now = () => now() + ahead;"
        "window.requestAnimationFrame = task => ask(time => task(time + ahead))"
    )
    page.goto(f"{address}#step=1")
    shows(page, 1)
    page.select_option("#speed", "1")
    page.evaluate("document.querySelector('#play').click(); ahead = 60000")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert int(page.text_content("#now b") or "") <= 2
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.keyboard.press("p")


def test_a_key_opens_the_life_of_a_pictures_first_filter(page: Page, address: str) -> None:
    page.goto(address)
    for key in ("Enter", " "):
        page.focus("[data-picture='0-filters-s1'] .box")
        page.keyboard.press(key)
        assert page.evaluate("document.querySelector('#life').open")
        page.wait_for_selector("#life .life-charts .chart")
        assert page.text_content("#life-title") == f"{EVIL}conv1 · filter 0"
        page.keyboard.press("Escape")
        wait(page, "!location.hash.includes('life=')")


def test_a_life_that_is_opened_while_the_last_is_closing_stays(page: Page, address: str) -> None:
    page.goto(address)
    page.evaluate(
        "const box = document.querySelector(`[data-picture='0-filters-s0'] .box`);"
        "box.click(); document.querySelector('#life').close(); box.click()"
    )
    wait(page, "location.hash.includes('life=')")
    before = page.text_content("#life-title")
    page.keyboard.press("PageDown")
    assert page.text_content("#life-title") != before


def test_the_numbers_of_a_life_are_its_own_whichever_come_first(
    page: Page, address: str, runs: tuple[Path, Path]
) -> None:
    page.add_init_script(
        "window.hold = false; window.held = []; const read = Response.prototype.arrayBuffer;"
        "Response.prototype.arrayBuffer = function () {"
        "return hold ? new Promise(done => held.push(() => done(read.call(this)))) : read.call(this)}"
    )
    page.goto(f"{address}#step=4")
    shows(page, 4)
    follow = "name => {hold = true; location.hash = `#step=4&life=${encodeURIComponent(name)}:0`}"
    for layer, asked in ((f"{EVIL}conv1", 2), (f"{EVIL}conv2", 4)):
        page.evaluate(follow, layer)
        wait(page, "asked => held.length == asked", arg=asked)
    assert page.text_content("#life-now") == "epoch 4"
    page.evaluate("held.slice(2).forEach(go => go())")
    page.wait_for_selector("#life .life-charts .chart")
    page.evaluate("held.slice(0, 2).forEach(go => go()); new Promise(done => setTimeout(done, 100))")
    page.keyboard.press("ArrowRight")
    wait(page, "document.querySelector('#life-now').textContent.startsWith('epoch 5')")
    norm = cnnlog.open_run(runs[0]).numbers("norm", f"{EVIL}conv2", 5)[0]
    assert f"norm {norm:.3g}" in (page.text_content("#life-now") or "")


def test_a_strip_is_drawn_in_one_range(page: Page, tmp_path: Path) -> None:
    """A filter that only grows: its last column is itself, the first the same at a quarter of the colour."""
    grown = {0: 1.0, 1: 4.0}
    shape = np.linspace(-1, 1, 9, dtype=np.float32).reshape(1, 1, 3, 3)
    for name in ("a", "b"):
        write_run(tmp_path / name, lambda step: ({"conv": shape * grown[step]}, {}), steps=(0, 1))
    path = tmp_path / "page.html"
    write_report(cnnlog.compare(tmp_path / "a", tmp_path / "b"), path)
    page.goto(f"{path.as_uri()}#life=conv:0")
    wait(page, "document.querySelector('#life .strip canvas').picture")
    seen = drawn(page, "#life .strip canvas")
    table = np.frombuffer(palette("auto", True), np.uint8).reshape(-1, 3)[: TOP + 1].astype(int)
    levels = np.argmin(np.abs(seen[..., None, :].astype(int) - table).sum(-1), axis=-1)
    factor = seen.shape[0] // 3
    first, last = (levels[::factor, left : left + 3 * factor : factor] - 31 for left in (0, 3 * factor + 1))
    np.testing.assert_allclose(last[:3], 31 * shape[0, 0], atol=0.51)  # the range of all steps
    np.testing.assert_allclose(first[:3], 31 * shape[0, 0] / 4, atol=1.01)


def test_the_address_restores_the_view(page: Page, address: str) -> None:
    page.goto(f"{address}#step=2&runs=tuned&mode=swipe&show=filters")
    wait(page, "document.querySelector('#now b').textContent == '2'")
    assert page.locator("[data-picture='0-filters-s0']").is_visible()
    assert not page.locator("[data-picture='0-filters-s1']").is_visible()
    assert not page.locator("[data-picture='0-filters-d1']").is_visible()
    assert not page.locator("[data-picture='0-feature_maps-s0']").is_visible()
    assert page.get_attribute("body", "data-mode") == "swipe"
    page.click("[data-run='1']")
    page.click("[data-mode='blink']")
    page.keyboard.press("ArrowRight")
    wait(page, "location.hash.includes('step=3') && location.hash.includes('mode=blink')")
    link = page.evaluate("location.href")
    assert "runs=tuned,scratch%20" in link
    page.goto("about:blank")
    page.goto(link)
    wait(page, "document.querySelector('#now b').textContent == '3'")
    assert page.locator("[data-picture='0-filters-s1']").count() == 1
    assert page.get_attribute("[data-run='1']", "aria-pressed") == "true"
    page.evaluate("name => {location.hash = `#step=1&life=${encodeURIComponent(name)}:2`}", f"{EVIL}conv1")
    page.wait_for_selector("#life[open]")
    assert (page.text_content("#life-title") or "").endswith("filter 2")


def test_a_link_shows_its_view_whatever_was_shown_before(page: Page, address: str) -> None:
    page.goto(f"{address}#step=2&mode=blink&show=filters")
    wait(page, "document.querySelectorAll('#sheet .card').length == 10")
    thumbs = "document.querySelectorAll('#sheet .card:first-child canvas').length"
    assert page.evaluate(thumbs) == 3
    page.evaluate("location.hash = '#h-curves'")  # a place on the page, not a view
    wait(page, "location.hash.includes('mode=blink&show=filters')")
    scratch = page.text_content("[data-picture='0-filters-s1'] .name")
    page.evaluate("label => {location.hash = `#step=1&runs=${encodeURIComponent(label)}`}", scratch)
    wait(page, "document.querySelector('#now b').textContent == '1'")
    assert page.get_attribute("body", "data-mode") == "side"
    assert page.get_attribute("body", "data-show") == "both"
    assert page.evaluate(thumbs) == 2


def test_a_page_in_a_frame_without_an_address_stays_there(page: Page, address: str) -> None:
    """As notebooks and trackers show it; there, the page around it has the address."""
    html = Path(url2pathname(address.removeprefix("file://"))).read_text(encoding="utf-8")
    page.evaluate(
        "html => {const frame = document.createElement('iframe'); frame.srcdoc = html; document.body.append(frame)}",
        html,
    )
    frame = next(frame for frame in page.frames if frame.parent_frame)
    frame.wait_for_selector(".scripted")
    frame.evaluate("const now = document.querySelector('#step'); now.value = 2; now.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(400)  # an address is written 120 ms later
    assert frame.text_content("#now b") == "2"
    assert frame.url in ("about:srcdoc", "about:srcdoc#", "")


def test_an_address_given_while_the_last_is_being_written_counts(page: Page, address: str) -> None:
    """The page writes its view into the address a moment after a key; a link that is followed in that moment wins."""
    page.add_init_script(
        "window.later = []; const start = setTimeout;"
        "window.setTimeout = (task, ms) => start(later[later.push(task) - 1], ms)"
    )
    page.goto(address)
    shows(page, STEPS - 1)
    page.keyboard.press("ArrowLeft")
    wait(page, "step => document.querySelector('#now b').textContent == step", arg=str(STEPS - 2))
    page.evaluate("location.hash = '#step=1'; later.at(-1)()")
    wait(page, "document.querySelector('#now b').textContent == '1'")
    wait(page, "location.hash.startsWith('#step=1&runs=')")


def test_swipe_and_blink_lay_one_over_the_other(page: Page, address: str) -> None:
    page.goto(address)
    shows(page, STEPS - 1)
    boxes = [page.locator(f"[data-picture='0-filters-s{side}'] canvas") for side in (0, 1)]
    places = [box.bounding_box() for box in boxes]
    assert places[0] is not None
    assert places[1] is not None
    assert places[0]["x"] + places[0]["width"] <= places[1]["x"]
    page.keyboard.press("2")
    assert boxes[0].bounding_box() == boxes[1].bounding_box()
    place = boxes[0].bounding_box()
    assert place is not None
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + 0.5 * place["width"], middle)
    page.mouse.down()
    page.mouse.move(place["x"] + 0.25 * place["width"], middle, steps=4)
    page.mouse.up()
    assert float(page.input_value("#edge")) == pytest.approx(25, abs=1)
    assert not page.evaluate("document.querySelector('#life').open")
    page.keyboard.press("3")
    visibility = "getComputedStyle(document.querySelector(`[data-picture='0-filters-s${side}'] canvas`)).visibility"
    seen = set()
    for _ in range(40):
        # in one call: between two the page may go on to the other
        seen.add(tuple(page.evaluate(f"[0, 1].map(side => {visibility})")))
        page.wait_for_timeout(50)
    assert seen == {("visible", "hidden"), ("hidden", "visible")}


def test_the_filters_that_turned_most_are_drawn_and_open(page: Page, address: str) -> None:
    page.goto(address)
    wait(page, "document.querySelectorAll('#sheet .card').length == 10")
    angles = [float(text.split()[-1].rstrip("°")) for text in page.locator("#sheet .card > .soft").all_inner_texts()]
    assert angles == sorted(angles, reverse=True)
    page.locator("#sheet").scroll_into_view_if_needed()  # what is far below is drawn when it comes near
    wait(page, "[...document.querySelectorAll('#sheet canvas')].every(canvas => canvas.picture)")
    most = int(page.evaluate("JSON.parse(document.querySelector('#data').textContent).moved[1][0][1]"))
    assert f"filter {most} · turned" in page.locator("#sheet .card").first.inner_text()
    cut = "[...document.querySelectorAll('#sheet .card > *')].filter(part => part.scrollWidth > part.clientWidth + 1)"
    assert page.evaluate(f"{cut}.map(part => part.textContent).filter(text => text.includes('conv'))") == []
    page.select_option("#moved-layer", "1")
    assert page.locator("#sheet .card").count() == 6
    page.locator("#sheet .card").first.press("Enter")
    assert (page.text_content("#life-title") or "").startswith(f"{EVIL}conv2 · filter")


def test_a_picked_layer_stands_out_and_is_read_out(page: Page, address: str) -> None:
    page.goto(f"{address}#step=2")
    page.click("#legend [data-layer='1']")
    assert page.locator(".measure path.picked").count() > 4
    text = page.text_content("[data-measure='filter_angle'] h3") or ""
    assert f"{EVIL}conv2: A " in text
    assert " · B " in text


def test_nothing_is_cut_at_the_width_of_a_phone(page: Page, address: str) -> None:
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 8000})
        page.goto(f"{address}#step=1")
        page.reload()
        wait(page, "document.querySelectorAll('.picture canvas').length > 2")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light(page: Page, address: str) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(address)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert sum(map(int, dark[4:-1].split(","))) < 100
    assert sum(map(int, light[4:-1].split(","))) > 600


def test_without_scripts_the_last_step_is_readable(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    assert not page.locator(".controls").is_visible()
    assert not page.locator("#sheet").is_visible()
    assert page.locator("noscript").inner_text().startswith("Scripts are off: these are the pictures of the last step")
    pictures = page.locator(".picture img")
    assert pictures.count() == 2 * 2 * 3
    for position in range(pictures.count()):
        assert pictures.nth(position).is_visible()
        place = pictures.nth(position).bounding_box()
        assert place is not None
        assert min(place["width"], place["height"]) > 60
    assert "epoch 5" in page.locator(".picture .when").first.inner_text()
    assert page.locator("table.numbers tbody tr").count() == 2 + 10
    assert page.locator("svg.chart .lines path").first.is_visible()
    context.close()

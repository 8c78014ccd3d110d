"""TensorBoard itself, in a browser: what the dashboards show of a run, and what a link pins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.event_logs import train_run

from cnnlog.tensorboard import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ElementHandle, Page

pytestmark = pytest.mark.browser

TIMEOUT = 60.0
# Playwright's selectors look into the shadow trees that the Images dashboard is made of.
PINNED_CARD = "metrics-pinned-view card-view"
PINNED_IMAGE = f"{PINNED_CARD} img"
DASHBOARD_IMAGE = "tf-image-loader img"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.Server]:
    root = tmp_path_factory.mktemp("logs")
    train_run(root / "tuned", epochs=5, seed=1)
    train_run(root / "scratch", epochs=5, seed=2)
    with serve.start(root) as server:
        yield server


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(1000 * TIMEOUT)
    yield page
    page.close()


def loaded(page: Page, selector: str, *, at_least: int) -> list[ElementHandle]:
    """The visible images whose pixels have arrived, once there are enough of them."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        visible = [image for image in page.query_selector_all(selector) if image.is_visible()]
        images = [image for image in visible if image.evaluate("image => image.complete && image.naturalWidth > 0")]
        if len(images) >= at_least:
            return images
        assert time.monotonic() < deadline, f"{len(images)} of {at_least} images are shown after {TIMEOUT} s"
        page.wait_for_timeout(100)


def distinct_colours(page: Page, image: ElementHandle, file: Path) -> int:
    """How many colours the screen shows where the image is."""
    from PIL import Image

    image.scroll_into_view_if_needed()
    image.screenshot(path=file)
    with Image.open(file) as seen:
        colours = seen.convert("RGB").getcolors(maxcolors=1 << 24)
    return len(colours)


def test_the_images_dashboard_shows_the_grids(server: serve.Server, page: Page, tmp_path: Path) -> None:
    page.goto(f"{server.url}#images")
    images = loaded(page, DASHBOARD_IMAGE, at_least=2)
    assert len(images) >= 2
    assert distinct_colours(page, images[0], tmp_path / "image.png") > 16
    page.screenshot(path=tmp_path / "images.png")


def test_the_link_pins_the_same_layer_of_all_runs(server: serve.Server, page: Page, tmp_path: Path) -> None:
    link = server.pinned_url()
    assert link is not None
    page.goto(link)
    images = loaded(page, PINNED_IMAGE, at_least=4)
    cards = [card.inner_text().split("\n") for card in page.query_selector_all(PINNED_CARD)]
    assert [("".join(lines[:2]), lines[2]) for lines in cards] == [
        ("feature_maps/00_conv1", "scratch"),
        ("feature_maps/00_conv1", "tuned"),
        ("filters/00_conv1", "scratch"),
        ("filters/00_conv1", "tuned"),
    ]
    assert len(images) == 4
    boxes = [image.bounding_box() for image in images[:2]]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"], "the two runs stand side by side"
    assert boxes[0]["x"] < boxes[1]["x"]
    assert distinct_colours(page, images[0], tmp_path / "image.png") > 16
    page.screenshot(path=tmp_path / "pinned.png")

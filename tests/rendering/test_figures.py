"""Figures: nothing is cut, nothing overlaps, and what is drawn are the grids' colours."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from cnnlog.rendering import figures
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.ranges import RangeRule
from cnnlog.rendering.shared_ranges import tight_limits
from cnnlog.rendering.views import View, select_filters

FloatArray = npt.NDArray[np.float32]


def noise(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def words(figure: Figure) -> dict[str, Bbox]:
    """Every text that is seen, with its box in pixels."""
    figure.draw_without_rendering()
    seen = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]
    return {f"{i}: {text.get_text()}": text.get_window_extent() for i, text in enumerate(seen)}


def pictures(figure: Figure) -> list[npt.NDArray[np.uint8]]:
    return [np.asarray(image.get_array(), dtype=np.uint8) for image in figure.axes[0].images]


def ticks(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[1].get_yticklabels()]


def check_words(figure: Figure) -> None:
    """The invariant of every figure: no word leaves the page, none touches another or a cell."""
    boxes = words(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    cells = {f"cell {i}": image.get_window_extent() for i, image in enumerate(figure.axes[0].images)}
    for (one, a), (other, b) in itertools.chain(
        itertools.combinations(boxes.items(), 2), itertools.product(boxes.items(), cells.items())
    ):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1), f"{one} and {other} overlap"


@pytest.mark.parametrize(
    ("shape", "view"),
    [((64, 3, 7, 7), "rgb"), ((1, 3, 11, 11), "rgb"), ((64, 3, 3, 3), "mean"), ((16, 16, 3, 3), "slices"),
     ((8, 1, 5, 5), "gray"), ((2, 2, 7, 1), "slices"), ((5, 1, 1, 7), "gray"), ((1, 1, 1, 1), "auto")],
)  # fmt: skip
@pytest.mark.parametrize("broken", [False, True])
def test_words_of_filters(shape: tuple[int, int, int, int], view: View, broken: bool) -> None:
    shown = select_filters(noise(*shape), view=view)
    if broken:
        shown[0, 0, 0, 0] = np.nan
    limits = tight_limits(shown, signed=True)
    check_words(figures.filters_figure(shown, limits, view=view, title="alexnet · features.0 · filters"))


@pytest.mark.parametrize(
    ("n", "size"), [(1, (8, 8)), (1, (20, 5)), (2, (5, 20)), (9, (20, 5)), (64, (13, 13)), (256, (6, 7))]
)
def test_words_of_maps(n: int, size: tuple[int, int]) -> None:
    shown = noise(n, *size) * 1e-7
    shown[0, 0, 0] = np.inf
    limits = tight_limits(shown, rule="layer")
    title = (
        "a_model_with_a_long_name · features.stage3.block12.depthwise · feature maps of a_photo_with_a_long_name.jpg"
    )
    check_words(figures.maps_figure(shown, limits, title=title, channels=range(1000, 1000 + n)))


def test_the_check_of_words_can_fail() -> None:
    shown = noise(4, 8, 8)
    figure = figures.maps_figure(shown, tight_limits(shown), title="maps")
    figure.text(0.98, 0.5, "leaves the page")
    with pytest.raises(AssertionError, match="leaves the page"):
        check_words(figure)
    figure.texts[-1].set_position((0.1, 0.5))
    with pytest.raises(AssertionError, match="overlap"):
        check_words(figure)


def test_every_map_stands_under_its_number_in_the_grids_colours() -> None:
    shown = noise(5, 6, 6)
    shown[2, 1, 1] = np.nan
    limits = tight_limits(shown)
    figure = figures.maps_figure(shown, limits, channels=[3, 5, 7, 9, 11])
    grid = maps_grid(shown, limits, width=None, bare=True)
    assert grid.palette is not None
    colours = np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[grid.pixels]
    for position, picture in enumerate(pictures(figure)[:5]):
        row, column = divmod(position, 3)
        np.testing.assert_array_equal(picture, colours[row * 7 : row * 7 + 6, column * 7 : column * 7 + 6])
    numbers = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    for position, number in enumerate(["3", "5", "7", "9", "11"]):
        left, right, bottom, top = figure.axes[0].images[position].get_extent()
        x, y = numbers[number]
        assert x == pytest.approx((left + right) / 2)
        assert 0 < top - y < 0.1  # inches, downwards
        assert bottom > top


def test_slices_have_a_row_a_filter_and_a_column_an_input_channel() -> None:
    shown = noise(4, 2, 3, 3)
    limits = tight_limits(shown)
    figure = figures.filters_figure(shown, limits, view="slices")
    grid = filters_grid(shown, limits, view="slices", width=None, bare=True)
    assert grid.palette is not None
    colours = np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[grid.pixels]
    for position, picture in enumerate(pictures(figure)):
        row, column = divmod(position, 2)
        np.testing.assert_array_equal(picture, colours[row * 4 : row * 4 + 3, column * 4 : column * 4 + 3])
    text = [t.get_text() for t in figure.axes[0].texts]
    assert text == [
        "4 filters (rows) by 2 input channels (columns), 3 × 3 each; filter ranges ±1.37 to ±2.33",
        "0",
        "0",
        "1",
        "1",
        "2",
        "3",
    ]


@pytest.mark.parametrize(
    ("rule", "expected", "label"),
    [
        ("layer", ["−2", "−1", "0", "1", "2"], "value"),
        ("channel", ["−1", "−0.5", "0", "0.5", "1"], "share of each filter's range"),
    ],
)
def test_colour_bar(rule: RangeRule, expected: list[str], label: str) -> None:
    shown = np.array([[[[2.0]]], [[[-0.5]]]], np.float32)
    figure = figures.filters_figure(shown, tight_limits(shown, rule=rule), view="gray")
    assert ticks(figure) == expected
    assert figure.axes[1].get_ylabel() == label


def test_colour_bar_from_zero() -> None:
    shown = np.array([[[4.0]], [[4.0]]], np.float32)
    figure = figures.maps_figure(shown, tight_limits(shown))
    assert ticks(figure) == ["0", "1", "2", "3", "4"]


def test_rgb_says_its_scale_in_words() -> None:
    shown = noise(4, 3, 5, 5)
    by_filter = figures.filters_figure(shown, tight_limits(shown, signed=True), view="rgb")
    assert len(by_filter.axes) == 1
    text = " ".join(t.get_text() for t in by_filter.axes[0].texts)
    assert "mid gray is 0, full colour the end of each filter's range, ±" in text
    shown[:, 0, 0, 0] = 8
    text = " ".join(
        t.get_text() for t in figures.filters_figure(shown, tight_limits(shown, rule="layer"), view="rgb").axes[0].texts
    )
    assert "full colour a weight of 8" in text


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")])
def test_save(tmp_path: Path, suffix: str, start: bytes) -> None:
    shown = noise(2, 4, 4)
    path = tmp_path / f"maps{suffix}"
    figure = figures.maps_figure(shown, tight_limits(shown), title="two maps")
    figures.save(figure, path)
    assert path.read_bytes().startswith(start)
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.size == tuple(int(150 * side) for side in figure.get_size_inches())


@pytest.mark.parametrize("name", ["maps.jpg", "maps"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    shown = noise(1, 2, 2)
    with pytest.raises(ValueError, match=rf"a figure is saved as \.png, \.pdf, \.svg; got '.*{name}'"):
        figures.save(figures.maps_figure(shown, tight_limits(shown)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_wrong_arrays_are_refused() -> None:
    shown = noise(3, 2, 2)
    limits = tight_limits(shown)
    with pytest.raises(ValueError, match="each of the 3 maps; got 2 numbers"):
        figures.maps_figure(shown, limits, channels=[0, 1])
    with pytest.raises(ValueError, match=r"\[n, h, w\]; got shape \[1, 3, 2, 2\]"):
        figures.maps_figure(shown[None], limits)
    with pytest.raises(ValueError, match=r"\[n, k, kH, kW\]; got shape \[3, 2, 2\]"):
        figures.filters_figure(shown, limits)


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from cnnlog.rendering import figures, shared_ranges\n"
        "shown = np.ones((2, 3, 3), np.float32)\n"
        "figures.save(figures.maps_figure(shown, shared_ranges.tight_limits(shown)), sys.argv[1])\n"
        "assert 'matplotlib.figure' in sys.modules and 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "maps.png")], check=True)

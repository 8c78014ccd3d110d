"""Pictures: goldens for looks, properties for truth.

The goldens in `goldens` are compared by decoded pixels. After a change of looks that is meant, write them again and
look at them:

    python tests/rendering/test_grids.py
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cnnlog.rendering.colours import (
    ABOVE,
    BELOW,
    GAP,
    NOT_FINITE,
    NOTCH,
    RGB_GAP,
    RGB_NOT_FINITE,
    RGB_NOTCH,
    RGB_STEP,
    RGB_ZERO,
    TOP,
    ZERO,
    palette,
)
from cnnlog.rendering.grids import filters_grid, maps_grid, strip_grid
from cnnlog.rendering.png import Grid, encode_png
from cnnlog.rendering.ranges import AnchoredRange, Limits
from cnnlog.rendering.shared_ranges import tight_limits
from cnnlog.rendering.shrink import shrink
from cnnlog.rendering.views import (
    View,
    cell_width,
    columns_that_fill,
    grid_columns,
    most_changed,
    resolve_view,
    select_filters,
    select_maps,
)

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

GOLDENS = Path(__file__).parent / "goldens"
few = settings(deadline=None, derandomize=True, max_examples=40)
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
anything = st.floats(width=32)
seeds = st.integers(0, 2**32 - 1)


def limits_of(high: list[float] | FloatArray, *, symmetric: bool = True) -> Limits:
    array = np.asarray(high, np.float32)
    return Limits(array, symmetric, np.zeros(len(array), np.int64))


def cell_of(pixels: Pixels, position: int, n_columns: int, size: tuple[int, int]) -> Pixels:
    """The cell at a position of a grid whose cells are `size` (h, w) as drawn."""
    row, column = divmod(position, n_columns)
    top, left = 1 + row * (size[0] + 1), 1 + column * (size[1] + 1)
    return pixels[top : top + size[0], left : left + size[1]]


def above(pixels: Pixels, position: int, n_columns: int, size: tuple[int, int]) -> Pixels:
    """The gap pixels right above a cell."""
    row, column = divmod(position, n_columns)
    return pixels[row * (size[0] + 1), 1 + column * (size[1] + 1) : (column + 1) * (size[1] + 1)]


def drawn_cell_size(pixels: Pixels, n_cells: int, n_columns: int) -> tuple[int, int]:
    n_rows = -(-n_cells // n_columns)
    height, width = pixels.shape[0] - (n_rows + 1), pixels.shape[1] - (n_columns + 1)
    assert height % n_rows == 0
    assert width % n_columns == 0
    return height // n_rows, width // n_columns


def columns_of(grid: Grid) -> int:
    assert grid.layout is not None
    return grid.layout.columns


def is_gap(pixels: Pixels) -> npt.NDArray[np.bool_]:
    return np.asarray(pixels == GAP if pixels.ndim == 2 else (pixels == RGB_GAP).all(axis=-1))


def is_notch(pixels: Pixels, *, rgb: bool) -> npt.NDArray[np.bool_]:
    return np.asarray((pixels == RGB_NOTCH).all(axis=-1) if rgb else pixels == NOTCH)


def check_layout(grid: Grid, n_cells: int, n_columns: int) -> None:
    """The invariant of every grid: cells without gap, gap everywhere else, no index without a colour."""
    h, w = drawn_cell_size(grid.pixels, n_cells, n_columns)
    assert grid.layout is not None
    assert (h, w) == (grid.layout.height * grid.layout.factor, grid.layout.width * grid.layout.factor)
    assert n_columns == grid.layout.columns
    outside = np.ones(grid.pixels.shape[:2], bool)
    for position in range(n_cells):
        cell = cell_of(grid.pixels, position, n_columns, (h, w))
        assert not is_gap(cell).any()
        assert not is_notch(cell, rgb=grid.palette is None).any()
        cell_of(outside.view(np.uint8), position, n_columns, (h, w))[:] = 0
    assert (is_gap(grid.pixels) | is_notch(grid.pixels, rgb=grid.palette is None))[outside].all()
    if grid.palette is not None:
        assert grid.pixels.max() < len(grid.palette) // 3


def decoded(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))


# --- goldens -------------------------------------------------------------------------------------------------------


def wave(n: int, size: int, *, low: float = -1.0) -> FloatArray:
    """Gratings, one an angle, from `low` to 1, the k-th as strong as k + 1."""
    y, x = np.mgrid[:size, :size] / size
    angles = np.arange(n)[:, None, None] * math.pi / n
    gratings = np.cos(4 * math.pi * (x * np.cos(angles) + y * np.sin(angles)))
    waves: FloatArray = ((low + (gratings + 1) / 2 * (1 - low)) * np.arange(1, n + 1)[:, None, None]).astype(np.float32)
    return waves


def golden_grids() -> dict[str, tuple[Grid, int, int]]:
    """Name -> grid, its cells, its columns."""
    rgb = np.stack([wave(6, 7), wave(6, 7)[::-1], -wave(6, 7)], axis=1)
    rgb[5, 0, 3, 3] = np.nan
    of_rgb = tight_limits(rgb)
    of_rgb = Limits(of_rgb.high, True, np.array([0, 0, 0, 0, 1, 1]))
    slices = wave(6, 3).reshape(2, 3, 3, 3).repeat(2, axis=0)
    maps = wave(5, 20, low=0)
    maps[1, 4:8, 4:8] = np.nan
    maps[3, 12, :] = np.inf
    signed = AnchoredRange()
    signed.update(wave(5, 20))
    grown = wave(5, 20) * np.array([1, 1.6, 1.4, 1, 1], np.float32)[:, None, None]
    grown[2, 9:11, 9:11] *= 1.8
    evolution = np.stack([wave(3, 9) * share for share in (1.0, 0.5, 0.25, 0.0)])
    return {
        "filters-rgb": (filters_grid(rgb, of_rgb, view="rgb", width=120), 6, 3),
        "filters-slices": (filters_grid(slices, AnchoredRange().update(slices), view="slices", width=80), 12, 3),
        "filters-mean-gray": (
            filters_grid(wave(5, 7)[:, None], limits_of([5.0] * 5), view="mean", cmap="gray", width=80),
            5,
            2,
        ),
        "maps-from-zero": (maps_grid(maps, AnchoredRange().update(maps), width=100), 5, 2),
        "maps-signed": (maps_grid(grown, signed.update(grown), width=100), 5, 2),
        "strip": (strip_grid(evolution, tight_limits(evolution.swapaxes(0, 1)), width=100), 12, 4),
    }


@pytest.mark.parametrize("name", sorted(golden_grids()))
def test_golden(name: str) -> None:
    grid, n_cells, n_columns = golden_grids()[name]
    check_layout(grid, n_cells, n_columns)
    golden = decoded((GOLDENS / f"{name}.png").read_bytes())
    np.testing.assert_array_equal(decoded(encode_png(grid)), golden, err_msg=f"{name} looks different; see this file")


def test_no_golden_is_left_over() -> None:
    assert {path.stem for path in GOLDENS.glob("*.png")} == set(golden_grids())


# --- what is shown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "view", "expected"),
    [(3, "auto", "rgb"), (1, "auto", "gray"), (2, "auto", "slices"), (64, "auto", "slices"), (3, "mean", "mean"),
     (3, "slices", "slices"), (1, "mean", "mean")],
)  # fmt: skip
def test_view(inputs: int, view: View, expected: str) -> None:
    assert resolve_view((8, inputs, 3, 3), view) == expected


@pytest.mark.parametrize(
    ("inputs", "view", "message"),
    [
        (4, "rgb", r'"rgb" needs filters with 3 input channels; these have 4: use "slices", "mean" or "auto"'),
        (3, "gray", r'"gray" needs filters with 1 input channel; these have 3: use "mean" or "slices"'),
        (3, "colour", r"view must be one of auto, rgb, gray, slices, mean; got 'colour'"),
    ],
)
def test_a_view_that_the_filters_do_not_have_is_refused(inputs: int, view: View, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_view((8, inputs, 3, 3), view)


def test_the_first_filters_are_shown_as_they_are() -> None:
    weight = np.random.default_rng(0).standard_normal((70, 20, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(select_filters(weight, view="auto"), weight[:16, :16])
    np.testing.assert_array_equal(select_filters(weight, view="slices", max_filters=4), weight[:4, :16])
    np.testing.assert_allclose(
        select_filters(weight, view="mean"), weight[:64].astype(np.float64).mean(1, keepdims=True), rtol=1e-6
    )
    np.testing.assert_array_equal(select_filters(weight[:, :3], view="auto", max_filters=9), weight[:9, :3])
    np.testing.assert_array_equal(select_filters(weight[:, :1], view="gray"), weight[:64, :1])


@pytest.mark.parametrize("view", ["rgb", "slices", "mean"])
def test_what_is_selected_is_a_copy(view: View) -> None:
    weight = np.ones((2, 3, 3, 3), np.float32)
    select_filters(weight, view=view)[:] = 7
    select_maps(weight, cell=None)[:] = 7
    assert (weight == 1).all()


def test_maps_wider_than_a_cell_are_shrunk_in_proportion() -> None:
    maps = np.random.default_rng(0).standard_normal((2, 70, 60, 100)).astype(np.float32)
    shown = select_maps(maps, cell=42)
    assert shown.shape == (2, 64, 25, 42)
    np.testing.assert_array_equal(shown, shrink(maps[:, :64], (25, 42)))
    np.testing.assert_array_equal(select_maps(maps, cell=None, max_maps=3), maps[:, :3])
    np.testing.assert_array_equal(select_maps(maps, cell=100, max_maps=3), maps[:, :3])


@few
@given(st.integers(1, 5000))
def test_grids_are_nearly_square(n: int) -> None:
    c = grid_columns(n)
    assert (c - 1) ** 2 < n <= c**2


@few
@given(st.integers(1, 400), st.integers(1, 1000))
def test_cell_width_is_the_widest_that_fits(n: int, width: int) -> None:
    cell = cell_width(n, width)
    assert cell is not None
    assert cell * n + n + 1 <= width or cell == 1
    assert (cell + 1) * n + n + 1 > width
    assert cell_width(n, None) is None
    bare = cell_width(n, width, bare=True)
    assert bare is not None
    assert bare * n + n - 1 <= width or bare == 1
    assert (bare + 1) * n + n - 1 > width


nearly_square = st.tuples(st.integers(1, 300), st.integers(1, 80), st.integers(1, 80), st.integers(1, 400))


@few
@given(nearly_square)
def test_a_grid_fills_its_width_or_no_nearly_square_grid_fills_it_better(
    case: tuple[int, int, int, int],
) -> None:
    n, h, w, width = case
    chosen, square = columns_that_fill(n, (h, w), width), grid_columns(n)

    def filled(columns: int) -> tuple[int, int]:
        cell = (width - columns - 1) // columns
        size = w * max(1, cell // max(h, w))
        return columns * (size + 1) + 1, size

    def is_nearly_square(columns: int) -> bool:
        rows = -(-n // columns)
        return rows <= 1.5 * columns and columns <= 2.25 * rows

    cell = (width - square - 1) // square
    if w >= cell or filled(square)[0] >= 0.9 * width:
        assert chosen == square
    else:
        fits = [c for c in range(1, n + 1) if is_nearly_square(c) and w <= (width - c - 1) // c]
        others = [filled(c) for c in [*fits, square] if filled(c)[1] >= filled(square)[1]]
        wide = [(size, across) for across, size in others if across >= 0.9 * max(others)[0]]
        assert filled(chosen)[::-1] == max(wide)
        assert filled(chosen)[0] <= width
    assert columns_that_fill(n, (h, w), None) == square


@few
@given(nearly_square)
def test_maps_that_were_averaged_to_their_cell_keep_their_columns(case: tuple[int, int, int, int]) -> None:
    n, h, w, width = case
    shown = select_maps(np.ones((1, n, h, w), np.float32), max_maps=n, cell=cell_width(grid_columns(n), width))[0]
    columns = columns_that_fill(n, (h, w), width)
    assert columns_that_fill(n, (shown.shape[1], shown.shape[2]), width) == columns
    cell = cell_width(columns, width)
    assert cell is not None
    assert shown.shape[2] <= cell, "no value is averaged twice"


# --- averaging by area ---------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def slow_shrink(picture: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Cut every pixel into h x w equal parts; every output pixel then is a block of H x W parts."""
    (height, width), (h, w) = picture.shape, size
    parts = picture.astype(np.float64).repeat(h, axis=0).repeat(w, axis=1)
    out = np.zeros(size)
    for i in range(h):
        for j in range(w):
            out[i, j] = parts[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
    return out


@few
@given(st.data(), sizes)
def test_shrink_is_the_mean_over_the_area(data: st.DataObject, size: tuple[int, int]) -> None:
    picture = data.draw(hnp.arrays(np.float32, size, elements=finite))
    target = data.draw(st.tuples(st.integers(1, size[0]), st.integers(1, size[1])))
    shrunk = shrink(picture, target)
    scale = float(np.abs(picture).max())
    np.testing.assert_allclose(shrunk, slow_shrink(picture, target), rtol=1e-6, atol=1e-6 * scale)
    assert shrunk.astype(np.float64).mean() == pytest.approx(picture.astype(np.float64).mean(), abs=1e-6 * scale)
    assert shrunk.dtype == np.float32


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), seeds)
def test_shrink_by_a_whole_ratio_is_the_block_mean(h: int, w: int, fy: int, fx: int, seed: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((2, 3, h * fy, w * fx)).astype(np.float32)
    blocks = maps.reshape(2, 3, h, fy, w, fx).astype(np.float64).mean(axis=(3, 5))
    np.testing.assert_allclose(shrink(maps, (h, w)), blocks, rtol=1e-6, atol=1e-7)


@few
@given(st.data(), sizes)
def test_what_is_not_finite_spreads_to_what_it_touches_only(data: st.DataObject, size: tuple[int, int]) -> None:
    picture = data.draw(hnp.arrays(np.float32, size, elements=anything))
    target = data.draw(st.tuples(st.integers(1, size[0]), st.integers(1, size[1])))
    shrunk = shrink(picture, target)
    touched = slow_shrink((~np.isfinite(picture)).astype(np.float32), target) > 0
    np.testing.assert_array_equal(np.isfinite(shrunk), ~touched)


def test_shrink_never_enlarges() -> None:
    with pytest.raises(ValueError, match=r"from \(1, 1\) to the map's own \(3, 4\); got \(3, 5\)"):
        shrink(np.ones((3, 4), np.float32), (3, 5))


# --- grids ---------------------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 70), st.integers(1, 60), st.integers(1, 60), st.integers(1, 400))
def test_shape_law(n: int, h: int, w: int, width: int) -> None:
    grid = maps_grid(np.ones((n, h, w), np.float32), limits_of([1.0] * n), width=width)
    n_columns = columns_that_fill(n, (h, w), width)
    check_layout(grid, n, n_columns)
    drawn_h, drawn_w = drawn_cell_size(grid.pixels, n, n_columns)
    assert grid.size[0] <= width or drawn_w == 1
    cell = cell_width(n_columns, width)
    assert cell is not None
    if w > cell:
        assert drawn_w == cell
        assert drawn_h == max(1, math.floor(h * cell / w + 0.5))
    else:
        factor = drawn_w // w
        assert (drawn_h, drawn_w) == (h * factor, w * factor)
        assert factor == max(1, cell // max(h, w))


@few
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_shape_law_of_slices(n: int, k: int, h: int, w: int) -> None:
    grid = filters_grid(np.ones((n, k, h, w), np.float32), limits_of([1.0] * n), view="slices")
    check_layout(grid, n * k, k)
    assert grid.size[0] <= 350
    assert drawn_cell_size(grid.pixels, n * k, k)[1] % w == 0


@few
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), seeds)
def test_every_channel_is_in_its_cell_at_every_step(n: int, h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchored = AnchoredRange(signed=True)
    n_columns = columns_that_fill(n, (h, w))
    for _ in range(3):
        maps = rng.standard_normal((n, h, w)).astype(np.float32)
        limits = anchored.update(maps)
        grid = maps_grid(maps, limits)
        size = drawn_cell_size(grid.pixels, n, n_columns)
        factor = size[0] // h
        for channel in range(n):
            alone = maps_grid(
                maps[channel : channel + 1], limits_of(limits.high[[channel]]), width=None, bare=True
            ).pixels
            cell = cell_of(grid.pixels, channel, n_columns, size)
            np.testing.assert_array_equal(cell, alone.repeat(factor, axis=0).repeat(factor, axis=1))


@pytest.mark.parametrize("view", ["rgb", "slices"])
def test_every_filter_is_in_its_cell(view: View) -> None:
    rng = np.random.default_rng(0)
    shown = rng.uniform(-1, 1, (5, 3, 2, 4)).astype(np.float32)
    grid = filters_grid(shown, limits_of([1.0] * 5), view=view)
    if view == "rgb":
        n_columns = columns_of(grid)
        size = drawn_cell_size(grid.pixels, 5, n_columns)
        for f in range(5):
            small = cell_of(grid.pixels, f, n_columns, size)[:: size[0] // 2, :: size[1] // 4]
            expected = RGB_ZERO + RGB_STEP * np.rint(shown[f] * ZERO)
            np.testing.assert_array_equal(np.moveaxis(small, -1, 0), expected)
    else:
        size = drawn_cell_size(grid.pixels, 15, 3)
        for position in range(15):
            small = cell_of(grid.pixels, position, 3, size)[:: size[0] // 2, :: size[1] // 4]
            np.testing.assert_array_equal(small, ZERO + np.rint(shown[position // 3, position % 3] * ZERO))


@few
@given(st.integers(1, 5), st.integers(1, 12), seeds)
def test_a_strip_has_a_row_a_channel_and_a_column_a_step(n: int, steps: int, seed: int) -> None:
    cells = np.random.default_rng(seed).uniform(-1, 1, (steps, n, 3, 3)).astype(np.float32)
    grid = strip_grid(cells, limits_of([1.0] * n))
    check_layout(grid, n * steps, steps)
    size = drawn_cell_size(grid.pixels, n * steps, steps)
    for step in range(steps):
        for channel in range(n):
            small = cell_of(grid.pixels, channel * steps + step, steps, size)[:: size[0] // 3, :: size[1] // 3]
            np.testing.assert_array_equal(small, ZERO + np.rint(cells[step, channel] * ZERO))


def test_a_strip_of_rgb_filters_draws_the_cells_of_the_grid() -> None:
    filters = np.random.default_rng(0).uniform(-1, 1, (2, 3, 5, 5)).astype(np.float32)
    limits = limits_of([1.0, 0.5])
    grid = filters_grid(filters[:, :, :, :], limits, view="rgb", width=23)
    strip = strip_grid(np.stack([filters, -filters]), limits, width=23)
    size = drawn_cell_size(grid.pixels, 2, 2)
    for channel in range(2):
        np.testing.assert_array_equal(
            cell_of(strip.pixels, 2 * channel, 2, size), cell_of(grid.pixels, channel, 2, size)
        )


three_steps = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(1, 4), st.integers(1, 4)), elements=anything)


@few
@given(three_steps)
def test_same_value_same_index_while_the_range_holds(steps: FloatArray) -> None:
    anchored = AnchoredRange()
    known: dict[tuple[int, float, float], int] = {}
    for values in steps:
        limits = anchored.update(values)
        n, w = values.shape
        pixels = maps_grid(values[:, None, :], limits, width=None).pixels
        for channel in range(n):
            cell = cell_of(pixels, channel, grid_columns(n), (1, w))[0]
            for value, index in zip(values[channel].tolist(), cell.tolist(), strict=True):
                if math.isfinite(value):
                    key = (channel, value, float(limits.high[channel]) * (1 if limits.symmetric else -1))
                    assert known.setdefault(key, index) == index


@few
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=anything))
def test_what_is_not_finite_has_its_own_colour_and_nothing_else_has(maps: FloatArray) -> None:
    kept = maps.copy()
    n, h, w = maps.shape
    grid = maps_grid(maps, AnchoredRange().update(maps), width=None)
    for channel in range(n):
        cell = cell_of(grid.pixels, channel, grid_columns(n), (h, w))
        np.testing.assert_array_equal(cell == NOT_FINITE, ~np.isfinite(maps[channel]))
        assert (cell[np.isfinite(maps[channel])] <= TOP).all(), "at the baseline nothing is beyond"
    np.testing.assert_array_equal(maps, kept)


@few
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 4), st.integers(1, 4)),
                  elements=anything))  # fmt: skip
def test_in_rgb_too(filters: FloatArray) -> None:
    kept = filters.copy()
    n, _, h, w = filters.shape
    grid = filters_grid(filters, AnchoredRange(signed=True).update(filters), view="rgb")
    n_columns = columns_of(grid)
    check_layout(grid, n, n_columns)
    size = drawn_cell_size(grid.pixels, n, n_columns)
    for f in range(n):
        cell = cell_of(grid.pixels, f, n_columns, size)
        lost = (~np.isfinite(filters[f]).all(axis=0)).repeat(size[0] // h, axis=0).repeat(size[1] // w, axis=1)
        marked = np.any([(cell == colour).all(axis=-1) for colour in RGB_NOT_FINITE], axis=0)
        np.testing.assert_array_equal(marked, lost)
        assert cell[~lost].min(initial=4) >= 4
        assert cell[~lost].max(initial=252) <= 252
    np.testing.assert_array_equal(filters, kept)


@few
@given(hnp.arrays(np.float32, st.integers(2, 30), elements=st.floats(-1, 1, width=32)))
def test_indices_rise_with_the_values_and_mirror_with_their_sign(values: FloatArray) -> None:
    ordered = np.sort(values)[None, None, :]
    rising = maps_grid(ordered, limits_of([1.0]), width=None, bare=True).pixels[0].astype(int)
    assert (np.diff(rising) >= 0).all()
    mirrored = maps_grid(-ordered, limits_of([1.0]), width=None, bare=True).pixels[0].astype(int)
    np.testing.assert_array_equal(mirrored, TOP - rising)
    from_zero = maps_grid(ordered, limits_of([1.0], symmetric=False), width=None, bare=True).pixels[0].astype(int)
    np.testing.assert_array_equal(from_zero, np.where(ordered[0, 0] < 0, BELOW, np.rint(ordered[0, 0] * TOP)))


def test_what_is_beyond_the_range_has_a_colour_that_says_so() -> None:
    values = np.array([[[-2.0, -1.0, 0.0, 1.0, 2.0, np.nan]]], np.float32)
    drawn = maps_grid(values, limits_of([1.0]), width=None, bare=True).pixels
    assert drawn.tolist() == [[BELOW, 0, ZERO, TOP, ABOVE, NOT_FINITE]]
    from_zero = maps_grid(values, limits_of([1.0], symmetric=False), width=None, bare=True).pixels
    assert from_zero.tolist() == [[BELOW, BELOW, 0, TOP, ABOVE, NOT_FINITE]]


def test_in_rgb_what_is_beyond_the_range_takes_the_full_colour() -> None:
    filters = np.array([-2.0, 0.0, 2.0], np.float32).reshape(1, 3, 1, 1)
    drawn = filters_grid(filters, limits_of([1.0]), view="rgb", width=None, bare=True).pixels
    assert drawn.tolist() == [[[4, 128, 252]]]


@few
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.data())
def test_each_cell_whose_range_changed_has_a_notch_and_no_other(
    n: int, h: int, w: int, switched: bool, data: st.DataObject
) -> None:
    doubled = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    limits = Limits(np.ones(n, np.float32), True, doubled, switched)
    grids = {
        1: [maps_grid(np.zeros((n, h, w), np.float32), limits)],
        3: [filters_grid(np.zeros((n, 3, h, w), np.float32), limits, view="slices")],
    }
    grids[1].append(filters_grid(np.zeros((n, 3, h, w), np.float32), limits, view="rgb"))
    for cells, drawn in grids.items():
        for grid in drawn:
            n_columns, rgb = columns_of(grid), grid.palette is None
            check_layout(grid, n * cells, n_columns)
            size = drawn_cell_size(grid.pixels, n * cells, n_columns)
            runs = [is_notch(above(grid.pixels, cell, n_columns, size), rgb=rgb) for cell in range(n * cells)]
            assert [bool(run.any()) for run in runs] == np.repeat((doubled > 0) | switched, cells).tolist()
            assert is_notch(grid.pixels, rgb=grid.palette is None).sum() == sum(run.sum() for run in runs), (
                "there is none elsewhere"
            )
            for run in runs:
                assert run.sum() <= min(12, size[1])
                assert not run.any() or run.sum() >= min(3, size[1])
    framed = maps_grid(np.zeros((n, h, w), np.float32), limits, width=None)
    bare = maps_grid(np.zeros((n, h, w), np.float32), limits, width=None, bare=True)
    framed.pixels[is_notch(framed.pixels, rgb=False)] = GAP
    np.testing.assert_array_equal(bare.pixels, framed.pixels[1:-1, 1:-1])


def test_the_channels_that_changed_most_come_first() -> None:
    base = np.array([[1.0, 1.0], [10, 10], [1, 1], [0, 0], [1, 1], [1, 1], [1, 1]], np.float32)
    middle, last = base.copy(), base.copy()
    middle[0] += 0.5  # and back
    last[1] += 1  # 10 % of its length
    last[2] += 0.2
    last[3] += 0.015  # of a channel of zeros, in shares of a tenth of the median length
    last[4, 0] = np.nan
    last[5] += 0.2
    assert most_changed(np.stack([base, middle, last]), 4) == [0, 2, 5, 3]
    assert most_changed(np.stack([base, middle, last]), 9) == [0, 2, 5, 3, 1, 6, 4]
    assert most_changed(base[None], 3) == [0, 1, 2], "of one step, and of equal changes, the lower numbers"
    assert most_changed(np.full((2, 2, 1), np.nan, np.float32), 8) == [0, 1]


def test_limits_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 arrived for 3 cells"):
        maps_grid(np.ones((3, 2, 2), np.float32), limits_of([1.0, 1.0]))


# --- colours and files ---------------------------------------------------------------------------------------------


def colours(cmap: str, symmetric: bool) -> npt.NDArray[np.int64]:
    return np.frombuffer(palette(cmap, symmetric), np.uint8).reshape(-1, 3).astype(np.int64)


def test_zero_is_white_where_there_is_a_sign() -> None:
    table = colours("auto", True)
    assert table[ZERO].tolist() == [255, 255, 255]
    assert table[0, 2] > table[0, 0]  # below 0 is blue, above is red
    assert table[TOP, 0] > table[TOP, 2]


@pytest.mark.parametrize("cmap", ["auto", "gray", "viridis", "coolwarm", "PiYG", "nipy_spectral", "hsv"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gap_and_not_finite_are_far_from_every_value(cmap: str, symmetric: bool) -> None:
    table = colours(cmap, symmetric)
    values = table[: TOP + 1]
    for special in (GAP, NOT_FINITE, NOTCH):
        assert np.linalg.norm(values - table[special], axis=1).min() >= 64
    for one, other in ((GAP, NOT_FINITE), (GAP, NOTCH), (NOT_FINITE, NOTCH)):
        assert np.linalg.norm(table[one] - table[other]) >= 64
    assert np.linalg.norm(table[NOTCH] - table[GAP]) >= 128, "a notch is seen against the gap"


@pytest.mark.parametrize("cmap", ["auto", *matplotlib.colormaps])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_colours_beyond_the_ends_are_apart_from_all_others(cmap: str, symmetric: bool) -> None:
    table = colours(cmap, symmetric)
    assert len(table) == NOTCH + 1
    for special in (BELOW, ABOVE):
        assert np.linalg.norm(np.delete(table, special, axis=0) - table[special], axis=1).min() >= 48


def test_beyond_the_ends_the_colours_go_on_as_before() -> None:
    signed, from_zero = colours("auto", True), colours("auto", False)
    assert signed[BELOW].sum() < signed[0].sum(), "darker than the darkest blue"
    assert signed[BELOW, 2] > signed[BELOW, 0], "and blue"
    assert signed[ABOVE].sum() < signed[TOP].sum(), "darker than the darkest red"
    assert signed[ABOVE, 0] > signed[ABOVE, 2], "and red"
    assert from_zero[ABOVE].sum() > from_zero[TOP].sum(), "brighter than the brightest yellow"


def test_gray_is_gray() -> None:
    values = colours("gray", True)[: TOP + 1]
    assert (values == values[:, :1]).all()
    assert (np.diff(values[:, 0]) > 0).all()


def test_a_misspelt_colour_map_is_refused_with_a_close_name() -> None:
    with pytest.raises(ValueError, match=r"got 'viridsi': did you mean .*viridis"):
        palette("viridsi", True)


@few
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, NOTCH)))
def test_a_png_holds_the_grid(indices: Pixels) -> None:
    table = palette("auto", True)
    data = encode_png(Grid(indices, table), text={"cnnlog": "range x2", "ä": "Grüße"})
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()  # checks every chunk's checksum
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), indices)
        assert picture.text == {"cnnlog": "range x2", "ä": "Grüße"}
        shown = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(shown, np.frombuffer(table, np.uint8).reshape(-1, 3)[indices])


def test_an_rgb_png_holds_the_grid() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    data = encode_png(Grid(pixels, None), text={"step": "3"})
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == "RGB"
        assert picture.text == {"step": "3"}
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_pictures_of_alexnet_stay_within_their_bytes() -> None:
    # Noise smoothed this much takes a little more than the maps of a photograph do; 300 kB are for all 20 pictures.
    rng = np.random.default_rng(0)
    total = 0
    for size in (42, 27, 13, 13, 13):
        maps = rng.standard_normal((64, size, size))
        for _ in range(12):
            maps = sum((np.roll(maps, by, axis) for by in (-1, 1) for axis in (-1, -2)), maps) / 5
        shown = maps.astype(np.float32)
        total += 2 * len(encode_png(maps_grid(shown, AnchoredRange().update(shown))))
    for shape in ((64, 3, 11, 11), (16, 16, 5, 5), (16, 16, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3)):
        weights = rng.standard_normal(shape).astype(np.float32)
        total += 2 * len(encode_png(filters_grid(weights, AnchoredRange().update(weights), view="auto")))
    assert total <= 300_000


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for golden_name, (golden_grid, _, _) in golden_grids().items():
        (GOLDENS / f"{golden_name}.png").write_bytes(encode_png(golden_grid))

"""Reads exported strips, sheets and animations back to values, and compares them with what the oracle saw.

An exported picture is a white sheet with words and grids on it. A grid is found by the frame around its cells: a net of
one colour. Which colour is which value is what the palette of the run's own pictures in TensorBoard says.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from support import formulas, oracle
from support.oracle import Cells, Stored
from support.oracle_checks import Place, Tally, as_cells, within_shades
from support.oracle_pages import Side
from support.oracle_ranges import with_median

Array = npt.NDArray[Any]
VALUES, GAP, NOT_FINITE = 63, 63, 64
_RGB_GAP = (0, 0, 0)
_LEAST_FRAME = 12
"""So many pixels of a gap's colour in a row are a frame, and no letter."""


# --- pictures on a white sheet ---------------------------------------------------------------------------------------


def frames_of(path: Path) -> list[Array]:
    """All frames of a GIF or an animated PNG, or the one of a PNG: `[H, W, 3]` each."""
    with Image.open(path, formats=["PNG", "GIF"]) as picture:
        found = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB")))
    return found


def durations_of(path: Path) -> list[float]:
    """How long each frame of an animation stands, in milliseconds."""
    with Image.open(path, formats=["PNG", "GIF"]) as picture:
        found = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            picture.load()
            found.append(float(picture.info["duration"]))
    return found


def grids_of(pixels: Array, gap: tuple[int, int, int]) -> list[tuple[int, int, Array]]:
    """The grids on a sheet, from top to bottom and from left to right: where each begins, and its pixels."""
    left, found = (pixels == np.array(gap, np.uint8)).all(axis=-1), []
    for top in range(len(left)):
        while (runs := np.lib.stride_tricks.sliding_window_view(left[top], _LEAST_FRAME).all(axis=-1)).any():
            first = int(runs.argmax())
            width, height = (_length(line) for line in (left[top, first:], left[top:, first]))
            found.append((top, first, pixels[top : top + height, first : first + width]))
            left[top : top + height, first : first + width] = False
    return sorted(found, key=lambda one: one[:2])


def _length(line: Array) -> int:
    """How many of the first are all true."""
    return len(line) if line.all() else int(line.argmin())


def palettes_of(run: Stored, kind: str) -> dict[bool, Array]:
    """Whether a range is symmetric -> the colours of the indices `[n, 3]`, by the run's pictures in TensorBoard."""
    found = {}
    for (tag, _), png in sorted(run.images.items(), key=lambda one: one[0][0].startswith(kind)):
        if not tag.startswith(("filters", "feature_maps")):
            continue
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            picture.load()
            if picture.mode == "P":
                facts, _ = oracle.facts_and_pixels(png)
                if facts["kind"].startswith(kind) or facts["symmetric"] not in found:
                    found[bool(facts["symmetric"])] = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    return found


def cells_of(grid: Array, size: tuple[int, int], count: int, gap: tuple[int, int, int]) -> Array:
    """The cells of a grid `[m, h, w, 3]`, a value a pixel.

    Args:
        grid: its pixels.
        size: how many values a cell has, if it was not averaged for want of room.
        count: how many cells there are.
        gap: the colour between them.

    Raises:
        AssertionError: it is not laid out as a grid.
    """
    is_gap = (grid == np.array(gap, np.uint8)).all(axis=-1)
    lines = [np.flatnonzero(is_gap.all(axis=axis)) for axis in (1, 0)]
    down, across = (int(at[1] - at[0]) for at in lines)
    rows, columns = (grid.shape[0] - 1) // down, (grid.shape[1] - 1) // across
    for at, pitch, many in ((lines[0], down, rows), (lines[1], across, columns)):
        assert np.array_equal(at, np.arange(many + 1) * pitch), "the gaps are not at even distances"
    assert (rows - 1) * columns < count <= rows * columns, f"{rows} rows of {columns} cells are no {count} cells"
    height, width = down - 1, across - 1
    fits = height % size[0] == 0 and width % size[1] == 0 and height // size[0] == width // size[1]
    factor = height // size[0] if fits else 1
    cells = []
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        top, left = 1 + row * down, 1 + column * across
        whole = grid[top : top + height, left : left + width]
        if cell >= count:
            assert is_gap[top : top + height, left : left + width].all(), "behind the last cell there is a gap"
            continue
        small = whole[::factor, ::factor]
        assert (np.repeat(np.repeat(small, factor, 0), factor, 1) == whole).all(), "pixels of a value are unlike"
        cells.append(small)
    return np.stack(cells)


def valued(cells: Array, high: Array, palette: Array | None, *, symmetric: bool) -> Cells:
    """Colours `[m, h, w, 3]` as values; without a palette the three colours are the values of three channels."""
    low = -high if symmetric or palette is None else np.zeros_like(high)
    if palette is None:
        return oracle.valued(cells, low, high, {"first": 4, "last": 252})
    packed = [colours.astype(np.int64) @ [65536, 256, 1] for colours in (palette[: NOT_FINITE + 1], cells)]
    assert len({*packed[0].tolist()}) == NOT_FINITE + 1, "two indices have one colour"
    order = np.argsort(packed[0])
    at = np.clip(np.searchsorted(packed[0][order], packed[1]), 0, NOT_FINITE)
    assert (packed[0][order][at] == packed[1]).all(), "a pixel has no colour of the palette"
    facts = {"first": 0, "last": VALUES - 1, "not_finite": NOT_FINITE, "below": 255, "above": 254}
    return oracle.valued(order[at].astype(np.uint8), low, high, facts)


# --- what should be on it --------------------------------------------------------------------------------------------


class Export:
    """What the oracle expects of the exports of one side.

    Args:
        side: the run, and what was seen of it.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.layers = side.run.manifest["layers"]
        self._ranges: dict[tuple[str, str], tuple[Array, bool]] = {}
        self.palettes = {kind: palettes_of(side.run, kind) for kind in ("filters", "feature_maps")}

    def kinds(self, layer: Mapping[str, Any]) -> list[str]:
        shapes = (("filters", "weight_shape"), ("feature_maps", "output_shape"))
        return [kind for kind, shape in shapes if layer[shape] is not None]

    def range_of(self, layer: Mapping[str, Any], kind: str) -> tuple[Array, bool]:
        """The end of each channel's range over all steps and images, and whether there are values below 0."""
        key = (layer["name"], kind)
        if key not in self._ranges:
            self._ranges[key] = self._range_of(layer, kind)
        return self._ranges[key]

    def _range_of(self, layer: Mapping[str, Any], kind: str) -> tuple[Array, bool]:
        shown = [self.side.shown(layer["name"], kind, state.step) for state in self.side.states]
        channels = np.stack([one if kind == "filters" else np.swapaxes(one, 0, 1) for one in shown], axis=1)
        flat = channels.reshape(len(channels), -1)
        flat = np.where(np.isfinite(flat), flat, 0)
        symmetric = kind == "filters" or bool((flat < 0).any())
        return with_median(np.abs(flat).max(axis=1) if symmetric else flat.max(axis=1)), symmetric

    def cells(self, layer: Mapping[str, Any], kind: str, step: int, image: int = 0) -> tuple[Array, Array]:
        """The cells of a layer's picture at a step, and the end of the range of each."""
        shown = self.side.shown(layer["name"], kind, step)
        cells = as_cells(
            shown[image] if kind == "feature_maps" else shown, layer["view"] if kind == "filters" else None
        )
        high, _ = self.range_of(layer, kind)
        return cells, np.repeat(high, len(cells) // len(high))

    def strip(self, layer: Mapping[str, Any], kind: str) -> tuple[Array, Array]:
        """The cells of a strip, row by row, and the end of the range of each. So few steps are all shown."""
        rgb = kind == "filters" and layer["view"] == "rgb"
        steps = []
        for state in self.side.states:
            shown = self.side.shown(layer["name"], kind, state.step)
            steps.append(shown[0] if kind == "feature_maps" else shown if rgb else shown[:, 0])
        every = np.stack(steps, axis=1)  # [n, steps, ...]
        flat = every.reshape(*every.shape[:2], -1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            lengths = np.linalg.norm(flat[:, 0], axis=1)
            moved = np.linalg.norm(flat - flat[:, :1], axis=2).max(axis=1)
            least = np.median(lengths[np.isfinite(lengths)]) / 10
            change = np.where(moved == 0, 0, moved / np.maximum(lengths, least))
        rows = np.argsort(-change, kind="stable")[:8]
        high, _ = self.range_of(layer, kind)
        return every[rows].reshape(-1, *every.shape[2:]), np.repeat(high[rows], every.shape[1])

    def compare(
        self,
        grid: Array,
        of: tuple[Mapping[str, Any], str],
        expected: tuple[Array, Array],
        place: Place,
        tally: Tally,
    ) -> None:
        """One grid, back in values, against the expected cells and ranges."""
        (layer, kind), (cells, high) = of, expected
        rgb = kind == "filters" and layer["view"] == "rgb"
        _, symmetric = self.range_of(layer, kind)
        palette = None if rgb else self.palettes[kind][symmetric]
        size = cells.shape[-2:]
        if rgb:  # NaN is a chequer of two colours
            green, magenta = np.array([[0, 200, 0], [255, 0, 255]], np.uint8)
            grid = np.where((grid == magenta).all(axis=-1, keepdims=True), green, grid)
        try:
            colours = cells_of(grid, (size[0], size[1]), len(cells), self.gap_of(layer, kind))
            found = valued(colours, high, palette, symmetric=symmetric)
        except (AssertionError, IndexError) as error:
            tally.fault(place.what, place.where, str(error))
            return
        if found.values.shape[-2:] != size:
            cells = formulas.area_means(cells, found.values.shape[-2:])
        within_shades(found, cells, place, tally)

    def gap_of(self, layer: Mapping[str, Any], kind: str) -> tuple[int, int, int]:
        if kind == "filters" and layer["view"] == "rgb":
            return _RGB_GAP
        _, symmetric = self.range_of(layer, kind)
        red, green, blue = self.palettes[kind][symmetric][GAP].tolist()
        return red, green, blue


def check_strip(pixels: Array, export: Export, name: str, kind: str, tally: Tally) -> None:
    """A strip: the channels that changed most, at all steps, in one range over these."""
    layer = export.side.facts(name, "layers")
    place = Place("strip", layer["kind"], f"{kind} of {name}")
    found = grids_of(pixels, export.gap_of(layer, kind))
    if len(found) != 1:
        tally.fault("strip", place.where, f"{len(found)} grids, not 1")
        return
    export.compare(found[0][2], (layer, kind), export.strip(layer, kind), place, tally)


def check_sheet(pixels: Array, export: Export, step: int, tally: Tally) -> None:
    """A sheet: all layers in order, of each its filters, then its maps of the first image, at one step."""
    wanted = [(layer, kind) for layer in export.layers for kind in export.kinds(layer)]
    gaps = {export.gap_of(layer, kind) for layer, kind in wanted}
    found = sorted((one for gap in gaps for one in grids_of(pixels, gap)), key=lambda one: one[:2])
    if len(found) != len(wanted):
        tally.fault("sheet", f"step {step}", f"{len(found)} grids, not {len(wanted)}")
        return
    for (_, _, grid), (layer, kind) in zip(found, wanted, strict=True):
        place = Place("sheet", layer["kind"], f"{kind} of {layer['name']} at step {step}")
        export.compare(grid, (layer, kind), export.cells(layer, kind, step), place, tally)


def check_animation(
    frames: Sequence[Array], export: Export, name: str, kind: str, tally: Tally, *, image: int = 0
) -> None:
    """An animation: a frame for each step, all in one range."""
    side, layer = export.side, export.side.facts(name, "layers")
    what, where = "animation", f"{kind} of {name}"
    if len(frames) != len(side.states):
        tally.fault(what, where, f"{len(frames)} frames, not {len(side.states)}")
        return
    for state, pixels in zip(side.states, frames, strict=True):
        found = grids_of(pixels, export.gap_of(layer, kind))
        place = Place(what, layer["kind"], f"{where} at step {state.step}")
        if len(found) != 1:
            tally.fault(what, place.where, f"{len(found)} grids, not 1")
            continue
        export.compare(found[0][2], (layer, kind), export.cells(layer, kind, state.step, image), place, tally)

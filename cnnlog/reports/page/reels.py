"""Pictures of all steps, packed: what a page's slider moves through.

A frame is a grid with one pixel a value: palette indices, or colours. A `Reel` holds one picture's frames: the first as
it is, each later one as its difference to the one before, modulo 256, all deflated in one stream that a browser
inflates. Steps that change little so cost next to nothing: 0.1 to 0.4 bytes a value on real trainings. `Detail` says
how many cells of which size a frame holds; `fitting` chooses it for a number of bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnnlog.rendering.colours import Pixels
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shrink import shrink
from cnnlog.rendering.views import ResolvedView, grid_columns
from cnnlog.snapshot import FloatArray

# Filters are small already; below this many pixels a side one no longer sees what they look for.
_LEAST_FILTER = 11
_FIRST_FRAME = 0.7  # bytes a value, of a frame that has none before it
_AIM = 0.9


@dataclass(frozen=True)
class Detail:
    """How much of each picture is kept.

    Attributes:
        cell: the widest feature map, in pixels; wider ones are averaged by area.
        maps: feature maps a layer, at most; always the first ones.
        filters: filters a layer, at most.
        slices: rows and columns of filters that are shown as slices, at most.
    """

    cell: int
    maps: int
    filters: int
    slices: int

    def filters_of(self, shown: FloatArray, view: ResolvedView) -> FloatArray:
        """The kept part of shown filters `[n, k, kH, kW]`."""
        kept = shown[: self.slices, : self.slices] if view == "slices" else shown[: self.filters]
        return _at_most(kept, max(self.cell, _LEAST_FILTER))

    def maps_of(self, shown: FloatArray) -> FloatArray:
        """The kept part of one probe image's maps `[n, h, w]`."""
        return _at_most(shown[: self.maps], self.cell)


DETAILS = (
    Detail(64, 64, 64, 16),
    Detail(32, 64, 64, 16),
    Detail(24, 64, 64, 16),
    Detail(20, 64, 64, 16),
    Detail(16, 64, 64, 16),
    Detail(14, 64, 64, 16),
    Detail(12, 64, 64, 16),
    Detail(10, 64, 64, 16),
    Detail(10, 49, 64, 16),
    Detail(8, 49, 64, 16),
    Detail(8, 36, 64, 16),
    Detail(8, 36, 36, 12),
    Detail(7, 25, 36, 12),
    Detail(7, 16, 25, 8),
    Detail(7, 16, 16, 6),
)


@dataclass(frozen=True)
class Scene:
    """One picture's values at one step, and how they are drawn.

    Attributes:
        values: filters `[n, k, kH, kW]`, or one probe image's maps `[n, h, w]`.
        limits: of the n filters or maps.
        view: of filters; None for maps.
        cmap: as for `filters_grid`.
    """

    values: FloatArray
    limits: Limits
    view: ResolvedView | None
    cmap: str = "auto"

    def kept(self, detail: Detail) -> Scene:
        """The same, no more than `detail` allows."""
        values = detail.maps_of(self.values) if self.view is None else detail.filters_of(self.values, self.view)
        limits = Limits(self.limits.high[: len(values)], self.limits.symmetric, self.limits.doubled[: len(values)])
        return Scene(values, limits, self.view, self.cmap)

    def draw(self, width: int | None = None) -> Grid:
        """The grid; without a width one pixel a value."""
        if self.view is None:
            return maps_grid(self.values, self.limits, cmap=self.cmap, width=width)
        return filters_grid(self.values, self.limits, view=self.view, cmap=self.cmap, width=width)

    def layout(self) -> dict[str, int]:
        """Where a frame's cells lie: `n` channels of `k` cells, `w` by `h` pixels, `columns` in a row."""
        n, k = len(self.values), self.values.shape[1] if self.view == "slices" else 1
        h, w = self.values.shape[-2:]
        return {"n": n, "k": k, "h": h, "w": w, "columns": k if self.view == "slices" else grid_columns(n)}


@dataclass
class Reel:
    """One picture's frames over the steps of a page, packed as they come.

    Attributes:
        at: for each step of the page the number of its frame; -1 before the first.
        steps: of each frame.
        symmetric: of each frame: which palette it has.
        high: of each frame: the range, where all channels have the same, else None.
        doubled: of each frame: how often a channel's range has doubled, at most.
        grown: frame, channel, doublings: each time that a channel's range has doubled.
        last: the last frame's values, as kept.
        size: packed bytes so far.
    """

    at: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    symmetric: list[bool] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    grown: list[tuple[int, int, int]] = field(default_factory=list)
    last: Scene | None = None
    size: int = 0
    _before: Pixels | None = None
    _packed: list[bytes] = field(default_factory=list)
    _deflate: Any = field(init=False)

    def __post_init__(self) -> None:
        self._deflate = _deflater()

    def add(self, scene: Scene, step: int) -> None:
        """Append the next frame, whose values are of `step`."""
        pixels = scene.draw().pixels
        if self._before is not None and pixels.shape != self._before.shape:
            raise ValueError(
                f"frames of one picture must have one shape; they had {list(self._before.shape)} and step {step} has "
                f"{list(pixels.shape)}"
            )
        self._keep(self._deflate.compress((pixels if self._before is None else pixels - self._before).tobytes()))
        before = 0 if self.last is None else self.last.limits.doubled
        changed = np.flatnonzero(scene.limits.doubled != before).tolist()
        self.grown += [(len(self.steps), channel, int(scene.limits.doubled[channel])) for channel in changed]
        self._before, self.last = pixels, scene
        self.steps.append(step)
        self.symmetric.append(scene.limits.symmetric)
        high = scene.limits.high
        self.high.append(float(high[0]) if (high == high[0]).all() else None)
        self.doubled.append(int(scene.limits.doubled.max(initial=0)))
        self.at.append(len(self.steps) - 1)

    def hold(self) -> None:
        """Show the frame before (or none, if there is none yet) at one more step."""
        self.at.append(len(self.steps) - 1)

    def pack(self) -> bytes:
        """All frames; call it once, at the end."""
        self._keep(self._deflate.flush())
        return b"".join(self._packed)

    def _keep(self, packed: bytes) -> None:
        if packed:
            self._packed.append(packed)
            self.size += len(packed)


def fitting(
    pairs: Iterable[tuple[Mapping[Any, Scene], Mapping[Any, Scene]]], *, steps: int, budget: int
) -> tuple[int, int]:
    """The finest detail with which all pictures are expected to fit.

    Args:
        pairs: all pictures at a step and at the step after it, for a few steps spread over the training.
        steps: how many the page is to show.
        budget: bytes.

    Returns:
        Its position in `DETAILS`; and how many steps fit, which is all of them unless the coarsest detail is too fine.
    """
    probe = DETAILS[len(DETAILS) // 2]
    rates: dict[Any, list[float]] = {}
    scenes: dict[Any, Scene] = {}
    for before, after in pairs:
        for key, scene in after.items():
            scenes[key] = scene
            now = scene.kept(probe).draw().pixels
            if key in before and (was := before[key].kept(probe).draw().pixels).shape == now.shape:
                rates.setdefault(key, []).append(_packed_size(now - was) / now.size)
    expected = 0.0
    for position, detail in enumerate(DETAILS):
        sizes = {key: _values(scene, detail) for key, scene in scenes.items()}
        first = _FIRST_FRAME * sum(sizes.values())
        a_step = sum(size * float(np.mean(rates.get(key, [_FIRST_FRAME]))) for key, size in sizes.items())
        expected = first + a_step * (steps - 1)
        if expected <= _AIM * budget:
            return position, steps
    return len(DETAILS) - 1, max(2, int(steps * _AIM * budget / expected))


def spread(steps: tuple[int, ...], at_most: int) -> tuple[int, ...]:
    """At most so many of the steps, evenly spread, first and last among them."""
    if len(steps) <= at_most:
        return steps
    return tuple(steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, at_most).round().astype(int)))


def strongest(difference: FloatArray) -> FloatArray:
    """Colour filters' differences `[n, 3, h, w]` as `[n, 1, h, w]`: of the three the one with the largest magnitude."""
    chosen = np.abs(difference).argmax(axis=1, keepdims=True)
    return np.take_along_axis(difference, chosen, axis=1)


def _at_most(cells: FloatArray, cell: int) -> FloatArray:
    height, width = cells.shape[-2:]
    if max(height, width) <= cell:
        return cells
    scale = cell / max(height, width)
    return shrink(cells, (max(1, round(height * scale)), max(1, round(width * scale))))


def _values(scene: Scene, detail: Detail) -> int:
    """How many values a frame has."""
    shape = scene.values.shape
    most = detail.cell if scene.view is None else max(detail.cell, _LEAST_FILTER)
    area = shape[-2] * shape[-1] * min(1.0, most / max(shape[-2:])) ** 2
    if scene.view == "slices":
        return int(min(shape[0], detail.slices) * min(shape[1], detail.slices) * area)
    per_channel = shape[1] if scene.view is not None else 1
    return int(min(shape[0], detail.maps if scene.view is None else detail.filters) * per_channel * area)


def _deflater() -> Any:
    # Run lengths and Huffman codes only: on differences as small as zlib's best, and five times as fast.
    return zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)


def _packed_size(pixels: Pixels) -> int:
    deflater = _deflater()
    return len(deflater.compress(pixels.tobytes())) + len(deflater.flush())

"""Pictures of all steps, packed: what a page's slider moves through.

A frame is a grid with one pixel for each value: palette indices, or colours. A `Reel` packs one picture's frames: the
first as it is, each later one as its difference to the frame before, modulo 256, all deflated in one stream that a
browser inflates. So steps that change little cost next to nothing: 0.1 to 0.4 bytes a value on real trainings. `Detail`
says how many cells of which size a frame has; `fitting` chooses it for a number of bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cnnlog.rendering.colours import Pixels
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shrink import shrink
from cnnlog.snapshot import FloatArray

# Filters are small already; below this many pixels a side one no longer sees what they look for.
_LEAST_FILTER = 11
_FIRST_FRAME = 0.7  # bytes a value, of a frame that has none before it
_AIM = 0.9


@dataclass(frozen=True)
class Detail:
    """How much of each picture is kept.

    Attributes:
        cell: how wide a feature map may be, in pixels; wider ones are averaged by area.
        maps: how many feature maps of a layer are kept, at most; always the first ones.
        filters: how many filters of a layer are kept, at most; always the first ones.
        slices: how many rows and columns are kept of filters that are shown as slices, at most.
    """

    cell: int
    maps: int
    filters: int
    slices: int

    def kept(self, picture: Picture) -> Picture:
        """The part of a picture that is kept.

        Args:
            picture: the picture at full size.
        """
        if picture.view is None:
            chosen = picture.first(self.maps)
        elif picture.view == "slices":
            chosen = picture.first(self.slices)
            chosen = replace(chosen, values=chosen.values[:, : self.slices])
        else:
            chosen = picture.first(self.filters)
        return replace(chosen, values=_at_most(chosen.values, self.widest(picture)))

    def widest(self, picture: Picture) -> int:
        """How many pixels a cell of a picture may have on its longer side.

        Args:
            picture: filters, or feature maps.
        """
        return self.cell if picture.view is None else max(self.cell, _LEAST_FILTER)


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


def layout(picture: Picture) -> dict[str, int]:
    """Where a frame's cells lie, as the page's script takes it.

    Args:
        picture: what is drawn with one pixel for each value.

    Returns:
        `n` channels of `k` cells, each `w` by `h` pixels, with `columns` cells in a row.
    """
    n, k = len(picture.values), picture.values.shape[1] if picture.view == "slices" else 1
    h, w = picture.values.shape[-2:]
    return {"n": n, "k": k, "h": h, "w": w, "columns": picture.columns}


@dataclass
class Reel:
    """One picture's frames over the steps of a page, packed as they come.

    Attributes:
        at: for each step of the page the number of its frame; -1 before the first frame.
        steps: for each frame its step.
        last: the last frame's picture, whose range is that of all frames.
        size: how many bytes are packed so far.
    """

    at: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    last: Picture | None = None
    size: int = 0
    _before: Pixels | None = None
    _packed: list[bytes] = field(default_factory=list)
    _deflate: Any = field(init=False)

    def __post_init__(self) -> None:
        self._deflate = _deflater()

    def add(self, picture: Picture, step: int) -> None:
        """Append the next frame.

        Args:
            picture: what to draw.
            step: the step that it is of.

        Raises:
            ValueError: it has another shape or another range than the frames before.
        """
        pixels = picture.grid(None, bare=True).pixels
        if self._before is not None and pixels.shape != self._before.shape:
            raise ValueError(
                f"frames of one picture must have one shape; they had {list(self._before.shape)} and step {step} has "
                f"{list(pixels.shape)}"
            )
        if self.last is not None and not _alike(self.last.limits, picture.limits):
            raise ValueError(f"frames of one picture must have one range; step {step} has another than those before it")
        self._keep(self._deflate.compress((pixels if self._before is None else pixels - self._before).tobytes()))
        self._before, self.last = pixels, picture
        self.steps.append(step)
        self.at.append(len(self.steps) - 1)

    def hold(self) -> None:
        """Show the last frame at one more step of the page; nothing if there is no frame yet."""
        self.at.append(len(self.steps) - 1)

    def pack(self) -> bytes:
        """All frames, packed. Call it once, at the end."""
        self._keep(self._deflate.flush())
        return b"".join(self._packed)

    def _keep(self, packed: bytes) -> None:
        if packed:
            self._packed.append(packed)
            self.size += len(packed)


def _alike(one: Limits, other: Limits) -> bool:
    return one.symmetric == other.symmetric and bool((one.high == other.high).all())


def fitting(
    pairs: Iterable[tuple[Mapping[Any, Picture], Mapping[Any, Picture]]], *, steps: int, budget: int
) -> tuple[int, int]:
    """The finest detail with which all pictures are expected to fit.

    Args:
        pairs: for a few steps of the training, all pictures at the step and at the step after it.
        steps: how many steps the page is to show.
        budget: how many bytes there are.

    Returns:
        The position of the detail in `DETAILS`, and how many steps fit: all, unless the coarsest detail is too fine.
    """
    probe = DETAILS[len(DETAILS) // 2]
    rates: dict[Any, list[float]] = {}
    pictures: dict[Any, Picture] = {}
    for before, after in pairs:
        for key, picture in after.items():
            pictures[key] = picture
            now = probe.kept(picture).grid(None, bare=True).pixels
            if key in before and (was := probe.kept(before[key]).grid(None, bare=True).pixels).shape == now.shape:
                rates.setdefault(key, []).append(_packed_size(now - was) / now.size)
    expected = 0.0
    for position, detail in enumerate(DETAILS):
        sizes = {key: _values(picture, detail) for key, picture in pictures.items()}
        first = _FIRST_FRAME * sum(sizes.values())
        a_step = sum(size * float(np.mean(rates.get(key, [_FIRST_FRAME]))) for key, size in sizes.items())
        expected = first + a_step * (steps - 1)
        if expected <= _AIM * budget:
            return position, steps
    return len(DETAILS) - 1, max(2, int(steps * _AIM * budget / expected))


def strongest(difference: FloatArray) -> FloatArray:
    """Of three colours the one that changed most, for each pixel.

    Args:
        difference: filters minus filters, `[n, 3, h, w]`.

    Returns:
        `[n, 1, h, w]`: the difference with the largest magnitude, with its sign.
    """
    chosen = np.abs(difference).argmax(axis=1, keepdims=True)
    return np.take_along_axis(difference, chosen, axis=1)


def _at_most(cells: FloatArray, cell: int) -> FloatArray:
    height, width = cells.shape[-2:]
    if max(height, width) <= cell:
        return cells
    scale = cell / max(height, width)
    return shrink(cells, (max(1, round(height * scale)), max(1, round(width * scale))))


def _values(picture: Picture, detail: Detail) -> int:
    """How many values a frame has.

    Args:
        picture: at full size.
        detail: how much of it a frame keeps.
    """
    shape = picture.values.shape
    area = shape[-2] * shape[-1] * min(1.0, detail.widest(picture) / max(shape[-2:])) ** 2
    if picture.view == "slices":
        return int(min(shape[0], detail.slices) * min(shape[1], detail.slices) * area)
    per_channel = shape[1] if picture.view is not None else 1
    return int(min(shape[0], detail.maps if picture.view is None else detail.filters) * per_channel * area)


def _deflater() -> Any:
    # Run lengths and Huffman codes only: on differences as small as zlib's best, and five times as fast.
    return zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)


def _packed_size(pixels: Pixels) -> int:
    deflater = _deflater()
    return len(deflater.compress(pixels.tobytes())) + len(deflater.flush())

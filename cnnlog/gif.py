"""The 256 colours of a GIF."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlog.render import Pixels


class Colours:
    """A GIF's at most 256 colours, for all frames of an animation.

    They are the frames' own if those are no more. Else all grays are kept, and with them letters, gaps, 0 and the page,
    and each other colour becomes the nearest of a few. (Pillow takes a near one, which tints the page.)
    """

    def __init__(self, frames: Iterable[Image.Image]) -> None:
        self._found = functools.reduce(np.union1d, (np.unique(_packed(frame)) for frame in frames))
        found = np.stack([self._found >> 16, self._found >> 8 & 255, self._found & 255], axis=1).astype(np.uint8)
        self._colours = found if len(found) <= 256 else self._fewer(found)
        nearest = [_nearest_colour(self._colours, found[i : i + 1024]) for i in range(0, len(found), 1024)]
        self._index = np.concatenate(nearest).astype(np.uint8)

    def indexed(self, frame: Image.Image) -> Image.Image:
        """The frame in mode P."""
        indexed = Image.fromarray(self._index[np.searchsorted(self._found, _packed(frame))])
        indexed.putpalette(self._colours.tobytes())
        return indexed

    @staticmethod
    def _fewer(found: Pixels) -> Pixels:
        is_gray = (found == found[:, :1]).all(axis=1)
        grays, others = found[is_gray], found[~is_gray]
        row = Image.fromarray(np.ascontiguousarray(others[None]))
        mixed = row.quantize(256 - len(grays), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        return np.concatenate([grays, np.asarray(mixed.getpalette(), np.uint8).reshape(-1, 3)])[:256]


def _packed(frame: Image.Image) -> npt.NDArray[np.int64]:
    """Each pixel's colour in one number `[H, W]`."""
    packed: npt.NDArray[np.int64] = np.asarray(frame).astype(np.int64) @ np.array([65536, 256, 1])
    return packed


def _nearest_colour(colours: Pixels, found: Pixels) -> npt.NDArray[np.intp]:
    distance = np.square(colours[None].astype(np.int64) - found[:, None].astype(np.int64)).sum(axis=2)
    nearest: npt.NDArray[np.intp] = np.argmin(distance, axis=1)
    return nearest

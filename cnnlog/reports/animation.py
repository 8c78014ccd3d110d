"""One layer through time: its frames, and the files that play them, a GIF or an animated PNG."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from cnnlog.rendering.colours import Pixels
from cnnlog.rendering.png import chunk
from cnnlog.reports.canvas import INK, LARGE, MARGIN, PALE, SMALL, SPACE, Canvas
from cnnlog.reports.part import Part, Wanted, pixels_of
from cnnlog.runs.run import Run


class Colours:
    """A GIF's at most 256 colours, for all frames of an animation.

    If the frames have no more colours than that, all are kept. Else all grays are kept, and with them letters, gaps and
    zeros, and each other colour becomes the nearest of a few. (Pillow would take a near one, which tints the white.)

    Args:
        frames: all frames of the animation, RGB.
    """

    def __init__(self, frames: Iterable[Image.Image]) -> None:
        self._found = functools.reduce(np.union1d, (np.unique(_packed(frame)) for frame in frames))
        found = np.stack([self._found >> 16, self._found >> 8 & 255, self._found & 255], axis=1).astype(np.uint8)
        self._colours = found if len(found) <= 256 else self._fewer(found)
        nearest = [_nearest_colour(self._colours, found[i : i + 1024]) for i in range(0, len(found), 1024)]
        self._index = np.concatenate(nearest).astype(np.uint8)

    def indexed(self, frame: Image.Image) -> Image.Image:
        """The frame in mode P.

        Args:
            frame: one of the animation's, RGB.
        """
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
    """Each pixel's colour in one number `[H, W]`.

    Args:
        frame: RGB, `[H, W]`.
    """
    packed: npt.NDArray[np.int64] = np.asarray(frame).astype(np.int64) @ np.array([65536, 256, 1])
    return packed


def _nearest_colour(colours: Pixels, found: Pixels) -> npt.NDArray[np.intp]:
    distance = np.square(colours[None].astype(np.int64) - found[:, None].astype(np.int64)).sum(axis=2)
    nearest: npt.NDArray[np.intp] = np.argmin(distance, axis=1)
    return nearest


def save_apng(frames: Iterable[Image.Image], durations: Sequence[int], path: Path) -> None:
    """Write an animated PNG (PNG specification, third edition, section 11.3.6) that repeats for ever.

    Each frame replaces the rectangle in which it differs from the frame before. One frame is in memory at a time;
    Pillow would keep all of them, twice.

    Args:
        frames: the frames in order, RGB, all of one size.
        durations: for each frame how long it stands, in milliseconds.
        path: the file to write.
    """
    with path.open("wb") as file:
        before: Image.Image | None = None
        sequence = 0
        for frame, duration in zip(frames, durations, strict=True):
            box = (0, 0, *frame.size) if before is None else ImageChops.difference(frame, before).getbbox()
            left, top, right, bottom = box or (0, 0, 1, 1)
            chunks = list(_chunks(frame.crop((left, top, right, bottom))))
            if before is None:
                file.write(b"\x89PNG\r\n\x1a\n" + chunk(*chunks[0]))
                file.write(chunk(b"acTL", struct.pack(">II", len(durations), 0)))
            place = (right - left, bottom - top, left, top)
            file.write(chunk(b"fcTL", struct.pack(">5I2H2B", sequence, *place, duration, 1000, 0, 0)))
            sequence += 1
            for data in (data for name, data in chunks if name == b"IDAT"):
                if before is None:
                    file.write(chunk(b"IDAT", data))
                else:
                    file.write(chunk(b"fdAT", struct.pack(">I", sequence) + data))
                    sequence += 1
            before = frame
        file.write(chunk(b"IEND", b""))


def _chunks(picture: Image.Image) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk of the picture as a PNG file.

    Args:
        picture: of any mode that PNG has.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data, at = buffer.getvalue(), 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


AT_THE_ENDS = 1500  # milliseconds that the first and the last frame stand
PLAYED = 6000  # milliseconds that the frames between them take together, if each then takes what the next line allows
FRAME = (60, 400)


class Animation:
    """One layer through time, with the step drawn in; frames are drawn when they are asked for.

    Args:
        run: from `open_run`.
        wanted: which layer, kind and steps.

    Raises:
        ValueError: the run does not have them.
    """

    def __init__(self, run: Run, wanted: Wanted) -> None:
        self._run, self._part, self._wanted = run, Part.of(run, wanted), wanted
        self.steps = self._part.steps
        between = min(max(PLAYED // max(1, len(self.steps) - 2), FRAME[0]), FRAME[1])
        last = len(self.steps) - 1
        self.durations = tuple(AT_THE_ENDS if number in (0, last) else between for number in range(len(self.steps)))

    def frame(self, number: int) -> Image.Image:
        """One frame, RGB. All are of one size.

        Args:
            number: its position, counted from 0.
        """
        part = self._part
        grid = pixels_of(part.pictures[number].grid(self._wanted.width))
        canvas = Canvas(max(grid.width, 320), self._run.name, part.title, part.legend(part.limits))
        top = canvas.height + LARGE + SPACE
        canvas.extend(LARGE + 2 * SPACE + grid.height)
        canvas.write((MARGIN, top), f"step {part.steps[number]}", LARGE, INK, anchor="ls")
        canvas.write((canvas.image.width - MARGIN, top), part.numbers[number], SMALL, PALE, anchor="rs")
        canvas.image.paste(grid, (MARGIN, top + SPACE))
        return canvas.image

    def save_gif(self, path: Path) -> None:
        """Write a GIF that repeats. Its 256 colours are exact, except for filters in colour.

        Args:
            path: the file to write.
        """
        colours = Colours(self.frame(number) for number in range(len(self.steps)))
        frames = (colours.indexed(self.frame(number)) for number in range(len(self.steps)))
        options = {"duration": list(self.durations), "loop": 0, "optimize": False}
        next(frames).save(path, format="GIF", save_all=True, append_images=frames, **options)

    def save_apng(self, path: Path) -> None:
        """Write an animated PNG that repeats. Its colours are exact.

        Args:
            path: the file to write.
        """
        save_apng((self.frame(number) for number in range(len(self.steps))), self.durations, path)

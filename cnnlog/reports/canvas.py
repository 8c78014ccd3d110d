"""A white canvas with a heading, on which grids and labels are put."""

from __future__ import annotations

import functools
import math
import os
import textwrap

from PIL import Image, ImageDraw, ImageFont

MARGIN = 14
SPACE = 8
LARGE, SMALL = 16, 13
INK, PALE = (30, 30, 30), (100, 100, 100)
_SHADES = 8  # of letters; few, so that all colours of an animation find room in a GIF's 256


class Canvas:
    """A white image with a heading, which grows downwards.

    Letters are drawn in few shades, because a GIF has 256 colours for all that is on it.

    Args:
        width: how wide it is, in pixels, without its margins.
        name: the first line of the heading.
        lines: the smaller lines below it.
    """

    def __init__(self, width: int, name: str, *lines: str) -> None:
        self.image = Image.new("RGB", (width + 2 * MARGIN, MARGIN), "white")
        self.height = MARGIN
        for text, size, ink in [(name, LARGE, INK), *((line, SMALL, PALE) for line in lines)]:
            for part in _wrapped(text, font_of(size), width):
                self.extend(size + 5)
                self.write((MARGIN, self.height - 5), part, size, ink, anchor="ls")
        self.extend(SPACE)

    def extend(self, pixels: int) -> None:
        """Add white at the bottom.

        Args:
            pixels: how much.
        """
        self.height += pixels
        larger = Image.new("RGB", (self.image.width, self.height + MARGIN), "white")
        larger.paste(self.image, (0, 0))
        self.image = larger

    def write(self, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int], *, anchor: str) -> None:
        """Write a line of text.

        Args:
            at: where, in pixels from the upper left corner.
            text: the line.
            size: of the letters, in pixels.
            ink: the colour.
            anchor: which point of the text `at` is, as Pillow names it: `ls` is its left end, on the baseline.
        """
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).text(at, text, fill=255, font=font_of(size), anchor=anchor)
        step = 255 / (_SHADES - 1)
        self.image.paste(ink, mask=mask.point([round(round(level / step) * step) for level in range(256)]))


@functools.lru_cache(maxsize=4)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font of headings and labels.

    Args:
        size: of the letters, in pixels.
    """
    import matplotlib  # its font has Greek, Cyrillic and signs; Pillow's own has Latin letters only

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def width_of(font: ImageFont.FreeTypeFont, text: str) -> int:
    """How wide a line of text is, in pixels.

    Args:
        font: that it is written in.
        text: the line.
    """
    return math.ceil(font.getlength(text))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit; a longest line is found by its number of characters.

    Args:
        text: to break into lines.
        font: that it is written in.
        width: how wide a line may be, in pixels.
    """
    for characters in range(len(text), 1, -1):
        lines = textwrap.wrap(text, characters)
        if all(width_of(font, line) <= width for line in lines):
            return lines
    return [text]


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, without its middle if it is too wide, because a layer's name tells most at its ends.

    Args:
        text: the line.
        font: the font that it is written in.
        width: how wide it may be, in pixels.
    """
    for left_out in range(len(text)):
        keep = len(text) - left_out
        short = text if not left_out else f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
        if width_of(font, short) <= width:
            return short
    return "…"

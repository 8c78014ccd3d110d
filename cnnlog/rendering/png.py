"""A grid as PNG bytes, with its facts as text in the file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

from cnnlog.rendering.colours import Pixels

_ZLIB_RLE = 3
_PNG_HEADER_END = 33
_SHORT = 256  # a text that is shorter is not compressed


@dataclass(frozen=True)
class Layout:
    """Where the cells of a grid lie.

    Attributes:
        columns: how many cells stand in a row.
        height: how many values a cell has from top to bottom.
        width: how many values a cell has from left to right.
        factor: how many pixels a value has on each side.
    """

    columns: int
    height: int
    width: int
    factor: int


@dataclass(frozen=True)
class Grid:
    """A drawn picture: cells as pixels, side by side.

    Attributes:
        pixels: uint8 `[H, W]` palette indices, or `[H, W, 3]` colours.
        palette: the colours of the indices from 0 on, 3 bytes each; None where the pixels are colours.
        layout: where the cells lie; None where that is not known.
    """

    pixels: Pixels
    palette: bytes | None
    layout: Layout | None = None

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])


def encode_png(grid: Grid, *, text: Mapping[str, str] | None = None, level: int = 1) -> bytes:
    """The grid as a PNG file: 8-bit palette or RGB, with `text` as metadata (tEXt; zTXt, compressed, if it
    is long; iTXt beyond Latin-1).

    Args:
        grid: what to write.
        text: facts to put into the file: keys of 1 to 79 Latin-1 characters, and their texts.
        level: how hard zlib tries, 0 to 9.
    """
    metadata = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        metadata.add_text(key, value, zip=len(value) > _SHORT)
    buffer = io.BytesIO()
    # Pillow filters gray rows (Paeth and others) but never palette rows. Gray with run-length coding, turned into a
    # palette file afterwards, is a quarter smaller than Pillow's own palette file and takes no longer.
    picture = Image.fromarray(grid.pixels)
    picture.save(buffer, format="PNG", compress_level=level, compress_type=_ZLIB_RLE, pnginfo=metadata)
    return buffer.getvalue() if grid.palette is None else _gray_to_palette(buffer.getvalue(), grid.palette)


def _gray_to_palette(gray: bytes, colours: bytes) -> bytes:
    """The same 8-bit PNG with colour type 3 (palette) in place of 0 (gray); the pixels' bytes are alike in both."""
    header = bytearray(gray[12 : _PNG_HEADER_END - 4])
    header[13] = 3
    chunks = [chunk(bytes(header[:4]), bytes(header[4:])), chunk(b"PLTE", colours)]
    return b"".join([gray[:8], *chunks, gray[_PNG_HEADER_END:]])


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file, with its length and its checksum.

    Args:
        name: four letters, such as `b"PLTE"`.
        content: its bytes.
    """
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

"""The probe's own picture: its images in rows, no wider than a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
_WIDE, _WIDE_PHOTO = 2, 4  # so many times as wide as high, an image is a strip, whose rows each mean something
_STRIP_HEIGHT = 64  # a strip's rows are enlarged up to it


def probe_picture(pictures: Sequence[Pixels], *, width: int, photos: bool) -> Pixels:
    """Images as many in a row as fit, with a white line between them: uint8 `[H, W, 3]`, W at most `width`.

    An image that is wider is scaled down by area. Of a wide one with few rows (EEG, sound, a latent) the width alone is
    scaled down and each row is a whole number of pixels high, so that every row can be seen.

    Args:
        pictures: uint8 `[H, W, 3]`, all of one size.
        width: the limit, in pixels.
        photos: the images have three channels, so that they are probably photographs.

    Example:
        >>> probe_picture([np.zeros((22, 500, 3), np.uint8)], width=350, photos=False).shape
        (66, 350, 3)
    """
    sized = [_sized(picture, width, photos=photos) for picture in pictures]
    height, wide = sized[0].shape[:2]
    columns = max(1, min(len(sized), (width + 1) // (wide + 1)))
    rows = -(-len(sized) // columns)
    whole = np.full((rows * (height + 1) - 1, columns * (wide + 1) - 1, 3), 255, np.uint8)
    for number, picture in enumerate(sized):
        top, left = number // columns * (height + 1), number % columns * (wide + 1)
        whole[top : top + height, left : left + wide] = picture
    return whole


def _sized(picture: Pixels, limit: int, *, photos: bool) -> Pixels:
    height, width = picture.shape[:2]
    strip = height <= limit and width > height * (_WIDE_PHOTO if photos else _WIDE)
    new_width = min(width, limit)
    if strip and width >= _STRIP_HEIGHT:  # one of fewer pixels is small, not wide
        new_height = height * max(1, -(-_STRIP_HEIGHT // height))
    else:
        new_height = max(1, round(height * new_width / width))
    if (new_height, new_width) == (height, width):
        return picture
    if new_height >= height:  # each row becomes several, each the same
        picture = np.repeat(picture, new_height // height, axis=0)
        new_height = len(picture)
    scaled = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BOX)
    return np.asarray(scaled)

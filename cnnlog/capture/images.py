"""Images as they come, to RGB pictures and values from 0 to 1."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = str | os.PathLike[str] | Image.Image
SIDE_LIMIT = 1 << 14


def is_whole(number: object) -> bool:
    """Whether something is an int, and not a bool.

    Args:
        number: anything.
    """
    return isinstance(number, int) and not isinstance(number, bool)


def several_images(images: Any) -> list[ImageLike]:
    """What was given for images, as a list.

    Args:
        images: a path, a PIL image, or several of them.

    Raises:
        TypeError: it is neither a path, nor a PIL image, nor a sequence of them.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, (bytes, torch.Tensor, np.ndarray, Mapping)):
        raise TypeError(
            f"A probe's images are paths or PIL images, not {type(images).__name__}; see Probe.from_tensor."
        )
    several = list(images)
    if not several:
        raise ValueError("A probe needs at least one image, but the sequence given is empty.")
    for image in several:
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            raise TypeError(f"A probe's image is a path or a PIL image, not {type(image).__name__}.")
    return several


def open_image(source: ImageLike, index: int) -> tuple[str, Image.Image]:
    """The name of an image, and the image in RGB, upright.

    Args:
        source: the path of a file, or a PIL image.
        index: its place among the probe's images, which names a PIL image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, damaged, or no image.
    """
    if isinstance(source, Image.Image):
        return f"image {index}", rgb(ImageOps.exif_transpose(source))
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no probe image at {str(path)!r}: give the path of an image file.")
    if not path.is_file():
        raise ValueError(f"A probe image is a file, but {str(path)!r} is a folder: name one image in it.")
    if path.stat().st_size == 0:
        raise ValueError(f"The probe image {str(path)!r} is empty (0 bytes): give a whole image file.")
    try:
        with Image.open(path) as image:
            return path.name, rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"The probe {str(path)!r} is not an image: give a PNG or JPEG file.") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"The probe image {str(path)!r} is damaged ({error}): give a whole one.") from error


def rgb(image: Image.Image) -> Image.Image:
    """An image in RGB: 16-bit and float gray keep their gradation, and transparency is laid over white.

    Args:
        image: of any mode.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are NaN or infinite")
        # 16 bits unless it says otherwise; a float image is in [0, 1], as such files are, or in 8 or 16 bits
        top = 65535.0 if image.mode != "F" or values.max() > 255 else 255.0 if values.max() > 1 else 1.0
        return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def fitted(image: Image.Image, size: int | tuple[int, int] | None) -> Image.Image:
    """The image, scaled to cover a size and cut to its centre.

    Args:
        image: of any size.
        size: `(height, width)` in pixels, or one number for both; None leaves the image as it is.

    Raises:
        TypeError: the size is neither.
        ValueError: it is below 1 pixel, or above `SIDE_LIMIT`.
    """
    if size is None:
        return image
    sides = (size, size) if isinstance(size, int) else size
    listed = isinstance(sides, Sequence) and not isinstance(sides, (str, bytes))  # a list of Hydra's, too
    if not listed or len(sides) != 2 or not all(is_whole(side) for side in sides):
        raise TypeError(f"size is one whole number or (height, width), but it is {size!r}.")
    height, width = sides
    if min(height, width) < 1 or max(height, width) > SIDE_LIMIT:
        raise ValueError(f"size is at least one pixel each way and {SIDE_LIMIT} at most, but it is {size}.")
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def unit_range(image: Image.Image) -> torch.Tensor:
    """An image as values from 0 to 1, `[3, H, W]`.

    Args:
        image: in RGB.
    """
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()

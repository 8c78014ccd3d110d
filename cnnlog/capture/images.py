"""Images as they come, to RGB pictures and values from 0 to 1."""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = str | os.PathLike[str] | Image.Image
SIDE_LIMIT = 1 << 14
_LEAST_USED = (
    4  # an image whose largest value is below a quarter of white may be of fewer bits, and would be near black
)
_SIXTEEN_BITS = ("PNG", "PPM")  # older Pillows open these as "I"


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


def open_image(
    source: ImageLike, index: int, *, value_range: tuple[float, float] | None = None
) -> tuple[str, Image.Image]:
    """The name of an image, and the image in RGB, upright.

    Args:
        source: the path of a file, or a PIL image.
        index: its place among the probe's images, which names a PIL image.
        value_range: the values that become black and white; None takes what the image's mode says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, damaged, too large, a device, or no image; or its mode does not say which values
            are black and white.
    """
    if isinstance(source, Image.Image):
        name = f"image {index}"
        with _told(f"probe image {index}"):
            return name, _upright(source, value_range)
    path = Path(source)
    _refuse_file(path)
    with _told(f"probe image {str(path)!r}"), warnings.catch_warnings():
        # of large pictures: up to Pillow's limit they are read
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return path.name, _upright(image, value_range)


def _upright(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    deep = ";16" in str(getattr(image, "tile", "")) and image.mode in ("RGB", "RGBA", "LA")
    image.load()  # a file is read late, and fails here
    if deep:
        _refuse_lost(image, value_range)
    format = image.format  # what turns an image forgets it
    turned = ImageOps.exif_transpose(image)
    return rgb(turned, value_range, format=format)


def _refuse_file(path: Path) -> None:
    """Refuse what is no file with something in it.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a folder or a device, or it is empty.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no probe image at {str(path)!r}: give the path of an image file.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"The probe image {str(path)!r} cannot be looked at ({error}): give another path.") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"A probe image is a file, but {str(path)!r} is a folder: name one image in it.")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"A probe image is a file, but {str(path)!r} is a device or a pipe, which may have no end: save what it "
            "gives to a file."
        )
    if found.st_size == 0:
        raise ValueError(f"The probe image {str(path)!r} is empty (0 bytes): give a whole image file.")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Name the cause of what fails while an image is read.

    Args:
        what: the image.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"The {what} is not an image: give a PNG or JPEG file.") from error
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        size = f" ({int(pixels[1]) / 1e6:.0f} megapixels)" if pixels else ""
        raise ValueError(
            f"The {what} is too large{size} for Pillow, which refuses more than twice PIL.Image.MAX_IMAGE_PIXELS: give "
            "a smaller copy, or raise that limit."
        ) from error
    except MemoryError as error:
        raise ValueError(f"The {what} is too large for this machine's memory: give a smaller copy.") from error
    except PermissionError as error:
        raise ValueError(f"The {what} may not be read ({error.strerror}): change its permissions.") from error
    except _Unclear as error:
        raise ValueError(f"The {what} {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, AttributeError, AssertionError, struct.error) as error:
        if "closed" in str(error) or isinstance(error, (AttributeError, AssertionError)):
            raise ValueError(f"The {what} is closed: give it before its file is closed, or its path.") from error
        if "not available" in str(error) or "unable to locate" in str(error).lower():
            raise ValueError(f"The {what} cannot be read by this Pillow ({error}): give a PNG or JPEG file.") from error
        raise ValueError(f"The {what} is damaged ({error}): give a whole one.") from error


class _Unclear(ValueError):
    """An image whose mode does not say which values are black and white; the text follows the image's name."""


def rgb(
    image: Image.Image, value_range: tuple[float, float] | None = None, *, format: str | None = None
) -> Image.Image:
    """An image in RGB: 16-bit and float gray keep their gradation, and transparency is laid over white.

    Args:
        image: of any mode.
        value_range: the values that become black and white. None takes 0 and 65535 of unsigned 16 bits, 0 and 1 of
            floating point.
        format: of the file that the image was read from, as Pillow names it; None if that is not known.

    Raises:
        ValueError: it is not given, and needed: the image is signed, has 32 bits, or uses a small part of its range.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise _Unclear("has values that are NaN or infinite: give an image without.")
        low, high = _limits(image.mode, format, values) if value_range is None else value_range
        return _gray((values - low) / (high - low))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    coloured = image.convert("RGB")
    if value_range is None:
        return coloured
    low, high = value_range
    stretched = (np.asarray(coloured, dtype=np.float64) - low) / (high - low)
    return Image.fromarray(np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8))


def _gray(unit: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _limits(mode: str, format: str | None, values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The values that are black and white by an image's mode, if it uses them."""
    lowest, highest = float(values.min()), float(values.max())
    unsigned = mode.startswith("I;16") or (mode == "I" and format in _SIXTEEN_BITS)
    top = 1.0 if mode == "F" else 65535.0
    kind = "in floating point" if mode == "F" else "of 16 bits" if unsigned else "of 32 bits or signed"
    clear = (unsigned or mode == "F") and 0 <= lowest <= highest <= top
    if not clear or 0 < highest < top / _LEAST_USED:
        raise _Unclear(
            f"is {kind} with values from {lowest:g} to {highest:g}, which do not say what is black and white: give "
            f"value_range=, e.g. value_range=({min(lowest, 0):g}, {_next_top(highest):g})."
        )
    return 0.0, top


def _next_top(highest: float) -> float:
    """A likely white: the largest number of so many bits."""
    if highest <= 1:
        return 1.0
    return float(2 ** math.ceil(math.log2(highest + 1)) - 1)


def _refuse_lost(image: Image.Image, value_range: tuple[float, float] | None) -> None:
    """Refuse colours of 16 bits, of which Pillow keeps the upper 8, where the lower ones are missed.

    Raises:
        ValueError: the image is dark, as of 12 bits in 16, or a range was given that these 8 bits are too few for.
    """
    highest = max(band[1] for band in image.convert("RGB").getextrema())  # type: ignore[index]
    if value_range is not None or 0 < highest < 255 / _LEAST_USED:
        raise _Unclear(
            f"has colours of 16 bits, of which Pillow reads the upper 8, and they reach {highest} of 255: read it "
            "otherwise and give Probe.from_tensor(...), or give a file of 8 bits."
        )


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

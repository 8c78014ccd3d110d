"""Reads what cnnlog wrote, by the descriptions of its formats alone: NumPy, PIL and TensorBoard's own loader.

Nothing here imports cnnlog, so a mistake in the package cannot be made here, too.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Array = npt.NDArray[Any]
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}

_SHADES = 62  # from one end of a range to the other, in palettes and in colours

VALUE, NOT_FINITE, BELOW, ABOVE = range(4)
"""What a pixel of a cell stands for."""


# --- a stored run ----------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """All of a run as it lies on the disk.

    Attributes:
        manifest: what `manifest.json` says.
        steps: step -> the arrays of its file.
        files: name without suffix -> the arrays of each other file.
        images: tag and step -> the bytes of a PNG of the event file.
        scalars: tag and step -> a number of the event file.
    """

    manifest: dict[str, Any]
    steps: dict[int, dict[str, Array]]
    files: dict[str, dict[str, Array]]
    images: dict[tuple[str, int], bytes]
    scalars: dict[tuple[str, int], float]


def stored(folder: Path) -> Stored:
    """Read a run.

    Args:
        folder: the log folder, with an event file and `cnnlog/` in it.
    """
    arrays = {file.stem: safetensors(file.read_bytes()) for file in (folder / "cnnlog").glob("*.safetensors")}
    steps = {int(name[5:]): held for name, held in arrays.items() if name.startswith("step-")}
    sizes = {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    tags: Any = events.Tags()
    return Stored(
        json.loads((folder / "cnnlog" / "manifest.json").read_text(encoding="utf-8")),
        dict(sorted(steps.items())),
        {name: held for name, held in arrays.items() if not name.startswith("step-")},
        {(tag, one.step): one.encoded_image_string for tag in tags["images"] for one in events.Images(tag)},
        {(tag, one.step): one.value for tag in tags["scalars"] for one in events.Scalars(tag)},
    )


def safetensors(data: bytes) -> dict[str, Array]:
    """The arrays of a safetensors file: 8 bytes say how long the JSON header is, and behind it the arrays lie."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, facts in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in facts["data_offsets"])
            found[name] = np.frombuffer(data[start:end], _TYPES[facts["dtype"]]).reshape(facts["shape"]).copy()
    return found


# --- a picture of an event file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """The cells of a picture, back in values.

    Attributes:
        values: `[m, h, w]` of m cells, or `[m, 3, h, w]` in colours; NaN where a pixel is no value.
        means: `[m, h, w]`, what each pixel stands for: `VALUE`, `NOT_FINITE`, `BELOW` or `ABOVE`.
        low: `[m]`, where the range of each cell begins.
        high: `[m]`, where it ends.
        shade: `[m]`, how far two shades are apart.
    """

    values: Array
    means: Array
    low: Array
    high: Array
    shade: Array


@dataclass(frozen=True)
class Decoded:
    """A PNG, back in values.

    Attributes:
        facts: what its text says.
        cells: its cells.
        notched: `[m]`, whether there is a notch above the cell.
    """

    facts: dict[str, Any]
    cells: Cells
    notched: Array


def facts_and_pixels(png: bytes) -> tuple[dict[str, Any], Array]:
    """The text of a PNG, and its palette indices `[H, W]`, or its colours `[H, W, 3]`."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.load()
        return json.loads(picture.info["cnnlog"]), np.asarray(picture)


def with_pixels(png: bytes, pixels: Array, **other_facts: Any) -> bytes:
    """The same PNG with other pixels, or with other facts in its text, for faults that are planted."""
    from PIL.PngImagePlugin import PngInfo

    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.load()
        text = PngInfo()
        text.add_text("cnnlog", json.dumps({**json.loads(picture.info["cnnlog"]), **other_facts}))
        changed = Image.fromarray(pixels)
        if picture.mode == "P":
            changed.putpalette(picture.getpalette() or [])
        file = io.BytesIO()
        changed.save(file, "PNG", pnginfo=text)
        return file.getvalue()


def corner(facts: dict[str, Any], cell: int) -> tuple[int, int]:
    """The first row and the first column of pixels of a cell."""
    (h, w), factor = facts["cell"], facts["factor"]
    row, column = divmod(cell, facts["columns"])
    return 1 + row * (h * factor + 1), 1 + column * (w * factor + 1)


def decode(png: bytes) -> Decoded:
    """A picture's cells as values, by what its own text says.

    Raises:
        AssertionError: the pixels are not laid out as the text says.
    """
    facts, pixels = facts_and_pixels(png)
    if pixels.ndim == 3:  # NaN is a chequer of two colours
        green, magenta = np.array([[0, 200, 0], [255, 0, 255]], np.uint8)
        pixels = np.where((pixels == magenta).all(axis=-1, keepdims=True), green, pixels)
    (h, w), factor, m = facts["cell"], facts["factor"], len(facts["channels"]) * facts["cells"]
    cells, notched, left = [], [], np.ones(pixels.shape[:2], bool)
    gap, notch = ((0, 0, 0), (255, 255, 255)) if pixels.ndim == 3 else (facts["gap"], facts["notch"])
    for cell in range(m):
        top, first = corner(facts, cell)
        whole = pixels[top : top + h * factor, first : first + w * factor]
        small = whole[::factor, ::factor]
        assert (np.repeat(np.repeat(small, factor, 0), factor, 1) == whole).all(), (
            "a value has pixels unlike each other"
        )
        above = pixels[top - 1, first : first + w * factor]
        is_notch = _is(above, notch)
        assert (is_notch | _is(above, gap)).all(), "above a cell there is a gap or a notch"
        notched.append(is_notch.any())
        left[top : top + h * factor, first : first + w * factor] = False
        left[top - 1, first : first + w * factor][is_notch] = False
        cells.append(small)
    assert _is(pixels, gap)[left].all(), "around the cells there is a gap"
    low, high = (np.repeat(np.array(facts[end], np.float64), facts["cells"]) for end in ("low", "high"))
    return Decoded(facts, valued(np.stack(cells), low, high, facts), np.array(notched))


def _is(pixels: Array, colour: Any) -> Array:
    same: Array = pixels == np.array(colour, np.uint8)
    return np.asarray(same.all(axis=-1)) if pixels.ndim > 1 and pixels.shape[-1] == 3 and np.ndim(colour) else same


def valued(cells: Array, low: Array, high: Array, facts: dict[str, Any]) -> Cells:
    if cells.ndim == 4:  # colours [m, h, w, 3]
        cells = np.moveaxis(cells, -1, 1)
        lost = ((cells == 0) | (cells == 255)).any(axis=1)
        means = np.where(lost, NOT_FINITE, VALUE)
        step = (facts["last"] - facts["first"]) // _SHADES
        assert ((cells - facts["first"]) % step == 0)[np.broadcast_to(~lost[:, None], cells.shape)].all(), "no shade"
    else:
        means = np.full(cells.shape, VALUE)
        for name, meaning in (("not_finite", NOT_FINITE), ("below", BELOW), ("above", ABOVE)):
            means[cells == facts[name]] = meaning
        plain = means == VALUE
        assert ((cells[plain] >= facts["first"]) & (cells[plain] <= facts["last"])).all(), "a pixel stands for nothing"
    shape = (-1, *[1] * (cells.ndim - 1))
    share = (cells.astype(np.float64) - facts["first"]) / (facts["last"] - facts["first"])
    values = low.reshape(shape) + share * (high - low).reshape(shape)
    hidden = np.broadcast_to(means[:, None] if cells.ndim == 4 else means, values.shape) != VALUE
    values[hidden] = np.nan
    return Cells(values, means, low, high, (high - low) / _SHADES)


# --- a page ----------------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page's own data, and its packed bytes."""

    data: dict[str, Any]
    blocks: dict[str, bytes]


def page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    blocks = re.findall(r'<script type="text/plain" id="(\w+)">(.*?)</script>', text, re.DOTALL)
    return Page(json.loads(found.group(1)), {name: zlib.decompress(base64.b64decode(b), -15) for name, b in blocks})


def frames(page: Page, reel: dict[str, Any]) -> list[Cells]:
    """All frames of a picture of a page, back in values. A frame is packed as its difference to the one before."""
    n, k, h, w, columns = (reel["layout"][key] for key in ("n", "k", "h", "w", "columns"))
    rows, colours = -(-n * k // columns), 3 if reel["rgb"] else 1
    height, width = rows * (h + 1) - 1, columns * (w + 1) - 1
    deltas = np.frombuffer(page.blocks[reel["block"]], np.uint8).reshape(len(reel["steps"]), height, width, colours)
    pixels = np.cumsum(deltas, axis=0, dtype=np.uint8)  # modulo 256
    cells = []
    for cell in range(n * k):
        row, column = divmod(cell, columns)
        cells.append(pixels[:, row * (h + 1) : row * (h + 1) + h, column * (w + 1) : column * (w + 1) + w])
    stacked = np.stack(cells, axis=1)
    high = np.repeat(np.array(reel["high"], np.float64), k)
    low = -high if reel["symmetric"] or reel["rgb"] else np.zeros_like(high)
    if reel["rgb"]:
        return [valued(frame, low, high, {"first": 4, "last": 252}) for frame in stacked]
    return [valued(frame, low, high, _page_facts(page)) for frame in stacked[..., 0]]


def _page_facts(page: Page) -> dict[str, Any]:
    """The indices are those of the live pictures: 63 levels, then gap, not finite, below and above."""
    gap = page.data["gap"]
    return {"first": 0, "last": gap - 1, "not_finite": gap + 1, "below": gap + 2, "above": gap + 3}


def lives(page: Page, entry: dict[str, Any]) -> dict[str, Array]:
    """Each number of a layer's filters on one side, `[steps, n]`, NaN where it is not finite; packed in 16 bits."""
    packed, found, start = np.frombuffer(page.blocks[entry["block"]], np.uint8), {}, 0
    for measure in entry["measures"]:
        size = len(entry["steps"]) * measure["n"]
        upper, lower = (packed[start + part * size : start + (part + 1) * size].astype(np.int64) for part in (0, 1))
        whole = (upper * 256 + lower).reshape(len(entry["steps"]), measure["n"])
        values = measure["low"] + whole / 65534 * (measure["high"] - measure["low"])
        found[measure["name"]] = np.where(whole == 65535, np.nan, values)
        start += 2 * size
    return found

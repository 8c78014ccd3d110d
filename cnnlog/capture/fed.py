"""What a network is fed: the image in a batch, as a data loader made it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from cnnlog.messages import some

_T = TypeVar("_T")

_IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "input", "inputs", "x", "data", "video", "frames")
_NO_IMAGE = {
    *("mask", "masks", "label", "labels", "target", "targets", "y", "seg", "segmentation", "segmentations", "gt"),
    *("truth", "annotation", "annotations", "bbox", "bboxes", "box", "boxes", "boundingboxes", "heatmap", "heatmaps"),
}
_DEPTH, _PARTS = 6, 64


@dataclass(frozen=True)
class Fed:
    """An image, or several, as they lie in a batch.

    Attributes:
        tensor: `[N, C, H, W]`, clips `[N, C, T, H, W]`, or with 3 axes; of the batch's type, on its device.
        key: where it lies in the batch, e.g. `pixel_values`; empty if nothing there has a name.
        listed: the image `[C, H, W]` lies in a list of images, and has no axis that counts the samples.
    """

    tensor: torch.Tensor
    key: str
    listed: bool

    def first(self) -> torch.Tensor:
        """The first image with its axis of images, or the only one."""
        return self.tensor[None] if self.listed else self.tensor[:1]


def fed_image(batch: Any) -> Fed | None:
    """The image that a batch holds; None if there is none.

    Tensors of 4 or 5 axes come before those of 3. Among them, one whose name is an image's comes first; then what
    has more than two values, because a mask has two; then floating point; then the order. What is named as a mask, a
    label or a target is no image.

    Args:
        batch: what a data loader gave: a tensor, or sequences and mappings that hold one.
    """
    found = []
    for path, tensor, listed in _leaves(batch, (), 0, False):
        if isinstance(tensor, torch.Tensor) and tensor.dim() in (3, 4, 5) and _may_hold_an_image(path, tensor):
            three = tensor.dim() == 3
            found.append((three, path, Fed(tensor, ".".join(path), listed=listed and three)))
    return _best(found, lambda fed: fed.tensor)


def raw_image(sample: Any) -> torch.Tensor | Image.Image | None:
    """The image in a sample, as a data set has it, before it is collated; None if there is none.

    PIL images and tensors of 3 axes come before those of 4; otherwise as in `fed_image`.

    Args:
        sample: an image, or sequences and mappings that hold one.
    """
    found = []
    for path, leaf, _ in _leaves(sample, (), 0, False):
        axes = 3 if isinstance(leaf, Image.Image) else leaf.dim()
        if axes in (3, 4) and _may_hold_an_image(path, leaf, labels=False):
            found.append((axes == 4, path, leaf))
    return _best(found, lambda leaf: leaf)


def _best(found: list[tuple[bool, tuple[str, ...], _T]], tensor_of: Callable[[_T], Any]) -> _T | None:
    """The likeliest image: each comes with whether its axes speak against it, and where it lies."""

    def rank(number: int) -> tuple[Any, ...]:
        unlikely, path, one = found[number]
        leaf = tensor_of(one)
        preference = min((_IMAGE_KEYS.index(name.lower()) for name in path if name.lower() in _IMAGE_KEYS), default=99)
        if isinstance(leaf, Image.Image):
            return unlikely, preference, False, False, number
        masked = preference == 99 and len(found) > 1 and _two_values(leaf)
        return unlikely, preference, masked, not leaf.is_floating_point(), number

    best = min(range(len(found)), key=rank, default=None)
    return None if best is None else found[best][2]


def kinds_in(batch: Any) -> str:
    """What a batch holds, for a message.

    Args:
        batch: anything.
    """
    leaves = [(".".join(path), leaf) for path, leaf, _ in _leaves(batch, (), 0, False)]
    told = [f"{name} {list(leaf.shape) if isinstance(leaf, torch.Tensor) else 'a PIL image'}" for name, leaf in leaves]
    return some([text.strip() for text in told], 6) if told else type(batch).__name__


def _may_hold_an_image(path: Sequence[str], leaf: torch.Tensor | Image.Image, *, labels: bool = True) -> bool:
    words = {word for name in [*path, type(leaf).__name__] for word in _words(name)}
    if words & _NO_IMAGE:
        return False
    if isinstance(leaf, Image.Image) or leaf.is_floating_point():
        return True
    if 0 in leaf.shape or leaf.is_complex() or leaf.dtype == torch.bool:
        return False
    # a batch's 3 axes [N, H, W] of these are labels
    return not labels or leaf.dim() > 3 or leaf.dtype not in (torch.int64, torch.int32)


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name))
    return [word.lower() for word in re.split(r"[^A-Za-z]+", spaced) if word]


def _two_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor has two different values at most, as a mask has."""
    plain = tensor.detach().as_subclass(torch.Tensor)
    if plain.dtype in (torch.uint16, torch.uint32, torch.uint64):
        plain = plain.to(torch.float32)
    low, high = plain.amin(), plain.amax()
    return bool(((plain == low) | (plain == high)).all())


def _leaves(
    value: Any, path: tuple[str, ...], depth: int, listed: bool
) -> Iterator[tuple[tuple[str, ...], torch.Tensor | Image.Image, bool]]:
    """All tensors and pictures in a batch, in its order: where each lies, and whether it is one of a list of images."""
    if isinstance(value, Image.Image):
        yield path, value, listed
        return
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided and not value.is_nested and not value.is_meta and 0 not in value.shape:
            yield path, value, listed
        return
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiu" and value.size:
            native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
            yield path, torch.from_numpy(native), listed
        return
    if depth >= _DEPTH or value is None or isinstance(value, (str, bytes, int, float)):
        return
    for name, part, in_list in _parts(value, depth):
        yield from _leaves(part, path if name is None else (*path, name), depth + 1, in_list)


def _parts(value: Any, depth: int) -> Iterator[tuple[str | None, Any, bool]]:
    """What lies in a batch or a part of it, with its name, and whether it is one of a list of images."""
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "items")):
        for key, part in [*islice(value.items(), _PARTS)]:
            yield str(key), part, False
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, part in zip(value._fields, value, strict=True):
            yield name, part, False
    elif isinstance(value, Sequence):
        # the outermost sequence is the parts of a sample, each of them a stack; one inside it is a list of images
        for part in [*islice(value, _PARTS)]:  # a deque has no slices
            yield None, part, depth > 0
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield one.name, getattr(value, one.name, None), False
    else:
        for name, part in list(getattr(value, "__dict__", {}).items())[:_PARTS]:
            yield str(name).lstrip("_"), part, False

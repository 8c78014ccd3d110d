"""Which tensor of a batch is the image."""

from __future__ import annotations

from collections import UserDict, deque, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from cnnlog.capture.fed import fed_image, kinds_in, raw_image

X = torch.rand(2, 3, 8, 8)
SMALL = torch.rand(2, 3, 4, 4)
BYTES = (X * 255).to(torch.uint8)
MASK = (torch.rand(2, 1, 8, 8) > 0.5).float()
LABELS = torch.arange(2)
CLASSES = torch.randint(0, 5, (2, 8, 8))
CLIP = torch.rand(2, 3, 4, 8, 8)
WAVE = torch.rand(1, 2, 50)
Pair = namedtuple("Pair", ["mask", "image"])


@dataclass
class Sample:
    target: Any
    scan: Any


class Plain:
    def __init__(self, **parts: Any) -> None:
        self.__dict__ |= parts


CASES: dict[str, tuple[Any, Any, str]] = {
    "tensor": (X, X, ""),
    "tuple": ((X, LABELS), X, ""),
    "labels first": ([LABELS, X], X, ""),
    "a mask first, by name": ({"mask": MASK, "image": X, "label": LABELS}, X, "image"),
    "a mask of many values, by name": ({"pixel_mask": SMALL, "scan": X}, X, "scan"),
    "a binary mask first, by order": ((MASK, X), X, ""),
    "a mask of classes first": ((CLASSES, X), X, ""),
    "a mask of torchvision's": ((tv_tensors.Mask(MASK), tv_tensors.Image(X)), X, ""),
    "preferred names": ({"features": SMALL, "pixel_values": X}, X, "pixel_values"),
    "uint8 by name beside floats": ({"heat": SMALL, "image": BYTES}, BYTES, "image"),
    "uint8 alone": ((BYTES, LABELS), BYTES, ""),
    "nested": ({"inputs": {"pixel_values": X}, "labels": LABELS}, X, "inputs.pixel_values"),
    "a processor's mapping": (UserDict({"labels": CLASSES, "pixel_values": X}), X, "pixel_values"),
    "named tuple": (Pair(MASK, X), X, "image"),
    "data class": (Sample(SMALL, X), X, "scan"),
    "object": (Plain(y=SMALL, x=X), X, "x"),
    "two views": (((X, SMALL), LABELS), X, ""),
    "4 axes before 3": ((WAVE, X), X, ""),
    "clip": ({"video": CLIP, "label": LABELS}, CLIP, "video"),
    "signal": ((WAVE, LABELS), WAVE, ""),
    "numpy": ({"image": X.numpy()}, X, "image"),
    "deque": (deque([X, LABELS]), X, ""),
    "camel case": ({"targetImage": SMALL, "inputImage": X}, X, "inputImage"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_image_is_found(case: str) -> None:
    batch, image, key = CASES[case]
    fed = fed_image(batch)
    assert fed is not None
    assert fed.tensor.dtype == image.dtype
    assert torch.equal(fed.tensor.as_subclass(torch.Tensor), image)
    assert fed.key == key
    assert torch.equal(fed.first().as_subclass(torch.Tensor), image[:1])


@pytest.mark.parametrize(
    "batch",
    [LABELS, (CLASSES, LABELS), {"mask": MASK, "label": LABELS}, "text", {"ids": torch.zeros(2, 7)}, [], None,
     {"image": torch.rand(2, 3, 8, 8, device="meta")}, {"image": X.to_sparse()}, {"image": torch.zeros(0, 3, 8, 8)}],
)  # fmt: skip
def test_there_may_be_none(batch: Any) -> None:
    assert fed_image(batch) is None
    assert kinds_in(batch)


def test_an_image_in_a_list_has_no_axis_of_samples() -> None:
    images = torch.rand(3, 8, 9), torch.rand(3, 5, 6)
    targets: Any = {"boxes": torch.zeros(1, 4)}, {}
    fed = fed_image((images, targets))  # as tuple(zip(*batch)) makes it for a detector
    assert fed is not None
    assert torch.equal(fed.first(), images[0][None])
    stack = fed_image((torch.rand(4, 8, 9), LABELS))
    assert stack is not None
    assert stack.first().shape == (1, 8, 9)


def test_a_sample_may_hold_a_pil_image() -> None:
    picture, mask = Image.new("RGB", (8, 8)), Image.new("L", (8, 8))
    assert raw_image({"mask": mask, "scan": picture}) is picture
    assert raw_image((picture, 3)) is picture
    assert raw_image({"image": X[0], "volume": X}) is X[0] or torch.equal(raw_image({"image": X[0]}), X[0])  # type: ignore[arg-type]
    assert raw_image({"label": 3}) is None
    assert isinstance(raw_image(np.zeros((3, 4, 4), np.float32)), torch.Tensor)

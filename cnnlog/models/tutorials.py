"""What tutorials on filters and feature maps do to an image and a network, so that their pictures can be told apart.

The common one ("Visualizing Filters and Feature Maps in Convolutional Neural Networks") resizes an image to 512 x 512
without normalising it, lists the convolutions of a network, and feeds the output of each straight into the next:
normalisations, activations, pooling and shortcuts are left out. Its first picture is what the network computes; from
the second convolution on it is of something that the network never computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.transforms import functional

_SHORTCUTS = {"downsample", "shortcut"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prepared(
    transform: Callable[[Any], torch.Tensor], *, size: tuple[int, int] | None = None, normalize: bool = True
) -> Callable[[Any], torch.Tensor]:
    """A transform that resizes as you say, or does not normalise, and else does what torchvision's does.

    Args:
        transform: torchvision's, of a `Loaded`.
        size: `(height, width)`; the image is scaled to just that, so that nothing is cut off. None scales and cuts it
            as the transform does.
        normalize: whether the transform's mean is subtracted and its standard deviation divided by.

    Raises:
        ValueError: the transform does not say how it normalises.
    """
    if size is None and normalize:
        return transform
    if not (hasattr(transform, "mean") and hasattr(transform, "std")):
        raise ValueError(f"the transform must have a mean and a std, as torchvision's have; got {transform!r}")
    mean, std = list(transform.mean), list(transform.std)
    if size is None:
        bare: Any = copy.deepcopy(transform)
        bare.mean, bare.std = [0.0] * len(mean), [1.0] * len(std)
        return bare  # type: ignore[no-any-return]

    def resized(image: Any) -> torch.Tensor:
        values: torch.Tensor = functional.to_tensor(functional.resize(image, list(size)))
        return functional.normalize(values, mean, std) if normalize else values

    return resized


def listed_convolutions(model: nn.Module) -> tuple[str, ...]:
    """The names of a network's convolutions as tutorials list them: in the order of its children, without shortcuts.

    Args:
        model: the network.

    Example:
        >>> import torchvision
        >>> names = listed_convolutions(torchvision.models.resnet50())
        >>> len(names), names[:3]
        (49, ('conv1', 'layer1.0.conv1', 'layer1.0.conv2'))
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, _CONVOLUTIONS) and not _SHORTCUTS & set(name.split("."))
    )


def place_among_tutorials(model: nn.Module, layer: str) -> str:
    """Sentences that say which picture of a tutorial a layer's would be, and whether that shows the same.

    Args:
        model: the network.
        layer: the name of one of its layers.
    """
    names = listed_convolutions(model)
    here = f"{layer}: drawn is what the network computes there"
    if layer not in names:
        why = "a shortcut" if _SHORTCUTS & set(layer.split(".")) else "no convolution"
        return f"{here}. It is {why}, and not among the {len(names)} convolutions that tutorials list."
    number = names.index(layer) + 1
    here += f", as convolution {number} of {len(names)} in the order in which tutorials list them (without shortcuts)"
    if number == 1:
        return f"{here}. A tutorial that chains convolutions alone shows the same here, but not from the second on."
    return (
        f"{here}. A tutorial that chains convolutions alone, without what lies between them, shows something else: "
        "from the second on, its pictures are of no layer of this network."
    )

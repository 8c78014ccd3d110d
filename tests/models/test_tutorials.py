"""Images as tutorials take them, and which of their pictures a layer is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from cnnlog.models.torchvision import default_transform
from cnnlog.models.tutorials import listed_convolutions, place_among_tutorials, prepared


def photo(width: int = 90, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def test_an_image_is_taken_as_the_tutorial_takes_it() -> None:
    """It composes Resize((512, 512)) and ToTensor()."""
    tutorial = transforms.Compose([transforms.Resize((512, 512)), transforms.ToTensor()])
    ours = prepared(default_transform("resnet18"), size=(512, 512), normalize=False)
    torch.testing.assert_close(ours(photo()), tutorial(photo()), rtol=0, atol=0)


def test_a_resized_image_is_normalised_as_the_weights_want_it() -> None:
    plain = prepared(default_transform("resnet18"), size=(40, 30), normalize=False)(photo())
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(prepared(default_transform("resnet18"), size=(40, 30))(photo()), (plain - mean) / std)
    assert plain.shape == (3, 40, 30)


def test_without_normalising_the_weights_own_size_and_cut_are_kept() -> None:
    usual = default_transform("resnet18")
    bare = prepared(usual, normalize=False)(photo())
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close((bare - mean) / std, usual(photo()))
    assert prepared(usual) is usual
    with pytest.raises(ValueError, match="must have a mean and a std"):
        prepared(transforms.ToTensor(), normalize=False)


def tutorials_list(model: nn.Module) -> list[nn.Module]:
    """The loop of the tutorial, in our words."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.Conv2d):
            found.append(child)
        elif isinstance(child, nn.Sequential):
            for block in child:
                found += [inner for inner in block.children() if isinstance(inner, nn.Conv2d)]
    return found


@pytest.mark.parametrize(("name", "count"), [("resnet18", 17), ("resnet50", 49)])
def test_convolutions_are_listed_as_the_tutorial_lists_those_of_a_resnet(name: str, count: int) -> None:
    model = torchvision.models.get_model(name)
    modules = dict(model.named_modules())
    names = listed_convolutions(model)
    assert [modules[each] for each in names] == tutorials_list(model)
    assert len(names) == count


def test_it_is_said_which_picture_of_a_tutorial_a_layer_is() -> None:
    model = torchvision.models.resnet18()
    first = place_among_tutorials(model, "conv1")
    assert "convolution 1 of 17" in first
    assert "shows the same here, but not from the second on" in first
    later = place_among_tutorials(model, "layer1.1.conv2")
    assert "convolution 5 of 17" in later
    assert "shows something else" in later
    assert "It is a shortcut" in place_among_tutorials(model, "layer2.0.downsample.0")
    assert "It is no convolution" in place_among_tutorials(model, "layer1")

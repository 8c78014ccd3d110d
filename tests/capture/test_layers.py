"""Choosing layers: auto, names, globs, types, and what is refused in which words."""

from __future__ import annotations

import re

import pytest
from torch import nn

from cnnlog.capture.layers import LayerInfo, select
from cnnlog.kinds import Kind


def conv(name: str, resolution: int = 8, *, ran: bool = True, images: int = 1) -> LayerInfo:
    shape = (images, 4, resolution, resolution) if ran else None
    return LayerInfo(name, "Conv2d", nn.Conv2d, True, (4, 4, 3, 3), shape, has_maps=ran and images == 1)


def relu(name: str) -> LayerInfo:
    return LayerInfo(name, "ReLU", nn.ReLU, False, None, (1, 4, 8, 8), has_maps=True)


def linear(name: str) -> LayerInfo:
    return LayerInfo(name, "Linear", nn.Linear, False, (10, 4), (1, 10))


NET = [conv("stem.conv"), relu("stem.relu"), conv("body.conv"), conv("roi.conv", images=4), linear("head")]


def test_auto_takes_every_convolution_up_to_eight() -> None:
    infos = [part for i in range(8) for part in (conv(f"c{i}"), relu(f"r{i}"))]
    assert select(infos, "auto", kind=Kind.FILTERS) == tuple(f"c{i}" for i in range(8))


def test_auto_takes_the_first_and_the_last_of_each_resolution_past_eight() -> None:
    infos = [conv(f"c{i}", resolution) for i, resolution in enumerate([32, 32, 32, 16, 16, 8, 8, 8, 4])]
    assert select(infos, "auto", kind=Kind.FEATURE_MAPS) == ("c0", "c2", "c4", "c7", "c8")


def test_auto_never_takes_more_than_eight_and_keeps_both_ends() -> None:
    chosen = select([conv(f"c{i:02d}", 100 - i) for i in range(20)], "auto", kind=Kind.FILTERS)
    assert len(chosen) == 8
    assert chosen[0] == "c00"
    assert chosen[-1] == "c19"
    assert list(chosen) == sorted(chosen)


def test_auto_leaves_out_what_did_not_run_what_is_part_of_another_and_other_batch_sizes() -> None:
    infos = [conv("lora.base_layer"), conv("lora.lora_A.x"), conv("lora"), conv("aux", ran=False), *NET]
    assert select(infos, "auto", kind=Kind.FILTERS) == ("lora", "stem.conv", "body.conv", "roi.conv")
    assert select(infos, "auto", kind=Kind.FEATURE_MAPS) == ("lora", "stem.conv", "body.conv")


def test_auto_works_before_anything_ran() -> None:
    assert select([conv("a", ran=False), conv("b", ran=False)], "auto", kind=Kind.FILTERS) == ("a", "b")


def test_names_globs_and_types_come_in_execution_order_each_once() -> None:
    assert select(NET, ["body.conv", "stem.*"], kind=Kind.FILTERS) == ("stem.conv", "body.conv")
    assert select(NET, "stem.*", kind=Kind.FEATURE_MAPS) == ("stem.conv", "stem.relu")
    assert select(NET, [nn.ReLU, nn.Conv2d], kind=Kind.FEATURE_MAPS) == ("stem.conv", "stem.relu", "body.conv")
    assert select(NET, ["stem.conv", "*.conv"], kind=Kind.FILTERS) == ("stem.conv", "body.conv", "roi.conv")


@pytest.mark.parametrize(
    ("wanted", "kind", "said"),
    [
        ("stem.cnov", Kind.FILTERS, "no layer 'stem.cnov'; did you mean 'stem.conv'"),
        ("STEM.CONV", Kind.FILTERS, "did you mean 'stem.conv'"),
        ("relu", Kind.FEATURE_MAPS, "did you mean 'stem.relu'"),
        ("xyz", Kind.FILTERS, "no layer 'xyz'; layers with filters: 'stem.conv', 'body.conv', 'roi.conv'."),
        ("bdy.*", Kind.FILTERS, "no layer matching 'bdy.*'"),
        ("stem.r*", Kind.FILTERS, "None of the 1 layers matching 'stem.r*' has filters"),
        (
            "head",
            Kind.FILTERS,
            "'head' (Linear) has no filters: expected a 4-D weight [O, I, kH, kW], but its weight is",
        ),
        ("stem.relu", Kind.FILTERS, "but it has none of its own; layers with filters: 'stem.conv'"),
        ("head", Kind.FEATURE_MAPS, "expected an output [N, C, H, W] with the probe's N, but it is [1, 10]"),
        ("roi.conv", Kind.FEATURE_MAPS, "but it is [4, 4, 8, 8]"),
        ([nn.BatchNorm2d], Kind.FILTERS, "no layer of type BatchNorm2d"),
        ([nn.Linear], Kind.FEATURE_MAPS, "None of the 1 layers of type Linear has feature maps"),
        ([], Kind.FILTERS, "No layer given to watch"),
        ([3], Kind.FILTERS, "not by 3 (int)"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_a_way_on(wanted: object, kind: Kind, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        select(NET, wanted, kind=kind)  # type: ignore[arg-type]
    assert str(refusal.value).endswith((".", "?"))


def test_a_layer_that_did_not_run_has_no_maps() -> None:
    with pytest.raises(ValueError, match=r"'aux' .* did not run on the probe"):
        select([conv("aux", ran=False)], "aux", kind=Kind.FEATURE_MAPS)


def test_auto_on_a_net_without_convolutions_says_so() -> None:
    with pytest.raises(ValueError, match="2-D and 3-D convolutions for their filters, but this model has none"):
        select([linear("a"), relu("b")], "auto", kind=Kind.FILTERS)
    with pytest.raises(ValueError, match="name the layers to watch; layers with feature maps: 'b'"):
        select([linear("a"), relu("b")], "auto", kind=Kind.FEATURE_MAPS)

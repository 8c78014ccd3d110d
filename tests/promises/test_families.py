"""Models from timm, and torchvision's for segmentation, detection and video: watched, and trained as if unwatched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from support.inertness import Detects, differences, trace
from torch import nn
from torch.utils.data import Dataset

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layers import select
from cnnlog.kinds import Kind
from cnnlog.snapshot import Snapshot

Shape = tuple[int, ...]


def images(*shape: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(8))


def watched_run(build: Callable[[], nn.Module], image: Shape, folder: Path, probe: Probe | None = None) -> cnnlog.Run:
    """Train for an epoch with and without the monitors, compare every byte, and open what was stored."""
    probe = probe or Probe.from_tensor(images(*image))
    monitors: Callable[[], list[L.Callback]] = lambda: [FilterMonitor(), FeatureMapMonitor(probe)]  # noqa: E731
    assert (
        differences(trace(build, image, list, folder, epochs=1), trace(build, image, monitors, folder, epochs=1)) == []
    )
    run = cnnlog.open_run(folder / "cnnlog_logs" / "version_0")
    assert run.steps == (0, 1)
    for layer in run.layers:
        assert np.isfinite(run.feature_maps(layer)).all()
    return run


def look(model: nn.Module, tensor: torch.Tensor, *layers: str) -> Snapshot:
    """One capture; every byte of the state is compared with what it was before."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    seen = capture(model, tensor, filter_layers=layers, map_layers=layers, step=0, epoch=0, global_step=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    return seen


def auto(model: nn.Module, tensor: torch.Tensor) -> tuple[str, ...]:
    return select(survey(model, tensor), "auto", kind=Kind.FEATURE_MAPS)


# --- timm

TIMM = {  # name -> pixels, and the first and the last layer that "auto" watches
    "test_resnet": (32, "conv1.0", "layer4.0.downsample.1"),
    "test_convnext": (32, "stem.0", "stages.3.blocks.1.conv_dw"),
    "test_efficientnet": (32, "conv_stem", "conv_head"),
    "test_nfnet": (32, "stem.conv1", "final_conv"),  # scaled and standardised weights
    "test_byobnet": (32, "stem.conv", "stages.3.0.shortcut.conv.conv"),
    "test_vit": (32, "patch_embed.proj", "patch_embed.proj"),
    "mobilenetv3_small_050": (32, "conv_stem", "conv_head"),
    "tf_efficientnet_lite0": (32, "conv_stem", "conv_head"),  # pads in forward
}


def timm_model(name: str) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed (scripts/setup --test)")
    more = {"img_size": TIMM[name][0]} if "vit" in name else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=5, **more)
    return model


@pytest.mark.parametrize("name", TIMM)
def test_timm_trains_as_if_unwatched(name: str, tmp_path: Path) -> None:
    pixels, first, last = TIMM[name]
    run = watched_run(lambda: timm_model(name), (3, pixels, pixels), tmp_path)
    assert (run.layers[0], run.layers[-1]) == (f"net.{first}", f"net.{last}")
    assert run.numbers("weight_change", run.layers[0]).max() > 0


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_timm_models_are_looked_at_and_given_back(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (scripts/setup --test)")
    model = timm.create_model(name, pretrained=False, num_classes=5)
    layers = auto(model, images(3, 32, 32))
    seen = look(model, images(3, 32, 32), *layers)
    for layer in layers:
        np.testing.assert_array_equal(seen.filters[layer], model.get_submodule(layer).weight.detach().numpy())


def test_timm_layers_that_compute_their_weight_show_what_they_convolve_with() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed (scripts/setup --test)")
    torch.manual_seed(0)
    convolutions = [
        layers.StdConv2d(3, 4, 3),
        layers.ScaledStdConv2d(4, 4, 3),
        layers.StdConv2dSame(4, 4, 3),
        layers.ScaledStdConv2dSame(4, 6, 3),
    ]
    net = nn.Sequential(*convolutions)
    with torch.no_grad():
        for conv in convolutions:
            conv.weight.mul_(3).add_(1)
    seen = look(net, images(3, 12, 12), "0", "1", "2", "3")
    for conv, (name, filters) in zip(convolutions, seen.filters.items(), strict=True):
        np.testing.assert_allclose(filters.mean((1, 2, 3)), 0, atol=1e-5)
        rows = conv.weight.detach().flatten(1)
        standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
        scale = conv.gain.detach().flatten(1) * conv.scale if name in "13" else 1.0
        np.testing.assert_allclose(filters.reshape(len(rows), -1), (standard * scale).numpy(), atol=1e-3)


def test_timm_layers_that_mix_or_blur_have_no_filters_of_their_own() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed (scripts/setup --test)")
    torch.manual_seed(0)
    net = nn.Sequential(layers.Conv2dSame(3, 4, 3, stride=2), layers.BlurPool2d(4), layers.ConvNormAct(4, 4, 3))
    net.eval()
    found = {info.name: info.has_filters for info in survey(net, images(3, 12, 12))}
    assert [name for name, has in found.items() if has] == ["0", "2.conv"]
    experts = layers.CondConv2d(4, 4, 3, num_experts=2)  # a weight is mixed for every image
    mixing = nn.Sequential(nn.Conv2d(3, 4, 3))
    mixing.forward = lambda x: experts(mixing[0](x), torch.rand(len(x), 2))  # type: ignore[method-assign]
    mixing.add_module("experts", experts)
    found = {info.name: info.has_filters for info in survey(mixing, images(3, 12, 12))}
    assert found == {"0": True, "experts": False, "": False}


# --- torchvision: segmentation


def vision(name: str, **more: object) -> nn.Module:
    backbone = (
        {} if name.endswith("_18") or name.startswith("swin3d") else {"weights_backbone": None}
    )  # those of video have none
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=4, **backbone, **more)
    return model


CLIP = (3, 4, 32, 32)


def test_segmentation_trains_as_if_unwatched(tmp_path: Path) -> None:
    run = watched_run(lambda: vision("lraspp_mobilenet_v3_large"), (3, 32, 32), tmp_path)
    assert run.layers[0] == "net.backbone.0.0"
    assert any(layer.startswith("net.classifier") for layer in run.layers)


def test_segmentation_with_an_auxiliary_head_is_looked_at_and_given_back() -> None:
    model = vision("deeplabv3_mobilenet_v3_large", aux_loss=True)
    layers = auto(model, images(3, 32, 32))
    seen = look(model, images(3, 32, 32), *layers)
    assert layers[0] == "backbone.0.0"
    assert layers[-1] == "aux_classifier.4"
    assert seen.feature_maps["classifier.4"].shape == (2, 4, 2, 2)


# --- torchvision: detection


def detector(name: str) -> nn.Module:
    return vision(name, **({} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}))


def test_detection_trains_as_if_unwatched(tmp_path: Path) -> None:
    run = watched_run(lambda: Detects(detector("fasterrcnn_mobilenet_v3_large_320_fpn")), (3, 64, 64), tmp_path)
    assert run.layers[0] == "net.backbone.body.0.0"
    assert run.layers[-1] == "net.rpn.head.bbox_pred"  # what comes after it is of regions, not of images


def test_detection_without_regions_is_looked_at_and_given_back() -> None:
    model = detector("ssdlite320_mobilenet_v3_large")
    layers = auto(model, images(3, 64, 64, count=1))
    seen = look(model, images(3, 64, 64, count=1), *layers)
    assert layers[0] == "backbone.features.0.0.0"
    assert seen.feature_maps[layers[0]].shape == (1, 16, 160, 160)  # it scales every image to 320 px
    assert model.training


# --- torchvision: video


class Clips(Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return images(*CLIP)[index], index


def test_video_trains_as_if_unwatched(tmp_path: Path) -> None:
    probe = Probe.from_dataset(Clips(), indices=(1,))
    assert probe.tensor.shape == (1, *CLIP)
    run = watched_run(lambda: vision("mc3_18"), CLIP, tmp_path, probe)
    assert run.layers[0] == "net.stem.0"
    assert run.filters("net.stem.0").shape == (64, 3, 7, 21)  # 3 frames of 7 x 7, in colour
    assert run.filters("net.layer2.1.conv2.0").shape[-2:] == (3, 3)  # this one has one frame
    assert run.numbers("weight_change", "net.stem.0").max() > 0
    assert run.probe().shape == (1, *CLIP)
    assert run.probe_picture().shape == (*CLIP[2:], 3)


def test_video_models_are_looked_at_and_given_back() -> None:
    model, clip = vision("r2plus1d_18"), images(*CLIP, count=1)
    layers = auto(model, clip)
    seen = look(model, clip, *layers)
    first = model.get_submodule(layers[0])
    whole = first(clip).detach()
    np.testing.assert_allclose(seen.feature_maps[layers[0]], whole[:, :, whole.shape[2] // 2].numpy(), atol=1e-5)
    for layer in layers:
        weight = model.get_parameter(f"{layer}.weight").detach().numpy()
        frames = np.split(seen.filters[layer], weight.shape[2], axis=3)
        np.testing.assert_array_equal(np.stack(frames, axis=2), weight)


def test_a_transformer_of_clips_is_watched_at_its_one_convolution(tmp_path: Path) -> None:
    run = watched_run(lambda: vision("swin3d_t"), CLIP, tmp_path, Probe.from_tensor(images(*CLIP, count=1)))
    assert run.layers == ("net.patch_embed.proj",)
    assert run.filters("net.patch_embed.proj").shape == (64, 3, 4, 8)  # 2 frames of 4 x 4
    infos = survey(vision("swin3d_t"), images(*CLIP, count=1))
    with pytest.raises(ValueError, match=r"its weight is \[288, 96\]; layers with filters: 'patch_embed.proj'"):
        select(infos, "features.0.0.attn.qkv", kind=Kind.FILTERS)


def test_a_clip_as_the_probe() -> None:
    clip = images(3, 5, 8, 10)
    probe = Probe.from_tensor(clip)
    assert probe.tensor.shape == (2, 3, 5, 8, 10)
    assert len(probe.pictures) == 2
    np.testing.assert_array_equal(probe.pictures[1], Probe.from_tensor(clip[1, :, 2]).pictures[0])
    assert probe.fingerprint != Probe.from_tensor(clip[:, :, :4]).fingerprint
    with pytest.raises(ValueError, match=r"or \[N, C, T, H, W\] of clips, with at least one pixel, but this is \[1, 2"):
        Probe.from_tensor(torch.zeros(1, 2, 3, 4, 5, 6))

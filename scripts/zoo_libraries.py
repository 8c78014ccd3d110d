"""Networks of other libraries, small ones, built from their configurations without any download."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

Size = tuple[int, ...]
Networks = Mapping[str, tuple[Callable[[], nn.Module], Size]]
"""Name -> how the network is built, and the shape of its input without the batch."""

SMALL = (3, 64, 64)


def networks(library: str) -> Networks:
    """The networks of a library.

    Args:
        library: a key of `LIBRARIES`.

    Raises:
        ModuleNotFoundError: the library is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("YOLO_OFFLINE", "1")
    os.environ.setdefault("YOLO_VERBOSE", "False")
    return LIBRARIES[library](importlib.import_module(library))


def _transformers(t: Any) -> Networks:
    small: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    tokens: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    regnet: dict[str, Any] = {"embedding_size": 8, "groups_width": 8, **small, "hidden_sizes": [8, 8, 16, 16]}
    segformer: dict[str, Any] = {**small, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    upernet: dict[str, Any] = {
        "backbone_config": t.ConvNextConfig(**small, out_features=stages),
        "hidden_size": 16,
        "num_labels": 3,
        "auxiliary_in_channels": 24,
        "auxiliary_channels": 8,
    }
    vit: dict[str, Any] = {**tokens, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    chosen: dict[str, tuple[Any, Any, Size]] = {
        "resnet": (t.ResNetForImageClassification, t.ResNetConfig(embedding_size=8, **small), SMALL),
        "regnet": (t.RegNetForImageClassification, t.RegNetConfig(**regnet), SMALL),
        "convnextv2": (t.ConvNextV2ForImageClassification, t.ConvNextV2Config(**small), SMALL),
        "mobilenet_v2": (t.MobileNetV2ForImageClassification, t.MobileNetV2Config(depth_multiplier=0.35), SMALL),
        "segformer": (t.SegformerForSemanticSegmentation, t.SegformerConfig(**segformer), SMALL),
        "upernet": (t.UperNetForSemanticSegmentation, t.UperNetConfig(**upernet), SMALL),
        "vit": (t.ViTForImageClassification, t.ViTConfig(**vit), (3, 32, 32)),
        "dinov2": (
            t.Dinov2ForImageClassification,
            t.Dinov2Config(**tokens, image_size=28, patch_size=14),
            (3, 28, 28),
        ),
    }
    return {name: (partial(cls, config), image) for name, (cls, config, image) in chosen.items()}


def _timm(timm: Any) -> Networks:
    names = (
        "resnet10t efficientnet_lite0 test_byobnet convnext_atto tf_efficientnetv2_b0 nfnet_l0 mobilenetv4_conv_small"
    )
    names += " ghostnet_050 repvgg_a0 edgenext_xx_small fastvit_t8 vit_tiny_patch16_224"
    return {
        name: (
            partial(timm.create_model, name, pretrained=False, num_classes=3),
            (3, 224, 224) if name.startswith("vit") else SMALL,
        )
        for name in names.split()
    }


def _segmentation_models(smp: Any) -> Networks:
    names = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus", "Linknet", "PSPNet", "MAnet")
    return {name: (partial(getattr(smp, name), "resnet18", encoder_weights=None, classes=2), SMALL) for name in names}


def _ultralytics(_: Any) -> Networks:
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    kinds = {
        "yolov8n": tasks.DetectionModel,
        "yolo11n": tasks.DetectionModel,
        "yolov8n-cls": tasks.ClassificationModel,
        "yolo11n-seg": tasks.SegmentationModel,
    }
    return {name: (partial(kind, f"{name}.yaml", verbose=False), SMALL) for name, kind in kinds.items()}


def _monai(_: Any) -> Networks:
    nets: Any = importlib.import_module("monai.networks.nets")
    plane: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    steps: dict[str, Any] = {"channels": (4, 8, 16), "strides": (2, 2)}
    volume: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": (4, 8),
        "strides": (2,),
    }
    kernels: dict[str, Any] = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    return {
        "unet": (partial(nets.UNet, **plane, **steps), SMALL),
        "unet of volumes": (partial(nets.UNet, **volume, channels=(4, 8), strides=(2,)), (1, 8, 16, 16)),
        "attention unet": (partial(nets.AttentionUnet, **plane, **steps), SMALL),
        "autoencoder": (partial(nets.AutoEncoder, **plane, **steps), SMALL),
        "densenet121": (partial(nets.DenseNet121, **plane), SMALL),
        "segresnet": (partial(nets.SegResNet, **plane, init_filters=8), SMALL),
        "dynunet": (partial(nets.DynUNet, **plane, **kernels), SMALL),
    }


LIBRARIES: dict[str, Callable[[Any], Networks]] = {
    "transformers": _transformers,
    "timm": _timm,
    "segmentation_models_pytorch": _segmentation_models,
    "ultralytics": _ultralytics,
    "monai": _monai,
}

"""Weights as one side of a comparison: a checkpoint's filters, and the feature maps that its network makes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layers import LayerInfo, select
from cnnlog.capture.probe import Probe
from cnnlog.kinds import Kind
from cnnlog.messages import some
from cnnlog.models.files import read_state_dict
from cnnlog.models.torchvision import Loaded, architectures, load_classifier
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from cnnlog.runs.run import Run

_TORCHVISION = "torchvision:"
_WRAPPED_BY_PEFT = re.compile(r"(.+)\.(base_layer|modules_to_save\.[^.]+)")


class Weights:
    """A file of weights, or torchvision's.

    Args:
        source: what was asked for: a file, or `torchvision:NAME`.
        weights: layer -> all weights of every convolution `[O, I, kH, kW]` and linear layer `[O, I]`.
        network: the network, if it is known; without one there are no feature maps.
        note: a sentence on the filters; empty if there is nothing to say.

    Attributes:
        source: what was asked for: a file, or `torchvision:NAME`.
        weights: layer -> all weights of every convolution `[O, I, kH, kW]` and linear layer `[O, I]`.
        filters: layer -> all filters `[O, I, kH, kW]`, of every convolution.
        layers: the names that may be matched: all modules if the network is known, else those of `weights`.
        note: a sentence on the filters; empty if there is nothing to say.
    """

    def __init__(
        self, source: str, weights: Mapping[str, FloatArray], network: Loaded | None, *, note: str = ""
    ) -> None:
        self.source = source
        self.note = note
        self.weights = dict(weights)
        self.filters = {name: array for name, array in weights.items() if array.ndim == 4}
        self._network = network
        modules = [] if network is None else [name for name, _ in network.model.named_modules() if name]
        self.layers = tuple(modules) or tuple(self.weights)
        if not self.filters:
            raise ValueError(
                f"{source} holds no filters: expected at least one weight [O, I, kH, kW], of a 2-D convolution, in it"
            )

    def auto(self) -> tuple[str, ...]:
        """The layers that the monitors would watch."""
        infos = [
            LayerInfo(name, "Conv2d", nn.Conv2d, True, tuple(weight.shape), None)
            for name, weight in self.filters.items()
        ]
        return select(infos, "auto", kind=Kind.FILTERS)

    def feature_maps(
        self, names: Sequence[str], *, image: str | os.PathLike[str] | None, run: Run | None
    ) -> tuple[dict[str, FloatArray], str | None, str]:
        """What the network makes of an image, or else of a run's probe.

        Args:
            names: the layers that you want; those without feature maps are left out.
            image: the path of an image, which is resized and normalised as the architecture's weights want it.
            run: the run whose probe is taken if there is no image.

        Returns:
            Layer -> feature maps `[N, C, H, W]`, the probe's fingerprint, and a sentence on them (empty if there is
            nothing to say).

        Raises:
            ValueError: the image cannot be read, or cannot go through the network.
        """
        if self._network is None or not names:
            return {}, None, ""
        if image is not None:
            probe = Probe.from_images(os.fspath(image), transform=self._network.transform)
            return self._maps(names, probe), probe.fingerprint, ""
        if run is None or not run.manifest.probe:
            return {}, None, ""
        try:
            maps = self._maps(names, Probe.from_tensor(torch.from_numpy(run.probe())))
        except (ValueError, OSError) as error:
            return {}, None, f"no feature maps on the probe of {run.name} ({error})"
        return maps, run.manifest.probe.get("fingerprint"), f"its feature maps are of the probe of {run.name}"

    def _maps(self, names: Sequence[str], probe: Probe) -> dict[str, FloatArray]:
        assert self._network is not None, "feature maps are asked of a known network"
        usable = {info.name: info for info in survey(self._network.model, probe) if info.has_maps}
        wanted = [name for name in names if name in usable]
        snapshot = capture(
            self._network.model,
            probe,
            filter_layers=(),
            map_layers=wanted,
            channels_last=[name for name in wanted if usable[name].channels_last],
            step=0,
            epoch=0,
            global_step=0,
        )
        return dict(snapshot.feature_maps)


def open_weights(source: str, *, arch: str | None = None, with_network: bool = False) -> Weights:
    """Read weights.

    Args:
        source: a file (.ckpt, .pt, .pth, .bin, .safetensors), or `torchvision:NAME` with `:DEFAULT` or `:none` behind.
        arch: torchvision's name of the architecture that a file's weights are of.
        with_network: build the network, because you want feature maps. Without `arch` the checkpoint's hyperparameters,
            or else its names and shapes, tell the architecture.

    Raises:
        ValueError: the file is damaged, holds no weights or no convolution, or is of no known architecture although one
            is needed.
        FileNotFoundError: no such file.
    """
    if source.startswith(_TORCHVISION):
        name, _, which = source.removeprefix(_TORCHVISION).partition(":")
        network = load_classifier(name, which or "DEFAULT")
    elif with_network or arch is not None:
        network = load_classifier(source, arch=arch or _stored_architecture(source))
    else:
        state = read_state_dict(source)
        weights, note = _without_peft(_weights(state), state)
        return Weights(source, weights, None, note=note)
    return Weights(source, _weights(network.model.state_dict()), network)


def _weights(state: Mapping[str, torch.Tensor]) -> dict[str, FloatArray]:
    """Layer -> float32 of every 4-D weight `[O, I, kH, kW]` and every 2-D weight `[O, I]`."""
    return {
        name.removesuffix(".weight").replace("_orig_mod.", ""): _array(value)
        for name, value in state.items()
        if name.endswith(".weight") and value.ndim in (2, 4) and value.is_floating_point() and value.numel()
    }


def _without_peft(
    weights: Mapping[str, FloatArray], state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, FloatArray], str]:
    """The weights, also under the names that their layers had before PEFT wrapped them; and a sentence on them."""
    if not any(".base_layer." in key or ".lora_A." in key for key in state):
        return dict(weights), ""
    named = {
        name.replace("base_model.model.", ""): array
        for name, array in weights.items()
        if array.ndim == 4 or ".lora_" not in name
    }
    bases = []
    for name, array in [*named.items()]:
        if (match := _WRAPPED_BY_PEFT.fullmatch(name)) is not None:
            named[match[1]] = array
            bases += [match[1]] if match[2] == "base_layer" else []
    if not bases:
        return named, "it holds adapters of PEFT's, without the filters that they adapt"
    return named, (
        f"the filters of {some(bases, 5)} are shown without the adapters of PEFT's that it holds beside them; "
        "save what merge_and_unload() gives to see both together"
    )


def _array(value: torch.Tensor) -> FloatArray:
    return np.ascontiguousarray(value.detach().to("cpu", torch.float32).numpy())


def _stored_architecture(path: str) -> str | None:
    """The torchvision classifier that a Lightning checkpoint names among its hyperparameters.

    Args:
        path: of a file of weights.
    """
    if Path(path).suffix == ".safetensors" or not Path(path).is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # `models.load` reads it again, and says what is wrong with it
        return None
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    known = set(architectures())
    values = hyper.values() if isinstance(hyper, Mapping) else ()
    return next((value for value in values if isinstance(value, str) and value in known), None)

"""torchvision's classifiers: by name, with weights from torchvision or a file, with a new head."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from cnnlog.messages import near, some
from cnnlog.models.files import SUFFIXES, StateDict, load_weights, read_state_dict, without_prefix

_LARGEST_HEAD = 0.8  # share of a network's parameters; that of shufflenet_v2_x0_5 is 0.74, and no other past 0.57


@dataclass(frozen=True)
class Loaded:
    """A network ready to look at.

    Attributes:
        name: of the architecture, as torchvision spells it.
        model: the network, in training mode.
        transform: image -> input, as torchvision's weights for this architecture want it.
    """

    name: str
    model: nn.Module
    transform: Callable[[Any], torch.Tensor]


def architectures() -> list[str]:
    """The names of torchvision's classifiers."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


def load_classifier(what: str, weights: str | os.PathLike[str] = "none", *, arch: str | None = None) -> Loaded:
    """Build a torchvision classifier.

    Args:
        what: the architecture's name; or a file with its weights, whose names and shapes then tell the architecture.
        weights: `"DEFAULT"` (torchvision's best, downloaded once), `"none"` (random), or a file: a state dict or
            Lightning checkpoint (.pt, .pth, .ckpt, .bin; read with `weights_only=True`), or .safetensors.
        arch: the architecture, where `what` is a file.

    Raises:
        ValueError: no such architecture; a file that is damaged, not of weights, or not of this architecture.
        FileNotFoundError: no such file.
        ConnectionError: `"DEFAULT"` could not be downloaded.
    """
    if Path(what).suffix in SUFFIXES and what not in architectures():
        state = read_state_dict(what)
        name = _known(arch) if arch is not None else _architecture_of(state, what)
        model = _build(name, state=state, source=what)
    elif arch is not None and arch != what:
        raise ValueError(
            f"Expected arch only beside a file of weights ({', '.join(SUFFIXES)}), but got arch={arch!r} beside "
            f"{what!r}."
        )
    else:
        name = _known(what)
        if str(weights) == "DEFAULT":
            model = _download(name)
        elif str(weights).lower() == "none":
            model = _build(name)
        else:
            model = _build(name, state=read_state_dict(weights), source=str(weights))
    return Loaded(name, model, default_transform(name))


def default_transform(name: str) -> Callable[[Any], torch.Tensor]:
    """Resizing, cropping and normalisation, as torchvision's default weights of an architecture want them.

    Args:
        name: the architecture, as torchvision spells it.
    """
    weights: Any = torchvision.models.get_model_weights(_known(name))
    transform: Callable[[Any], torch.Tensor] = weights.DEFAULT.transforms()
    return transform


def replace_head(model: nn.Module, classes: int) -> tuple[str, ...]:
    """Give a classifier a new last layer, and its auxiliary classifiers, too.

    Args:
        model: the classifier; it is changed in place.
        classes: how many classes the new layers tell apart.

    Returns:
        The names of the new layers, that of the last one first.

    Raises:
        ValueError: fewer than 1 class; no linear layer or convolution in the model.
    """
    if classes < 1:
        raise ValueError(f"Expected 1 class or more, but got {classes}.")
    names = head_names(model)
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _resized(model.get_submodule(name), classes))
    if isinstance(getattr(model, "num_classes", None), int):
        setattr(model, "num_classes", classes)  # noqa: B010  # nn.Module's stubs take no int; SqueezeNet keeps it
    return names


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the last linear layer or convolution, and of auxiliary classifiers with as many outputs.

    Args:
        model: any classifier.

    Raises:
        ValueError: it has no linear layer and no convolution.
    """
    layers = {name: _outputs(m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer and no convolution, so no head to replace.")
    last, classes = list(layers.items())[-1]
    aux = (name for name, outputs in layers.items() if outputs == classes and name.lower().startswith("aux"))
    return (last, *aux)


def _known(name: str) -> str:
    known = architectures()
    if name in known:
        return name
    if name.lower() in known:
        return name.lower()
    close = near(name.lower(), known, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`torchvision.models.list_models()` lists them."
    raise ValueError(f"torchvision has no classifier {name!r}; {hint}")


def _build(name: str, *, state: StateDict | None = None, source: str = "") -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = state is None
        if state is not None:  # the files of torchvision and what was trained from them
            options["transform_input"] = True
            options["aux_logits"] = any("aux" in key.lower() for key in state)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    if state is not None:
        head = head_names(model)[0]
        weight = without_prefix(state, model.state_dict()).get(f"{head}.weight")
        if weight is not None and weight.ndim and len(weight) != _outputs(model.get_submodule(head)):
            replace_head(model, len(weight))
        load_weights(model, state, source=source)
    return model


def _download(name: str) -> nn.Module:
    try:
        model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:  # no network; or a download that does not have the expected hash
        raise ConnectionError(
            f"The weights of {name} could not be downloaded ({error}): give a file of them (.pt or .safetensors) "
            "instead, or none for random ones."
        ) from error
    return model


def _architecture_of(state: StateDict, source: str) -> str:
    # The likeliest first: building one without storage takes 0.1 s, and the head may differ
    size = sum(value.numel() for value in state.values())
    images = any(value.ndim == 4 for value in state.values())
    large_enough = [name for name in architectures() if size > (1 - _LARGEST_HEAD) * _parameters(name)]
    for name in sorted(large_enough, key=lambda name: abs(_parameters(name) - size)) if images else ():
        try:
            with _NoStorage():
                options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
                model = torchvision.models.get_model(name, weights=None, **options)
        except NotImplementedError:  # a network that looks at its own weights while it is built
            continue
        heads = tuple(f"{head}." for head in head_names(model))
        wanted = {k: v.shape for k, v in model.state_dict().items() if not k.startswith(heads)}
        found = without_prefix(state, wanted)
        names = [k for k in wanted if not k.endswith("num_batches_tracked") and "aux" not in k.lower()]
        if len(found) <= len(model.state_dict()) and all(k in found and found[k].shape == wanted[k] for k in names):
            return name
    raise ValueError(
        f"{source} fits none of torchvision's classifiers by its names and shapes (it has {some(list(state))}); "
        "give the architecture with --arch if it is one of them."
    )


class _NoStorage(TorchFunctionMode):
    """Builds networks without memory for their weights. `torch.device("meta")` would do, but RegNets fail on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _parameters(name: str) -> int:
    weights: Any = torchvision.models.get_model_weights(name)
    return int(weights.DEFAULT.meta["num_params"])


def _outputs(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def _resized(module: nn.Module, classes: int) -> nn.Module:
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, classes, bias=bias).to(module.weight)
    assert isinstance(module, nn.Conv2d), "head_names gives linear layers and convolutions"
    return nn.Conv2d(
        module.in_channels,
        classes,
        module.kernel_size,  # type: ignore[arg-type]  # torch's stubs say tuple of any length
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        bias=bias,
    ).to(module.weight)

"""torchvision's classifiers: by name, with weights from torchvision or a file, with a new head."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

StateDict = dict[str, torch.Tensor]


SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


_WHERE_STATE_LIES = ("state_dict", "model_state_dict", "model", "module", "net")


_PICKLED = re.compile(r"GLOBAL ([\w.]+)")  # in torch's refusal


# torchvision's own DenseNet files have names from before PyTorch 0.4.1
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)")


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
    """Resizing, cropping and normalisation as torchvision's default weights of this architecture want them."""
    weights: Any = torchvision.models.get_model_weights(_known(name))
    transform: Callable[[Any], torch.Tensor] = weights.DEFAULT.transforms()
    return transform


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read tensors by name, and nothing else; no pickled object is ever run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another kind, or holding other objects than tensors.
    """
    held = read_checkpoint(path)
    for key in _WHERE_STATE_LIES:
        if isinstance(held.get(key), Mapping):
            held = held[key]
            break
    state = {str(k): v for k, v in held.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors by name: expected a state dict in it.")
    return state


def read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read everything that a file of weights holds: tensors and plain values; no pickled object is ever run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another kind, or holding objects that only running code from the file would give.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected weights as DEFAULT, none, or a file ({', '.join(SUFFIXES)}), but got {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of weights at {path}, but there is none.")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error}); get it again.") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # mmap: what is not looked at, an optimiser's state above all, is not read. It needs the zip format.
            held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = dict.fromkeys(_PICKLED.findall(str(error)))
        what = f"other objects than tensors ({', '.join(names)})" if names else "other objects than tensors"
        raise ValueError(
            f"{path} is damaged, or holds {what}, which are never loaded because that would run "
            "code from the file; save model.state_dict() instead."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is truncated or no PyTorch file ({type(error).__name__}); get it again.") from error
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds no tensors by name: expected a state dict, but got a {type(held).__name__}.")
    return held


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Copy weights in; types may differ (half precision), names and shapes may not.

    A prefix that all names of the model share in `state` (`model.`, `module.`) is stripped; what lies outside it in
    such a checkpoint (the buffers of a loss, say) is left out.

    Raises:
        ValueError: names are missing or too many, or shapes differ; the model is then unchanged.
    """
    wanted = model.state_dict()
    found = _without_prefix(state, wanted)
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    surplus = [name for name in found if name not in wanted]
    if missing or surplus:
        parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        parts += [f"{len(surplus)} unexpected ({_some(surplus)})"] if surplus else []
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: of its {len(wanted)} names {' and '.join(parts)}; "
            "give the architecture that the weights are of."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{source} does not fit {type(model).__name__}: expected {name} of shape {list(wanted[name].shape)}, "
                f"but got {list(value.shape)}; give the architecture that the weights are of."
            )
    model.load_state_dict(found, strict=False)


def replace_head(model: nn.Module, classes: int) -> tuple[str, ...]:
    """Give a classifier a new last layer for `classes` classes, and its auxiliary classifiers, too.

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
    """The names of the last linear layer or convolution, and of auxiliary classifiers with as many outputs."""
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
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
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
        weight = _without_prefix(state, model.state_dict()).get(f"{head}.weight")
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


class _NoStorage(TorchFunctionMode):
    """Builds networks without memory for their weights. `torch.device("meta")` would do, but RegNets fail on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _architecture_of(state: StateDict, source: str) -> str:
    # The likeliest first: building one without storage takes 0.1 s, and the head may differ
    size = sum(value.numel() for value in state.values())
    images = any(value.ndim == 4 for value in state.values())
    for name in sorted(architectures(), key=lambda name: abs(_parameters(name) - size)) if images else ():
        try:
            with _NoStorage():
                options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
                model = torchvision.models.get_model(name, weights=None, **options)
        except NotImplementedError:  # a network that looks at its own weights while it is built
            continue
        heads = tuple(f"{head}." for head in head_names(model))
        wanted = {k: v.shape for k, v in model.state_dict().items() if not k.startswith(heads)}
        found = _without_prefix(state, wanted)
        names = [k for k in wanted if not k.endswith("num_batches_tracked") and "aux" not in k.lower()]
        if len(found) <= len(model.state_dict()) and all(k in found and found[k].shape == wanted[k] for k in names):
            return name
    raise ValueError(
        f"{source} fits none of torchvision's classifiers by its names and shapes (it has {_some(list(state))}); "
        "give the architecture with --arch if it is one of them."
    )


def _parameters(name: str) -> int:
    weights: Any = torchvision.models.get_model_weights(name)
    return int(weights.DEFAULT.meta["num_params"])


def _without_prefix(state: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> StateDict:
    first = next(iter(wanted))
    plain = {_OLD_DENSENET.sub(r"\1\2", key).replace("_orig_mod.", ""): value for key, value in state.items()}
    prefixes = sorted({key[: -len(first)] for key in plain if key.endswith(f".{first}")}, key=len)
    if first in plain or not prefixes:
        return plain
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in plain for name in wanted))
    return {key[len(prefix) :]: value for key, value in plain.items() if key.startswith(prefix)}


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


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

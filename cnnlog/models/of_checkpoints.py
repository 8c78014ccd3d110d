"""The network that a training's checkpoints are of."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlog.messages import said
from cnnlog.models.files import SUFFIXES, load_weights, read_checkpoint, read_state_dict
from cnnlog.models.torchvision import load_classifier


@dataclass(frozen=True)
class Network:
    """A network for the checkpoints, and what torchvision's architecture says of its input.

    Attributes:
        model: the network.
        name: its class or architecture.
        transform: image -> input; None where only the user knows.
    """

    model: nn.Module
    name: str
    transform: Callable[[Any], torch.Tensor] | None = None


def torchvision_network(first: Path, arch: str | None) -> Network:
    """A torchvision classifier for checkpoints.

    Args:
        first: one of the checkpoints.
        arch: torchvision's name of the architecture; None takes the one that the checkpoint's names and shapes fit.

    Raises:
        ValueError: no architecture fits.
    """
    loaded = load_classifier(str(first), arch=arch)
    return Network(loaded.model, loaded.name, loaded.transform)


def module_network(first: Path, where: str) -> Network:
    """An instance of an importable module class, with the hyper-parameters that the checkpoint holds.

    Args:
        first: one of the checkpoints.
        where: the class, as `package.module:Class`.

    Raises:
        ValueError: no such class, or it needs arguments that the checkpoint does not hold.
    """
    cls = _import(where)
    content = read_checkpoint(first)
    arguments = _hyper_parameters(cls, content)
    missing = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in arguments
    ]
    if missing:
        raise ValueError(
            f"{where} needs {', '.join(missing)}, and {first} does not hold it, for it was saved without "
            "self.save_hyperparameters(): give a class that can be made without arguments, e.g. one that inherits from "
            "it and fills them in."
        )
    try:
        model: nn.Module = cls(**arguments)
    except Exception as error:
        raise ValueError(f"{where} could not be made from the arguments {arguments} ({said(error)}).") from error
    getattr(model, "configure_model", lambda: None)()
    return Network(model, cls.__name__)


def _import(where: str) -> type[nn.Module]:
    module, _, name = where.partition(":")
    if not (module and name):
        raise ValueError(f"A class is given as package.module:Class, but got {where!r}.")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where} cannot be imported ({error}): give a class that Python finds from here.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{where} is no LightningModule or nn.Module class, but {type(found).__name__}.")
    return found


def _hyper_parameters(cls: type[nn.Module], content: Mapping[str, Any]) -> dict[str, Any]:
    """Those stored hyper-parameters that the class takes.

    Args:
        cls: the network's class.
        content: the checkpoint.
    """
    stored = content.get("hyper_parameters")
    if not isinstance(stored, Mapping):
        return {}
    parameters = inspect.signature(cls).parameters
    argument = content.get("hparams_name")
    if isinstance(argument, str) and argument in parameters and argument not in stored:
        return {argument: dict(stored)}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {str(name): value for name, value in stored.items() if not str(name).startswith("_")}
    return {name: value for name, value in stored.items() if name in parameters}


def baseline_network(weights: str, network: Network, where: str | None) -> Network:
    """The network as it was before the training.

    Args:
        weights: a file of weights. If the network is torchvision's, the head in it may have another number of classes;
            and `DEFAULT` then downloads torchvision's weights.
        network: the network of the checkpoints.
        where: its class, as `package.module:Class`; None if it is torchvision's.

    Raises:
        ValueError: the weights do not fit.
    """
    file = Path(weights).suffix in SUFFIXES
    if where is not None and not file:
        raise ValueError(f"The baseline of {where} is a file of weights ({', '.join(SUFFIXES)}); got {weights!r}.")
    if where is None:
        loaded = load_classifier(weights, arch=network.name) if file else load_classifier(network.name, weights)
        return Network(loaded.model, loaded.name, loaded.transform)
    model = copy.deepcopy(network.model)
    load_weights(model, read_state_dict(weights), source=weights)
    return Network(model, network.name)

"""Which objects a model may keep state in, by their classes: what is looked into, put back, or only watched."""

from __future__ import annotations

import array
import functools
import io
import sys
import types
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnlog.capture.rng import is_generator


class State(Enum):
    """What is done with an object that can be reached from a model."""

    NOTHING = "never changes, or is not the model's to change"
    MODULE = "its attributes, buffers and parameters are put back"
    CONTAINER = "what is in it is put back, and looked into"
    TUPLE = "what is in it is looked into"
    TENSOR = "its bytes are put back"
    ARRAY = "its elements are put back"
    GENERATOR = "its state is put back"
    FUNCTION = "its closure, defaults and attributes are put back, and looked into"
    METHOD = "its object and its function are looked into"
    PARTIAL = "its function and arguments are looked into"
    OBJECT = "its attributes are put back, and looked into"
    LOGGER = "it is silent meanwhile"
    FOREIGN = "it is only watched: it may belong to others, or be a handle of something outside Python"


# Never changed, and so common that they are asked for first.
CONSTANT: frozenset[type] = frozenset((bool, int, float, complex, str, bytes, type(None), type, range, slice))
CONSTANT |= {types.ModuleType, torch.dtype, torch.device, torch.layout, torch.memory_format}

CONTAINERS = (dict, list, set, deque)
_LOOKED_INTO = (types.SimpleNamespace, ChainMap, UserDict, UserList, UserString)  # of the standard library
_WATCHED = (io.IOBase, torch.optim.Optimizer, functools._lru_cache_wrapper)
_LIGHTNING = frozenset(("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"))
# Whose instances run, feed or write the training: with all of their subclasses they are not looked into.
_OTHERS = frozenset(
    (home, name)
    for home, names in {
        "torch": "Dataset DataLoader Sampler LRScheduler ReduceLROnPlateau GradScaler "
        "RemovableHandle ProcessGroup Event Stream",
        **dict.fromkeys(_LIGHTNING, "Trainer Fabric LightningDataModule Strategy Precision"),
        "threading": "Thread",
        "multiprocessing": "BaseProcess",
        "logging": "Logger Handler LoggerAdapter",
        "weakref": "ReferenceType",
    }.items()
    for name in names.split()
)


def state_of(thing: object, packages: frozenset[str]) -> State:
    """What is done with an object.

    Args:
        thing: any.
        packages: the top-level packages in which the model's own modules are written.
    """
    cls: Any = type(thing)
    return _state_of(cls, packages)


_LOGGERS = frozenset((home, "Logger") for home in _LIGHTNING) | {
    (home, name) for home in ("torch", "tensorboardX", "tensorboard") for name in ("SummaryWriter", "FileWriter")
}


@lru_cache(8192)  # a large model has tens of thousands of attributes, of few classes
def _state_of(cls: Any, packages: frozenset[str]) -> State:
    if cls in CONSTANT or issubclass(cls, (type, Enum)):
        return State.NOTHING
    known = next((state for base, state in _STATES if issubclass(cls, base)), None)
    if known is None and is_generator(cls):
        known = State.GENERATOR
    return _state_by_home(cls, packages) if known is None else known


def _state_by_home(cls: type, packages: frozenset[str]) -> State:
    """What is done with objects that are told by who wrote their class."""
    homes = [(base.__module__.partition(".")[0], base.__name__) for base in cls.__mro__]
    home = homes[0][0]
    state = State.OBJECT
    if any(base in _LOGGERS for base in homes):
        state = State.LOGGER
    elif home == "cnnlog" or any(base in _OTHERS for base in homes):
        state = State.NOTHING
    elif issubclass(cls, _WATCHED) or _is_iterator(cls):
        state = State.FOREIGN
    elif issubclass(cls, CONTAINERS):
        state = State.CONTAINER
    elif issubclass(cls, (tuple, frozenset)):
        state = State.TUPLE
    elif issubclass(cls, _LOOKED_INTO):
        state = State.OBJECT
    elif home in _LIGHTNING or (home == "torch" and not cls.__module__.startswith("torch.distributions")):
        state = State.NOTHING
    elif is_foreign(home) and home not in packages:
        state = State.FOREIGN
    return state


_STATES: list[tuple[type | tuple[type, ...], State]] = [
    (torch.Tensor, State.TENSOR),
    (nn.Module, State.MODULE),
    ((np.ndarray, bytearray, array.array), State.ARRAY),
    ((types.FunctionType, classmethod, staticmethod, property), State.FUNCTION),
    ((types.MethodType, types.BuiltinFunctionType), State.METHOD),
    ((functools.partial, functools.partialmethod), State.PARTIAL),
]


@lru_cache(1024)
def is_foreign(package: str) -> bool:
    """Whether a top-level package is Python's own, or was installed: then it is not what the user is writing.

    Args:
        package: its name.
    """
    if package in sys.stdlib_module_names and package != "__main__":
        return True
    place = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in place or "dist-packages" in place


def own_packages(modules: Sequence[object]) -> frozenset[str]:
    """The top-level packages in which modules or other objects are written, without torch's and Lightning's.

    Args:
        modules: all of the model's, or any objects.
    """
    homes = {cls.__module__.partition(".")[0] for cls in {*map(type, modules)}}
    return frozenset(homes - _LIGHTNING - {"torch"})


def _is_iterator(cls: type) -> bool:
    """Whether it is an iterator that keeps its place where Python cannot write: a generator, `itertools.count`."""
    return issubclass(cls, Iterator) and cls.__module__ in ("builtins", "itertools")

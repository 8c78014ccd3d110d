"""Which objects below a data set are used up when they are read, and which are not the data set's own to change."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import Executor
from multiprocessing import connection, queues
from queue import Queue, SimpleQueue
from socket import socket
from types import BuiltinFunctionType, ModuleType
from typing import Any

import torch

from cnnlog.capture.kinds_of_state import is_foreign
from cnnlog.capture.muted import is_logger

LEAVES: tuple[type, ...] = (str, bytes, int, float, complex, range, ModuleType, BuiltinFunctionType)
_OTHERS: tuple[type, ...] = (torch.optim.Optimizer, torch.Generator, threading.Thread)  # others change them meanwhile
_OTHERS_BY_NAME = {("logging", "Logger"), ("multiprocessing", "BaseProcess"), ("multiprocessing", "BaseManager")}
_OTHERS_BY_NAME |= {(home, "Trainer") for home in ("lightning", "pytorch_lightning")}
# Packages whose objects show or write what a training does.
_WRITERS = frozenset(("wandb", "mlflow", "comet_ml", "aim", "clearml", "trackio", "neptune", "tensorboard"))
_SEEN_THROUGH = frozenset(("torch", "torchvision", "lightning", "pytorch_lightning", "cnnlog"))
# What one takes from them is gone, in a copy of the process as well.
_SHARED: tuple[type, ...] = (Queue, SimpleQueue, queues.Queue, queues.SimpleQueue, Executor, socket)
_SHARED = (*_SHARED, connection._ConnectionBase)  # of pipes


def used_up(thing: Any) -> str:
    """What kind of queue or pipe a thing is, whose content is gone once it is read, in a copy of the process as well.

    Threads are among them, but for those that have ended: they may fill a queue, and cannot be started twice.

    Args:
        thing: any object.

    Returns:
        The name of its class; empty if it is none of these.
    """
    cls: Any = type(thing)
    thread = issubclass(cls, threading.Thread) and (thing.ident is None or thing.is_alive())
    return cls.__name__ if thread or issubclass(cls, _SHARED) or _is_pool(cls) or _gives(thing) else ""


def is_leaf(thing: Any) -> bool:
    """Whether nothing is looked for in an object: it holds nothing, or what it holds is not a data set's to change.

    Args:
        thing: any object.
    """
    cls: Any = type(thing)
    return issubclass(cls, (*LEAVES, *_OTHERS)) or _is_another(cls) or is_logger(thing) or _home_of(cls) in _WRITERS


def is_object_of_a_library(thing: Any, packages: frozenset[str]) -> bool:
    """Whether an installed package, and not Python or torch, has written an object's class.

    Args:
        thing: any object.
        packages: whose objects do not count.
    """
    home = _home_of(type(thing))
    own = home in packages or home in _SEEN_THROUGH or home in sys.stdlib_module_names
    return not own and is_foreign(home)


def of_a_library(module: str | None) -> bool:
    """Whether a module is Python's, an installed package's or ours: not what the user is writing.

    Args:
        module: its name, as classes and functions have it.
    """
    home = _home(module)
    return home == "cnnlog" or is_foreign(home)


def is_of_a_library(function: Any) -> bool:
    """Whether a function is an installed package's own, and not one that it has made for somebody.

    Args:
        function: or a cache around one.
    """
    name = getattr(function, "__qualname__", "")
    if not of_a_library(function.__module__) or "<" in name:
        return False
    found: Any = sys.modules.get(function.__module__)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function


def _home_of(cls: Any) -> str:
    return _home(cls.__module__)


def _home(module: str | None) -> str:
    return (module or "builtins").partition(".")[0]


@functools.lru_cache(1024)
def _is_another(cls: Any) -> bool:
    """Whether it is not a data set's to change, or leads to everything else as Lightning's trainer does.

    By name, because to import what is not in use would cost seconds.
    """
    return any((_home(base.__module__), base.__name__) in _OTHERS_BY_NAME for base in cls.__mro__)


@functools.lru_cache(1024)
def _is_pool(cls: Any) -> bool:
    return any((base.__module__, base.__name__) == ("multiprocessing.pool", "Pool") for base in cls.__mro__)


def _gives(thing: Any) -> bool:
    """Whether it is a queue or an iterator in a manager's process. Other objects there cannot be given back."""
    cls: Any = type(thing)
    return _is_proxy(cls) and any(kind in thing._token.typeid for kind in ("Queue", "Iterator"))


@functools.lru_cache(1024)
def _is_proxy(cls: Any) -> bool:
    return any((base.__module__, base.__name__) == ("multiprocessing.managers", "BaseProxy") for base in cls.__mro__)

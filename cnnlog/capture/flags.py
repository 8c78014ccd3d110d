"""The switches of torch, NumPy and the process that a forward pass may turn, kept and given back."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Switch = tuple[Callable[[], Any], Callable[[Any], object]]
"""How a switch is read, and how it is set to what was read."""


@contextmanager
def kept_flags() -> Iterator[None]:
    """Give back what is set for the whole process: torch's backends, precision, determinism, threads and default type,
    autocast, NumPy's handling of floating-point errors, and the environment's variables.
    """
    before = [(read, turn, _state(read)) for read, turn in _SWITCHES]
    try:
        yield
    finally:
        for read, turn, was in before:
            if was is not None and _state(read) != was:
                turn(was)


def _state(read: Callable[[], Any]) -> Any:
    """What a switch says; None where it cannot be read: torch's old and new names for one may exclude each other."""
    try:
        return read()
    except (AttributeError, RuntimeError):
        return None


def _attribute(owner: Any, name: str) -> Switch:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_environment(before: dict[str, str]) -> None:
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return None


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _set_autocast(before: list[tuple[str, bool, torch.dtype]]) -> None:
    for kind, enabled, dtype in before:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


_SWITCHES: list[Switch] = [
    _attribute(torch.backends.cudnn, "enabled"),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    _attribute(torch.backends.cudnn, "allow_tf32"),
    _attribute(torch.backends.cuda.matmul, "allow_tf32"),
    _attribute(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    _attribute(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1])),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (_autocast, _set_autocast),
    (np.geterr, lambda was: np.seterr(**was)),
    (lambda: dict(os.environ), _set_environment),
    (gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (_folder, os.chdir),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
]

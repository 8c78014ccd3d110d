"""Tensors that are to be a probe: refused if they hold no image, copied, and named by a fingerprint."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cnnlog.messages import said


def checked(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU: float32, or whole numbers as they are.

    Args:
        tensor: what was given for a probe.

    Raises:
        ValueError: it has another number of axes than a probe, no pixel, or no values that could be an image's.
        TypeError: it is no tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"A probe is a tensor [N, C, H, W] or [C, H, W], not {type(tensor).__name__}.")
    refuse_without_values(tensor)
    shape = list(tensor.shape)
    if tensor.dim() not in (2, 3, 4, 5) or 0 in shape:
        raise ValueError(
            "A probe is a tensor [N, C, H, W], [C, H, W], [N, D] of latents, or [N, C, T, H, W] of clips, with at "
            f"least one pixel, but this is {shape}."
        )
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    try:
        copied = tensor.detach().to("cpu", kind, copy=True, memory_format=torch.contiguous_format)
        # as_subclass: torchvision's tv_tensors would otherwise follow the probe into the network
        copied = copied.as_subclass(torch.Tensor)
        values = copied.numpy()
    except Exception as error:  # of a subclass of tensors that has its values elsewhere
        raise ValueError(
            f"A probe is a plain tensor, but the values of this {type(tensor).__name__} cannot be read "
            f"({said(error)}): give a dense copy of it on the CPU."
        ) from error
    bad = 0 if kind != torch.float32 else int((~np.isfinite(values)).sum())
    if bad:
        lost = bool(torch.isfinite(tensor.detach()).all()) if tensor.dtype == torch.float64 else False
        what = "too large for float32, in which a probe is kept" if lost else "NaN or infinite"
        raise ValueError(f"A probe is finite, but {bad} of this one's {copied.numel()} values are {what}.")
    return copied


def refuse_without_values(tensor: torch.Tensor) -> None:
    """Refuse a tensor that has no values side by side in memory, or none that could be an image's.

    Args:
        tensor: what was given for an image.

    Raises:
        ValueError: what it is, and what to give instead.
    """
    for what, is_it, instead in (
        ("a nested tensor, whose parts differ in size", tensor.is_nested, "give one of its parts, tensor[0]"),
        ("on the meta device, which holds no values", tensor.is_meta, "give the tensor with its values"),
        (f"sparse ({tensor.layout})", tensor.layout != torch.strided, "give tensor.to_dense()"),
        ("quantised", tensor.is_quantized, "give tensor.dequantize()"),
        ("complex", tensor.is_complex(), "give its parts as channels, or its magnitude"),
        ("boolean", tensor.dtype == torch.bool, "give tensor.float()"),
    ):
        if is_it:
            raise ValueError(f"A probe holds what the network takes, but this tensor is {what}: {instead}.")
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise ValueError("A probe holds values, but this parameter is not initialised yet: give a tensor with values.")


def fingerprint_of(tensor: torch.Tensor) -> str:
    """SHA-256 of shape and values, in hex.

    Args:
        tensor: float32 or whole numbers, on the CPU.
    """
    shape: tuple[Any, ...] = tuple(tensor.shape)
    if tensor.is_floating_point():
        values = tensor.numpy().astype("<f4")
    else:  # whole numbers are another input than the same values in floating point
        values = tensor.numpy()
        shape = (*shape, str(values.dtype))
        values = values.astype(values.dtype.newbyteorder("<"))
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(values.tobytes())
    return digest.hexdigest()

"""How the outputs of layers are read as feature maps `[M, C, H, W]`, and which cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlog.capture.axes import tensors_in
from cnnlog.capture.used_weights import is_convolution, weight_shape


def first_tensor(output: object) -> torch.Tensor | None:
    """The first tensor in what a module returned; None where there is none.

    Args:
        output: a tensor, or nested tuples, lists and mappings.
    """
    return next(tensors_in(output), None)


def shape_of(output: object) -> tuple[int, ...]:
    """The shape of the first tensor in what a module returned; empty where there is none.

    Args:
        output: a tensor, or nested tuples, lists and mappings.
    """
    tensor = first_tensor(output)
    return () if tensor is None else tuple(tensor.shape)


def as_maps(name: str, output: object, *, channels_last: bool) -> torch.Tensor:
    """A layer's output as feature maps `[M, C, H, W]`, of clips the middle frame; complex ones by their magnitude.

    Args:
        name: the layer's name, which a message gives.
        output: what the layer returned.
        channels_last: whether its channels are last.

    Raises:
        ValueError: it has no axis of space.
    """
    tensor = first_tensor(output)
    if tensor is None or tensor.dim() not in (3, 4, 5):
        raise ValueError(
            f"Layer {name!r} has no feature maps: expected an output [N, C, H, W], [N, C, L] or [N, C, T, H, W], "
            f"but it is {list(shape_of(output))}."
        )
    if channels_last:
        tensor = tensor.movedim(-1, 1)
    if tensor.dim() == 5:
        tensor = tensor[:, :, tensor.shape[2] // 2]
    elif tensor.dim() == 3:
        tensor = tensor[:, :, None]
    return tensor.abs() if tensor.is_complex() else tensor


def is_channels_last(
    module: nn.Module, shape: tuple[int, ...], axis: int | None, *, convolved: bool = False, followed: bool = True
) -> bool | None:
    """Whether an output has its channels last, rather than second; None where that cannot be known.

    Args:
        module: whose output it is.
        shape: of the output.
        axis: the one that holds the channels, as it was followed through the pass; None where it was lost.
        convolved: whether the module was seen to convolve.
        followed: whether anybody followed. If nobody did, what is neither a convolution nor a linear layer nor a norm
            is taken to have them second, as torch's own modules have.
    """
    last = len(shape) - 1
    if axis is not None:
        return {1: False, last: True}.get(axis) if last > 1 else False
    if last < 2:
        return False
    if isinstance(module, nn.Linear):
        return True
    if convolved or is_convolution(module):
        filters = (weight_shape(module) or (0,))[0]
        return False if shape[1] == filters else True if shape[last] == filters else None
    channels: int | None = None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        channels = module.normalized_shape[0]
    if channels is not None and (shape[1] == channels) != (shape[last] == channels):
        return shape[last] == channels
    return None if followed else False


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Sees whether a forward pass has made tensors whose size depends on values, as a detector's proposals are.

    Attributes:
        depend: whether it has, up to now.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.depend = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags or "nms" in str(func):
            picks = func._schema.name != "aten::index" or any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            self.depend = self.depend or picks
        return func(*args, **(kwargs or {}))


@contextmanager
def noting(modules: Mapping[str, nn.Module], into: set[str]) -> Iterator[None]:
    """Note the modules that run after something whose size depends on values.

    Args:
        modules: by their names.
        into: gets the names.
    """
    sizes, met = Sizes(), set[str]()

    def note(name: str) -> None:
        if name not in met and sizes.depend:
            into.add(name)
        met.add(name)

    handles = [module.register_forward_hook(lambda *_, name=name: note(name)) for name, module in modules.items()]
    try:
        with sizes:
            yield
    finally:
        for handle in handles:
            handle.remove()

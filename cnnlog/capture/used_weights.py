"""The weights that a layer's forward pass computes with: of any wrapper, parametrisation, adapter or quantisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from cnnlog.capture.sharding import gathered, gathered_parameters, is_distributed, plain_type
from cnnlog.capture.transfer import to_host
from cnnlog.capture.transforms import inside_transform, outside_transforms, unwrapped
from cnnlog.snapshot import FloatArray

CONVOLUTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}
_PRODUCTS = {F.linear, *CONVOLUTIONS}
# Classes whose forward takes the weight as it is stored.
_PLAIN = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_FORWARDS = {"forward", "_conv_forward"}  # what may be put in the place of a layer's own
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}


def filters_of(name: str, module: nn.Module) -> FloatArray:
    """The filters that a layer stores: `[O, I, kH, kW]`, or `[O, I, kH, kT * kW]` of a 3-D convolution.

    Those of a 1-D convolution are `[O, I, k]`; complex filters are shown by their magnitude.

    Args:
        name: the layer's name, which a message gives.
        module: the layer.

    Raises:
        ValueError: it has no filters.
    """
    weight = _weight(module)
    if weight is None or weight.dim() not in (3, 4):
        arrived = "has none" if weight is None else f"is {list(weight.shape)}"
        raise ValueError(
            f"Layer {name!r} has no filters: expected a weight [O, I, kH, kW] or [O, I, k], but it {arrived}."
        )
    return to_host(weight.abs() if weight.is_complex() else weight)


def weights_of(name: str, module: nn.Module, filters: Sequence[int] | None) -> FloatArray:
    """The weights that a layer stores, one filter a row: `[k, ...]`; both parts of complex ones.

    Args:
        name: the layer's name, which a message gives.
        module: the layer.
        filters: which filters; None for all.

    Raises:
        ValueError: it has no weight.
    """
    weight = _weight(module)
    if weight is None:
        raise ValueError(f"Layer {name!r} has no weight any more: its structure has changed since it was chosen.")
    return to_host(indexed(weight, filters))


def indexed(weight: torch.Tensor, filters: Sequence[int] | None) -> torch.Tensor:
    """Some of the filters, at one distance from each other, in the memory of all.

    Args:
        weight: `[O, ...]`.
        filters: which of them; None for all.
    """
    return weight if filters is None else weight[evenly(filters)]


def evenly(filters: Sequence[int]) -> slice:
    """Filters at one distance from each other, as an index that copies nothing.

    Args:
        filters: their positions, rising.

    Raises:
        ValueError: they are not at one distance from each other.
    """
    index = slice(filters[0], filters[-1] + 1, filters[1] - filters[0] if len(filters) > 1 else 1)
    if [*range(index.start, index.stop, index.step)] != [*filters]:
        raise ValueError(f"the filters must be at one distance from each other; got {list(filters)}")
    return index


def takes_its_weight(module: nn.Module) -> bool:
    """Whether a layer computes with its weight as it is stored: one of torch's own, with nothing put before or into it.

    Args:
        module: a layer.
    """
    own = "weight" in module._parameters and not _FORWARDS & module.__dict__.keys()
    return own and plain_type(module) in _PLAIN and not module._forward_pre_hooks


def stored_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight of a layer that takes it as it is stored, filters first; None of any other, and of a sharded one.

    It shares the layer's memory.

    Args:
        module: a layer.
    """
    if not takes_its_weight(module):
        return None
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or is_distributed(weight) or weight.is_meta:
        return None
    transposed = getattr(module, "transposed", False)
    return _filters_first(weight.detach(), getattr(module, "groups", 1) if transposed else None)


def weight_shape(module: Any) -> tuple[int, ...] | None:
    """The shape of the weight that a layer stores, filters first; None without one. Nothing is gathered for it.

    Args:
        module: the layer.
    """
    module = _base(module)
    weight = _weight(module, data=False)
    return None if weight is None else tuple(weight.shape)


def has_weights(module: Any) -> bool:
    """Whether a layer may convolve with its weight, or multiplies with it as a linear layer.

    Args:
        module: any module.
    """
    shape = weight_shape(module)
    return shape is not None and (len(shape) in (3, 4) or (isinstance(_base(module), nn.Linear) and len(shape) > 1))


def is_convolution(module: Any) -> bool:
    """Whether a layer is a convolution by its class. Others may be, which only a forward pass tells (`convolves`).

    Args:
        module: any module.
    """
    base = _base(module)
    packed = callable(getattr(type(base), "weight", None))  # converted quantised ones; a property is not called
    return isinstance(base, nn.modules.conv._ConvNd) or (packed and "Conv" in type(base).__name__)


def is_complex(module: Any) -> bool:
    """Whether a layer's weight has real and imaginary parts.

    Args:
        module: a layer.
    """
    return any(parameter.is_complex() for parameter in module.parameters(recurse=False))


def may_convolve(module: Any) -> bool:
    """Whether the weight of a layer that did not run looks like filters, and not like one scale for each channel.

    Args:
        module: any module.
    """
    shape = weight_shape(module) or ()
    return is_convolution(module) or (len(shape) == 4 and max(shape) < math.prod(shape))


def convolves(module: nn.Module, shape: tuple[int, ...] | None, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether one of torch's functions convolves with the filters of a layer, or with those that it makes per image.

    Args:
        module: the layer that is running.
        shape: of its weight, filters first; None without one.
        func: the function.
        args: what it gets.
        kwargs: what it gets by name.
    """
    if "deform_conv" in str(getattr(func, "__name__", "")):
        return shape is not None
    weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
    if func not in CONVOLUTIONS or not isinstance(weight, torch.Tensor) or shape is None:
        return False
    used = _filters_first(weight, getattr(module, "groups", 1) if func in _TRANSPOSED else None)
    return tuple(used.shape[1:]) == shape[1:] and len(used) % shape[0] == 0


def _base(module: Any) -> Any:
    """The layer itself, without adapters of PEFT's around it."""
    while _is_adapted(module):
        module = module.get_base_layer()
    return module


def has_one_weight(module: Any) -> bool:
    """Whether one weight is all that a layer computes with. If not, its parts have their own.

    PEFT cannot merge every adapter that it can train: the LoRA of a grouped convolution mixes all input channels, which
    no weight `[O, I/groups, kH, kW]` does. For a sharded model this is a collective operation.

    Args:
        module: the layer.
    """
    if not _is_adapted(module):
        return True
    try:
        with gathered_parameters(module.modules()):
            _adapted_weight(module)
    except Exception:  # PEFT's methods raise what they like
        return False
    return True


def _weight(module: Any, *, data: bool = True) -> torch.Tensor | None:
    """The weight that a layer stores, filters first, frames side by side; None if it has none, or none yet (lazy).

    What forward makes of the weight before it convolves (weight standardisation, fake quantisation) is not in it;
    `UsedWeights` sees that. Call this in eval mode, where spectral norm does not advance.

    Args:
        module: a layer.
        data: whether you want the values, which are gathered from a sharded model. Otherwise only the shape counts.
    """
    if _is_adapted(module):
        with gathered_parameters(module.modules()):
            return _adapted_weight(module)
    # Old-style weight norm, spectral norm and pruning set the weight in a pre-hook; after an optimiser step without a
    # forward it is stale.
    computes = (BasePruningMethod, SpectralNorm, WeightNorm)
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, computes)]
    parts = [module] if hooks else []
    if is_parametrized(module, "weight"):
        parts += [module, *module.parametrizations.modules()]
    with gathered_parameters(parts):
        for hook in hooks:
            hook(module, ())
        weight = getattr(module, "weight", None)
        if callable(weight) and not isinstance(weight, (torch.Tensor, nn.Module)):
            weight = weight()  # converted quantised convolutions
    if not isinstance(weight, torch.Tensor) or is_lazy(weight):
        return None
    if weight.is_quantized:
        weight = weight.dequantize()
    if _is_made_for_each_image(module):
        weight = weight[0]
    if is_distributed(weight):
        weight = gathered(weight) if data else torch.empty(weight.shape, device="meta")
    transposed = getattr(module, "transposed", False)
    return _filters_first(weight, getattr(module, "groups", 1) if transposed else None)


def _is_made_for_each_image(module: nn.Module) -> bool:
    """Whether a layer stores `[1, O, I, kH, kW]`, whose first axis is that of the images (modulated convolutions)."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 5 and len(weight) == 1 and not is_convolution(module)


def _filters_first(weight: torch.Tensor, transposed_groups: int | None) -> torch.Tensor:
    """`[O, I/groups, kH, kW]` of a convolution's weight; frames stand side by side, `[O, I/groups, kH, kT * kW]`.

    Args:
        weight: 3-D, 4-D or 5-D. Any other is returned as it is.
        transposed_groups: the groups of a transposed convolution, whose weight is `[I, O/groups, ...]`; None for any
            other convolution.
    """
    if weight.dim() not in (3, 4, 5):
        return weight
    if transposed_groups is not None:
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(transposed_groups, inputs // transposed_groups, outputs, *kernel).transpose(1, 2)
        weight = grouped.reshape(transposed_groups * outputs, inputs // transposed_groups, *kernel)
    return weight.transpose(2, 3).flatten(3) if weight.dim() == 5 else weight


def _is_adapted(module: Any) -> bool:
    """Whether PEFT has laid an adapter around this layer."""
    return hasattr(module, "get_base_layer") and hasattr(module, "merge") and hasattr(module, "active_adapters")


def unmerges(module: Any) -> bool:
    """Whether forward will take an adapter out of the base weight, through `.data`, so that torch does not count it.

    Args:
        module: a layer.
    """
    return _is_adapted(module) and bool(module.disable_adapters and module.merged)


def _adapted_weight(module: Any) -> torch.Tensor | None:
    """The base weight with the active adapters, of any of PEFT's methods: PEFT merges them in a copy."""
    if module.disable_adapters != module.merged:  # forward takes the base weight as it is
        return _weight(module.get_base_layer())
    copied = _copied(module)
    copied.unmerge() if module.merged else copied.merge()
    return _weight(copied.get_base_layer())


def _copied(module: nn.Module) -> Any:
    """A copy of a layer, without hooks and FSDP2's state, because these would take along whatever they are bound to."""
    copies: dict[int, Any] = {
        id(value): type(value)()
        for part in module.modules()
        for key, value in part.__dict__.items()
        if "_hooks" in key or key.startswith("__composable_api")
    }
    # What fully_shard made of a class refuses to be copied.
    sharded = [part for part in module.modules() if plain_type(part) is not type(part)]
    copies |= {id(part): (cls := plain_type(part)).__new__(cls) for part in sharded}
    for part in sharded:
        copies[id(part)].__dict__.update(copy.deepcopy(part.__dict__, copies))
    return copy.deepcopy(module, copies)


class _Seeing(TorchFunctionMode):
    """Shows each convolution to somebody before it is computed. Torch's functions are slower meanwhile."""

    def __init__(self, show: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()
        self._show = show

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            self._show(func, args, kwargs)
        return func(*args, **kwargs)


class UsedWeights:
    """Sees which weights the convolutions of some layers are computed with, while a probe runs.

    A layer may compute its weight anew in each forward (weight standardisation, fake quantisation with a batch norm
    folded in, a parametrisation that draws). What it stores is then not what it convolves with. Two cases are ignored:
    a convolution whose weight has a different shape (e.g. mixed per image), and an adapted layer, which convolves in
    parts. Of a layer that stores `[1, O, I, kH, kW]`, to modulate it for each image, the filters of the first image
    count.

    Args:
        layers: whose weights you want -> which of their filters; None for all.

    Attributes:
        filters: layer -> the weight of the first convolution in its own forward, `[O, I, kH, kW]`, those filters of it;
            `[O, I, k]` of a 1-D one; of complex ones the real and imaginary parts along a last axis of 2.
        magnitudes: layer -> the magnitudes of complex ones alone, `[O, I, kH, kW]` or `[O, I, k]`.
    """

    def __init__(self, layers: Mapping[nn.Module, Sequence[int] | None]) -> None:
        self.filters: dict[nn.Module, FloatArray] = {}
        self.magnitudes: dict[nn.Module, FloatArray] = {}
        self._wanted = layers
        self._seeing = _Seeing(self._see)
        self._shapes = {layer: weight_shape(layer) for layer in layers if not _is_adapted(layer)}
        self._sharded = {
            layer: parameter.dtype for layer in layers for parameter in layer.parameters() if is_distributed(parameter)
        }
        self._running: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> UsedWeights:
        # A layer's parts, too: what they convolve with is theirs.
        for module in {part: None for layer in self._shapes for part in layer.modules()}:
            self._handles.append(module.register_forward_pre_hook(lambda module, _: self._started(module)))
            ended = module.register_forward_hook(lambda module, *_: self._ended(module), always_call=True)
            self._handles.append(ended)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._back_to(0)  # an interrupt calls no hook

    def _started(self, module: nn.Module) -> None:
        if not self._running:
            self._seeing.__enter__()  # type: ignore[no-untyped-call]  # torch's
        self._running.append(module)

    def _ended(self, module: nn.Module) -> None:
        if module in self._running:  # else a hook before ours has raised
            self._back_to(self._running.index(module))

    def _back_to(self, depth: int) -> None:
        was_running = bool(self._running)
        del self._running[depth:]
        if was_running and not self._running:
            self._seeing.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's

    def _see(self, func: Any, args: Any, kwargs: Any) -> None:
        layer = self._running[-1]
        weight = kwargs["weight"] if "weight" in kwargs else args[1]
        if inside_transform():
            with outside_transforms():
                self._saw(layer, func, unwrapped(weight))
        else:
            self._saw(layer, func, weight)

    def _saw(self, layer: nn.Module, func: Any, weight: Any) -> None:
        if layer not in self._shapes or layer in self.filters or not isinstance(weight, torch.Tensor):
            return
        if weight.dtype != self._sharded.get(layer, weight.dtype):
            return  # FSDP2 computes in a lower precision than it trains in, which small changes do not show in
        groups = getattr(layer, "groups", 1) if func in _TRANSPOSED else None
        filters, shape = _filters_first(gathered(weight), groups), self._shapes[layer]
        if func in CONVOLUTIONS and shape and _is_made_for_each_image(layer) and filters.shape[1:] == shape[1:]:
            filters = filters[: shape[0]]
        if tuple(filters.shape) == shape:
            chosen = indexed(filters, self._wanted[layer])
            self.filters[layer] = to_host(chosen)
            if filters.is_complex():
                self.magnitudes[layer] = to_host(chosen.abs())

"""What the numbers of a layer need of a snapshot: some of its weights, and of its output at a few positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from cnnlog.capture.layers import LayerInfo, outermost
from cnnlog.capture.transfer import to_host
from cnnlog.capture.used_weights import indexed, stored_weight
from cnnlog.snapshot import FloatArray

WEIGHTS_LIMIT = 1 << 17
"""Of a layer with more weights some whole filters are measured, that many weights at most.

All weights of a large network are more than a snapshot may copy beside a training: with a limit of a million, those of
ResNet-50 alone would cost a tenth of a forward pass.
"""

POSITIONS_LIMIT = 64
"""How many positions of an image are compared, at most."""

_PIECE = 1 << 20  # values; larger blocks of memory are given back to the system, and cost more to get again

_ALONE = 1 << 14  # values; to begin a copy costs as much as to copy that many

ROWS_LIMIT = 256
"""How many positions are compared over all images, at most, if there are no more images than that."""


@dataclass(frozen=True)
class Measured:
    """One layer that numbers are kept of, and what to take of it.

    Attributes:
        name: the layer.
        filters: which filters, rising; None takes all.
        at: the module whose output goes into the layer's activation; None where there is none.
        channels_last: whether its output has the channels last, as that of a linear layer, rather than second.
        channels: how many channels its output has; 0 where that is not known.
    """

    name: str
    filters: tuple[int, ...] | None = None
    at: str | None = None
    channels_last: bool = False
    channels: int = 0

    def channels_are_last(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor that is made of the layer's output has the channels last; a norm between may move them.

        Args:
            tensor: of as many channels, second or last.
        """
        if (
            self.channels
            and tensor.dim() > 2
            and (tensor.shape[1] == self.channels) != (tensor.shape[-1] == self.channels)
        ):
            return tensor.shape[-1] == self.channels
        return self.channels_last


def measured(infos: Sequence[LayerInfo]) -> tuple[Measured, ...]:
    """All convolutions and linear layers, in the order of `infos`; of those within one another the outermost.

    Args:
        infos: what `capture.survey` found.
    """
    names = {info.name for info in infos if info.has_weights}
    return tuple(
        Measured(
            name=info.name,
            filters=chosen_filters(info.weight_shape or ()),
            at=info.behind.at if info.behind is not None else None,
            channels_last=len(info.weight_shape or ()) == 2 if info.channels_last is None else info.channels_last,
            channels=(info.weight_shape or (0,))[0],
        )
        for info in infos
        if info.name in names and outermost(info.name, names) == info.name
    )


def chosen_filters(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which filters of a layer are measured: every second, every third, as the shape alone decides; None for all.

    Torch copies filters at one distance from each other in half the time that it takes for a free choice.

    Args:
        shape: of all filters, `[O, ...]`.
    """
    if math.prod(shape) <= WEIGHTS_LIMIT:
        return None
    count = max(1, WEIGHTS_LIMIT // math.prod(shape[1:]))
    return tuple(range(0, shape[0], -(-shape[0] // count)))


def samples_of(shape: tuple[int, ...], *, channels_last: bool) -> int:
    """How many positions, over all images, `sampled` takes of an output.

    Args:
        shape: of the output, `[N, C, ...]`, or `[N, ..., C]` with the channels last.
        channels_last: whether the channels are last.
    """
    if len(shape) < 2:
        return 0
    spatial = shape[1:-1] if channels_last else shape[2:]
    stride = _stride(spatial, shape[0])
    return shape[0] * math.prod(-(-size // stride) for size in spatial)


def sampled(output: torch.Tensor, *, channels_last: bool) -> FloatArray | None:
    """A layer's output at fixed positions of each image: a lattice, the finest with few enough positions.

    Args:
        output: `[N, C, ...]`, or `[N, ..., C]` with the channels last.
        channels_last: whether the channels are last.

    Returns:
        `[samples, C]`, or `[samples, 2 * C]` of complex values, real and imaginary parts; None of an output without an
        axis of images and one of channels.
    """
    if output.dim() < 2 or 0 in output.shape:
        return None
    if output.is_complex():
        axis = output.dim() - 1 if channels_last else 1
        output = torch.cat([output.real, output.imag], dim=axis)
    lattice = _lattice(tuple(output.shape[1:-1] if channels_last else output.shape[2:]), len(output))
    at = (slice(None), *lattice) if channels_last else (slice(None), slice(None), *lattice)
    if type(output) is torch.Tensor and output.device.type == "cpu" and output.dtype == torch.float32:
        values: FloatArray = output.detach().numpy()[at].copy()  # a third of the time that torch takes for it
        return values.reshape(-1, values.shape[-1]) if channels_last else _channels_last(values)
    # In its order before it leaves: what has not arrived on the host yet cannot be put in order there.
    rows = output[at] if channels_last else output[at].flatten(2).transpose(1, 2) if lattice else output[at]
    return to_host(rows.reshape(-1, rows.shape[-1]))


def peaks(output: torch.Tensor, *, channels_last: bool) -> FloatArray | None:
    """The largest value of each channel, over all images and positions; NaN where there is one.

    Args:
        output: `[N, C, ...]`, or `[N, ..., C]` with the channels last.
        channels_last: whether the channels are last.

    Returns:
        `[C]`; None of an output without an axis of images and one of channels, and of a complex one: it has no order.
    """
    if output.dim() < 2 or 0 in output.shape or output.is_complex():
        return None
    axis = output.dim() - 1 if channels_last else 1
    return to_host(output.amax(dim=[dim for dim in range(output.dim()) if dim != axis]), fresh=True)


def weights_now(modules: Mapping[str, nn.Module], layers: Iterable[Measured]) -> dict[str, torch.Tensor]:
    """Copies of the weights that plain layers hold at this moment, on their device; other layers are left out.

    Nothing runs and nothing is written, so this may stand between a backward pass and the optimiser's step.

    Args:
        modules: layer -> its module.
        layers: which layers, and which of their filters.
    """
    with torch.no_grad():
        held = {layer.name: stored_weight(modules[layer.name]) for layer in layers if layer.name in modules}
        chosen = {layer.name: layer.filters for layer in layers}
        plain = {name: indexed(weight, chosen[name]) for name, weight in held.items() if weight is not None}
        copied: dict[str, torch.Tensor] = {}
        for names, flat in _flat(plain):
            sizes = [plain[name].numel() for name in names]
            parts = zip(names, torch.split(flat, sizes), strict=True)
            copied |= {name: part.reshape(plain[name].shape) for name, part in parts}
        return copied


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, FloatArray]:
    """Copies of many tensors on the host, made at once: to begin a copy costs more than to make a small one.

    Args:
        tensors: name -> on any device, of any floating-point type.

    Returns:
        Name -> float32; a complex tensor's parts, real and imaginary, lie along a last axis of 2.
    """
    found: dict[str, FloatArray] = {}
    tensors = {name: torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for name, t in tensors.items()}
    for names, flat in _flat(tensors):
        host = to_host(flat, fresh=True)
        ends = np.cumsum([tensors[name].numel() for name in names])
        parts = zip(names, np.split(host, ends[:-1]), strict=True)
        found |= {name: part.reshape(tensors[name].shape) for name, part in parts}
    return found


def _flat(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Tensors of one device and type end to end, in pieces that the allocator keeps for the next time; their names."""
    alike: dict[tuple[torch.device, torch.dtype], list[list[str]]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for name, tensor in tensors.items():
        if tensor.numel() > _ALONE and not tensor.is_contiguous():
            yield [name], tensor.contiguous().reshape(-1)  # one copy, where to put it beside others would take two
            continue
        key = tensor.device, tensor.dtype
        sizes[key] = sizes.get(key, _PIECE) + tensor.numel()
        if sizes[key] > _PIECE:
            alike.setdefault(key, []).append([])
            sizes[key] = tensor.numel()
        alike[key][-1].append(name)
    for names in (names for pieces in alike.values() for names in pieces):
        yield names, torch.cat([tensors[name].reshape(-1) for name in names])


def _channels_last(values: FloatArray) -> FloatArray:
    """`[N, C, ...]` as `[positions, C]`; of one image it is a view, for whoever reads it can copy in the background."""
    images, channels = values.shape[:2]
    rows = values.reshape(images, channels, -1).transpose(0, 2, 1)
    return np.asarray(rows.reshape(-1, channels), np.float32)


@lru_cache(1024)
def _lattice(spatial: tuple[int, ...], images: int) -> tuple[slice, ...]:
    stride = _stride(spatial, images)
    return tuple(slice((size - 1) % stride // 2, None, stride) for size in spatial)


def _stride(spatial: tuple[int, ...], images: int) -> int:
    at_most = min(POSITIONS_LIMIT, max(1, ROWS_LIMIT // max(1, images)))
    stride = 1
    while math.prod(-(-size // stride) for size in spatial) > at_most:
        stride += 1
    return stride

"""What the numbers of a layer need of a snapshot: some of its weights, and of its output at a few positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cnnlog.capture.layers import LayerInfo, outermost
from cnnlog.capture.transfer import to_host
from cnnlog.capture.used_weights import indexed, stored_weight
from cnnlog.snapshot import FloatArray

WEIGHTS_LIMIT = 1 << 20
"""Of a layer with more weights some whole filters are measured, that many weights at most."""

POSITIONS_LIMIT = 64
"""How many positions of an image are compared, at most."""

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
    """

    name: str
    filters: tuple[int, ...] | None = None
    at: str | None = None
    channels_last: bool = False


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
            channels_last=len(info.weight_shape or ()) == 2,
        )
        for info in infos
        if info.name in names and outermost(info.name, names) == info.name
    )


def chosen_filters(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which filters of a layer are measured: a fixed choice that depends on the shape alone; None for all.

    Args:
        shape: of all filters, `[O, ...]`.
    """
    if math.prod(shape) <= WEIGHTS_LIMIT:
        return None
    count = max(1, WEIGHTS_LIMIT // math.prod(shape[1:]))
    order = np.random.default_rng(list(shape)).permutation(shape[0])
    return tuple(sorted(order[:count].tolist()))


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
        `[samples, C]`; None of an output without an axis of images and one of channels.
    """
    if output.dim() < 2 or 0 in output.shape:
        return None
    values = output if channels_last else output.movedim(1, -1)
    stride = _stride(tuple(values.shape[1:-1]), values.shape[0])
    lattice = (slice(None), *(slice((size - 1) % stride // 2, None, stride) for size in values.shape[1:-1]))
    return to_host(values[lattice].reshape(-1, values.shape[-1]))


def peaks(output: torch.Tensor, *, channels_last: bool) -> FloatArray | None:
    """The largest value of each channel, over all images and positions; NaN where there is one.

    Args:
        output: `[N, C, ...]`, or `[N, ..., C]` with the channels last.
        channels_last: whether the channels are last.

    Returns:
        `[C]`; None of an output without an axis of images and one of channels.
    """
    if output.dim() < 2 or 0 in output.shape:
        return None
    axis = output.dim() - 1 if channels_last else 1
    return to_host(output.amax(dim=[dim for dim in range(output.dim()) if dim != axis]))


def weights_now(modules: Mapping[str, nn.Module], layers: Iterable[Measured]) -> dict[str, torch.Tensor]:
    """The weights that plain layers hold at this moment, on their device; others, which compute theirs, are left out.

    Nothing runs and nothing is written, so this may stand between a backward pass and the optimiser's step.

    Args:
        modules: layer -> its module.
        layers: which layers, and which of their filters.
    """
    found = {}
    with torch.no_grad():
        for layer in layers:
            weight = stored_weight(modules[layer.name]) if layer.name in modules else None
            if weight is not None:
                found[layer.name] = indexed(weight, layer.filters).clone()
    return found


def _stride(spatial: tuple[int, ...], images: int) -> int:
    at_most = min(POSITIONS_LIMIT, max(1, ROWS_LIMIT // max(1, images)))
    stride = 1
    while math.prod(-(-size // stride) for size in spatial) > at_most:
        stride += 1
    return stride

"""Trainings whose motion is known: what is drawn of them must move as they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cnnlog.snapshot import FloatArray

Arrays = tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]
STEADY_STEPS = 20


def steady(layers: Mapping[str, tuple[int, ...]]) -> Callable[[int], Arrays]:
    """Filters from a uniform start that move by exactly 1 % of their length a step, each in one direction, for ever.

    Args:
        layers: for each layer the shape of its filters.
    """
    generator = np.random.default_rng(0)
    start = {name: generator.uniform(-1, 1, shape) for name, shape in layers.items()}
    way = {name: generator.standard_normal(shape) for name, shape in layers.items()}

    def at(step: int) -> Arrays:
        moved = {}
        for name, first in start.items():
            flat, along = first.reshape(len(first), -1), way[name].reshape(len(first), -1)
            length = np.linalg.norm(flat, axis=1, keepdims=True) / np.linalg.norm(along, axis=1, keepdims=True)
            moved[name] = (flat + 0.01 * step * length * along).reshape(first.shape).astype(np.float32)
        return moved, {}

    return at


def unsteadiness(frames: Sequence[np.ndarray]) -> float:
    """The largest mean move of a pixel between neighbouring frames, in shares of the median one.

    Args:
        frames: uint8, all of one shape.
    """
    moves = [np.abs(after.astype(float) - before).mean() for before, after in pairwise(frames)]
    return float(max(moves) / np.median(moves))


def grown(amount: float, layer: str, channel: int, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[int], Arrays]:
    """Filters that never move, but for one that is longer by `amount` from step 1 on.

    Args:
        amount: by how much, as a share of its values.
        layer: of the filter.
        channel: its number.
        shapes: for each layer the shape of its filters.
    """
    generator = np.random.default_rng(1)
    start = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def at(step: int) -> Arrays:
        filters = {name: array.copy() for name, array in start.items()}
        if step:
            filters[layer][channel] *= np.float32(1 + amount)
        return filters, {}

    return at

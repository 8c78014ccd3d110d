"""Layers that numbers are kept of, and snapshots with what these numbers need, made of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cnnlog.runs.manifest import MeasuredLayer, WatchedLayer
from cnnlog.snapshot import FloatArray, Snapshot


def measured_layers(layers: Sequence[WatchedLayer]) -> tuple[MeasuredLayer, ...]:
    """Those of pictured layers that have filters; a ReLU follows each, and no norm."""
    return tuple(
        MeasuredLayer(
            layer.name,
            layer.tag,
            layer.kind,
            layer.weight_shape,
            layer.output_shape,
            normalised=False,
            activation="ReLU",
            samples=0 if layer.output_shape is None else layer.output_shape[0] * positions(layer.output_shape[-2:]),
        )
        for layer in layers
        if layer.weight_shape is not None
    )


def positions(size: Sequence[int]) -> int:
    return min(8, size[0]) * min(8, size[1])


def snapshot_of(
    step: int, filters: Mapping[str, FloatArray], maps: Mapping[str, FloatArray], *, steps_an_epoch: int = 10
) -> Snapshot:
    """A snapshot after so many epochs; its outputs are the first positions of the maps."""
    outputs = {
        name: np.ascontiguousarray(array[:, :, :8, :8].transpose(0, 2, 3, 1).reshape(-1, array.shape[1]))
        for name, array in maps.items()
    }
    peaks = {name: array.max(axis=(0, 2, 3)) for name, array in maps.items()}
    return Snapshot(
        step, step, steps_an_epoch * step, filters, maps, weights=dict(filters), outputs=outputs, peaks=peaks
    )

"""What every snapshot is measured against, and what is measured of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnlog.metrics import drift
from cnnlog.metrics.change import Moved, Reference, distance, distance_from, moved, relative_change
from cnnlog.metrics.cka import LEAST_ROWS, alignment, centred_gram, debiased_cka
from cnnlog.runs.manifest import MeasuredLayer
from cnnlog.snapshot import FloatArray, Snapshot

Numbers = dict[str, dict[str, npt.NDArray[np.float64]]]
"""Name of a number -> layer -> one value for each filter or channel, or one for the layer."""


@dataclass(frozen=True)
class Latest:
    """What is kept of the snapshot that was measured last.

    Attributes:
        step: its step.
        global_step: completed optimiser steps.
        weights: layer -> what is stored of its weights, `[k, ...]`.
        outputs: layer -> its outputs `[samples, C]`.
    """

    step: int
    global_step: int
    weights: Mapping[str, FloatArray]
    outputs: Mapping[str, FloatArray]


class Yardstick:
    """What every snapshot is measured against: the baseline, and the snapshot before.

    Args:
        layers: those that numbers are kept of.

    Attributes:
        baseline_step: the step of the baseline.
        weights: layer -> what is stored of its weights at the baseline: all filters of pictured layers, the measured
            ones of the others.
        outputs: layer -> its outputs `[samples, C]` at the baseline.
        latest: the snapshot that was measured last; None before there is one.
    """

    def __init__(self, layers: Sequence[MeasuredLayer]) -> None:
        self.baseline_step = 0
        self.weights: Mapping[str, FloatArray] = {}
        self.outputs: Mapping[str, FloatArray] = {}
        self.latest: Latest | None = None
        self._layers = tuple(layers)
        self._references: dict[str, Reference] = {}  # of the baseline
        self._before: dict[str, Reference] = {}  # of the latest
        self._squares: dict[str, npt.NDArray[np.float64]] = {}  # of what is measured now
        self._grams: dict[str, npt.NDArray[np.float64]] = {}
        self._set = False
        self._counted: bool | None = None  # whether snapshots tell their optimiser steps; None before one could

    @property
    def is_set(self) -> bool:
        """Whether there is a baseline. Without one, the next snapshot becomes it."""
        return self._set

    def restore(
        self,
        baseline_step: int,
        *,
        weights: Mapping[str, FloatArray],
        outputs: Mapping[str, FloatArray],
        latest: Latest | None,
    ) -> None:
        """Go on from a stored run.

        Args:
            baseline_step: the step of its baseline.
            weights: layer -> what is stored of its weights at the baseline.
            outputs: layer -> its outputs at the baseline.
            latest: the snapshot that the next update is measured from; None if none leads there.
        """
        self._begin(baseline_step, weights, outputs)
        self.latest = latest
        self._counted = None if latest is None or latest.step == baseline_step else latest.global_step > 0
        kept = latest.weights if latest is not None else {}
        self._before = {
            layer.name: Reference.of(_rows(layer, kept[layer.name])) for layer in self._layers if layer.name in kept
        }

    def measure(self, snapshot: Snapshot) -> Numbers:
        """All numbers of a snapshot. The first snapshot is the baseline.

        Args:
            snapshot: what is measured.
        """
        if not self._set:
            self._begin(snapshot.step, stored_weights(snapshot), snapshot.outputs)
        numbers: Numbers = {}
        self._squares = {}
        if self._counted is None and snapshot.step != self.baseline_step:
            self._counted = snapshot.global_step > 0
        for layer in self._layers:
            for number, value in self._of_layer(layer, snapshot):
                numbers.setdefault(number, {})[layer.name] = np.atleast_1d(np.asarray(value, dtype=np.float64))
        for name, maps in snapshot.feature_maps.items():
            with np.errstate(invalid="ignore", over="ignore"):
                numbers.setdefault("map_mean", {})[name] = maps.mean(axis=(0, 2, 3), dtype=np.float64)
                numbers.setdefault("map_max", {})[name] = maps.max(axis=(0, 2, 3)).astype(np.float64)
            numbers.setdefault("map_active", {})[name] = drift.active_share(maps)
        return numbers

    def move_on(self, snapshot: Snapshot) -> None:
        """Measure the next update from this snapshot on.

        Args:
            snapshot: the last one that was measured.
        """
        before = self.latest
        weights = {**(before.weights if before is not None else {}), **stored_weights(snapshot)}
        outputs = {**(before.outputs if before is not None else {}), **snapshot.outputs}
        self.latest = Latest(snapshot.step, snapshot.global_step, weights, outputs)
        for name, squares in self._squares.items():
            self._before[name] = Reference(snapshot.weights[name], squares)

    def _begin(self, step: int, weights: Mapping[str, FloatArray], outputs: Mapping[str, FloatArray]) -> None:
        self.baseline_step, self.weights, self.outputs, self._set = step, dict(weights), dict(outputs), True
        known = [layer for layer in self._layers if layer.name in weights]
        self._references = {layer.name: Reference.of(_rows(layer, weights[layer.name])) for layer in known}
        self._grams = {name: centred_gram(values) for name, values in outputs.items()}

    def _of_layer(
        self, layer: MeasuredLayer, snapshot: Snapshot
    ) -> Iterator[tuple[str, npt.NDArray[np.float64] | float]]:
        """Name and value of each number of a layer."""
        name = layer.name
        if name in snapshot.weights and name in self._references:
            now = moved(self._references[name], snapshot.weights[name])
            self._squares[name] = np.square(now.norm)
            yield from _of_filters(now, normalised=bool(layer.normalised))
            yield from self._update(layer, snapshot)
        left_out = 0
        if name in snapshot.outputs and self._is_comparable(name, snapshot.outputs[name]):
            change, left_out = relative_change(self.outputs[name], snapshot.outputs[name])
            yield "function_change", change
            if len(snapshot.outputs[name]) >= LEAST_ROWS:
                yield "cka_positions", self._cka(name, snapshot.outputs[name])
        if name in snapshot.peaks and layer.activation is not None:
            highest = snapshot.peaks[name]
            known = highest[~np.isnan(highest)]
            left_out = max(left_out, len(highest) - len(known))
            yield "dead_share", float(np.mean(known <= 0)) if known.size else float("nan")
        if left_out:
            yield "channels_left_out", left_out

    def _is_comparable(self, name: str, now: FloatArray) -> bool:
        """Whether a layer's outputs are as many as at the baseline; a detector's heads see as many regions as it finds.

        Args:
            name: the layer.
            now: its outputs `[samples, C]`.
        """
        return name in self.outputs and self.outputs[name].shape == now.shape

    def _cka(self, name: str, now: FloatArray) -> float:
        """How alike a layer sees the probe now and at the baseline, of the channels that are finite at both."""
        first = self.outputs[name]
        finite = np.isfinite(first).all(axis=0) & np.isfinite(now).all(axis=0)
        if finite.all():
            return alignment(self._grams[name], centred_gram(now))
        return debiased_cka(first[:, finite], now[:, finite]) if finite.any() else float("nan")

    def _update(self, layer: MeasuredLayer, snapshot: Snapshot) -> Iterator[tuple[str, float]]:
        """How large the last optimiser step was; where it is not known, the mean step since the snapshot before."""
        now, latest = snapshot.weights[layer.name], self.latest
        if layer.name in snapshot.before:
            yield "update_ratio", distance(snapshot.before[layer.name], now)
        elif latest is not None and layer.name in self._before:
            steps = self._steps_since(latest, snapshot)
            if steps > 0:
                yield "mean_update_ratio", distance_from(self._before[layer.name], now) / steps

    def _steps_since(self, latest: Latest, now: Snapshot) -> int:
        """How many optimiser steps lie between two snapshots; where none are counted, how many steps. 0: not known.

        A loop may tell `global_step` sometimes only. One curve must not mix both, so such snapshots are left out.

        Args:
            latest: the snapshot before.
            now: the later one.
        """
        if not self._counted:
            return now.step - latest.step
        is_known = now.global_step > 0 and (latest.global_step > 0 or latest.step == 0)
        return max(0, now.global_step - latest.global_step) if is_known else 0


def stored_weights(snapshot: Snapshot) -> dict[str, FloatArray]:
    """What is stored of a snapshot's weights: all filters of pictured layers, the measured ones of the others.

    Args:
        snapshot: any.
    """
    pictured = {  # but for complex ones, which are pictured by their magnitude
        name: filters
        for name, filters in snapshot.filters.items()
        if name not in snapshot.weights or snapshot.weights[name].shape[1:] == filters.shape[1:]
    }
    return {**snapshot.weights, **pictured}


def _of_filters(now: Moved, *, normalised: bool) -> Iterator[tuple[str, npt.NDArray[np.float64] | float]]:
    yield "filter_norm", now.norm
    yield "filter_angle", now.angle
    yield "weight_change", now.unit_change if normalised else now.change
    # Short filters have no angle, which shows; they count where their direction is all that counts.
    if left_out := now.not_finite + (now.short if normalised else 0):
        yield "filters_left_out", left_out


def _rows(layer: MeasuredLayer, stored: FloatArray) -> FloatArray:
    """The measured filters of what is stored of a layer."""
    if layer.filters is None or len(stored) == len(layer.filters):
        return stored
    return stored[list(layer.filters)]

"""How far a further side is from the first one: of the weights and outputs that are stored, else of what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch, Side, same_filters
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.metrics.change import Reference, moved, relative_change
from cnnlog.metrics.cka import debiased_cka, noise_band
from cnnlog.runs.spread import Spread
from cnnlog.snapshot import FloatArray

_POSITIONS = 256


@dataclass(frozen=True)
class Between:
    """What was measured between the first side and a further one, for one layer at one step.

    Attributes:
        weights: `|B - A| / |A|` of the weights; of filters scaled to length 1 where a normalisation follows.
        angle: the angle between filter i of one and filter i of the other, in degrees.
        function: `|F_B - F_A| / |F_A|` of the outputs on the probe.
        cka: debiased linear CKA of the outputs at the positions of the probe.
        noise: what independent noise of that shape gives as `cka`, at most, 95 times of 100.
        filters_left_out: how many filters are NaN or infinite, or too short, and so not in these numbers.
        channels_left_out: how many channels of the outputs are NaN or infinite, and so not in these numbers.
        shown_weights: the first two are of the shown filters, because a side does not store all of them at this step.
        shown_outputs: the next ones are of the shown feature maps, because a side does not store others at this step.
    """

    weights: float | None = None
    angle: Spread | None = None
    function: float | None = None
    cka: float | None = None
    noise: float | None = None
    filters_left_out: int = 0
    channels_left_out: int = 0
    shown_weights: bool = False
    shown_outputs: bool = False

    @property
    def measured(self) -> Between:
        """The same without the numbers of what is merely shown."""
        weights = replace(self, weights=None, angle=None) if self.shown_weights else self
        return replace(weights, function=None, cka=None, noise=None) if self.shown_outputs else weights


@dataclass(frozen=True)
class Stored:
    """What the sides have stored at one step besides what is shown.

    Attributes:
        weights: for each side, layer -> all its filters, or the measured ones.
        outputs: for each side, layer -> its output on the probe at some positions `[positions, C]`.
    """

    weights: Sequence[Mapping[str, FloatArray]]
    outputs: Sequence[Mapping[str, FloatArray]]

    @classmethod
    def at(cls, of: SideBySide, step: int) -> Stored:
        """Read it.

        Args:
            of: the sides.
            step: a step of the comparison.
        """
        everyone = range(len(of.sides))
        return cls([of.all_filters(side, step) for side in everyone], [of.all_outputs(side, step) for side in everyone])


def between(of: SideBySide, layer: LayerMatch, side: int, shown: Between, stored: Stored) -> Between:
    """What lies between the first side and a further one, of what is stored where both sides have it.

    Args:
        of: the sides.
        layer: one of the layers.
        side: the further side, from 1 on.
        shown: what was measured of the shown filters and feature maps.
        stored: what the sides have stored at this step.

    Returns:
        Nothing where the first side is the further one's own baseline: its own numbers say it.
    """
    if of.says_itself(side):
        return Between()
    result = replace(shown, shown_weights=shown.weights is not None, shown_outputs=shown.cka is not None)
    filters = _pair(layer, side, stored.weights)
    if filters is not None and of.same_start(side, layer):
        names = layer.names[0], layer.names[side]
        first, other = same_filters(of.sides[0], of.sides[side], names, filters)
        if first.shape == other.shape:
            result = _with_filters(of, replace(result, shown_weights=False), layer, side, (first, other))
    outputs = _pair(layer, side, stored.outputs) if of.same_probe(side) else None
    if outputs is not None and outputs[0].shape == outputs[1].shape:
        result = _with_outputs(of, replace(result, shown_outputs=False), layer, side, outputs)
    return result


def with_shown(
    of: SideBySide, found: Between, layer: LayerMatch, side: int, *, kind: Kind, pair: tuple[FloatArray, FloatArray]
) -> Between:
    """The same with the numbers of what the two sides show of one kind.

    Args:
        of: the sides.
        found: what was measured so far.
        layer: one of the layers.
        side: the further side, from 1 on.
        kind: filters or feature maps.
        pair: what the first side and the further one show.
    """
    if of.says_itself(side):
        return found
    if not kind.per_image:
        return _with_filters(of, found, layer, side, pair) if of.same_start(side, layer) else found
    return _with_outputs(of, found, layer, side, (_sampled(pair[0]), _sampled(pair[1])))


def noise_of(side: Side, name: str) -> float | None:
    """What independent noise of the shape of a layer's output gives as `cka_positions`; None where it is unknown.

    Args:
        side: the side.
        name: what the side calls the layer.
    """
    layer = None if side.run is None else side.run.measured_layer(name)
    return None if layer is None or not layer.samples else noise_band(layer.samples, layer.weight_shape[0])


def _with_filters(
    of: SideBySide, found: Between, layer: LayerMatch, side: int, pair: tuple[FloatArray, FloatArray]
) -> Between:
    change = moved(Reference.of(pair[0]), pair[1])
    normalised = _normalised(of, layer, side)
    distance = change.unit_change if normalised else change.change
    left_out = change.not_finite + (change.short if normalised else 0)
    return replace(found, weights=distance, angle=Spread.of(change.angle), filters_left_out=left_out)


def _with_outputs(
    of: SideBySide, found: Between, layer: LayerMatch, side: int, pair: tuple[FloatArray, FloatArray]
) -> Between:
    """Of sides that started from different weights CKA alone, because it knows no order of the channels."""
    finite = np.isfinite(pair[0]).all(axis=0) & np.isfinite(pair[1]).all(axis=0)
    first, other = pair[0][:, finite], pair[1][:, finite]
    function = relative_change(*pair)[0] if of.same_start(side, layer) else None
    left_out = int(finite.size - np.count_nonzero(finite))
    cka, noise = debiased_cka(first, other), noise_band(len(first), first.shape[1])
    return replace(found, function=function, cka=cka, noise=noise, channels_left_out=left_out)


def _normalised(of: SideBySide, layer: LayerMatch, side: int) -> bool:
    """Whether a normalisation follows the layer, as far as one of the two sides knows."""
    known = (
        run.measured_layer(name)
        for at in (0, side)
        if (run := of.sides[at].run) is not None and (name := layer.names[at]) is not None
    )
    return any(measured.normalised or False for measured in known if measured is not None)


def _pair(
    layer: LayerMatch, side: int, everything: Sequence[Mapping[str, FloatArray]]
) -> tuple[FloatArray, FloatArray] | None:
    first, other = (everything[at].get(layer.names[at] or "") for at in (0, side))
    return None if first is None or other is None else (first, other)


def _sampled(maps: FloatArray) -> FloatArray:
    """The activations `[positions, n]` of maps `[N, n, h, w]` at some fixed positions of each image."""
    images, channels, height, width = maps.shape
    at = drift.sample_positions(1, height, width, at_most=max(1, _POSITIONS // images))
    sampled = maps.reshape(images, channels, height * width)[:, :, at]
    return np.asarray(sampled.swapaxes(1, 2).reshape(-1, channels), dtype=np.float32)

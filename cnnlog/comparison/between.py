"""What is measured between the sides: how far the further ones are from the first, over all steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cnnlog.comparison.side_by_side import SideBySide, minus
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.rendering.ranges import ChangeRange, Limits
from cnnlog.runs.run import Progress
from cnnlog.runs.spread import Spread
from cnnlog.snapshot import FloatArray


@dataclass(frozen=True)
class Between:
    """What was measured between the first side and a further one, for one layer at one step.

    Attributes:
        cosine: cosine distances of the filters; None where they cannot be compared.
        l2: `|further - first| / |first|` of the filters; None where they cannot be compared.
        cka: linear CKA of the shown feature maps; None where they cannot be compared.
        shown_only: the distances are of the shown filters, because a side does not store all of them at this step.
        high: for each kind, the range that the difference is drawn with, and how often it has doubled.
    """

    cosine: Spread | None = None
    l2: Spread | None = None
    cka: float | None = None
    shown_only: bool = False
    high: Mapping[Kind, tuple[float, int]] = field(default_factory=dict)


class Distances:
    """How far the further sides are from the first one. It is measured once, when you first ask.

    Args:
        of: the sides.
    """

    def __init__(self, of: SideBySide) -> None:
        self._of = of
        self._found: dict[tuple[int, str, int], Between] | None = None

    def measure(self, progress: Progress | None = None) -> Mapping[tuple[int, str, int], Between]:
        """Measure all, unless that is done.

        Args:
            progress: a function that is told how far the work is: `progress("comparing", done, total)`.

        Returns:
            For each further side, layer and step of the comparison what lies between: of the shown filters and maps.
        """
        if self._found is None:
            ranges: dict[tuple[int, str, Kind], ChangeRange] = {}
            found: dict[tuple[int, str, int], Between] = {}
            for done, step in enumerate(self._of.steps):
                for side in range(1, len(self._of.sides)):
                    for layer in self._of.layers:
                        found[side, layer.name, step] = self._at_step(side, layer, step, ranges)
                if progress is not None:
                    progress("comparing", done + 1, len(self._of.steps))
            self._found = found
        return self._found

    def limits(self, layer: LayerMatch, kind: Kind, step: int, side: int) -> Limits | None:
        """The range that a further side's difference to the first is drawn with; None where there is none.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
            step: of the comparison.
            side: the further one's number, from 1 on.
        """
        measured = self.measure().get((side, layer.name, self._of.known(step)))
        found = None if measured is None else measured.high.get(kind)
        shown = self._of.shown(0, layer, kind, step)
        if found is None or shown is None:
            return None
        count = len(kind.by_channel(shown))
        high, doubled = found
        return Limits(np.full(count, high, np.float32), True, np.full(count, doubled, np.int64))

    def of_all_filters(
        self, layer: LayerMatch, step: int, everything: Sequence[Mapping[str, FloatArray]]
    ) -> Iterator[Between]:
        """What lies between the first side and each further one, measured of all filters where both sides have them.

        Args:
            layer: one of the layers.
            step: a step of the comparison.
            everything: what `SideBySide.all_filters` gives for each side at this step.
        """
        first = everything[0].get(layer.names[0] or "")
        for side in range(1, len(self._of.sides)):
            between = self.measure()[side, layer.name, self._of.known(step)]
            other = everything[side].get(layer.names[side] or "")
            if first is not None and other is not None and first.shape == other.shape:
                moved = drift.change(first, other)
                yield replace(between, cosine=Spread.of(moved.cosine), l2=Spread.of(moved.l2))
            else:
                yield replace(between, shown_only=between.cosine is not None)

    def _at_step(
        self, side: int, layer: LayerMatch, step: int, ranges: dict[tuple[int, str, Kind], ChangeRange]
    ) -> Between:
        """What lies between at one step; `ranges` are those of the differences so far, and take this one's.

        Args:
            side: the further one's number, from 1 on.
            layer: one of the layers.
            step: of the comparison.
            ranges: of the differences at the steps before, by side, layer and kind; changed in place.
        """
        result, high = Between(), {}
        for kind in Kind:
            pair = self._of.pair(layer, kind, step, side)
            if pair is None:
                continue
            first, other = pair
            key = (side, layer.name, kind)
            if key not in ranges:
                ranges[key] = ChangeRange()
            limits = ranges[key].update(minus(other, first))
            high[kind] = (float(limits.high[0]), int(limits.doubled[0]))
            if kind is Kind.FILTERS:
                moved = drift.change(first, other)
                result = replace(result, cosine=Spread.of(moved.cosine), l2=Spread.of(moved.l2))
            else:
                result = replace(result, cka=drift.linear_cka(_sampled(first), _sampled(other)))
        return replace(result, high=high)


def _sampled(maps: FloatArray) -> FloatArray:
    """The activations `[positions, n]` of maps `[N, n, h, w]` at the positions where CKA is measured.

    Args:
        maps: float32.
    """
    images, channels, height, width = maps.shape
    at = drift.sample_positions(1, height, width)
    sampled = maps.reshape(images, channels, height * width)[:, :, at]
    return np.asarray(sampled.swapaxes(1, 2).reshape(-1, channels), dtype=np.float32)

"""What is measured between the sides, over all steps: how far the further ones are from the first, and the ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnlog.comparison.ranges import Ranges, Whose
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.runs.run import Progress
from cnnlog.runs.spread import Spread
from cnnlog.snapshot import FloatArray


@dataclass(frozen=True)
class Between:
    """What was measured between the first side and a further one, for one layer at one step.

    Attributes:
        cosine: cosine distances of the filters; None where they cannot be compared, or started from other weights.
        l2: `|further - first| / |first|` of the filters; None where `cosine` is.
        cka: linear CKA of the shown feature maps; None where they cannot be compared.
        shown_only: the distances are of the shown filters, because a side does not store all of them at this step.
    """

    cosine: Spread | None = None
    l2: Spread | None = None
    cka: float | None = None
    shown_only: bool = False


class Distances:
    """How far the further sides are from the first one, and the ranges of all pictures.

    All of it is measured once, in one pass over the steps, when you first ask.

    Args:
        of: the sides.
        whose: whose values a side's range covers: `"shared"` for those of all sides, `"own"` for its own.
    """

    def __init__(self, of: SideBySide, whose: Whose = "shared") -> None:
        self._of = of
        self._ranges = Ranges(of, whose)
        self._found: dict[tuple[int, str, int], Between] | None = None

    def measure(self, progress: Progress | None = None) -> Mapping[tuple[int, str, int], Between]:
        """Measure all, unless that is done.

        Args:
            progress: a function that is told how far the work is: `progress("comparing", done, total)`.

        Returns:
            For each further side, layer and step of the comparison what lies between: of the shown filters and maps.
        """
        if self._found is None:
            self._of.note_starts()
            found: dict[tuple[int, str, int], Between] = {}
            for done, step in enumerate(self._of.steps):
                for layer in self._of.layers:
                    for kind in Kind:
                        self._ranges.see(layer, kind, step)
                    for side in range(1, len(self._of.sides)):
                        found[side, layer.name, step] = self._at_step(side, layer, step)
                if progress is not None:
                    progress("comparing", done + 1, len(self._of.steps))
            self._found = found
        return self._found

    def ranges(self) -> Ranges:
        """The ranges of all pictures, over all steps."""
        self.measure()
        return self._ranges

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
            if not self._of.same_start(side, layer):
                yield between
            elif first is not None and other is not None and first.shape == other.shape:
                moved = drift.change(first, other)
                yield replace(between, cosine=Spread.of(moved.cosine), l2=Spread.of(moved.l2))
            else:
                yield replace(between, shown_only=between.cosine is not None)

    def _at_step(self, side: int, layer: LayerMatch, step: int) -> Between:
        """What lies between a further side and the first one at one step."""
        result = Between()
        filters = self._of.pair(layer, Kind.FILTERS, step, side) if self._of.same_start(side, layer) else None
        if filters is not None:
            moved = drift.change(*filters)
            result = replace(result, cosine=Spread.of(moved.cosine), l2=Spread.of(moved.l2))
        maps = self._of.pair(layer, Kind.FEATURE_MAPS, step, side)
        if maps is not None:
            first, other = maps
            result = replace(result, cka=drift.linear_cka(_sampled(first), _sampled(other)))
        return result


def _sampled(maps: FloatArray) -> FloatArray:
    """The activations `[positions, n]` of maps `[N, n, h, w]` at the positions where CKA is measured.

    Args:
        maps: float32.
    """
    images, channels, height, width = maps.shape
    at = drift.sample_positions(1, height, width)
    sampled = maps.reshape(images, channels, height * width)[:, :, at]
    return np.asarray(sampled.swapaxes(1, 2).reshape(-1, channels), dtype=np.float32)

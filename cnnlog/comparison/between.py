"""What is measured between the sides: how far the further ones are from the first, over all steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cnnlog.comparison import apart
from cnnlog.comparison.apart import Between
from cnnlog.comparison.settling import Settling
from cnnlog.comparison.side_by_side import SideBySide, minus
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.rendering.ranges import ChangeRange, Limits, peak
from cnnlog.runs.run import Progress


class Distances:
    """How far the further sides are from the first one. It is measured once, when you first ask.

    Args:
        of: the sides.

    Attributes:
        settling: how far each side's layers had to go, which is found in the same pass over the steps.
    """

    def __init__(self, of: SideBySide) -> None:
        self._of = of
        self.settling = Settling(of)
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
                self.settling.see(step)
                if progress is not None:
                    progress("comparing", done + 1, len(self._of.steps))
            self._found = found
        return self._found

    def limits(self, layer: LayerMatch, kind: Kind, step: int, side: int) -> Limits | None:
        """The range that a further side's difference to the first is drawn with; None where there is none."""
        measured = self.measure().get((side, layer.name, self._of.known(step)))
        found = None if measured is None else measured.high.get(kind)
        shown = self._of.shown(0, layer, kind, step)
        if found is None or shown is None:
            return None
        count = len(kind.by_channel(shown))
        high, doubled = found
        return Limits(np.full(count, high, np.float32), True, np.full(count, doubled, np.int64))

    def _at_step(
        self, side: int, layer: LayerMatch, step: int, ranges: dict[tuple[int, str, Kind], ChangeRange]
    ) -> Between:
        """What lies between at one step; `ranges` are those of the differences so far, and take this one's."""
        result, high = Between(), {}
        for kind in Kind:
            pair = self._of.pair(layer, kind, step, side)
            if pair is None:
                continue
            first, other = pair
            key = (side, layer.name, kind)
            if key not in ranges:
                ranges[key] = ChangeRange(peak(first))
            limits = ranges[key].update(minus(other, first))
            high[kind] = (float(limits.high[0]), int(limits.doubled[0]))
            result = apart.with_shown(self._of, result, layer, side, kind=kind, pair=pair)
        return replace(result, high=high)

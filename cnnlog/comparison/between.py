"""What is measured between the sides, over all steps: how far the further ones are from the first, and the ranges."""

from __future__ import annotations

from collections.abc import Mapping

from cnnlog.comparison import apart
from cnnlog.comparison.apart import Between, Stored
from cnnlog.comparison.ranges import Ranges, Whose
from cnnlog.comparison.settling import Settling
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.runs.run import Progress


class Distances:
    """How far the further sides are from the first one, and the ranges of all pictures.

    All of it is measured once, in one pass over the steps, when you first ask.

    Args:
        of: the sides.
        whose: whose values a side's range covers: `"shared"` for those of all sides, `"own"` for its own.

    Attributes:
        settling: how far each side's layers had to go, which is found in the same pass over the steps.
    """

    def __init__(self, of: SideBySide, whose: Whose = "shared") -> None:
        self._of = of
        self._ranges = Ranges(of, whose)
        self.settling = Settling(of)
        self._found: dict[tuple[int, str, int], Between] | None = None
        self._stored: dict[int, dict[tuple[int, str], Between]] = {}

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
                self.settling.see(step)
                if progress is not None:
                    progress("comparing", done + 1, len(self._of.steps))
            self._found = found
        return self._found

    def stored(self, step: int) -> Mapping[tuple[int, str], Between]:
        """What a table says at a step: of all that is stored where both sides have it there, else of what is shown.

        Args:
            step: any step's number.

        Returns:
            For each further side and layer what lies between, which says what it is of.
        """
        if step not in self._stored:
            measured, stored, known = self.measure(), Stored.at(self._of, step), self._of.known(step)
            self._stored[step] = {
                (side, layer.name): apart.between(self._of, layer, side, measured[side, layer.name, known], stored)
                for layer in self._of.layers
                for side in range(1, len(self._of.sides))
            }
        return self._stored[step]

    def ranges(self) -> Ranges:
        """The ranges of all pictures, over all steps."""
        self.measure()
        return self._ranges

    def _at_step(self, side: int, layer: LayerMatch, step: int) -> Between:
        """What lies between a further side and the first one at one step, of what they show.

        Args:
            side: the further one's number, from 1 on.
            layer: one of the layers.
            step: of the comparison.
        """
        result = Between()
        for kind in Kind:
            pair = self._of.pair(layer, kind, step, side)
            if pair is not None:
                result = apart.with_shown(self._of, result, layer, side, kind=kind, pair=pair)
        return result

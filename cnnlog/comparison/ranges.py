"""What full colour stands for in the pictures of a comparison, which knows all steps and all sides."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.rendering.ranges import Limits, RangeRule
from cnnlog.rendering.shared_ranges import Extremes, Magnitudes, change_limits, shared_limits

Whose = Literal["shared", "own"]
"""Whose values a side's range covers: those of all sides, or its own alone."""


class Ranges:
    """The ranges of all pictures of a comparison. See every step once, then ask.

    Args:
        of: the sides.
        whose: `"shared"` gives all sides one range a channel, `"own"` each side a range of its own. Both cover all
            steps.
    """

    def __init__(self, of: SideBySide, whose: Whose) -> None:
        self._of, self._whose = of, whose
        self._extremes: dict[tuple[str, Kind], dict[int, Extremes]] = {}
        self._shapes: dict[tuple[str, Kind, int], tuple[int, ...]] = {}
        self._seen: dict[tuple[str, Kind, int], int | None] = {}
        self._magnitudes: dict[tuple[str, Kind], Magnitudes] = {}
        self._limits: dict[tuple[str, Kind, int], Limits] = {}

    def see(self, layer: LayerMatch, kind: Kind, step: int) -> None:
        """Take in what all sides show of a layer at a step, and their differences to the first side.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
            step: a step of the comparison.
        """
        for side in range(len(self._of.sides)):
            shown = self._of.shown(side, layer, kind, step)
            if shown is None:
                continue
            key, own = (layer.name, kind, side), self._of.holding(side, layer, kind, step)
            if key not in self._shapes or self._seen[key] != own:
                self._seen[key], self._shapes[key] = own, shown.shape[kind.per_image :]
                self._extremes.setdefault(key[:2], {}).setdefault(side, Extremes()).see(kind.by_channel(shown))
            difference = self._of.difference(layer, kind, step, side) if side else None
            if difference is not None:
                self._magnitudes.setdefault(key[:2], Magnitudes()).see(difference)

    def limits(self, layer: LayerMatch, kind: Kind, side: int) -> Limits | None:
        """The range of a side's pictures of a layer, the same at all steps; None where the side shows nothing.

        Sides whose layers have different shapes share no range. The palette is the same for all sides.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
            side: the side, counted from 0.
        """
        key, of_sides = (layer.name, kind, side), self._extremes.get((layer.name, kind), {})
        if side not in of_sides:
            return None
        if key not in self._limits:
            alike = [one for one in of_sides if self._shapes[layer.name, kind, one] == self._shapes[key]]
            shared = Extremes.of_all([of_sides[one] for one in (alike if self._whose == "shared" else [side])])
            below = any(bool((extremes.low < 0).any()) for extremes in of_sides.values())
            self._limits[key] = shared_limits(shared, signed=kind.signed or below, rule=self._rule(kind))
        return self._limits[key]

    def change_limits(self, layer: LayerMatch, kind: Kind) -> Limits | None:
        """The range of the differences of a layer: one for all channels, steps and further sides.

        It is the layer's largest range, divided by `gain`.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.

        Returns:
            None where the first side shows nothing.
        """
        first = self._extremes.get((layer.name, kind), {}).get(0)
        if first is None:
            return None
        return change_limits(self._largest(layer, kind), self.gain(layer, kind), len(first.high))

    def gain(self, layer: LayerMatch, kind: Kind) -> int:
        """By how much the differences of a layer are enlarged against the layer's largest range: 1, 4, 16 or 64.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
        """
        return self._magnitudes.get((layer.name, kind), Magnitudes()).gain(self._largest(layer, kind))

    def shape(self, layer: LayerMatch, kind: Kind, side: int) -> tuple[int, ...] | None:
        """The shape of what a side shows of a layer, of one probe image; None where it shows nothing at any step.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
            side: the side, counted from 0.
        """
        return self._shapes.get((layer.name, kind, side))

    def _largest(self, layer: LayerMatch, kind: Kind) -> float:
        """The largest range of what can be subtracted from the first side, and of the first side."""
        of_sides = self._extremes.get((layer.name, kind), {})
        shapes = {side: self._shapes[layer.name, kind, side] for side in of_sides}
        alike = [self.limits(layer, kind, side) for side in of_sides if shapes[side] == shapes.get(0)]
        return max((float(np.max(limits.high)) for limits in alike if limits is not None), default=1.0)

    def _rule(self, kind: Kind) -> RangeRule:
        """One range a channel or one for the layer, as the first run has it."""
        settings = next((side.run.manifest.settings for side in self._of.sides if side.run is not None), {})
        rule: RangeRule = (settings.get(kind) or {}).get("value_range", "channel")
        return rule

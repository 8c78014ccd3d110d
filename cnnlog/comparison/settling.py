"""How far each layer of each side still had to go, of what every step stores: the shown maps, else the filters."""

from __future__ import annotations

import math

import numpy as np

from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.metrics.to_go import half_way, to_go
from cnnlog.runs.manifest import StoreError
from cnnlog.snapshot import FloatArray

_VALUES = 1024
"""So many shown values of a layer are kept of each step, at most, evenly spread: the last step is known at the end."""


class Settling:
    """How far the layers of the runs still had to go at each step.

    Args:
        of: the sides. Those that are pinned to one step, and weights, have no way.
    """

    def __init__(self, of: SideBySide) -> None:
        self._of = of
        self._kinds: dict[tuple[int, str], Kind] = {}
        self._seen: dict[tuple[int, str], dict[int, FloatArray]] = {}
        self._curves: dict[tuple[int, str], list[tuple[int, float]]] = {}

    def see(self, step: int) -> None:
        """Take a step, while it is in memory; steps rise.

        Args:
            step: a step of the comparison.
        """
        for side, chosen in enumerate(self._of.sides):
            if chosen.run is not None and chosen.step is None:
                for layer in self._of.layers:
                    self._see(side, layer, step)

    def of_filters(self, side: int, layer: str) -> bool:
        """Whether a side's `to_go` of a layer is measured of filters, because it shows no maps."""
        kind = self._kinds.get((side, layer))
        return kind is not None and not kind.per_image

    def curve(self, side: int, layer: str) -> list[tuple[int, float]]:
        """A side's `to_go` of a layer over its own steps, rising."""
        key = (side, layer)
        if key not in self._curves:
            seen = sorted(self._seen.get(key, {}).items())
            last = seen[-1][1] if seen else None
            alike = [(step, values) for step, values in seen if last is not None and values.shape == last.shape]
            self._curves[key] = [(step, to_go(values, alike[0][1], alike[-1][1])) for step, values in alike]
        return self._curves[key]

    def half_way(self, side: int, layer: str) -> int | None:
        """The first own step of a side from which on at most half of a layer's way was to go."""
        curve = self.curve(side, layer)
        return half_way([step for step, _ in curve], [value for _, value in curve])

    def _see(self, side: int, layer: LayerMatch, step: int) -> None:
        """Keep some of what a side shows of a layer: of its first step's kind, maps before filters."""
        key = (side, layer.name)
        wanted = (self._kinds[key],) if key in self._kinds else (Kind.FEATURE_MAPS, Kind.FILTERS)
        for kind in wanted:
            at = self._of.holding(side, layer, kind, step)
            if at is None or at in self._seen.get(key, {}):
                continue
            try:
                shown = self._of.shown(side, layer, kind, step)
            except StoreError:  # damaged; the run remembers, and it is said
                continue
            if shown is not None:
                self._kinds[key] = kind
                self._seen.setdefault(key, {})[at] = _some_of(shown)
                return


def _some_of(array: FloatArray) -> FloatArray:
    distance = max(1, -(-array.size // _VALUES))
    while distance > 1 and any(math.gcd(distance, size) > 1 for size in array.shape):
        distance += 1  # else it would meet some columns alone, such as the padded border
    return np.array(array.reshape(-1)[::distance])

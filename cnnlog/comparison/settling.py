"""How far each layer of each side still had to go, of what every step stores: the shown maps, else the filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.metrics.to_go import half_way, to_go
from cnnlog.runs.manifest import StoreError
from cnnlog.snapshot import FloatArray

_VALUES = 16_384
"""Of each layer at most about so many shown values are compared, evenly spread, so that two steps fit into memory."""


@dataclass
class _Way:
    """A layer's way on one side: its ends, and how far it had to go at each step in between."""

    kind: Kind
    first: FloatArray
    last: FloatArray
    values: dict[int, float]


class Settling:
    """How far the layers of the runs still had to go at each step.

    Args:
        of: the sides. Those that are pinned to one step, and weights, have no way.
    """

    def __init__(self, of: SideBySide) -> None:
        self._of = of
        self._ways: dict[tuple[int, str], _Way] | None = None

    def see(self, step: int) -> None:
        """Take a step, after all earlier ones.

        Args:
            step: a step of the comparison.
        """
        if self._ways is None:
            self._ways = self._ends()
        for (side, name), way in self._ways.items():
            layer = next(layer for layer in self._of.layers if layer.name == name)
            at = self._of.holding(side, layer, way.kind, step)
            if at is None or at in way.values:
                continue
            now = _some_of(self._shown(side, layer, way.kind, at))
            if now is not None and now.shape == way.last.shape:
                way.values[at] = to_go(now, way.first, way.last)

    def kind(self, side: int, layer: str) -> Kind | None:
        """What a side's `to_go` of a layer is measured of: feature maps or filters; None without any."""
        way = (self._ways or {}).get((side, layer))
        return None if way is None else way.kind

    def curve(self, side: int, layer: str) -> list[tuple[int, float]]:
        """A side's `to_go` of a layer over its own steps, rising."""
        way = (self._ways or {}).get((side, layer))
        return [] if way is None else sorted(way.values.items())

    def half_way(self, side: int, layer: str) -> int | None:
        """The first own step of a side from which on at most half of a layer's way was to go."""
        curve = self.curve(side, layer)
        return half_way([step for step, _ in curve], [value for _, value in curve])

    def _ends(self) -> dict[tuple[int, str], _Way]:
        """The ways of the runs that are not pinned, with the first and the last step of each."""
        ways: dict[tuple[int, str], _Way] = {}
        for side, chosen in enumerate(self._of.sides):
            if chosen.run is None or chosen.step is not None:
                continue
            for end in ("first", "last"):
                for layer in self._of.layers:
                    name = layer.names[side]
                    if name is None:
                        continue
                    for kind in (Kind.FEATURE_MAPS, Kind.FILTERS):
                        step = chosen.run.steps[0] if end == "first" else chosen.run.steps[-1]
                        held = chosen.run.holding(name, kind, step)
                        shown = None if held is None else _some_of(self._shown(side, layer, kind, held))
                        if shown is None:
                            continue
                        if end == "first":
                            ways[side, layer.name] = _Way(kind, shown, shown, {})
                        elif (way := ways.get((side, layer.name))) is not None and way.kind is kind:
                            way.last = shown
                        break
        return {key: way for key, way in ways.items() if way.first.shape == way.last.shape}

    def _shown(self, side: int, layer: LayerMatch, kind: Kind, own: int) -> FloatArray | None:
        run, name = self._of.sides[side].run, layer.names[side]
        assert run is not None, "only runs have a way"
        try:
            return kind.of(run.record(own)).get(name or "")
        except StoreError:  # damaged; the run remembers, and it is said
            return None


def _some_of(array: FloatArray | None) -> FloatArray | None:
    if array is None:
        return None
    flat = array.reshape(-1)
    return np.ascontiguousarray(flat[:: max(1, -(-flat.size // _VALUES))])

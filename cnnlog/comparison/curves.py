"""A comparison's numbers over the steps."""

from __future__ import annotations

from collections.abc import Mapping

from cnnlog.comparison.between import Distances
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.runs.run import NUMBER, Measure

Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]
"""For each measure, for each layer, for each side's label: `(step, value)`, steps rising."""

_OF_A_SIDE: Mapping[str, Measure] = {
    "drift_cosine": "cosine",
    "drift_l2": "l2",
    "update_l2": "update",
    "dead_share": "dead_share",
    "cka": "cka",
}


def curves_of(of: SideBySide, distances: Distances) -> Curves:
    """The means over each layer's channels: of every side alone, then of what lies between.

    Args:
        of: the sides.
        distances: how far the further sides are from the first.
    """
    curves: Curves = {}

    def put(measure: str, layer: str, label: str, step: int, value: float) -> None:
        curves.setdefault(measure, {}).setdefault(layer, {}).setdefault(label, []).append((step, value))

    for index, side in enumerate(of.sides):
        if side.run is None:
            continue
        for step in side.run.steps if side.step is None else (side.step,):
            numbers = side.run.summary(step).numbers
            for layer in of.layers:
                name = layer.names[index]
                for measure, number in _OF_A_SIDE.items():
                    spread = numbers.get(NUMBER[number], {}).get(name or "")
                    if spread is not None:
                        put(measure, layer.name, side.label, step, spread.mean)
    for (index, name, step), between in distances.measure().items():
        label = of.sides[index].label
        for measure, found in (("distance_cosine", between.cosine), ("distance_l2", between.l2)):
            if found is not None:
                put(measure, name, label, step, found.mean)
        if between.cka is not None:
            put("cka_between", name, label, step, between.cka)
    return curves


def copied(curves: Curves) -> Curves:
    """The same in lists and mappings of its own, which whoever asked may change.

    Args:
        curves: of a comparison.
    """
    return {
        measure: {name: {label: list(curve) for label, curve in by_side.items()} for name, by_side in by_layer.items()}
        for measure, by_layer in curves.items()
    }

"""A comparison's numbers over the steps."""

from __future__ import annotations

from cnnlog.comparison.apart import Between
from cnnlog.comparison.between import Distances
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.runs.numbers import SHOWN

Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]
"""For each measure, for each layer, for each side's label: `(step, value)`, steps rising."""


def curves_of(of: SideBySide, distances: Distances) -> Curves:
    """Each layer's numbers, of angles the median: of every side alone, then of what lies between.

    What lies between has two estimates, and a name for each: `function_distance` and so on are the table's, of all that
    is measured, at the first and the last step, where sides store it; `shown_function_distance` and so on are of what
    is shown, at all steps.

    Args:
        of: the sides.
        distances: how far the further sides are from the first.
    """
    curves: Curves = {}

    def put(measure: str, layer: str, label: str, step: int, value: float | None) -> None:
        if value is not None:
            curves.setdefault(measure, {}).setdefault(layer, {}).setdefault(label, []).append((step, value))

    def put_between(prefix: str, layer: str, label: str, step: int, found: Between) -> None:
        put(f"{prefix}function_distance", layer, label, step, found.function)
        put(f"{prefix}weight_distance", layer, label, step, found.weights)
        put(f"{prefix}angle_between", layer, label, step, None if found.angle is None else found.angle.median)
        put(f"{prefix}cka_between", layer, label, step, found.cka)

    shown = distances.measure()
    for index, side in enumerate(of.sides):
        if side.run is None or of.is_baseline(index):
            continue
        for step in side.run.steps if side.step is None else (side.step,):
            numbers = side.run.summary(step).numbers
            for layer in of.layers:
                for measure in SHOWN:
                    spread = numbers.get(measure, {}).get(layer.names[index] or "")
                    put(measure, layer.name, side.label, step, None if spread is None else spread.median)
        for layer in of.layers:
            for step, value in distances.settling.curve(index, layer.name):
                put("to_go", layer.name, side.label, step, value)
    for step in dict.fromkeys((of.steps[0], of.steps[-1])):
        for (index, name), found in distances.stored(step).items():
            put_between("", name, of.sides[index].label, step, found.measured)
    for (index, name, step), found in shown.items():
        put_between("shown_", name, of.sides[index].label, step, found)
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

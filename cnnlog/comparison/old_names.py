"""The names that version 0.1 gave to numbers: they warn for one release, and give what can be derived from today's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from cnnlog.comparison.apart import Stored
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.runs.spread import Spread

Old = Mapping[str, tuple[str, "Callable[[], Any] | None"]]
"""An old name -> what is to be used in its place, and what makes the old value; None where nothing can."""

_OWN = {"drift_cosine": ("cosine", "filter_angle"), "drift_l2": ("l2", "weight_change")}
_BETWEEN = {"distance_cosine": "angle_between", "distance_l2": "weight_distance"}
_GONE: Old = {"update_l2": ("update_ratio", None), "cka": ("cka_positions", None)}


class Renamed(dict[str, Any]):
    """Values under their names of today. Only these are listed, and written to files.

    Args:
        values: name -> value.
        old: the old names that are still understood.
    """

    def __init__(self, values: Mapping[str, Any], old: Old) -> None:
        super().__init__(values)
        self._old = old

    def __missing__(self, key: str) -> Any:
        return self._derived(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a name, also of an old one; `default` where there is none.

        Args:
            key: the name.
            default: what is given for a name that there is not.
        """
        if key in self:
            return self[key]
        try:
            return self._derived(key)
        except KeyError:
            return default

    def __reduce__(self) -> tuple[Any, ...]:
        # What makes the old values cannot be pickled, and holds the whole comparison: copies have today's names alone.
        return dict, (dict(self),)

    def _derived(self, key: str) -> Any:
        """The value of an old name. The warning names the line that is two calls above."""
        if key not in self._old:
            raise KeyError(key)
        instead, make = self._old[key]
        if make is None:
            raise KeyError(f"{key!r} is no longer measured; take {instead!r}")
        warnings.warn(f"{key!r} is replaced by {instead!r}; it goes with the next release", FutureWarning, stacklevel=3)
        return make()


def old_row(of: SideBySide, layer: LayerMatch, step: int, plain: Callable[[Any], Any]) -> Old:
    """The old names of a row's numbers.

    Args:
        of: the sides.
        layer: of the row.
        step: a step of the comparison.
        plain: makes plain values of spreads.
    """

    def own(name: str) -> Callable[[], Any]:
        return lambda: plain([_own(of, side, layer, name, step) for side in range(len(of.sides))])

    def between(name: str) -> Callable[[], Any]:
        def spreads() -> Any:
            stored = Stored.at(of, step)
            return plain(
                [_between(of, layer, side, name, step=step, stored=stored) for side in range(1, len(of.sides))]
            )

        return spreads

    return {
        **{key: (instead, own(name)) for key, (name, instead) in _OWN.items()},
        **{key: (instead, between(key)) for key, instead in _BETWEEN.items()},
        **_GONE,
    }


def old_curves(of: SideBySide) -> Old:
    """The old names of the numbers over the steps.

    Args:
        of: the sides.
    """

    def own(name: str) -> Callable[[], Any]:
        return lambda: _curves(of, 0, lambda side, layer, step: _own(of, side, layer, name, step))

    def between(key: str) -> Callable[[], Any]:
        return lambda: _curves(of, 1, lambda side, layer, step: _between(of, layer, side, key, step=step))

    return {
        **{key: (instead, own(name)) for key, (name, instead) in _OWN.items()},
        **{key: (f"shown_{instead}", between(key)) for key, instead in _BETWEEN.items()},
        **_GONE,
    }


def _curves(of: SideBySide, first: int, at: Callable[[int, LayerMatch, int], Spread | None]) -> Any:
    """Layer -> side's label -> `(step, mean)`, at the steps of the comparison."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for layer in of.layers:
        for side in range(first, len(of.sides)):
            steps = of.steps if first else tuple(dict.fromkeys(of.step_of(side, step) for step in of.steps))
            for step in steps:
                spread = None if step is None else at(side, layer, step)
                if step is not None and spread is not None:
                    found.setdefault(layer.name, {}).setdefault(of.sides[side].label, []).append((step, spread.mean))
    return found


def _own(of: SideBySide, side: int, layer: LayerMatch, name: str, step: int) -> Spread | None:
    run, own = of.sides[side].run, of.step_of(side, step)
    layers_name = layer.names[side]
    if run is None or own is None or layers_name is None:
        return None
    held = run.measured_at("filter_norm", layers_name, own)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return None if held is None else Spread.of(run.numbers(name, layers_name, held))
    except ValueError:
        return None


def _between(
    of: SideBySide, layer: LayerMatch, side: int, key: str, *, step: int, stored: Stored | None = None
) -> Spread | None:
    pair = of.pair(layer, Kind.FILTERS, step, side)
    if stored is not None:
        first, other = (stored.weights[at].get(layer.names[at] or "") for at in (0, side))
        if first is not None and other is not None and first.shape == other.shape:
            pair = first, other
    if pair is None:
        return None
    moved = drift.change(*pair)
    return Spread.of(moved.cosine if key == "distance_cosine" else moved.l2)

"""The life of every shown filter: its own numbers over the steps of a page, packed for a browser."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnnlog.comparison.comparison import Comparison
from cnnlog.kinds import Kind

Name = Literal["norm", "angle", "active"]
_NAMES: tuple[Name, ...] = ("norm", "angle", "active")
_NUMBERS: Mapping[Name, str] = {"norm": "filter_norm", "angle": "filter_angle", "active": "map_active"}
_NOT_FINITE = 65535


@dataclass
class _Life:
    """The numbers of one layer's filters on one side.

    Attributes:
        at: for each step of the page the position of the step in `steps` that it shows; -1 before the first.
        steps: the side's own steps that numbers were taken of.
        values: for each number, `[n]` of the filters for each of the steps.
    """

    at: list[int]
    steps: list[int] = field(default_factory=list)
    values: dict[Name, list[npt.NDArray[np.float64]]] = field(default_factory=dict)


class Lives:
    """Each shown filter's numbers over the steps, of each layer and side.

    Args:
        comparison: what the page shows.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._lives: dict[tuple[int, int], _Life] = {}

    def see(self, position: int, step: int, shown: Mapping[tuple[int, int], int]) -> None:
        """Take a step's numbers.

        Args:
            position: the position of the step on the page.
            step: the step.
            shown: for each layer and side, how many channels are shown.
        """
        for number, side, own in self._there(step):
            life = self._lives.setdefault((number, side), _Life([-1] * position))
            if not life.steps or life.steps[-1] != own:
                for name in _NAMES:
                    values = of_channels(self.comparison, number, side, name, step)
                    if values is not None:
                        life.values.setdefault(name, []).append(values[: shown.get((number, side), 0)])
                life.steps.append(own)
            life.at.append(len(life.steps) - 1)

    def _there(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Layer, side and the side's own step, where a run has the layer.

        Args:
            step: of the comparison.
        """
        for number, layer in enumerate(self.comparison.layers):
            for side, chosen in enumerate(self.comparison.sides):
                own = self.comparison.step_of(side, step)
                if chosen.run is not None and layer.names[side] is not None and own is not None:
                    yield number, side, own

    def packed(self, keep: Callable[[bytes], str]) -> dict[int, dict[int, Any]]:
        """The numbers, packed in 16 bits each, from the smallest to the largest of their kind.

        Args:
            keep: a function that takes packed bytes and returns a name for them.

        Returns:
            For each layer and side, what the numbers are and the name of the bytes that they are in.
        """
        found: dict[int, dict[int, Any]] = {}
        for (number, side), life in self._lives.items():
            measures, parts = [], []
            for name, rows in life.values.items():
                if len(rows) != len(life.steps) or len({len(row) for row in rows}) != 1:
                    continue  # not at every step: no curve
                low, high, scaled = _sixteen_bits(np.stack(rows))
                measures.append({"name": name, "low": low, "high": high, "n": scaled.shape[1]})
                parts += [(scaled >> 8).astype(np.uint8).tobytes(), (scaled & 255).astype(np.uint8).tobytes()]
            if measures:
                deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
                block = keep(deflate.compress(b"".join(parts)) + deflate.flush())
                entry = {"block": block, "steps": life.steps, "at": life.at, "measures": measures}
                found.setdefault(number, {})[side] = entry
        return found


def of_channels(
    comparison: Comparison, number: int, side: int, name: Name, step: int
) -> npt.NDArray[np.float64] | None:
    """A number of a layer's channels on one side.

    Args:
        comparison: the comparison.
        number: the position of the layer in the comparison.
        side: the position of the side in the comparison.
        name: which number: `"norm"`, `"angle"` (from the side's own baseline, in degrees) or `"active"`.
        step: a step of the comparison.

    Returns:
        `[n]`, one value for each channel, NaN for filters that are not measured; None if the side has none.
    """
    run, own = comparison.sides[side].run, comparison.layers[number].names[side]
    at = comparison.step_of(side, step)
    if run is None or own is None or at is None:
        return None
    held = run.holding(own, Kind.FEATURE_MAPS if name == "active" else Kind.FILTERS, at)
    try:
        values = None if held is None else run.numbers(_NUMBERS[name], own, held)
    except ValueError:
        return None
    layer = run.measured_layer(own)
    if values is None or name == "active" or layer is None or layer.filters is None:
        return values
    everyone = np.full(layer.weight_shape[0], np.nan)
    everyone[list(layer.filters)] = values
    return everyone


def _sixteen_bits(values: npt.NDArray[np.float64]) -> tuple[float, float, npt.NDArray[np.uint16]]:
    finite = np.isfinite(values)
    low, high = float(values.min(initial=np.inf, where=finite)), float(values.max(initial=-np.inf, where=finite))
    if not finite.any():
        return 0.0, 0.0, np.full(values.shape, _NOT_FINITE, np.uint16)
    with np.errstate(invalid="ignore"):
        scaled = np.rint((np.where(finite, values, low) - low) / ((high - low) or 1.0) * (_NOT_FINITE - 1)).astype(
            np.uint16
        )
    scaled[~finite] = _NOT_FINITE
    return low, high, scaled

"""The numbers of a layer's channels in a few figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cnnlog.snapshot import Record


@dataclass(frozen=True)
class Spread:
    """How one number is spread over a layer's channels. Channels where the number is not finite are left out.

    Attributes:
        mean: the mean over the channels; NaN if the number is finite in none of them.
        lower: the first quartile; NaN if the number is finite in no channel.
        median: the median; NaN if the number is finite in no channel.
        upper: the third quartile; NaN if the number is finite in no channel.
        finite: in how many channels the number is finite.
        left_out: in how many it is not.
    """

    mean: float
    lower: float
    median: float
    upper: float
    finite: int
    left_out: int = 0

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Spread:
        """The spread of some values. Quartiles are interpolated, as NumPy's default does.

        Args:
            values: an array of any shape.

        >>> Spread.of([4.0, 1.0, 2.0, 3.0, float("nan")])
        Spread(mean=2.5, lower=1.75, median=2.5, upper=3.25, finite=4, left_out=1)
        """
        array = np.asarray(values, dtype=np.float64)
        finite = np.sort(array[np.isfinite(array)])
        if not finite.size:
            return cls(math.nan, math.nan, math.nan, math.nan, 0, array.size)
        at = np.array([0.25, 0.5, 0.75]) * (finite.size - 1)
        lower, median, upper = (float(v) for v in np.interp(at, np.arange(finite.size), finite))
        return cls(float(finite.mean()), lower, median, upper, int(finite.size), int(array.size - finite.size))


@dataclass(frozen=True)
class Summary:
    """What is kept in memory of a step: what it holds, and how each number is spread over a layer.

    Attributes:
        epoch: how many training epochs were complete.
        global_step: how many optimiser steps were complete.
        filters: the names of the layers whose filters the step holds.
        feature_maps: the names of the layers whose feature maps the step holds.
        numbers: for each number, by its name of today, for each layer, its spread.
        metrics: what the trainer knew at that moment: name -> value.
        provisional: whether the state lies within an epoch.
    """

    epoch: int
    global_step: int
    filters: frozenset[str]
    feature_maps: frozenset[str]
    numbers: Mapping[str, Mapping[str, Spread]]
    metrics: Mapping[str, float] = field(default_factory=dict)
    provisional: bool = False


def summary_of(record: Record, numbers: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]) -> Summary:
    """What a record holds, and how each of its numbers is spread.

    Args:
        record: of one step.
        numbers: its numbers, under their names of today.
    """
    spreads = {
        name: {layer: Spread.of(values) for layer, values in by_layer.items()} for name, by_layer in numbers.items()
    }
    return Summary(
        epoch=record.epoch,
        global_step=record.global_step,
        filters=frozenset(record.filters),
        feature_maps=frozenset(record.feature_maps),
        numbers=spreads,
        metrics=record.metrics,
        provisional=record.provisional,
    )

"""A run's numbers over all steps, as tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol, get_args

from cnnlog.runs import numbers as names
from cnnlog.runs.numbers import Number, Values
from cnnlog.runs.spread import Spread, Summary
from cnnlog.runs.table import Table

_SPREAD = ("step", "layer", "mean", "lower_quartile", "median", "upper_quartile")
_OF_ONE = ("step", "channel", "value")


class Read(Protocol):
    """What is asked of a run."""

    name: str

    @property
    def measured(self) -> tuple[str, ...]:
        """The layers that there are numbers of."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that can be read."""

    def read_all(self) -> None:
        """Read the numbers of every step."""

    def summary(self, step: int) -> Summary:
        """How the numbers of a step are spread over each layer."""

    def numbers(self, name: str, layer: str, step: int) -> Values:
        """A number of a layer at one step."""

    def layer(self, name: str) -> Any:
        """Refuses a layer that there is not."""


def over_steps(run: Read, name: str, layer: str | None) -> Any:
    """A number over all steps; `Run.over_steps` says what it takes and gives.

    Args:
        run: the run.
        name: of the number.
        layer: the name of a layer; None for all layers.
    """
    if name not in get_args(Number):
        raise ValueError(f"name must be one of {', '.join(get_args(Number))}; got {name!r}")
    number = names.SHORT.get(name, name)
    rows: list[tuple[Any, ...]] = []
    for step, of in _steps_with(run, number, layer):
        spread = run.summary(step).numbers[number][of]
        if number not in names.OF_CHANNELS:
            rows.append((step, of, spread.mean))
        elif layer is None:
            rows.append((step, of, spread.mean, spread.lower, spread.median, spread.upper, spread.left_out))
        else:
            rows += [(step, channel, float(v)) for channel, v in enumerate(run.numbers(number, of, step))]
    if not rows:
        raise ValueError(f"{run.name} has no {name!r} of {'any layer' if layer is None else layer}")
    if number not in names.OF_CHANNELS:
        return Table(("step", "layer", "value"), tuple(rows)).to_frame()
    return Table((*_SPREAD, "left_out") if layer is None else _OF_ONE, tuple(rows)).to_frame()


def drift(run: Read, measure: str, layer: str | None) -> Any:
    """The table of version 0.1; `Run.drift` says what it takes and gives.

    Args:
        run: the run.
        measure: of an old or a new number.
        layer: the name of a layer; None for all layers.
    """
    warnings.warn(
        f"run.drift({measure!r}) is replaced by run.over_steps(), with {names.INSTEAD.get(measure, repr(measure))}; "
        "it goes with the next release",
        FutureWarning,
        stacklevel=3,
    )
    known = (*names.STORED_AS, *get_args(Number))
    if measure not in known:
        raise ValueError(f"measure must be one of {', '.join(known)}; got {measure!r}")
    old = measure in names.STORED_AS
    rows: list[tuple[Any, ...]] = []
    for step, of in _steps_with(run, "filter_angle" if old else names.SHORT.get(measure, measure), layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            values = run.numbers(measure, of, step)
        if layer is not None:
            rows += [(step, channel, float(value)) for channel, value in enumerate(values)]
        else:
            spread = Spread.of(values)
            rows.append((step, of, spread.mean, spread.lower, spread.median, spread.upper))
    if not rows:
        raise ValueError(f"{run.name} has no {measure!r} of {'any layer' if layer is None else layer}")
    return Table(_SPREAD if layer is None else _OF_ONE, tuple(rows)).to_frame()


def _steps_with(run: Read, number: str, layer: str | None) -> Iterator[tuple[int, str]]:
    """Each step that can be read and has a number, with each of the layers that it has it of."""
    wanted = run.measured if layer is None else (str(run.layer(layer).name),)
    run.read_all()
    for step in run.steps:
        held = run.summary(step).numbers.get(number, {})
        yield from ((step, name) for name in wanted if name in held)

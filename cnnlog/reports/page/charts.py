"""Curves over steps as plain numbers: axes, ticks and lines that a template writes down as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 32


@dataclass(frozen=True)
class Tick:
    """A number on an axis.

    Attributes:
        at: where it stands, in the chart's units.
        text: the number.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A layer's curve.

    Attributes:
        label: the layer's name.
        number: the layer's position in the comparison, which decides its colour.
        path: an SVG path; a value that is not finite leaves a gap in it.
    """

    label: str
    number: int
    path: str


@dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
        lines: the curves.
        x_ticks: the steps that are named, from left to right.
        y_ticks: the values that are named, from the bottom up.
        first: the step at the left edge.
        last: the step at the right edge.
        width: of the panel, in the chart's units.
        height: of the panel, in the chart's units.
        left: where the curves begin, from the left.
        right: where they end, from the left.
        top: where the largest value is, from the top.
        bottom: where the smallest value is, from the top.
    """

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    first: float
    last: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


Curve = Sequence[tuple[float, float]]
"""(step, value), steps rising."""


def chart(
    curves: Sequence[tuple[str, int, Curve]], *, steps: tuple[float, float], values: tuple[float, float]
) -> Chart:
    """Lay curves out in a panel.

    Args:
        curves: for each layer its label, its position in the comparison, and its curve.
        steps: the first and the last step of the axis.
        values: the smallest and the largest value of the axis. Give panels that are compared the same ones.
    """
    y_ticks = ticks(*values)
    low, high = min(values[0], y_ticks[0]), max(values[1], y_ticks[-1])

    def x(step: float) -> float:
        share = (step - steps[0]) / ((steps[1] - steps[0]) or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP), 1)

    at_steps = sorted({float(round(tick)) for tick in ticks(*steps) if steps[0] <= round(tick) <= steps[1]})
    return Chart(
        tuple(Line(label, number, _path([(x(s), y(v)) for s, v in curve])) for label, number, curve in curves),
        tuple(Tick(x(tick), f"{tick:.0f}") for tick in at_steps),
        tuple(Tick(y(tick), f"{tick:g}".replace("-", "−")) for tick in y_ticks),
        *steps,
    )


def extent(curves: Sequence[Curve], *, start: float | None = 0.0) -> tuple[float, float]:
    """The smallest and the largest finite value of some curves; 0 and 1 if there is none.

    Args:
        curves: the curves.
        start: a value that belongs to the range in any case; None for none.
    """
    found = [value for curve in curves for _, value in curve if math.isfinite(value)]
    if not found:
        return 0.0, 1.0
    low = min(found) if start is None else min(start, *found)
    high = max(found)
    return (low, high) if high > low else (low, low + 1.0)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span a range: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: the smallest value of the range.
        high: the largest value of the range.
        about: how many there should be; there may be a few more or less.
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    parts, pen = [], "M"
    for px, py in points:
        if math.isfinite(py):
            parts.append(f"{pen}{px:g} {py:g}")
            pen = "L"
        else:
            pen = "M"
    if len(parts) == 1:  # a single point is seen as a dot with round caps
        parts.append("h0")
    return "".join(parts)

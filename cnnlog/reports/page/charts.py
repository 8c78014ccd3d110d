"""Curves over steps as plain numbers: axes, ticks and lines that a template writes down as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 32


@dataclass(frozen=True)
class Tick:
    """A number on an axis, and where, in the chart's units."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A layer's curve: `path` is an SVG path; a value that is not finite leaves a gap."""

    label: str
    number: int
    path: str


@dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
        lines: the curves, numbered by layer.
        x_ticks: from left to right.
        y_ticks: from the bottom up.
        first: the step at the left edge; `last` is the one at the right edge.
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
        curves: label, number of the layer, curve.
        steps: the first and the last step of the axis.
        values: the smallest and the largest value of the axis; panels to be compared get the same.
    """
    y_ticks = ticks(*values)
    low, high = min(values[0], y_ticks[0]), max(values[1], y_ticks[-1])

    def x(step: float) -> float:
        share = (step - steps[0]) / ((steps[1] - steps[0]) or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP), 1)

    whole = sorted({float(round(tick)) for tick in ticks(*steps) if steps[0] <= round(tick) <= steps[1]})
    return Chart(
        tuple(Line(label, number, _path([(x(s), y(v)) for s, v in curve])) for label, number, curve in curves),
        tuple(Tick(x(tick), f"{tick:.0f}") for tick in whole),
        tuple(Tick(y(tick), f"{tick:g}".replace("-", "−")) for tick in y_ticks),
        *steps,
    )


def extent(curves: Sequence[Curve], *, start: float | None = 0.0) -> tuple[float, float]:
    """Smallest and largest finite value of some curves, from `start` on if that is given; 0 to 1 for none."""
    found = [value for curve in curves for _, value in curve if math.isfinite(value)]
    if not found:
        return 0.0, 1.0
    low = min(found) if start is None else min(start, *found)
    high = max(found)
    return (low, high) if high > low else (low, low + 1.0)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
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

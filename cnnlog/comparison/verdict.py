"""The sentence that says which layer changed most, by how much, and which least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnnlog.comparison.rows import Row, letter
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.messages import some

_LONG = 24
"""A label with more letters is written as the side's letter, so that the sentence stays within two lines."""

_SMALL_ANGLE = 0.01


@dataclass(frozen=True)
class _Order:
    """Layers in the order of how far they changed on one side, or between two.

    Attributes:
        side: the side, counted from 0.
        label: what it is called in the sentence.
        what: what the values are of, in words.
        values: layer -> how far it changed, as a share; finite.
        shown: whether the values are of what is shown alone.
    """

    side: int
    label: str
    what: str
    values: Mapping[str, float]
    shown: bool = False

    @property
    def most(self) -> str:
        return max(self.values, key=lambda name: self.values[name])

    @property
    def top(self) -> float:
        return self.values[self.most]

    @property
    def amount(self) -> str:
        """How far the first layer changed, and how much farther than the last."""
        least = min(self.values, key=lambda name: self.values[name])
        said = f"{self.what} {percent(self.top)}"
        if self.values[least] == 0 or least == self.most:
            return said
        return f"{said}, {times(self.top / self.values[least])} as {least}"

    @property
    def still(self) -> str:
        """How many layers did not change at all; empty where all did."""
        still = sum(value == 0 for value in self.values.values())
        return f"{still} of {len(self.values)} layers did not change at all" if still else ""


def verdict_of(of: SideBySide, rows: Sequence[Row]) -> str:
    """One sentence on the layers that changed most and least. It begins with the name of the one that changed most.

    Layers are ordered by how far their output on the probe changed (`function_change`); where no probe was watched by
    how far their weights did. So a filter near zero that turns round cannot lead it: it is nothing in either.

    Args:
        of: the sides.
        rows: the rows of their last step.
    """
    labels = [side.label if len(side.label) <= _LONG else f"run {letter(i)}" for i, side in enumerate(of.sides)]
    own = [order for side, label in enumerate(labels) if (order := _own(rows, side, label)) is not None]
    between = _between(of, rows, labels)
    broken = [said for side, label in enumerate(labels) if (said := _broken(rows, side, label))]
    moved = sorted((order for order in own if order.top > 0), key=lambda order: -order.top)
    if not moved:
        if between is not None and between.top > 0:
            whole = f"{between.most} changed most from {labels[0]} to {between.label}: {between.amount}"
            return "; ".join(part for part in (*broken, whole, between.still) if part) + "."
        if broken:
            return "; ".join(broken) + "."
        if any(_is_nan(value) for row in rows for value in (*row.function_change, *row.weight_change)):
            return "No number says how far the layers changed."
        if own or between is not None or all(of.says_itself(side) for side in range(len(of.sides))):
            return "No layer changed."
        return _least_alike(rows, labels) or "No number says how far the layers are apart."
    single = len(own) == 1 and (of.says_itself(moved[0].side) or len(of.sides) == 1)
    parts = [*broken, _first(moved[0], rows, "" if single else f" in {moved[0].label}"), moved[0].still]
    if len(own) == 2:
        parts += [_second(moved[0], order) for order in own if order is not moved[0]]
    if between is not None and between.top > 0:
        shown = " of what is shown" if between.shown else ""
        parts.append(f"{between.most} differs most from {labels[0]} to {between.label} ({percent(between.top)}{shown})")
    elif between is None:
        parts.append(_least_alike(rows, labels))
    return "; ".join(part for part in parts if part) + "."


def percent(share: float) -> str:
    """A share in percent, with two digits.

    Args:
        share: 0 and up.

    >>> percent(0.1234), percent(0.00211), percent(14.2), percent(1e-9), percent(0.0)
    ('12 %', '0.21 %', '1,400 %', 'less than 0.001 %', '0 %')
    """
    value = 100 * share
    if value == 0:
        return "0 %"
    if value < 1e-3:
        return "less than 0.001 %"
    return f"{_two_digits(value)} %"


def times(ratio: float) -> str:
    """How much larger one number is than another, in words, in front of "as much".

    Args:
        ratio: 1 and up.

    >>> times(80.4), times(1.04), times(2.04), times(3e7)
    ('80 times as much', 'about as much', 'twice as much', 'more than 10,000 times as much')
    """
    if ratio < 1.05:
        return "about as much"
    if ratio > 1e4:
        return "more than 10,000 times as much"
    text = _two_digits(ratio)
    return "twice as much" if text == "2.0" else f"{text} times as much"


def _two_digits(value: float) -> str:
    rounded = f"{value:.1e}"  # before the decimals are counted, because 9.99 becomes 10
    exponent = int(rounded.partition("e")[2])
    return f"{float(rounded):,.{max(0, 1 - exponent)}f}"


def _own(rows: Sequence[Row], side: int, label: str) -> _Order | None:
    """The order of the layers by how far they are from a side's own baseline; None where no number says so."""
    for number, what in (("function_change", "its output on the probe by"), ("weight_change", "its weights by")):
        values = _finite({row.layer: getattr(row, number)[side] for row in rows})
        if values:
            return _Order(side, label, what, values)
    return None


def _between(of: SideBySide, rows: Sequence[Row], labels: Sequence[str]) -> _Order | None:
    """The order of the layers by how far the first side is from the further one that is farthest from it.

    Between weights alone it is that of the weights, because all layers have them.
    """
    found = []
    for side, label in enumerate(labels[1:], start=1):
        maps = any(row.shown_outputs_between[side - 1] for row in rows)
        filters = any(row.shown_weights_between[side - 1] for row in rows)
        numbers = [
            ("function_distance", f"its {'shown maps' if maps else 'output on the probe'} by", maps),
            ("weight_distance", f"its {'shown filters' if filters else 'weights'} by", filters),
        ]
        if of.sides[0].run is None and of.sides[side].run is None:
            numbers.reverse()
        for number, what, shown in numbers:
            values = _finite({row.layer: getattr(row, number)[side - 1] for row in rows})
            if values:
                found.append(_Order(side, label, what, values, shown))
                break
    return max(found, key=lambda order: order.top, default=None)


def _first(order: _Order, rows: Sequence[Row], where: str) -> str:
    """What is said of the side that changed most."""
    row = next(row for row in rows if row.layer == order.most)
    said = f"{order.most} changed most{where}: {order.amount}"
    angle = row.filter_angle[order.side]
    if angle is not None and angle.median > 0:
        turned = _two_digits(angle.median) if angle.median >= _SMALL_ANGLE else f"less than {_SMALL_ANGLE}"
        said += f", its filters by {turned} degrees"
    cka, noise = row.cka_positions[order.side], row.noise[order.side]
    if cka is not None and noise is not None and abs(cka) <= noise:
        said += ", and its CKA is within what noise of that shape gives"
    return said


def _broken(rows: Sequence[Row], side: int, label: str) -> str:
    """What is said of a side that has layers of whose output nothing finite is left; empty if it has none.

    A number that is NaN is not enough: what was 0 at the baseline and is no longer has none, either.
    """
    lost = [
        row.layer for row in rows if _is_nan(row.function_change[side]) and row.channels_left_out[side] == row.filters
    ]
    if not lost:
        return ""
    return f"in {label} every output of {'all layers' if len(lost) == len(rows) else some(lost)} is NaN or infinite"


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def _second(first: _Order, second: _Order) -> str:
    if second.top == 0:
        return f"in {second.label} no layer changed"
    if second.most == first.most:
        return f"in {second.label} by {percent(second.top)}"
    return f"in {second.label} it was {second.most} ({percent(second.top)})"


def _least_alike(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """For sides that nothing but CKA can compare: the layer that is least alike in them. Empty without any."""
    found = [
        (value, row.layer, side, row.noise_between[side])
        for row in rows
        for side, value in enumerate(row.cka_between)
        if value is not None and math.isfinite(value)
    ]
    if not found:
        return ""
    cka, layer, side, noise = min(found, key=lambda one: one[0])
    within = ", no more than noise" if noise is not None and abs(cka) <= noise else ""
    return f"{layer} is least alike in {labels[0]} and {labels[side + 1]} (CKA {cka:.2f}{within})"


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

"""The rows of a comparison, one for each layer: how they are made, and how they are written as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnlog.comparison import apart
from cnnlog.comparison.apart import Between
from cnnlog.comparison.between import Distances
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch, filters_shape
from cnnlog.runs.spread import Spread
from cnnlog.runs.table import Table, cell_text

Values = tuple[float | None, ...]
Spreads = tuple[Spread | None, ...]
Counts = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """The numbers of one layer at one step.

    Those of a side alone have one entry for each side. Those between sides have one for each side but the first. A side
    that is its own run's baseline has no numbers, because each would be 0 by definition; where the first side is a
    further one's own baseline, what lies between them is that side's own numbers, and is not said twice.

    Attributes:
        layer: what the layer is called in the comparison.
        filters: how many filters it has; how many channels, if only its feature maps are known.
        filters_measured: how many of them the numbers are of: of very large layers not all.
        function_change: `|F - F0| / |F0|` of the layer's output on the probe, against the side's own baseline.
        weight_change: `|W - W0| / |W0|` of its weights; where a normalisation follows, of filters scaled to length 1.
        filter_angle: the angle of each filter from its baseline, in degrees.
        update_ratio: `|W' - W| / |W|` of the last optimiser step before the side's step.
        mean_update_ratio: the same as a mean over the steps since the snapshot before, where single steps are unknown.
        cka_positions: debiased linear CKA of the output at the positions of the probe with the side's own baseline.
        noise: what independent noise of that shape gives as `cka_positions`, at most, 95 times of 100.
        dead_share: share of the channels that are nowhere above 0 on the probe behind the next activation.
        to_go: how far what the step shows is from what the side's last step shows, relative to the whole way.
        half_way: the side's first step from which on at most half of that way was to go.
        filters_left_out: how many filters are NaN, infinite or too short, and not in these numbers.
        channels_left_out: how many channels of the output are NaN or infinite, and not in these numbers.
        function_distance: `|F_B - F_A| / |F_A|` of a further side's output on the probe, against the first side's.
        weight_distance: `|W_B - W_A| / |W_A|` of a further side's weights.
        angle_between: the angle between each filter of a further side and the first side's, in degrees.
        cka_between: debiased linear CKA of a further side's output with the first side's.
        noise_between: what independent noise of that shape gives as `cka_between`.
        filters_left_out_between: how many filters are not in what lies between.
        channels_left_out_between: how many channels are not in what lies between.
        shown_weights_between: whether the distances are of the shown filters, as not all are stored at this step.
        shown_outputs_between: whether they are of the shown feature maps, as no other outputs are stored at this step.
        shown_weights: whether those of any side are of the shown filters.
        shown_outputs: whether those of any side are of the shown feature maps.
    """

    layer: str
    filters: int | None
    filters_measured: int | None
    function_change: Values
    weight_change: Values
    filter_angle: Spreads
    update_ratio: Values
    mean_update_ratio: Values
    cka_positions: Values
    noise: Values
    dead_share: Values
    to_go: Values
    half_way: tuple[int | None, ...]
    filters_left_out: Counts
    channels_left_out: Counts
    function_distance: Values
    weight_distance: Values
    angle_between: Spreads
    cka_between: Values
    noise_between: Values
    filters_left_out_between: Counts
    channels_left_out_between: Counts
    shown_weights_between: tuple[bool, ...]
    shown_outputs_between: tuple[bool, ...]
    shown_weights: bool
    shown_outputs: bool


def letter(side: int) -> str:
    """The letter that stands for a side in tables, tags and pages: A, B, C, ...

    Args:
        side: its position in the comparison, counted from 0.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'S27')
    """
    return chr(ord("A") + side) if side < 26 else f"S{side + 1}"


def rows_at(of: SideBySide, distances: Distances, step: int) -> list[Row]:
    """The numbers at a step of a comparison: one row for each layer.

    Args:
        of: the sides, which get notes on what the numbers at their last step are of.
        distances: how far the further sides are from the first.
        step: the step.
    """
    between = distances.stored(step)
    rows = []
    for layer in of.layers:
        further = [between[side, layer.name] for side in range(1, len(of.sides))]
        rows.append(_row(of, distances, layer, step, further=further))
    if step == of.steps[-1]:
        _note_what_is_shown(of, distances, rows)
    return rows


def _row(of: SideBySide, distances: Distances, layer: LayerMatch, step: int, *, further: Sequence[Between]) -> Row:
    def spreads(number: str) -> Spreads:
        return tuple(own_number(of, side, layer, number, step) for side in range(len(of.sides)))

    def values(number: str) -> Values:
        return tuple(None if spread is None else spread.mean for spread in spreads(number))

    def left_out(*beside: str) -> Counts:
        sides = range(len(of.sides))
        return tuple(max(_left_out(of, side, layer, step, number) for number in beside) for side in sides)

    known = [(side, chosen, layer.names[side]) for side, chosen in enumerate(of.sides)]
    courses = [dict(distances.settling.curve(side, layer.name)) for side in range(len(of.sides))]
    held = [_held(course, of.step_of(side, step)) for side, course in enumerate(courses)]
    cka = values("cka_positions")
    return Row(
        layer=layer.name,
        filters=_count(of, layer),
        filters_measured=_count_measured(of, layer),
        function_change=values("function_change"),
        weight_change=values("weight_change"),
        filter_angle=spreads("filter_angle"),
        update_ratio=values("update_ratio"),
        mean_update_ratio=values("mean_update_ratio"),
        cka_positions=cka,
        noise=tuple(
            None if cka[side] is None or name is None else apart.noise_of(chosen, name) for side, chosen, name in known
        ),
        dead_share=values("dead_share"),
        to_go=tuple(held),
        half_way=tuple(distances.settling.half_way(side, layer.name) for side in range(len(of.sides))),
        filters_left_out=left_out("weight_change"),
        channels_left_out=left_out("function_change", "dead_share"),
        function_distance=tuple(found.function for found in further),
        weight_distance=tuple(found.weights for found in further),
        angle_between=tuple(found.angle for found in further),
        cka_between=tuple(found.cka for found in further),
        noise_between=tuple(found.noise for found in further),
        filters_left_out_between=tuple(found.filters_left_out for found in further),
        channels_left_out_between=tuple(found.channels_left_out for found in further),
        shown_weights_between=tuple(found.shown_weights for found in further),
        shown_outputs_between=tuple(found.shown_outputs for found in further),
        shown_weights=any(found.shown_weights for found in further),
        shown_outputs=any(found.shown_outputs for found in further),
    )


def own_number(of: SideBySide, side: int, layer: LayerMatch, number: str, step: int) -> Spread | None:
    """A number of a side alone at a step, as it is spread over a layer; None where there is none, or it means nothing.

    Args:
        of: the sides.
        side: which of them, counted from 0.
        layer: one of the layers.
        number: its full name.
        step: a step of the comparison.
    """
    run, name, own = of.sides[side].run, layer.names[side], of.step_of(side, step)
    if run is None or name is None or own is None or of.is_baseline(side):
        return None
    at = run.measured_at(number, name, own)
    return None if at is None else run.summary(at).numbers[number][name]


def _left_out(of: SideBySide, side: int, layer: LayerMatch, step: int, number: str) -> int:
    """What is left out of a number, at the step that it is of: a count that is 0 is not stored."""
    run, name, own = of.sides[side].run, layer.names[side], of.step_of(side, step)
    if run is None or name is None or own is None or of.is_baseline(side):
        return 0
    at = run.measured_at(number, name, own)
    count = _FILTERS if number == "weight_change" else _CHANNELS
    found = None if at is None else run.summary(at).numbers.get(count, {}).get(name)
    return 0 if found is None else int(found.mean)


def _held(course: Mapping[int, float], own: int | None) -> float | None:
    """The value at the nearest step that is not after a side's own."""
    at = max((step for step in course if own is not None and step <= own), default=None)
    return None if at is None else course[at]


def _count(of: SideBySide, layer: LayerMatch) -> int | None:
    """How many filters a layer has; channels where only its feature maps are known.

    Args:
        of: the sides.
        layer: one of the layers.
    """
    for side, name in zip(of.sides, layer.names, strict=True):
        if name is None:
            continue
        shape = filters_shape(side, name)
        if shape is not None:
            return shape[0]
        if side.run is not None and (maps := side.run.layer(name).output_shape) is not None:
            return maps[1]
    return None


def _count_measured(of: SideBySide, layer: LayerMatch) -> int | None:
    """How many filters of a layer are measured, by the first side that knows.

    Args:
        of: the sides.
        layer: one of the layers.
    """
    for side, name in zip(of.sides, layer.names, strict=True):
        measured = None if side.run is None or name is None else side.run.measured_layer(name)
        if measured is not None and measured.filters is not None:
            return len(measured.filters)
    return _count(of, layer)


def _note_what_is_shown(of: SideBySide, distances: Distances, rows: Sequence[Row]) -> None:
    for parts, of_what in (
        ([row.layer for row in rows if row.shown_weights], "filters"),
        ([row.layer for row in rows if row.shown_outputs], "feature maps"),
    ):
        if parts:
            of.note(
                f"the distances between the sides are of the shown {of_what} of {', '.join(parts)}: all "
                "are stored at a run's baseline and last step only"
            )
    by_filters = [
        row.layer
        for row in rows
        if any(distances.settling.of_filters(side, row.layer) for side in range(len(of.sides)))
    ]
    if by_filters and any(row.layer not in by_filters for row in rows if any(at is not None for at in row.half_way)):
        of.note(f"half way is of the shown filters of {', '.join(by_filters)}, and of the shown feature maps of others")


@dataclass(frozen=True)
class Column:
    """A number of the rows, as tables show it.

    Attributes:
        number: the name of the row's attribute.
        word: its heading, without the sides' letters.
        unit: what stands behind the word: %, °, or nothing.
        left_out: the row's attribute that counts what is not in the number; empty where its spread knows.
        between: whether it lies between the first side and a further one.
        noise: the row's attribute that says what noise gives; empty where that means nothing.
        shown: the row's attribute that says whether the number is of what is shown; empty where it never is.
    """

    number: str
    word: str
    unit: str = ""
    left_out: str = ""
    between: bool = False
    noise: str = ""
    shown: str = ""

    def heading(self, rows: Sequence[Row], at: int) -> str:
        """The word of its heading; another one where the numbers are of what is shown.

        Args:
            rows: of all layers.
            at: the position in the rows' numbers.
        """
        return f"shown {self.word}" if self.shown and any(getattr(row, self.shown)[at] for row in rows) else self.word

    def value(self, row: Row, at: int) -> float | None:
        """The number as it is shown, in its unit: of a spread the median; None where there is none.

        Args:
            row: of a layer.
            at: the position in the row's numbers.
        """
        found: Spread | float | None = getattr(row, self.number)[at]
        if isinstance(found, Spread):
            found = None if math.isnan(found.median) and not found.left_out else found.median
        return found if found is None or self.unit != "%" else 100.0 * found

    def missing(self, row: Row, at: int) -> tuple[int, int | None]:
        """How many filters or channels are not in the number, and of how many.

        Args:
            row: of a layer.
            at: the position in the row's numbers.
        """
        found = getattr(row, self.number)[at]
        if isinstance(found, Spread):
            return found.left_out, found.finite + found.left_out
        count = row.filters_measured if self.left_out.startswith(_FILTERS) else row.filters
        return (getattr(row, self.left_out)[at] if self.left_out else 0), count

    def text(self, row: Row, at: int, show: Callable[[float | None], str]) -> str:
        """The number, with how many are left out, and whether noise gives as much.

        Args:
            row: of a layer.
            at: the position in the row's numbers.
            show: a function that gives the text of a number.
        """
        beside = [text for text in (self.left_out_text(row, at), "noise" if self.is_noise(row, at) else "") if text]
        return show(self.value(row, at)) + "".join(f" ({text})" for text in beside)

    def left_out_text(self, row: Row, at: int) -> str:
        """How many filters or channels are not in the number, in words; empty where all are.

        Args:
            row: of a layer.
            at: the position in the row's numbers.
        """
        count, of = self.missing(row, at)
        return f"{count}{'' if of is None else f' of {of}'} left out" if count else ""

    def is_noise(self, row: Row, at: int) -> bool:
        """Whether the number is within what independent noise of that shape gives.

        Args:
            row: of a layer.
            at: the position in the row's numbers.
        """
        value, band = self.value(row, at), getattr(row, self.noise)[at] if self.noise else None
        return value is not None and band is not None and abs(value) <= band


_FILTERS, _CHANNELS = "filters_left_out", "channels_left_out"
_SHOWN_WEIGHTS, _SHOWN_OUTPUTS = "shown_weights_between", "shown_outputs_between"
OF_A_SIDE = (
    Column("function_change", "output", "%", _CHANNELS),
    Column("weight_change", "weights", "%", _FILTERS),
    Column("filter_angle", "turned", "°"),
    Column("update_ratio", "update", "%"),
    Column("mean_update_ratio", "mean update", "%"),
    Column("cka_positions", "CKA", "", _CHANNELS, noise="noise"),
    Column("dead_share", "dead", "%", _CHANNELS),
    Column("half_way", "half way"),
)
BETWEEN = (
    Column("function_distance", "output", "%", f"{_CHANNELS}_between", between=True, shown=_SHOWN_OUTPUTS),
    Column("weight_distance", "weights", "%", f"{_FILTERS}_between", between=True, shown=_SHOWN_WEIGHTS),
    Column("angle_between", "turned", "°", between=True, shown=_SHOWN_WEIGHTS),
    Column("cka_between", "CKA", "", f"{_CHANNELS}_between", True, "noise_between", _SHOWN_OUTPUTS),
)
# A table has room for a few; files, curves and `run.over_steps` have all.
_LEFT_TO_OTHERS = ("update_ratio", "mean_update_ratio", "half_way")
# Where the left one is known, the right one says little more.
_INSTEAD = {"function_change": "weight_change", "function_distance": "weight_distance"}


def rows_table(rows: Sequence[Row], sides: int) -> Table:
    """The rows as a table: one column for each number and side. A column without any number is left out.

    Args:
        rows: the rows.
        sides: how many sides there are.
    """
    columns: list[str] = ["layer"]
    cells: list[list[Any]] = [[row.layer for row in rows]]
    for column, side, at in shown_columns(rows, sides):
        whose = f"{letter(0)}-{letter(side)}" if column.between else letter(side)
        columns.append(f"{column.heading(rows, at)} {whose} {column.unit}".strip())
        cells.append(
            [
                column.text(row, at, cell_text)
                if column.missing(row, at)[0] or column.is_noise(row, at)
                else column.value(row, at)
                for row in rows
            ]
        )
    return Table(tuple(columns), tuple(zip(*cells, strict=True)))


def shown_columns(rows: Sequence[Row], sides: int) -> Iterator[tuple[Column, int, int]]:
    """The columns of a table for people: those that have a number, and not two that say about the same.

    How far the weights moved is shown where it is not known how far the output did.

    Args:
        rows: the rows.
        sides: how many sides there are.

    Yields:
        A column, the side that it is of, counted from 0, and the position of that side in the row's numbers.
    """
    known = set()
    for column in (*OF_A_SIDE, *BETWEEN):
        for side in range(1 if column.between else 0, sides):
            at = side - 1 if column.between else side
            values = [column.value(row, at) for row in rows]
            nothing = all(value is None for value in values) or (column.number == "dead_share" and not any(values))
            if nothing or column.number in _LEFT_TO_OTHERS or (column.number, side) in known:
                continue
            known.add((_INSTEAD.get(column.number), side))
            yield column, side, at


def rows_csv(rows: Sequence[Row], sides: int) -> str:
    """The rows as CSV text: one column for each number and side (`weight_change_A`, `filter_angle_B_median`, ...).

    Args:
        rows: the rows.
        sides: how many sides there are.
    """
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"layer": row.layer, "filters": row.filters}
        for name, values in vars(row).items():
            if isinstance(values, tuple):
                first = sides - len(values)  # what lies between the sides has no entry for the first
                for side, value in enumerate(values, start=first):
                    line.update(_columns(f"{name}_{letter(side)}", value))
        lines.append({**line, "shown_weights": row.shown_weights, "shown_outputs": row.shown_outputs})
    columns = tuple(dict.fromkeys(column for line in lines for column in line))
    return Table(columns, tuple(tuple(line.get(column) for column in columns) for line in lines)).to_csv()


def plain(value: Any) -> Any:
    """The same as mappings, lists and numbers for JSON. What is not finite becomes None.

    Args:
        value: rows, spreads, and mappings and lists of them.
    """
    if isinstance(value, (Spread, Row)):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(name: str, value: Spread | float | None) -> dict[str, float]:
    """A number as one column, a spread as five, nothing as none."""
    if isinstance(value, Spread):
        parts = {"mean": value.mean, "lower_quartile": value.lower, "median": value.median}
        parts |= {"upper_quartile": value.upper, "left_out": value.left_out}
        return {f"{name}_{part}": number for part, number in parts.items()}
    return {} if value is None else {name: value}

"""The rows of a comparison, one for each layer: how they are made, and how they are written as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnlog.comparison.between import Between, Distances
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import LayerMatch, filters_shape
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.runs.run import NUMBER, Measure
from cnnlog.runs.spread import Spread
from cnnlog.runs.table import Table

# The numbers of a side alone, and the kind that a step must hold to have them
_SHOWN_BY: Mapping[Measure, Kind] = {
    "cosine": Kind.FILTERS,
    "l2": Kind.FILTERS,
    "update": Kind.FILTERS,
    "dead_share": Kind.FEATURE_MAPS,
    "cka": Kind.FEATURE_MAPS,
}


@dataclass(frozen=True)
class Row:
    """The numbers of one layer at one step.

    Those of a side alone have one entry for each side. Those between sides have one for each side but the first.

    Attributes:
        layer: what the layer is called in the comparison.
        filters: how many filters it has; how many channels, if only its feature maps are known.
        drift_cosine: cosine distance of each side's filters from the side's own baseline.
        drift_l2: `|filter - baseline| / |baseline|` of each side's filters, with the side's own baseline.
        update_l2: `|filter - before| / |before|` of each side's filters, with the side's step before.
        dead_share: share of each side's channels that are nowhere above 0 on the probe.
        cka: linear CKA of each side's feature maps with those of the side's own baseline.
        distance_cosine: cosine distance of each further side's filters from the first side's.
        distance_l2: `|further - first| / |first|` of each further side's filters.
        cka_between: linear CKA of each further side's shown feature maps with the first side's.
        shown_only: whether the distances are of the shown filters, because not all filters are stored at this step.
    """

    layer: str
    filters: int | None
    drift_cosine: tuple[Spread | None, ...]
    drift_l2: tuple[Spread | None, ...]
    update_l2: tuple[Spread | None, ...]
    dead_share: tuple[float | None, ...]
    cka: tuple[float | None, ...]
    distance_cosine: tuple[Spread | None, ...]
    distance_l2: tuple[Spread | None, ...]
    cka_between: tuple[float | None, ...]
    shown_only: bool


def letter(side: int) -> str:
    """The letter that stands for a side in tables, tags and pages: A, B, C, ...

    Args:
        side: its position in the comparison, counted from 0.
    """
    return chr(ord("A") + side) if side < 26 else f"S{side + 1}"


def rows_at(of: SideBySide, distances: Distances, step: int) -> list[Row]:
    """The numbers at a step of a comparison: one row for each layer.

    Args:
        of: the sides, which get a note if the distances at their last step are of the shown filters only.
        distances: how far the further sides are from the first.
        step: the step.
    """
    everything = [of.all_filters(side, step) for side in range(len(of.sides))]
    rows = [_row(of, list(distances.of_all_filters(layer, step, everything)), layer, step) for layer in of.layers]
    parts = [row.layer for row in rows if row.shown_only]
    if parts and step == of.steps[-1]:
        of.note(
            f"the distances between the sides are of the shown filters of {', '.join(parts)}: all "
            "are stored at a run's baseline and last step only"
        )
    return rows


def _row(of: SideBySide, further: Sequence[Between], layer: LayerMatch, step: int) -> Row:
    numbers = {m: [_number(of, side, layer, m, step) for side in range(len(of.sides))] for m in _SHOWN_BY}
    return Row(
        layer=layer.name,
        filters=_count(of, layer),
        drift_cosine=tuple(numbers["cosine"]),
        drift_l2=tuple(numbers["l2"]),
        update_l2=tuple(numbers["update"]),
        dead_share=tuple(None if spread is None else spread.mean for spread in numbers["dead_share"]),
        cka=tuple(None if spread is None else spread.mean for spread in numbers["cka"]),
        distance_cosine=tuple(between.cosine for between in further),
        distance_l2=tuple(between.l2 for between in further),
        cka_between=tuple(between.cka for between in further),
        shown_only=any(between.shown_only for between in further),
    )


def _number(of: SideBySide, side: int, layer: LayerMatch, measure: Measure, step: int) -> Spread | None:
    """A number of a side alone, as it is spread over a layer's channels.

    Args:
        of: the sides.
        side: its number; 0 is the first one.
        layer: one of the layers.
        measure: which number.
        step: of the comparison.
    """
    chosen, name = of.sides[side], layer.names[side]
    if name is None:
        return None
    if chosen.run is None:
        maps = chosen.feature_maps.get(name)
        return Spread.of(drift.dead_share(maps)) if measure == "dead_share" and maps is not None else None
    at = of.holding(side, layer, _SHOWN_BY[measure], step)
    return None if at is None else chosen.run.summary(at).numbers.get(NUMBER[measure], {}).get(name)


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


def rows_table(rows: Sequence[Row], sides: int) -> Table:
    """The rows as a table: one column for each number and side, with means over a layer's channels.

    Args:
        rows: the rows.
        sides: how many sides there are.
    """
    names = [letter(side) for side in range(sides)]
    columns = [
        "layer",
        "filters",
        *(f"drift {name}" for name in names),
        *(f"{names[0]} to {name}" for name in names[1:]),
        *(f"dead {name}" for name in names),
        *(f"CKA {name}" for name in names),
        *(f"CKA {names[0]}-{name}" for name in names[1:]),
    ]
    cells = [
        (
            row.layer,
            row.filters,
            *(mean(spread) for spread in row.drift_cosine),
            *(mean(spread) for spread in row.distance_cosine),
            *row.dead_share,
            *row.cka,
            *row.cka_between,
        )
        for row in rows
    ]
    return Table(tuple(columns), tuple(cells))


def rows_csv(rows: Sequence[Row], sides: int) -> str:
    """The rows as CSV text: one column for each number and side (`drift_cosine_A_mean`, `cka_B`, ...).

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
        lines.append({**line, "shown_only": row.shown_only})
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


def mean(spread: Spread | None) -> float | None:
    """The mean of a spread; None if there is no spread, or nothing finite in it.

    Args:
        spread: of a number over channels.
    """
    return None if spread is None or math.isnan(spread.mean) else spread.mean


def _columns(name: str, value: Spread | float | None) -> dict[str, float]:
    """A number as one column, a spread as four, nothing as none.

    Args:
        name: of the number.
        value: the number; None leaves it out.
    """
    if isinstance(value, Spread):
        quartiles = {"lower_quartile": value.lower, "median": value.median, "upper_quartile": value.upper}
        return {f"{name}_{part}": number for part, number in {"mean": value.mean, **quartiles}.items()}
    return {} if value is None else {name: value}

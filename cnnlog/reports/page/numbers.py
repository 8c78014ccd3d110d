"""The numbers of a page: curves over steps, the table of layers, and the filters that turned most."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from cnnlog.comparison.comparison import Comparison
from cnnlog.comparison.pictures import Key
from cnnlog.comparison.rows import Column, Row, shown_columns
from cnnlog.kinds import Kind
from cnnlog.reports.page import charts
from cnnlog.reports.page.film import Film
from cnnlog.reports.page.lives import of_channels
from cnnlog.reports.page.reels import layout
from cnnlog.runs.spread import Spread

_MOVED = 60

_BASE = "from the side's own baseline"
_MAPS, _FILTERS = "feature maps (the table's number is of all channels)", "filters (the table's number is of all)"

# The measures of a chart: name, title, what it is and its unit, and what it is multiplied with.
_MEASURES = (
    ("function_change", "Output", f"change of a layer's output on the probe {_BASE}, |F − F₀| / |F₀|, in %", 100),
    (
        "weight_change",
        "Weights",
        f"change of a layer's weights {_BASE}, |W − W₀| / |W₀|, in %; where a normalisation follows, of filters scaled "
        "to length 1",
        100,
    ),
    ("filter_angle", "Angle", f"median angle of a layer's filters {_BASE}, in degrees (0 to 180)", 1),
    (
        "update_ratio",
        "Update",
        "|W after − W before| / |W before| of the last optimiser step, in % (0.1 is usual)",
        100,
    ),
    (
        "mean_update_ratio",
        "Mean update",
        "|W − W of the snapshot before| / |W before|, divided by its steps, in %",
        100,
    ),
    ("to_go", "Way to go", "distance to the last step over the whole way, in %; of the shown maps, else filters", 100),
    ("dead_share", "Dead", "share of channels nowhere above 0 on the probe behind the next activation, in %", 100),
    (
        "cka_positions",
        "CKA with the baseline",
        "debiased linear CKA of the output at the positions of the probe: 1 is alike, about 0 is noise",
        1,
    ),
    # Those of the table are known at the first and the last step alone; a curve needs what every step stores.
    ("shown_function_distance", "Shown output, from A", f"|F − F of A| / |F of A| of the shown {_MAPS}, in %", 100),
    ("shown_weight_distance", "Shown weights, from A", f"|W − W of A| / |W of A| of the shown {_FILTERS}, in %", 100),
    ("shown_angle_between", "Shown angle, from A", f"median angle of the shown {_FILTERS} from A's, in degrees", 1),
    ("shown_cka_between", "Shown CKA with A", f"debiased linear CKA of the shown {_MAPS} with those of A", 1),
)

# What the head of a table's column says when one points at it.
_TITLES = {
    "function_change": f"change of the output on the probe {_BASE}, |F − F₀| / |F₀|",
    "weight_change": f"change of the weights {_BASE}, |W − W₀| / |W₀|",
    "filter_angle": f"angle of the filters {_BASE}, median (quartiles)",
    "update_ratio": "|W after − W before| / |W before| of the last optimiser step",
    "mean_update_ratio": "|W − W of the snapshot before| / |W before|, divided by its steps",
    "cka_positions": f"debiased linear CKA at the positions of the probe {_BASE}; below it what noise gives",
    "dead_share": "share of channels nowhere above 0 on the probe behind the next activation",
    "half_way": "the first step from which on at most half of the way was to go",
    "function_distance": "|F − F of A| / |F of A| of the output on the probe",
    "weight_distance": "|W − W of A| / |W of A|",
    "angle_between": "angle of the filters from those of the first side, median (quartiles)",
    "cka_between": "debiased linear CKA with the first side; below it what noise gives",
}


def curves(comparison: Comparison, sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart for each measure and side, over all steps.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
    """
    found = comparison.curves()
    steps = float(comparison.steps[0]), float(comparison.steps[-1])
    measures = []
    for name, title, about, factor in _MEASURES:
        by_layer = found.get(name, {})
        lines = {
            side["index"]: [
                (layer.name, number, _times(factor, by_layer[layer.name][side["label"]]))
                for number, layer in enumerate(comparison.layers)
                if side["label"] in by_layer.get(layer.name, {})
            ]
            for side in sides
            if comparison.sides[side["index"]].step is None
        }
        everything = [curve for some in lines.values() for _, _, curve in some]
        if not everything:
            continue
        values = charts.extent(everything)
        panels = [
            {"side": sides[index], "chart": charts.chart(some, steps=steps, values=values)}
            for index, some in lines.items()
            if some
        ]
        measures.append({"name": name, "title": title, "about": about, "panels": panels})
    return measures


def curve_points(comparison: Comparison, sides: list[dict[str, Any]]) -> dict[str, Any]:
    """For each measure, for each layer and side, its curve: steps and values.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
    """
    found = comparison.curves()
    return {
        name: [
            [
                [
                    [step, short(value)]
                    for step, value in _times(factor, found[name].get(layer.name, {}).get(side["label"], ()))
                ]
                for side in sides
            ]
            for layer in comparison.layers
        ]
        for name, _, _, factor in _MEASURES
        if name in found
    }


def _times(factor: float, curve: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """A curve in the unit that is shown."""
    return [(step, factor * value) for step, value in curve]


def table(comparison: Comparison) -> dict[str, Any]:
    """The table of layers, at the last step. A column that would be empty is left out.

    Args:
        comparison: what the page shows.
    """
    rows = comparison.rows()
    head: list[dict[str, Any]] = [{"text": "layer", "title": "", "side": None}]
    head += [{"text": "filters", "title": "", "side": None}]
    columns: list[list[tuple[str, str]]] = [[(three_digits_or_whole(row.filters), "") for row in rows]]
    for column, side, at in shown_columns(rows, len(comparison.sides)):
        text = f"{column.heading(rows, at)}{' from A' if column.between else ''} {column.unit}".strip()
        head.append({"text": text, "title": _TITLES[column.number], "side": side})
        columns.append([_cell(column, row, at) for row in rows])
    caption = f"At the last step. Each number is {_BASE}, or from the first side (from A)."
    if any(row.shown_weights or row.shown_outputs for row in rows):
        caption += " Where a heading says shown, a side stores no more than the shown filters and maps at that step."
    return {
        "head": head,
        "rows": [
            {"number": number, "name": row.layer, "cells": [cells[number] for cells in columns]}
            for number, row in enumerate(rows)
        ],
        "caption": caption,
    }


def _cell(column: Column, row: Row, at: int) -> tuple[str, str]:
    """A number, and below it the quartiles around it, or what noise gives, and how many are left out."""
    found = getattr(row, column.number)[at]
    below = []
    if isinstance(found, Spread) and found.finite > 1:
        below.append(f"{three_digits_or_whole(found.lower)} to {three_digits_or_whole(found.upper)}")
    band = getattr(row, column.noise)[at] if column.noise else None
    if band is not None and math.isfinite(band):
        below.append(f"noise ±{three_digits_or_whole(band)}")
    if left_out := column.left_out_text(row, at):
        below.append(left_out)
    return three_digits_or_whole(column.value(row, at)), "; ".join(below)


def moved_rows(comparison: Comparison, film: Film) -> list[list[list[Any]]]:
    """The shown filters that turned farthest from their baseline, at the last step.

    Args:
        comparison: the comparison.
        film: the pictures, which say which filters are shown.

    Returns:
        For each side a list, the farthest first: the layer's position, the filter's number, its angle in degrees.
    """
    sides: list[list[list[Any]]] = []
    for index in range(len(comparison.sides)):
        rows: list[list[Any]] = []
        of = comparison.sides[index]
        if of.run is not None and of.step == of.run.manifest.baseline_step:
            sides.append([])  # each of its angles is 0 by definition
            continue
        for number in range(len(comparison.layers)):
            reel = film.reels.get(Key(number, Kind.FILTERS, index))
            angles = of_channels(comparison, number, index, "angle", comparison.steps[-1])
            if reel is None or reel.last is None or angles is None:
                continue
            shown = angles[: layout(reel.last)["n"]]
            rows += [[number, channel, short(v)] for channel, v in enumerate(shown) if math.isfinite(v)]
        rows.sort(key=lambda row: (-row[2], row[0], row[1]))
        # Enough for the sheet of all layers, and of any one of them.
        taken: dict[int, int] = {}
        kept = []
        for place, row in enumerate(rows):
            taken[row[0]] = taken.get(row[0], 0) + 1
            if place < _MOVED or taken[row[0]] <= _MOVED // 2:
                kept.append(row)
        sides.append(kept)
    return sides


def moved(comparison: Comparison, sides: list[dict[str, Any]], rows: list[list[list[Any]]]) -> dict[str, Any]:
    """The table of the filters that turned most.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
        rows: what `moved_rows` gives.
    """
    with_rows = [side for side in sides if rows[side["index"]]]
    first = max(with_rows, key=lambda side: rows[side["index"]][0][2], default=None)
    listed = []
    for number, channel, _ in rows[first["index"]][:20] if first else []:
        turned = []
        for side in with_rows:
            values = of_channels(comparison, number, side["index"], "angle", comparison.steps[-1])
            angle = values[channel] if values is not None and channel < len(values) else None
            turned.append(three_digits_or_whole(angle))
        listed.append({"layer": comparison.layers[number].name, "filter": channel, "turned": turned})
    about = "Sorted by the angle from the own baseline at the last step, in degrees; of the filters that are shown."
    if not with_rows:
        about = "No side has stored how far its filters turned."
    return {"about": about, "sides": with_rows, "first": first["index"] if first else 0, "rows": listed}


def three_digits_or_whole(value: float | None) -> str:
    """Three digits, of whole numbers all; a dash where there is no number."""
    if value is not None and math.isfinite(value) and float(value).is_integer():
        return f"{value:,.0f}".replace("-", "−")
    if value is not None and 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}".replace("-", "−")
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def short(value: float | None) -> float | None:
    """Four digits; None where there is no number.

    Args:
        value: the number; None without one.
    """
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")

"""The numbers of a page: curves over steps, the table of layers, and the filters that moved most."""

from __future__ import annotations

import math
from typing import Any

from cnnlog.comparison.comparison import Comparison
from cnnlog.comparison.pictures import Key
from cnnlog.kinds import Kind
from cnnlog.reports.page import charts
from cnnlog.reports.page.film import Film
from cnnlog.reports.page.lives import of_channels
from cnnlog.reports.page.reels import layout
from cnnlog.runs.spread import Spread

_MOVED = 60

_MEASURES = (
    ("drift_cosine", "Drift", "cosine distance of the filters from the side's own baseline, mean of a layer (0 to 2)"),
    ("drift_l2", "Drift, relative", "|w − baseline| / |baseline|, mean of a layer's filters"),
    ("update_l2", "Update size", "|w − step before| / |step before|, mean of a layer's filters"),
    ("distance_cosine", "Distance from A", "cosine distance of the shown filters from those of the first side"),
    ("dead_share", "Dead share", "share of channels that are nowhere above 0 on the probe (0 to 1)"),
    ("cka", "CKA with the baseline", "linear CKA of the feature maps on the probe with those of the own baseline"),
    ("cka_between", "CKA with A", "linear CKA of the shown feature maps with those of the first side"),
)


def curves(comparison: Comparison, sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart for each measure and side, over all steps.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
    """
    found = comparison.curves()
    steps = float(comparison.steps[0]), float(comparison.steps[-1])
    measures = []
    for name, title, about in _MEASURES:
        by_layer = found.get(name, {})
        lines = {
            side["index"]: [
                (layer.name, number, by_layer[layer.name][side["label"]])
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
                [[step, short(value)] for step, value in found[name].get(layer.name, {}).get(side["label"], ())]
                for side in sides
            ]
            for layer in comparison.layers
        ]
        for name, _, _ in _MEASURES
        if name in found
    }


def table(comparison: Comparison) -> dict[str, Any]:
    """The table of layers, at the last step. A column that would be empty is left out.

    Args:
        comparison: what the page shows.
    """
    rows = comparison.rows()
    columns: list[tuple[str, str, int | None, list[Any]]] = [("filters", "", None, [row.filters for row in rows])]
    for text, title, name, between in (
        ("drift", "cosine distance from the side's own baseline, mean (quartiles)", "drift_cosine", False),
        ("from A", "cosine distance from the first side, mean (quartiles)", "distance_cosine", True),
        ("dead share", "share of channels nowhere above 0 on the probe", "dead_share", False),
        ("CKA", "linear CKA with the side's own baseline", "cka", False),
        ("CKA with A", "linear CKA with the first side, of the shown feature maps", "cka_between", True),
    ):
        for side in range(1 if between else 0, len(comparison.sides)):
            cells = [getattr(row, name)[side - 1 if between else side] for row in rows]
            if any(cell is not None for cell in cells):
                columns.append((text, title, side, cells))
    head: list[dict[str, Any]] = [{"text": "layer", "title": "", "side": None}]
    head += [{"text": text, "title": title, "side": side} for text, title, side, _ in columns]
    caption = (
        "At the last step. Means of a layer's filters, with their quartiles; drift is from the side's own baseline."
    )
    if any(row.shown_only for row in rows):
        caption += " Distances are of the shown part of the filters where a side stores no more at that step."
    return {
        "head": head,
        "rows": [
            {"number": number, "name": row.layer, "cells": [_cell(cells[number]) for *_, cells in columns]}
            for number, row in enumerate(rows)
        ],
        "caption": caption,
    }


def _cell(value: Spread | float | None) -> tuple[str, str]:
    """A number, and the quartiles around it where it is a mean.

    Args:
        value: a number, its spread over channels, or None.
    """
    if isinstance(value, Spread):
        return as_text(value.mean), f"{as_text(value.lower)} to {as_text(value.upper)}" if value.finite > 1 else ""
    return as_text(value), ""


def moved_rows(comparison: Comparison, film: Film) -> list[list[list[Any]]]:
    """The shown filters that moved farthest from their baseline, at the last step.

    Args:
        comparison: the comparison.
        film: the pictures, which say which filters are shown.

    Returns:
        For each side a list, the farthest first: the layer's position, the filter's number, its drift.
    """
    sides: list[list[list[Any]]] = []
    for index in range(len(comparison.sides)):
        rows: list[list[Any]] = []
        for number in range(len(comparison.layers)):
            reel = film.reels.get(Key(number, Kind.FILTERS, index))
            drift = of_channels(comparison, number, index, "cosine", comparison.steps[-1])
            if reel is None or reel.last is None or drift is None:
                continue
            shown = drift[: layout(reel.last)["n"]]
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
    """The table of the filters that moved most.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
        rows: what `moved_rows` gives.
    """
    with_rows = [side for side in sides if rows[side["index"]]]
    first = max(with_rows, key=lambda side: rows[side["index"]][0][2], default=None)
    listed = []
    for number, channel, _ in rows[first["index"]][:20] if first else []:
        drifts = []
        for side in with_rows:
            values = of_channels(comparison, number, side["index"], "cosine", comparison.steps[-1])
            drifts.append(as_text(values[channel]) if values is not None and channel < len(values) else "–")
        listed.append({"layer": comparison.layers[number].name, "filter": channel, "drift": drifts})
    about = "Sorted by cosine distance from the own baseline at the last step; of the filters that are shown."
    if not with_rows:
        about = "No side has stored how far its filters moved."
    return {"about": about, "sides": with_rows, "first": first["index"] if first else 0, "rows": listed}


def as_text(value: float | None) -> str:
    """Three digits; a dash where there is no number.

    Args:
        value: the number; None without one.
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def short(value: float | None) -> float | None:
    """Four digits; None where there is no number.

    Args:
        value: the number; None without one.
    """
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")

"""What the oracle computes itself of a comparison: what lies between two sides, what noise gives, how far was to go."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from support import formulas
from support.oracle import Page
from support.oracle_checks import Place, Tally
from support.oracle_pages import Side

Array = npt.NDArray[Any]
Curve = list[tuple[int, float]]
BETWEEN = ("function_distance", "weight_distance", "angle_between", "cka_between")
SHOWN = tuple(f"shown_{measure}" for measure in BETWEEN)
_NOT_IN_PERCENT = ("angle_between", "cka_between")
_NOISE = 0.25
"""Two bands that are drawn differ by this share at most: either has a deviation of some percent."""


# --- curves ----------------------------------------------------------------------------------------------------------


def curves_of(name: str, sides: Sequence[Side], number: int) -> dict[str, Curve]:
    """The curves of a layer of one side that are of more than its own numbers: each step, and the value there."""
    first, side, found = sides[0], sides[number], dict[str, Curve]()
    if not side.stands:
        found["to_go"] = way(side, name)
    if number == 0 or first.stands:  # a side's own numbers say how far it is from its own baseline
        return found
    ends = (side.states[0].step, side.states[-1].step)
    for step in [state.step for state in side.states]:
        if step in ends:
            _add(found, "", measured(first, side, name, step), step)
        _add(found, "shown_", shown(first, side, name, step), step)
    return found


def _add(curves: dict[str, Curve], prefix: str, values: Mapping[str, float], step: int) -> None:
    for measure, value in values.items():
        curves.setdefault(prefix + measure, []).append((step, value))


def way(side: Side, name: str) -> Curve:
    """How far a layer had to go at each step: by its shown maps, else by its shown filters; nothing without either."""
    facts = side.facts(name, "layers")
    kinds = [
        kind for kind, shape in (("feature_maps", "output_shape"), ("filters", "weight_shape")) if facts.get(shape)
    ]
    if not kinds:
        return []
    steps = [(state.step, formulas.some_of(side.shown(name, kinds[0], state.step))) for state in side.states]
    return [(step, formulas.to_go(values, steps[0][1], steps[-1][1])) for step, values in steps]


def measured(first: Side, side: Side, name: str, step: int) -> dict[str, float]:
    """What lies between two sides: of all weights, and of the outputs at the positions of the probe."""
    last = len(first.facts(name)["weight_shape"]) == 2
    rows = (formulas.sampled(one.at(step).outputs[name], channels_last=last) for one in (first, side))
    weights = (one.at(step).weights[name] for one in (first, side))
    return {**_of_weights(*weights, normed=first.case.layers[name].norm), **_of_rows(*rows)}


def shown(first: Side, side: Side, name: str, step: int) -> dict[str, float]:
    """The same of the shown filters, and of the shown maps at 256 positions at most over all images."""
    facts, found = first.facts(name, "layers"), dict[str, float]()
    if facts.get("weight_shape"):
        filters = (one.shown(name, "filters", step) for one in (first, side))
        found |= _of_weights(*filters, normed=first.case.layers[name].norm)
    if facts.get("output_shape"):
        maps = (one.shown(name, "feature_maps", step) for one in (first, side))
        found |= _of_rows(*(formulas.sampled(one, channels_last=False, of_an_image=256) for one in maps))
    return found


def _of_weights(a: Array, b: Array, *, normed: bool) -> dict[str, float]:
    angles = formulas.filter_angle(a, b)
    angle = float(np.nanmedian(angles)) if np.isfinite(angles).any() else math.nan
    return {"weight_distance": formulas.weight_change(a, b, normalised=normed), "angle_between": angle}


def _of_rows(a: Array, b: Array) -> dict[str, float]:
    return {"function_distance": formulas.function_change(a, b), "cka_between": formulas.debiased_cka(a, b)}


def check_between_json(json: Mapping[str, Any], sides: Sequence[Side], tally: Tally) -> None:
    """The curves between sides and how far was to go in JSON, and what its rows say of these at the last step."""
    labels = [side["label"] for side in json["sides"]]
    for row in json["layers"]:
        name = row["layer"]
        for number, side in enumerate(sides):
            own = curves_of(name, sides, number)
            for measure in ("to_go", *BETWEEN, *SHOWN):
                points = json["curves"].get(measure, {}).get(name, {}).get(labels[number], [])
                place = Place(f"json curve {measure}", side.facts(name)["kind"], f"{name} of {labels[number]}")
                _check(points, own.get(measure, []), place, tally, rel=2e-5)
                if measure in BETWEEN and points:
                    value = row[measure][number - 1]
                    value = value["median"] if isinstance(value, dict) else value
                    if value != points[-1][1]:
                        tally.fault(place.what, place.where, f"it ends at {points[-1][1]}, and the row says {value}")
            _check_way(row, own.get("to_go", []), side, number, tally)
            _check_noise(row, sides, number, tally)


def _check_way(row: Mapping[str, Any], curve: Curve, side: Side, number: int, tally: Tally) -> None:
    place = Place("json to_go", side.facts(row["layer"])["kind"], row["layer"])
    found, expected = row["to_go"][number], curve[-1][1] if curve else math.nan
    tally.alike(expected, math.nan if found is None else found, place, rel=2e-5, least=1e-3)
    if row["half_way"][number] != formulas.half_way(curve):
        tally.fault("json half_way", place.where, f"{row['half_way'][number]}, not {formulas.half_way(curve)}")
    tally.count("json half_way", place.kind, 1, 0)


def _check_noise(row: Mapping[str, Any], sides: Sequence[Side], number: int, tally: Tally) -> None:
    """Beside each CKA stands what noise of its shape gives."""
    name, side = row["layer"], sides[number]
    kind, last = side.facts(name)["kind"], len(side.facts(name)["weight_shape"]) == 2
    rows = [formulas.sampled(one.states[-1].outputs[name], channels_last=last) for one in (sides[0], side)]
    of_all, both = rows[1].shape, int(formulas.finite_channels(*rows).sum())
    places = [("noise", number, "cka_positions", number, of_all)]
    places += [("noise_between", number - 1, "cka_between", number - 1, (len(rows[1]), both))] if number else []
    for what, at, beside, value_at, shape in places:
        if row[beside][value_at] is None and shape[0] >= 4:  # JSON has None for NaN, too
            continue
        found = math.nan if row[what][at] is None else row[what][at]
        expected = math.nan if row[beside][value_at] is None else formulas.noise_band(*shape)
        tally.alike(expected, found, Place(f"json {what}", kind, name), rel=_NOISE, least=1e-9)


def check_between_page(page: Page, sides: Sequence[Side], tally: Tally) -> None:
    """The same curves on a page, which have four digits. It shows those of what is shown, under that name alone."""
    names = [layer["name"] for layer in page.data["layers"]]
    for measure in BETWEEN:
        if measure in page.data["curves"]:
            tally.fault(f"page curve {measure}", "the page", "it has the name of the table's number")
    for at, name in enumerate(names):
        for number, side in enumerate(sides):
            own = curves_of(name, sides, number)
            for measure in ("to_go", *SHOWN):
                of_layers = page.data["curves"].get(measure)
                points = of_layers[at][number] if of_layers else []
                place = Place(f"page curve {measure}", side.facts(name)["kind"], name)
                factor = 1 if measure.endswith(_NOT_IN_PERCENT) else 100
                _check(points, [(step, factor * value) for step, value in own.get(measure, [])], place, tally, rel=6e-4)


def _check(points: Sequence[Sequence[Any]], own: Curve, place: Place, tally: Tally, *, rel: float) -> None:
    if [step for step, _ in points] != [step for step, _ in own]:
        tally.fault(place.what, place.where, f"steps {[step for step, _ in points]}, not {[step for step, _ in own]}")
        return
    found = [math.nan if value is None else value for _, value in points]
    tally.alike([value for _, value in own], found, place, rel=rel, least=1e-3)


# --- the table of a page ---------------------------------------------------------------------------------------------


def check_table(path: Path, json: Mapping[str, Any], tally: Tally) -> None:
    """The bands of noise that a page's table prints under a CKA are those of JSON, in three digits, in the same places.

    Args:
        path: of the page.
        json: the comparison's numbers, which are checked elsewhere.
        tally: counts.
    """
    (table,) = re.findall(r'<section aria-labelledby="h-table">(.*?)</section>', path.read_text("utf-8"), re.DOTALL)
    heads = [html.unescape(re.sub("<[^>]+>", "", head)) for head in re.findall('<th scope="col".*?</th>', table)]
    lines = re.findall(r'<tr><th scope="row">.*?</tr>', table, re.DOTALL)
    for row, line in zip(json["layers"], lines, strict=True):
        cells = re.findall("<td>(.*?)</td>", line, re.DOTALL)
        found = [float(n) for cell in cells for n in re.findall(r"noise ±([\d.e-]+)", cell.replace("−", "-"))]
        expected = list(_bands(row, heads))
        if len(found) != len(expected):
            tally.fault("page noise", row["layer"], f"{len(found)} bands are printed, not {len(expected)}")
            continue
        tally.alike(expected, found, Place("page noise", "all", row["layer"]), rel=6e-3, least=1e-9)


def _bands(row: Mapping[str, Any], heads: Sequence[str]) -> Iterator[float]:
    """What noise gives beside each CKA of a row, in the order of the columns: each side's, then those between."""
    wanted = [band for band in row["noise"] if band is not None]
    wanted += [band for band in row["noise_between"] if band is not None]
    if any("CKA" in head for head in heads):
        yield from wanted

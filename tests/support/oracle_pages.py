"""Compares a page and a comparison's JSON with what the oracle saw of the networks of all sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from support import formulas, oracle
from support.oracle import Page, Stored
from support.oracle_checks import Place, Tally, as_cells, numbers_of, shown_of, within_shades
from support.oracle_zoo import Case, State

Array = npt.NDArray[Any]
ROUNDED = 0.04
"""The ends of a page's ranges have four digits: of 62 shades that is less than this share of one."""

OF_A_SIDE = (
    *("function_change", "weight_change", "filter_angle", "update_ratio", "mean_update_ratio", "cka_positions"),
    "dead_share",
)
_IN_PERCENT = {"function_change", "weight_change", "update_ratio", "mean_update_ratio", "dead_share"}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its run, its network, and what was seen of it; at the baseline alone, one state."""

    run: Stored
    case: Case
    states: Sequence[State]

    def facts(self, name: str, which: str = "measured") -> dict[str, Any]:
        """What the manifest says of a layer; nothing of one that is not pictured, or not measured."""
        return next((layer for layer in self.run.manifest[which] if layer["name"] == name), {})

    def shown(self, name: str, kind: str, step: int) -> Array:
        return shown_of(self.run, self.facts(name, "layers"), self.at(step))[kind]

    def at(self, step: int) -> State:
        return self.states[0] if self.stands else next(state for state in self.states if state.step == step)

    @property
    def stands(self) -> bool:
        """Whether it is one step of a run, the same at every step of the comparison."""
        return len(self.states) == 1

    def numbers(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The numbers of a layer at each step."""
        facts = self.facts(name)
        for count, state in enumerate(self.states, start=1):
            yield state.step, numbers_of(name, facts, self.case.layers[name].norm, self.states[:count])


# --- pictures --------------------------------------------------------------------------------------------------------


def check_page(page: Page, sides: Sequence[Side], tally: Tally) -> None:
    """Every frame of every picture, its range, and the life of every filter."""
    names = [layer["name"] for layer in page.data["layers"]]
    for key in sorted({*_keys(names, sides)} ^ {*page.data["pictures"]}):
        tally.fault("page", key, "it is there or not, unlike the others")
    for key, picture in page.data["pictures"].items():
        name, kind, change = names[picture["layer"]], picture["kind"], picture["side"] is None
        number = int(key.rsplit("d", 1)[1]) if change else picture["side"]
        view = sides[0].facts(name, "layers")["view"] if kind == "filters" else None
        place = Place(f"page {kind}{' difference' if change else ''}", sides[0].facts(name)["kind"], key)
        for image, reel in enumerate(picture["reels"]):
            shows = [reel["steps"][frame] for frame in reel["at"]]
            if shows != page.data["steps"] and not sides[number].stands:
                tally.fault(place.what, key, f"the steps {page.data['steps']} show {shows}")
            try:
                frames = oracle.frames(page, reel)
            except AssertionError as error:
                tally.fault(place.what, key, str(error))
                continue
            for step, found in zip(reel["steps"], frames, strict=True):
                with np.errstate(invalid="ignore"):
                    shown = sides[number].shown(name, kind, step)
                    shown = shown - sides[0].shown(name, kind, step) if change else shown
                cells = _cells(shown, image, kind, view, reel, change=change)
                within_shades(found, cells, Place(place.what, place.kind, f"{key} at {step}"), tally, slack=ROUNDED)
            _check_range(reel, sides, (name, kind), place, tally, change=change)
    _check_lives(page, names, sides, tally)


def _keys(names: Sequence[str], sides: Sequence[Side]) -> Iterator[str]:
    for number, name in enumerate(names):
        facts = sides[0].facts(name, "layers")
        for kind, shape in (("filters", "weight_shape"), ("feature_maps", "output_shape")):
            if facts.get(shape) is not None:
                yield from (f"{number}-{kind}-s{side}" for side in range(len(sides)))
                yield from (f"{number}-{kind}-d{side}" for side in range(1, len(sides)))


def _cells(shown: Array, image: int, kind: str, view: str | None, reel: Mapping[str, Any], *, change: bool) -> Array:
    """The cells of a picture as a page shows them: the first ones, and averaged where there is no room."""
    layout = reel["layout"]
    shown = shown[image] if kind == "feature_maps" else shown
    shown = shown[: layout["n"]]
    if view == "slices":
        shown = shown[:, : layout["k"]]
    elif view == "rgb" and change:  # of three colours the one that changed most
        strongest = np.abs(shown).argmax(axis=1)
        shown = np.take_along_axis(shown, strongest[:, None], axis=1)
        view = "gray"
    cells = as_cells(shown, view)
    size = layout["h"], layout["w"]
    return cells if cells.shape[-2:] == size else formulas.area_means(cells, size)


def _check_range(
    reel: Mapping[str, Any], sides: Sequence[Side], of: tuple[str, str], place: Place, tally: Tally, *, change: bool
) -> None:
    """A channel has one range over all steps and sides, which just holds its values; all differences have one."""
    name, kind = of
    every = [side.shown(name, kind, state.step) for side in sides for state in side.states]
    values = np.stack([np.swapaxes(one, 0, 1) if kind == "feature_maps" else one for one in every])
    flat = np.moveaxis(np.where(np.isfinite(values), values, 0), 1, 0).reshape(values.shape[1], -1)
    signed = kind == "filters" or bool((flat < 0).any())
    peaks = np.abs(flat).max(axis=1) if signed else flat.max(axis=1)
    peaks = np.where(peaks > 0, peaks, np.median(peaks[peaks > 0]) if peaks.any() else 1.0)
    high = np.asarray(reel["high"], np.float64)
    if change:
        gains = peaks.max() / high
        if not ((gains == gains[0]).all() and np.isclose([1, 4, 16, 64], gains[0], rtol=1e-3).any()):
            tally.fault("page range", place.where, f"the largest range is {gains[0]:.4g} times that of differences")
        tally.count("page range", place.kind, len(high), 0)
        return
    tally.alike(peaks[: len(high)], high, Place("page range", place.kind, place.where), rel=6e-4, least=1e-30)
    if bool(reel["symmetric"]) != signed:
        tally.fault("page range", place.where, f"it is {'' if reel['symmetric'] else 'not '}symmetric")


def _check_lives(page: Page, names: Sequence[str], sides: Sequence[Side], tally: Tally) -> None:
    for number, of_sides in page.data["numbers"].items():
        for at, entry in of_sides.items():
            side, name = sides[int(at)], names[int(number)]
            own = dict(side.numbers(name))
            for measure, values in oracle.lives(page, entry).items():
                if measure not in ("norm", "angle", "active"):
                    continue
                lines = [_life(side, name, measure, step, own[step]) for step in entry["steps"]]
                expected = np.stack(lines)[:, : values.shape[1]]
                said = next(one for one in entry["measures"] if one["name"] == measure)
                span = (said["high"] - said["low"]) / 65534
                place = Place(f"page {measure}", side.facts(name)["kind"], name)
                slack = 1e-6 * max(abs(said["high"]), 1e-9)
                tally.alike(expected, values, place, rel=0.5 * span + slack, least=1)


def _life(side: Side, name: str, measure: str, step: int, numbers: Mapping[str, Any]) -> Array:
    if measure != "active":
        return np.asarray(numbers[{"norm": "filter_norm", "angle": "filter_angle"}[measure]])
    output = side.at(step).outputs[name]
    maps = output[:, :, output.shape[2] // 2] if output.ndim == 5 else output
    return np.asarray((maps > 0).mean(axis=(0, 2, 3)))


# --- numbers ---------------------------------------------------------------------------------------------------------


def check_curves(page: Page, sides: Sequence[Side], tally: Tally) -> None:
    """The points of a page's curves, which have four digits."""
    names = [layer["name"] for layer in page.data["layers"]]
    for measure, of_layers in page.data["curves"].items():
        if measure not in OF_A_SIDE:
            continue
        factor = 100 if measure in _IN_PERCENT else 1
        for name, of_sides in zip(names, of_layers, strict=True):
            for side, points in zip(sides, of_sides, strict=True):
                if side.stands:
                    continue
                place = Place(f"page curve {measure}", side.facts(name)["kind"], name)
                _check_curve(points, side, (name, measure, factor), place, tally, rel=6e-4)


def check_json(json: Mapping[str, Any], sides: Sequence[Side], tally: Tally) -> None:
    """The curves of each side, and the rows of the last step: of each side, and between each and the first."""
    labels = [side["label"] for side in json["sides"]]
    for measure in OF_A_SIDE:
        for name, of_labels in json["curves"].get(measure, {}).items():
            for label, points in of_labels.items():
                side = sides[labels.index(label)]
                place = Place(f"json curve {measure}", side.facts(name)["kind"], f"{name} of {label}")
                _check_curve(points, side, (name, measure, 1), place, tally, rel=2e-5)
    for row in json["layers"]:
        for number, side in enumerate(sides):
            _check_row(row, side, number, tally)
            if number:
                _check_between(row, sides[0], side, number - 1, tally)


def _check_curve(
    points: Sequence[Sequence[Any]],
    side: Side,
    of: tuple[str, str, float],
    place: Place,
    tally: Tally,
    *,
    rel: float,
) -> None:
    name, measure, factor = of
    own = [(step, _median(numbers[measure])) for step, numbers in side.numbers(name) if measure in numbers]
    if [step for step, _ in points] != [step for step, _ in own]:
        tally.fault(place.what, place.where, f"steps {[step for step, _ in points]}, not {[step for step, _ in own]}")
        return
    found = [math.nan if value is None else value for _, value in points]
    tally.alike([value * factor for _, value in own], found, place, rel=rel, least=1e-3)


def _check_row(row: Mapping[str, Any], side: Side, number: int, tally: Tally) -> None:
    *_, (_, own) = side.numbers(row["layer"])
    for measure in OF_A_SIDE:
        found = row[measure][number]
        found = found["median"] if isinstance(found, dict) else found
        place = Place(f"json {measure}", side.facts(row["layer"])["kind"], row["layer"])
        said = measure in own and not side.stands  # a run's own baseline has none: they would be 0 by definition
        expected = _median(own[measure]) if said else math.nan
        tally.alike(expected, math.nan if found is None else found, place, rel=2e-5, least=1e-3)


def _check_between(row: Mapping[str, Any], first: Side, side: Side, at: int, tally: Tally) -> None:
    name = row["layer"]
    facts, last = first.facts(name), (first.states[-1], side.states[-1])
    a, b = (state.weights[name] for state in last)
    rows = [formulas.sampled(state.outputs[name], channels_last=len(facts["weight_shape"]) == 2) for state in last]
    own = {
        "weight_distance": formulas.weight_change(a, b, normalised=first.case.layers[name].norm),
        "angle_between": _median(formulas.filter_angle(a, b)),
        "function_distance": formulas.function_change(rows[0], rows[1]),
        "cka_between": formulas.debiased_cka(rows[0], rows[1]),
    }
    for measure, value in own.items():
        found, expected = row[measure][at], math.nan if first.stands else value  # the side's own numbers say it
        found = found["median"] if isinstance(found, dict) else found
        place = Place(f"json {measure}", facts["kind"], name)
        tally.alike(expected, math.nan if found is None else found, place, rel=2e-5, least=1e-3)


def _median(values: Any) -> float:
    known = np.atleast_1d(np.asarray(values, np.float64))
    known = known[~np.isnan(known)]
    return float(np.median(known)) if known.size else math.nan

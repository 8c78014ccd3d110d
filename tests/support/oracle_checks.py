"""Compares what was stored and drawn with what the oracle saw and computes, and counts every value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from support import formulas, oracle
from support.oracle import Stored
from support.oracle_zoo import Case, State

Array = npt.NDArray[Any]
MEDIANS = (
    "function_change",
    "cka_positions",
    "dead_share",
    "weight_change",
    "filter_angle",
    "update_ratio",
    "mean_update_ratio",
)


@dataclass(frozen=True)
class Place:
    """What is compared: the number or the picture, of which kind of layer, and what a fault says of where."""

    what: str
    kind: str
    where: str


@dataclass
class Tally:
    """What was compared, and what was not alike.

    Attributes:
        counts: kind of layer and what was compared -> how many values.
        largest: the same -> how far two of them were apart, at most: as a share, or in shades.
        faults: a sentence on each thing that was not alike.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    largest: dict[tuple[str, str], float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def alike(self, expected: Any, found: Any, place: Place, *, rel: float, least: float) -> None:
        """Two arrays are alike: of one shape, NaN at the same places, and nowhere further apart than allowed.

        Args:
            expected: what the oracle has.
            found: what the package wrote.
            place: what it is.
            rel: how far they may be apart, as a share.
            least: below this magnitude, how far they may be apart is a share of this.
        """
        e, f = np.atleast_1d(np.asarray(expected, np.float64)), np.atleast_1d(np.asarray(found, np.float64))
        if e.shape != f.shape:
            self.fault(place.what, place.where, f"shape {list(f.shape)}, not {list(e.shape)}")
            return
        with np.errstate(invalid="ignore"):
            apart = np.abs(f - e) / np.maximum(np.abs(e), least)
        apart[(np.isnan(e) & np.isnan(f)) | (e == f)] = 0
        apart[np.isnan(apart)] = np.inf
        self.count(place.what, place.kind, e.size, float(apart.max(initial=0)))
        if (apart > rel).any():
            at = np.unravel_index(int(apart.argmax()), apart.shape)
            self.fault(place.what, place.where, f"{f[at]:.9g} at {[int(i) for i in at]}, not {e[at]:.9g}")

    def count(self, what: str, kind: str, values: int, apart: float) -> None:
        key = kind, what
        self.counts[key] = self.counts.get(key, 0) + values
        self.largest[key] = max(self.largest.get(key, 0.0), apart)

    def fault(self, what: str, where: str, why: str) -> None:
        self.faults.append(f"{what} of {where}: {why}")

    def add(self, other: Tally) -> None:
        for (kind, what), values in other.counts.items():
            self.count(what, kind, values, other.largest[kind, what])

    def of(self, what: str) -> int:
        return sum(count for (_, name), count in self.counts.items() if name == what)

    def table(self) -> str:
        """How many values were compared, and how far they were apart at most: by what, then by the kind of layer."""
        lines = [f"{'what':<32}{'kind of layer':<18}{'values':>10}  largest deviation"]
        for kind, what in sorted(self.counts, key=lambda key: (key[1], key[0])):
            lines.append(f"{what:<32}{kind:<18}{self.counts[kind, what]:>10,}  {self.largest[kind, what]:.2g}")
        return "\n".join([*lines, f"{'all':<50}{sum(self.counts.values()):>10,}"])


# --- numbers ---------------------------------------------------------------------------------------------------------


def check_numbers(run: Stored, case: Case, states: Sequence[State], tally: Tally, prefix: str = "") -> None:
    """Every number of the step files, and the medians of the event file, against the oracle's own."""
    measured = {layer["name"]: layer for layer in run.manifest["measured"]}
    names = [prefix + name for name in case.layers]
    if list(measured) != names:
        tally.fault("layers", "the manifest", f"{list(measured)}, not {names}")
    if list(run.steps) != [state.step for state in states]:
        tally.fault("steps", "the run", f"{list(run.steps)}, not {[state.step for state in states]}")
    for name, layer in case.layers.items():
        facts = measured[prefix + name]
        for what, expected, said in (
            ("norm", layer.norm, facts["normalised"]),
            ("activation", layer.activated is not None, facts["activation"] is not None),
            ("filters", _chosen_count(states[0].weights[prefix + name].shape), _count(facts["filters"])),
        ):
            if expected != said:
                tally.fault(what, f"{name} in the manifest", f"{said}, not {expected}")
        for number, state in enumerate(states):
            own = numbers_of(prefix + name, facts, layer.norm, states[: number + 1])
            _check_step(run, facts, own, state, tally)


def numbers_of(name: str, facts: Mapping[str, Any], normed: bool, states: Sequence[State]) -> dict[str, Any]:
    """The numbers of a layer at the last of some states, the first of which is the baseline."""
    first, now, before = states[0], states[-1], states[-2] if len(states) > 1 else None
    chosen = slice(None) if facts["filters"] is None else list(facts["filters"])
    w0, w = first.weights[name][chosen], now.weights[name][chosen]
    own: dict[str, Any] = {
        "filter_norm": formulas.filter_norm(w),
        "filter_angle": formulas.filter_angle(w0, w),
        "weight_change": formulas.weight_change(w0, w, normalised=normed),
        "filters_left_out": formulas.filters_left_out(w0, w, normalised=normed) or None,
    }
    if name in now.before:
        own["update_ratio"] = formulas.update_ratio(now.before[name][chosen], w)
    elif before is not None:
        steps = now.global_step - before.global_step
        own["mean_update_ratio"] = formulas.update_ratio(before.weights[name][chosen], w) / steps
    last = len(facts["weight_shape"]) == 2
    rows0, rows = (formulas.sampled(state.outputs[name], channels_last=last) for state in (first, now))
    own["function_change"] = formulas.function_change(rows0, rows)
    left_out = int((~formulas.finite_channels(rows0, rows)).sum())
    if len(rows) >= 4:
        own["cka_positions"] = formulas.debiased_cka(rows0, rows)
    if name in now.activated:
        own["dead_share"] = formulas.dead_share(now.activated[name])
        lost = np.isnan(now.activated[name].reshape(len(now.activated[name]), -1)).any(axis=1)
        left_out = max(left_out, int(lost.sum()))
    own["channels_left_out"] = left_out or None
    return {number: value for number, value in own.items() if value is not None}


def _check_step(run: Stored, facts: Mapping[str, Any], own: dict[str, Any], state: State, tally: Tally) -> None:
    name, kind = facts["name"], facts["kind"]
    where = f"{name} at step {state.step}"
    written = {key.split("/")[1]: array for key, array in run.steps[state.step].items() if _is_number(key, name)}
    for number in sorted({*own, *written}):
        if number not in own or number not in written:
            tally.fault(number, where, "it is there, and should not be" if number in written else "it is not there")
            continue
        rel, least = (2e-6, 1.0) if number == "cka_positions" else (2e-5, 1e-9)
        tally.alike(np.atleast_1d(own[number]), written[number], Place(number, kind, where), rel=rel, least=least)
    for number in MEDIANS:
        value = run.scalars.get((f"numbers/{number}/{facts['tag']}", state.step))
        if (value is not None) != (number in own):
            tally.fault("scalar", f"{number} of {where}", "it is there or not, unlike the number")
        elif value is not None:
            known = np.atleast_1d(own[number])
            known = known[~np.isnan(known)]
            median = float(np.median(known)) if known.size else math.nan
            tally.alike(median, value, Place("scalar", kind, f"{number} of {where}"), rel=2e-5, least=1e-6)
    rows = formulas.sampled(state.outputs[name], channels_last=len(facts["weight_shape"]) == 2)
    if facts["samples"] != len(rows):
        tally.fault("samples", where, f"{facts['samples']}, not {len(rows)}")


def _is_number(key: str, layer: str) -> bool:
    parts = key.split("/", 2)
    return parts[0] == "numbers" and parts[2] == layer and not parts[1].startswith("map_")


def _count(filters: Sequence[int] | None) -> int | None:
    if filters is None:
        return None
    return len(filters) if list(filters) == sorted(set(filters)) else -1


def _chosen_count(shape: Sequence[int]) -> int | None:
    """Of more than 2**17 weights every k-th filter is measured, with the least k that leaves no more than that."""
    if math.prod(shape) <= 1 << 17:
        return None
    at_most = max(1, (1 << 17) // math.prod(shape[1:]))
    return next(len(range(0, shape[0], k)) for k in range(1, shape[0] + 1) if len(range(0, shape[0], k)) <= at_most)


# --- arrays ----------------------------------------------------------------------------------------------------------


def check_arrays(run: Stored, case: Case, states: Sequence[State], tally: Tally) -> None:
    """The stored weights, outputs, shown filters and maps, and the numbers of maps, against what the oracle saw."""
    measured = {layer["name"]: layer for layer in run.manifest["measured"]}
    pictured = {layer["name"]: layer for layer in run.manifest["layers"]}
    for which, state in (("baseline", states[0]), ("latest", states[-1])):
        for name, facts in measured.items():
            kind, where = facts["kind"], f"{name} in the {which}"
            chosen = facts["filters"] is None or bool((pictured.get(name) or {}).get("weight_shape"))
            weights = state.weights[name] if chosen else state.weights[name][list(facts["filters"])]
            rows = formulas.sampled(state.outputs[name], channels_last=len(facts["weight_shape"]) == 2)
            for file, own in (("weights", weights), ("outputs", rows)):
                found = run.files[f"{file}-{which}"].get(name, np.zeros(0))
                tally.alike(own, found, Place(f"stored {file}", kind, where), rel=0, least=1)
    probe = run.files["probe"]["probe"]
    tally.alike(case.probe().numpy(), probe, Place("probe", "all", "the probe"), rel=0, least=1)
    for state in states:
        for facts in pictured.values():
            for kind, own in shown_of(run, facts, state).items():
                found = run.steps[state.step].get(f"{kind}/{facts['name']}", np.zeros(0))
                where = f"{facts['name']} at step {state.step}"
                rel = 0 if own.dtype == np.float32 else 1e-6  # float64 if it was averaged
                tally.alike(own, found, Place(f"stored {kind}", facts["kind"], where), rel=rel, least=1e-3)
            _check_map_numbers(run, facts, state, tally)


def _check_map_numbers(run: Stored, facts: Mapping[str, Any], state: State, tally: Tally) -> None:
    if facts["output_shape"] is None:
        return
    maps = _all_maps(state.outputs[facts["name"]]).astype(np.float64)
    own = {"map_mean": maps.mean(axis=(0, 2, 3)), "map_max": maps.max(axis=(0, 2, 3))}
    own["map_active"] = (maps > 0).mean(axis=(0, 2, 3))
    for number, values in own.items():
        found = run.steps[state.step].get(f"numbers/{number}/{facts['name']}", np.zeros(0))
        tally.alike(
            values, found, Place(number, facts["kind"], f"{facts['name']} at {state.step}"), rel=1e-5, least=1e-4
        )


def shown_of(run: Stored, facts: Mapping[str, Any], state: State) -> dict[str, Array]:
    """What is shown of a layer: filters `[n, k, kH, kW]` and maps `[N, n, h, w]`, from the oracle's own arrays."""
    found: dict[str, Array] = {}
    name, settings = facts["name"], run.manifest["settings"]
    if facts["weight_shape"] is not None:
        look, weights = settings["filters"], state.weights[name]
        inputs = weights.shape[1]
        fitting = "rgb" if inputs == 3 else "gray" if inputs == 1 else "slices"
        assert facts["view"] == (fitting if look["view"] == "auto" else look["view"])
        weights = weights[: look["shown"]]
        if facts["view"] == "slices":
            weights = weights[: look["slices"], : look["slices"]]
        elif facts["view"] == "mean":
            weights = weights.astype(np.float64).mean(axis=1, keepdims=True)
        found["filters"] = weights
    if facts["output_shape"] is not None:
        look = settings["feature_maps"]
        maps = _all_maps(state.outputs[name])[:, : look["shown"]]
        h, w = run.steps[state.step].get(f"feature_maps/{name}", maps).shape[-2:]
        if (h, w) != maps.shape[-2:]:
            columns = math.ceil(math.sqrt(maps.shape[1]))
            room = look["width"] / columns
            assert room - 2 <= w <= room, "a map that is too wide fills its cell"
            assert abs(h - maps.shape[-2] * w / maps.shape[-1]) <= 0.5
            maps = formulas.area_means(maps, (h, w))
        found["feature_maps"] = maps
    return found


def _all_maps(output: Array) -> Array:
    """`[N, C, H, W]`; of frames the one in the middle."""
    return output[:, :, output.shape[2] // 2] if output.ndim == 5 else output


# --- pictures --------------------------------------------------------------------------------------------------------


def check_pictures(run: Stored, states: Sequence[State], tally: Tally) -> None:
    """Every picture of the event file, decoded by its own text, against what the oracle saw."""
    by_step = {state.step: state for state in states}
    layers = {layer["name"]: layer for layer in run.manifest["layers"]}
    expected = set(_tags(run, by_step))
    pictures = {key: png for key, png in run.images.items() if key[0].split("/")[0] in _KINDS}
    for tag, step in sorted({*expected} ^ {*pictures}):
        tally.fault("tag", f"{tag} at step {step}", "it is there or not, unlike the others")
    for (tag, step), png in pictures.items():
        where = f"{tag} at step {step}"
        kind = tag.split("/")[0]
        try:
            decoded = oracle.decode(png)
        except AssertionError as error:
            tally.fault(kind, where, str(error))
            continue
        facts = decoded.facts
        layer = layers[facts["layer"]]
        if facts["kind"] != kind or layer["tag"] != tag.split("/")[1]:
            tally.fault(kind, where, f"its text says {facts['kind']} of {facts['layer']}")
            continue
        if kind.endswith("_strip"):
            cells = strip_cells(run, layer, facts, by_step)
        else:
            if facts["step"] != step:
                tally.fault(kind, where, f"its text says step {facts['step']}")
            cells = picture_cells(run, layer, facts, by_step[step], states[0])
        compare_cells(decoded, cells, Place(kind, layer["kind"], where), tally)


_KINDS = tuple(f"{kind}{suffix}" for kind in ("filters", "feature_maps") for suffix in ("", "_change", "_strip"))


def _tags(run: Stored, states: Mapping[int, State]) -> Iterator[tuple[str, int]]:
    first, last = min(states), max(states)
    images = run.manifest["probe"]["shape"][0]
    for layer in run.manifest["layers"]:
        kinds = [("filters", layer["weight_shape"], 1), ("feature_maps", layer["output_shape"], images)]
        for kind, shape, of in kinds:
            if shape is None:
                continue
            yield f"{kind}_strip/{layer['tag']}", last
            for step in states:
                for image in [""] if of == 1 else [f"/image{i}" for i in range(of)]:
                    yield f"{kind}/{layer['tag']}{image}", step
                    if step != first:
                        yield f"{kind}_change/{layer['tag']}{image}", step


def picture_cells(run: Stored, layer: Mapping[str, Any], facts: Mapping[str, Any], state: State, first: State) -> Array:
    """The values of the cells of a picture: `[m, h, w]`, or `[m, 3, h, w]` in colours."""
    kind = facts["kind"].removesuffix("_change")
    shown = shown_of(run, layer, state)[kind]
    if facts["kind"].endswith("_change"):
        with np.errstate(invalid="ignore"):
            shown = shown - shown_of(run, layer, first)[kind]
    return as_cells(shown[facts["image"]] if kind == "feature_maps" else shown, layer["view"])


def as_cells(shown: Array, view: str | None) -> Array:
    """Maps `[n, h, w]` or filters `[n, k, h, w]` as cells, one after another."""
    if shown.ndim == 3 or view == "rgb":
        return shown
    return shown.reshape(-1, *shown.shape[2:])


def strip_cells(run: Stored, layer: Mapping[str, Any], facts: Mapping[str, Any], states: Mapping[int, State]) -> Array:
    """Of each channel its cells at the steps of the strip, side by side."""
    kind = facts["kind"].removesuffix("_strip")
    steps = []
    for step in facts["steps"]:
        shown = shown_of(run, layer, states[step])[kind]
        shown = shown[0] if kind == "feature_maps" else shown if layer["view"] == "rgb" else shown[:, 0]
        steps.append(shown[facts["channels"]])
    of_channels = np.stack(steps, axis=1)
    return np.asarray(of_channels.reshape(-1, *of_channels.shape[2:]))


def compare_cells(decoded: oracle.Decoded, cells: Array, place: Place, tally: Tally) -> None:
    """Decoded values lie within half a shade of the true ones; what is no value is marked so, and nothing else is."""
    facts = decoded.facts
    if cells.shape[-2:] != tuple(facts["cell"]):
        cells = formulas.area_means(cells, tuple(facts["cell"]))
    within_shades(decoded.cells, cells, place, tally)
    for mark, words in ((oracle.NOT_FINITE, "not finite"), (oracle.BELOW, "below"), (oracle.ABOVE, "above")):
        tally.count(f"pixels {words}", place.kind, int((decoded.cells.means == mark).sum()), 0)
    tally.count("notches", place.kind, int(decoded.notched.sum()), 0)
    doubled = [str(channel) in facts["doubled"] or facts["switched"] for channel in facts["channels"]]
    if decoded.notched.tolist() != np.repeat(doubled, facts["cells"]).tolist():
        tally.fault(place.what, place.where, "a notch is not where the range has changed")


def within_shades(found: oracle.Cells, cells: Array, place: Place, tally: Tally, *, slack: float = 1e-3) -> None:
    """Values within half a shade of the true ones, and marks where they belong.

    Args:
        found: the decoded cells.
        cells: the true values, `[m, h, w]`, or `[m, 3, h, w]` in colours.
        place: what is compared.
        tally: counts.
        slack: how much more than half a shade they may be apart, in shades, for ends and values are rounded.
    """
    if cells.shape != found.values.shape:
        tally.fault(place.what, place.where, f"{list(found.values.shape)} in cells, not {list(cells.shape)}")
        return
    coloured = cells.ndim == 4
    low, high, shade = (end.reshape(-1, *[1] * (cells.ndim - 1)) for end in (found.low, found.high, found.shade))
    finite = np.isfinite(cells)
    lost = ~finite.all(axis=1) if coloured else ~finite
    marks = {oracle.NOT_FINITE: (lost, lost)}
    if not coloured:  # within the rounding either is right
        for mark, beyond in ((oracle.ABOVE, cells - high), (oracle.BELOW, low - cells)):
            marks[mark] = (finite & (beyond > slack * shade), finite & (beyond > -slack * shade))
    for mark, (must, may) in marks.items():
        wrong = (must & (found.means != mark)) | (~may & (found.means == mark))
        if wrong.any():
            tally.fault(place.what, place.where, f"{int(wrong.sum())} pixels are marked wrongly")
    plain = found.means == oracle.VALUE
    plain = np.broadcast_to(plain[:, None], cells.shape) if coloured else plain
    clipped = np.clip(cells, low, high) if coloured else cells
    apart = np.abs(found.values[plain] - clipped[plain]) / np.broadcast_to(shade, cells.shape)[plain]
    tally.count(place.what, place.kind, int(cells.size), float(apart.max(initial=0)))
    if (apart > 0.5 + slack).any():
        count = int((apart > 0.5 + slack).sum())
        tally.fault(place.what, place.where, f"{count} values are off, by {apart.max():.3g} shades at most")

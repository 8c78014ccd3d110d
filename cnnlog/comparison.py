"""Stored runs and weights side by side: aligned by layer and step, with the numbers between them. No torch.

The module is not called `compare`, for then importing it would replace the function `cnnlog.compare`.
"""

from __future__ import annotations

import html
import math
import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlog import drift, render
from cnnlog.run import NUMBER, Kind, Measure, Progress, Run, Spread, Which, open_run
from cnnlog.snapshot import FloatArray
from cnnlog.store import StoreError
from cnnlog.tabular import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnnlog.weights import Weights

Given = str | os.PathLike[str] | Run
WEIGHT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_TORCHVISION = "torchvision:"
_PIN = re.compile(r"(.+)@([^@/\\]+)", re.DOTALL)
_WRAPPERS = ("_orig_mod", "module", "model", "net", "network", "backbone", "encoder")
_CURVES: Mapping[str, Measure] = {
    "drift_cosine": "cosine",
    "drift_l2": "l2",
    "update_l2": "update",
    "dead_share": "dead_share",
    "cka": "cka",
}


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        label: short, and unlike those of the other sides.
        run: the stored run; None for weights.
        step: the step it is pinned to; None where it moves with the slider, and for weights.
        filters: of weights: layer -> all filters `[O, I, kH, kW]`; empty for runs.
        feature_maps: of weights: layer -> all feature maps `[N, C, H, W]`; empty for runs.
        probe: fingerprint of what the feature maps are of.
        source: where it came from.
    """

    label: str
    run: Run | None
    step: int | None
    filters: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    feature_maps: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    probe: str | None = None
    source: str = ""


@dataclass(frozen=True)
class LayerMatch:
    """One layer of the comparison.

    Attributes:
        name: what it is called here.
        tag: `00_name`, in the order of the comparison.
        names: what each side calls it; None where a side lacks it.
        has_filters: whether at least one side holds its filters; likewise `has_maps`, feature maps.
        has_maps: see `has_filters`.
        view: how its filters are shown.
    """

    name: str
    tag: str
    names: tuple[str | None, ...]
    has_filters: bool
    has_maps: bool
    view: render.ResolvedView | None


@dataclass(frozen=True)
class Row:
    """The numbers of one layer at one step. One entry a side, or, for what lies between, one a further side.

    Attributes:
        layer: the layer's name in the comparison.
        filters: how many it has; channels where only its feature maps are known.
        drift_cosine: cosine distance of each side's filters from its own baseline.
        drift_l2: the same, relative L2.
        dead_share: share of channels without a value above 0 on the probe.
        cka: linear CKA with the side's own baseline.
        distance_cosine: cosine distance between the filters of the first side and of each further one.
        distance_l2: `|further - first| / |first|`.
        cka_between: linear CKA of the shown feature maps of the first side and of each further one.
        shown_only: the distances are of the shown part, not of all filters.
    """

    layer: str
    filters: int | None
    drift_cosine: tuple[Spread | None, ...]
    drift_l2: tuple[Spread | None, ...]
    dead_share: tuple[float | None, ...]
    cka: tuple[float | None, ...]
    distance_cosine: tuple[Spread | None, ...]
    distance_l2: tuple[Spread | None, ...]
    cka_between: tuple[float | None, ...]
    shown_only: bool


@dataclass(frozen=True)
class _Between:
    """What was measured between the first side and a further one at one step."""

    cosine: Spread | None = None
    l2: Spread | None = None
    cka: float | None = None
    high: Mapping[Kind, tuple[float, int]] = field(default_factory=dict)


class Comparison:
    """Sides aligned by layer and step. Made by `compare`; arrays are read one step at a time.

    Attributes:
        sides: in the order given.
        layers: in the order of the first run's tags; those that only some sides have come last.
        steps: of all sides that are not pinned, rising.
    """

    def __init__(self, sides: Sequence[Side], layers: Sequence[LayerMatch], notes: Sequence[str]) -> None:
        self.sides = tuple(sides)
        self.layers = tuple(layers)
        self.steps = _steps(self.sides)
        self._notes = list(dict.fromkeys(notes))
        self._between: dict[tuple[int, str, int], _Between] | None = None
        self._look = _look(self.sides)
        self._shown_weights: dict[tuple[int, str, Kind], FloatArray] = {}
        for index, side in enumerate(self.sides):
            if side.run is not None and side.step is None and side.run.steps[-1] < self.steps[-1]:
                last = side.run.steps[-1]
                self._note(f"{side.label} ends at step {last} and is held there up to step {self.steps[-1]}")
            self._check_probe(index)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was matched, what a side lacks, what is held, what was skipped."""
        skipped = (text for side in self.sides if side.run is not None for text in side.run.skipped)
        return tuple(dict.fromkeys([*self._notes, *(f"skipped: {text}" for text in skipped)]))

    # ---- pictures

    def step_of(self, side: int, step: int) -> int | None:
        """The side's own step that is shown at `step`: its nearest not after it; None before its first, for weights."""
        chosen = self.sides[side]
        if chosen.run is None or chosen.step is not None:
            return chosen.step
        known = chosen.run.steps
        at = bisect_right(known, step)
        return known[at - 1] if at else None

    def held(self, side: int, step: int) -> bool:
        """Whether the side has ended before `step`, so that its last step is shown."""
        chosen = self.sides[side]
        return chosen.run is not None and chosen.step is None and step > chosen.run.steps[-1]

    def view_of(self, side: int, layer: LayerMatch) -> render.ResolvedView | None:
        """How a side's filters of a layer are shown."""
        run, name = self.sides[side].run, layer.names[side]
        return layer.view if run is None or name is None else run.layer(name).view or layer.view

    def shown(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> FloatArray | None:
        """The shown filters `[n, k, kH, kW]` or feature maps `[N, n, h, w]`; None where the side has none."""
        run, name = self.sides[side].run, layer.names[side]
        if name is None:
            return None
        if run is None:
            return self._shown_of_weights(side, layer, kind)
        at = self._at(side, layer, kind, step)
        if at is None:
            return None
        record = run.record(at)
        return record.filters[name] if kind == "filters" else record.feature_maps[name]

    def limits(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> render.Limits | None:
        """The side's own range, anchored at its baseline; None where `shown` is None."""
        run, name = self.sides[side].run, layer.names[side]
        shown = self.shown(side, layer, kind, step)
        if shown is None or name is None:
            return None
        if run is None:
            values = shown if kind == "filters" else shown.swapaxes(0, 1)
            return render.AnchoredRange(signed=True if kind == "filters" else None).update(values)
        at = self._at(side, layer, kind, step)
        assert at is not None, "something is shown"
        return run.limits(name, kind, at)

    def difference(self, layer: LayerMatch, kind: Kind, step: int, side: int = 1) -> FloatArray | None:
        """The shown part of a further side minus the first side's.

        None where one lacks it, the shapes differ, or the feature maps are of different probes.
        """
        if kind == "feature_maps" and not self.same_probe(side):
            return None
        first, other = self.shown(0, layer, kind, step), self.shown(side, layer, kind, step)
        if first is None or other is None or first.shape != other.shape:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(other - first, dtype=np.float32)

    def difference_limits(self, layer: LayerMatch, kind: Kind, step: int, side: int = 1) -> render.Limits | None:
        """The range of `difference`: one for the layer, anchored over the steps, `2**-k` of the first side's peak."""
        found = self._measured().get((side, layer.name, step), _Between()).high.get(kind)
        shown = self.shown(0, layer, kind, step)
        if found is None or shown is None:
            return None
        count = len(shown) if kind == "filters" else shown.shape[1]
        high, doubled = found
        return render.Limits(np.full(count, high, np.float32), True, np.full(count, doubled, np.int64))

    def same_probe(self, side: int) -> bool:
        """Whether a side's feature maps are of the same probe as the first side's."""
        return self.sides[0].probe is not None and self.sides[0].probe == self.sides[side].probe

    def figure(
        self, layer: str, kind: Kind = "filters", step: int | None = None, *, side: int | None = None, image: int = 0
    ) -> Figure:
        """A matplotlib figure of a layer's difference (second side minus first), or of one side with `side`.

        Raises:
            ValueError: no such layer, or nothing of this kind to draw.
        """
        from cnnlog import figures

        match, at = self.layer(layer), self.steps[-1] if step is None else step
        if side is None:
            array, limits = self.difference(match, kind, at), self.difference_limits(match, kind, at)
            whose = f"{self.sides[1].label} minus {self.sides[0].label}"
        else:
            array, limits = self.shown(side, match, kind, at), self.limits(side, match, kind, at)
            whose = self.sides[side].label
        what = "Filters" if kind == "filters" else "Feature maps"
        if array is None or limits is None:
            raise ValueError(f"there are no {what.lower()} of {layer} to draw for {whose} at step {at}")
        title = f"{what} of {layer}, {whose}, step {at}"
        if kind == "filters":
            view = self.view_of(side or 0, match) or "auto"
            return figures.filters_figure(array, limits, view=view, title=title)
        if not 0 <= image < len(array):
            raise ValueError(f"image must be from 0 to {len(array) - 1}, the probe's images; got {image}")
        return figures.maps_figure(array[image], limits, title=title)

    def layer(self, name: str) -> LayerMatch:
        """A layer by its name here; ValueError with the known ones."""
        for match in self.layers:
            if match.name == name:
                return match
        raise ValueError(f"the comparison has no layer {name!r}; it has {_some([m.name for m in self.layers])}")

    # ---- numbers

    def measure(self, progress: Progress | None = None) -> None:
        """Measure what lies between the sides at every step, one step in memory at a time; once."""
        if self._between is not None:
            return
        ranges: dict[tuple[int, str, Kind], render.ChangeRange] = {}
        found: dict[tuple[int, str, int], _Between] = {}
        for done, step in enumerate(self.steps):
            for side in range(1, len(self.sides)):
                for layer in self.layers:
                    found[side, layer.name, step] = self._measure(side, layer, step, ranges)
            if progress is not None:
                progress("comparing", done + 1, len(self.steps))
        self._between = found

    def rows(self, step: int | None = None) -> list[Row]:
        """The table: one row a layer, at a step (the last one by default).

        Distances are of all filters where both sides have them stored (baseline, last step, weights), else of the
        shown part.
        """
        at = self.steps[-1] if step is None else step
        everything = [self._all_filters(side, at) for side in range(len(self.sides))]
        return [self._row(layer, at, everything) for layer in self.layers]

    def curves(self) -> dict[str, dict[str, dict[str, list[tuple[int, float]]]]]:
        """Measure -> layer -> side's label -> its mean at each step `(step, value)`, steps rising.

        Measures: `drift_cosine`, `drift_l2`, `update_l2`, `dead_share`, `cka`, each from the side's own baseline; and
        `distance_cosine`, `distance_l2`, `cka_between` of each further side from the first, of the shown part.
        """
        curves: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {}

        def put(measure: str, layer: str, label: str, step: int, value: float) -> None:
            curves.setdefault(measure, {}).setdefault(layer, {}).setdefault(label, []).append((step, value))

        for index, side in enumerate(self.sides):
            if side.run is None:
                continue
            for step in side.run.steps if side.step is None else (side.step,):
                numbers = side.run.summary(step).numbers
                for layer in self.layers:
                    name = layer.names[index]
                    for measure, number in _CURVES.items():
                        spread = numbers.get(_stored(number), {}).get(name or "")
                        if spread is not None:
                            put(measure, layer.name, side.label, step, spread.mean)
        for (index, name, step), between in self._measured().items():
            label = self.sides[index].label
            for measure, found in (("distance_cosine", between.cosine), ("distance_l2", between.l2)):
                if found is not None:
                    put(measure, name, label, step, found.mean)
            if between.cka is not None:
                put("cka_between", name, label, step, between.cka)
        return curves

    def verdict(self) -> str:
        """One sentence that names the layers that moved most and least."""
        rows = self.rows()
        parts = [self._verdict_of(side, rows) for side in range(1, len(self.sides))]
        return "; ".join(parts) + "."

    # ---- text

    def table(self) -> Table:
        """`rows()` as a table with one column for each number and side: means over a layer's channels."""
        letters = [self._letter(index) for index in range(len(self.sides))]
        columns = ["layer", "filters"]
        columns += [f"drift {letter}" for letter in letters]
        columns += [f"{letters[0]} to {letter}" for letter in letters[1:]]
        columns += [f"dead {letter}" for letter in letters]
        columns += [f"CKA {letter}" for letter in letters]
        columns += [f"CKA {letters[0]}-{letter}" for letter in letters[1:]]
        rows = []
        for row in self.rows():
            drifts, distances = _means(row.drift_cosine), _means(row.distance_cosine)
            rows.append((row.layer, row.filters, *drifts, *distances, *row.dead_share, *row.cka, *row.cka_between))
        return Table(tuple(columns), tuple(rows))

    def to_text(self) -> str:
        """The table with a legend, the notes, and the sentence, for a terminal."""
        legend = [f"{self._letter(i)}: {self._described(i)}" for i in range(len(self.sides))]
        about = "drift: cosine distance from the side's own baseline; A to B: cosine distance between the sides; means."
        return "\n".join(
            [*legend, "", self.table().to_text(), "", about, *(f"note: {n}" for n in self.notes), "", self.verdict()]
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything in numbers, for JSON: plain values, None for what is not there or not finite."""
        return {
            "format": "cnnlog-comparison",
            "version": 1,
            "sides": [
                {"label": s.label, "source": s.source, "step": self.step_of(i, self.steps[-1])}
                for i, s in enumerate(self.sides)
            ],
            "steps": list(self.steps),
            "layers": [
                _plain({**vars(row), "names": layer.names}) for layer, row in zip(self.layers, self.rows(), strict=True)
            ],
            "curves": _plain(self.curves()),
            "notes": list(self.notes),
            "verdict": self.verdict(),
        }

    def to_csv(self) -> str:
        """The numbers of `rows()` with quartiles: one line a layer, one column for each number and side."""
        lines: list[dict[str, Any]] = []
        for row in self.rows():
            line: dict[str, Any] = {"layer": row.layer, "filters": row.filters}
            for name, values in vars(row).items():
                if isinstance(values, tuple):
                    offset = len(self.sides) - len(values)
                    for index, value in enumerate(values):
                        _spread_out(line, f"{name}_{self._letter(index + offset)}", value)
            lines.append({**line, "shown_only": row.shown_only})
        columns = tuple(dict.fromkeys(key for line in lines for key in line))
        return Table(columns, tuple(tuple(line.get(key) for key in columns) for line in lines)).to_csv()

    def __repr__(self) -> str:
        return (
            f"Comparison({', '.join(s.label for s in self.sides)}: {len(self.layers)} layers, {len(self.steps)} steps)"
        )

    def _repr_html_(self) -> str:
        legend = "<br>".join(html.escape(f"{self._letter(i)}: {self._described(i)}") for i in range(len(self.sides)))
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{legend}</p>{self.table()._repr_html_()}<ul>{notes}</ul><p>{html.escape(self.verdict())}</p>"

    # ---- inside

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def _letter(self, side: int) -> str:
        return chr(ord("A") + side) if side < 26 else f"S{side + 1}"

    def _described(self, side: int) -> str:
        chosen, last = self.sides[side], self.steps[-1]
        own = self.step_of(side, last)
        if chosen.run is None:
            return f"{chosen.label} (weights)"
        held = ", held there" if self.held(side, last) else ""
        return f"{chosen.label} (step {own}{held})"

    def _check_probe(self, side: int) -> None:
        first, other = self.sides[0], self.sides[side]
        if first.probe is not None and other.probe is not None and first.probe != other.probe:
            self._note(
                f"the feature maps of {first.label} and {other.label} are of different probes, so there is no "
                "difference of them"
            )

    def _at(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> int | None:
        run, name, own = self.sides[side].run, layer.names[side], self.step_of(side, step)
        return None if run is None or name is None or own is None else run.holding(name, kind, own)

    def _shown_of_weights(self, side: int, layer: LayerMatch, kind: Kind) -> FloatArray | None:
        key = (side, layer.name, kind)
        if key not in self._shown_weights:
            name = layer.names[side] or ""
            if kind == "filters" and name in self.sides[side].filters:
                shown, slices = self._look["shown"], self._look["slices"]
                weight = self.sides[side].filters[name]
                view = layer.view if layer.view is not None and _fits(weight.shape, layer.view) else "auto"
                array = render.select_filters(weight, view=view, max_filters=shown, max_slices=slices)
            elif kind == "feature_maps" and name in self.sides[side].feature_maps:
                maps = self.sides[side].feature_maps[name]
                cell = render.cell_width(render.columns(min(maps.shape[1], self._look["maps"])), self._look["width"])
                array = render.select_maps(maps, max_maps=self._look["maps"], cell=cell)
            else:
                return None
            self._shown_weights[key] = array
        return self._shown_weights[key]

    def _measured(self) -> dict[tuple[int, str, int], _Between]:
        self.measure()
        assert self._between is not None, "it was just measured"
        return self._between

    def _measure(
        self, side: int, layer: LayerMatch, step: int, ranges: dict[tuple[int, str, Kind], render.ChangeRange]
    ) -> _Between:
        result, high = _Between(), {}
        kinds: tuple[Kind, ...] = ("filters", "feature_maps")
        for kind in kinds:
            change = self.difference(layer, kind, step, side)
            if change is None:
                continue
            first, other = self.shown(0, layer, kind, step), self.shown(side, layer, kind, step)
            if first is None or other is None:
                continue
            kept = ranges.setdefault((side, layer.name, kind), render.ChangeRange(render.peak(first)))
            limits = kept.update(change)
            high[kind] = (float(limits.high[0]), int(limits.doubled[0]))
            if kind == "filters":
                cosine, l2 = drift.cosine_distance(first, other), drift.relative_l2(first, other)
                result = replace(result, cosine=Spread.of(cosine), l2=Spread.of(l2))
            else:
                result = replace(result, cka=drift.linear_cka(_sampled(first), _sampled(other)))
        return replace(result, high=high)

    def _all_filters(self, side: int, step: int) -> Mapping[str, FloatArray]:
        """All filters of a side at a step, where they are stored; else nothing."""
        chosen = self.sides[side]
        if chosen.run is None:
            return chosen.filters
        own = self.step_of(side, step)
        for which in ("last", "baseline"):
            try:
                weights, held = chosen.run.weights(which)
            except FileNotFoundError:
                continue
            except StoreError as error:
                self._note(f"skipped: {error}")
                continue
            # With filters kept at every n-th step only, those of the last one stand until the next
            if own is not None and any(held == chosen.run.holding(name, "filters", own) for name in weights):
                return weights
        return {}

    def _row(self, layer: LayerMatch, step: int, everything: Sequence[Mapping[str, FloatArray]]) -> Row:
        sides = range(len(self.sides))
        further = [self._distances(side, layer, step, everything) for side in sides[1:]]
        numbers = {m: [self._number(side, layer, m, step) for side in sides] for m in ("cosine", "l2")}
        singles = {m: [self._number(side, layer, m, step) for side in sides] for m in ("dead_share", "cka")}
        return Row(
            layer=layer.name,
            filters=self._count(layer, step),
            drift_cosine=tuple(numbers["cosine"]),
            drift_l2=tuple(numbers["l2"]),
            dead_share=tuple(None if s is None else s.mean for s in singles["dead_share"]),
            cka=tuple(None if s is None else s.mean for s in singles["cka"]),
            distance_cosine=tuple(found[0] for found in further),
            distance_l2=tuple(found[1] for found in further),
            cka_between=tuple(found[2] for found in further),
            shown_only=any(found[3] for found in further),
        )

    def _distances(
        self, side: int, layer: LayerMatch, step: int, everything: Sequence[Mapping[str, FloatArray]]
    ) -> tuple[Spread | None, Spread | None, float | None, bool]:
        first = everything[0].get(layer.names[0] or "")
        other = everything[side].get(layer.names[side] or "")
        between = self._measured().get((side, layer.name, step)) or self._measure(side, layer, step, {})
        if first is not None and other is not None and first.shape == other.shape:
            cosine, l2 = drift.cosine_distance(first, other), drift.relative_l2(first, other)
            return Spread.of(cosine), Spread.of(l2), between.cka, False
        return between.cosine, between.l2, between.cka, between.cosine is not None

    def _number(self, side: int, layer: LayerMatch, measure: Any, step: int) -> Spread | None:
        chosen, name = self.sides[side], layer.names[side]
        if name is None:
            return None
        if chosen.run is None:
            maps = chosen.feature_maps.get(name)
            return Spread.of(drift.dead_share(maps)) if measure == "dead_share" and maps is not None else None
        at = self._at(side, layer, "filters" if measure in ("cosine", "l2") else "feature_maps", step)
        return None if at is None else chosen.run.summary(at).numbers.get(_stored(measure), {}).get(name)

    def _count(self, layer: LayerMatch, step: int) -> int | None:
        for side, name in enumerate(layer.names):
            chosen = self.sides[side]
            if name is None:
                continue
            if chosen.run is not None:
                known = chosen.run.layer(name)
                if known.weight_shape is not None or known.output_shape is not None:
                    return (
                        known.weight_shape[0] if known.weight_shape is not None else (known.output_shape or (0, 0))[1]
                    )
            elif name in chosen.filters:
                return len(chosen.filters[name])
        return None

    def _verdict_of(self, side: int, rows: Sequence[Row]) -> str:
        pair = f"between {self.sides[0].label} and {self.sides[side].label}"
        values = {row.layer: _mean(row.distance_cosine[side - 1]) for row in rows}
        what = "cosine distance of its filters"
        if all(value is None for value in values.values()):
            alike = {row.layer: row.cka_between[side - 1] for row in rows}
            values = {layer: None if cka is None or math.isnan(cka) else 1 - cka for layer, cka in alike.items()}
            what = "1 - CKA of its feature maps"
        known = {layer: value for layer, value in values.items() if value is not None}
        if not known:
            return f"no number says how far the layers moved {pair}"
        most, least = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
        if known[most] == 0:
            return f"no layer moved {pair}"
        if len(known) == 1:
            return f"{most} moved {known[most]:.3g} {pair} ({what})"
        return f"{most} moved most {pair} ({what}: {known[most]:.3g}), {least} least ({known[least]:.3g})"


def compare(
    *sides: Given,
    image: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Align stored runs and weights by layer and step.

    Args:
        sides: each a `Run`, a run's folder (or a parent of exactly one), `RUN@STEP`, `RUN@baseline`, `RUN@last`, a file
            of weights (.ckpt, .pt, .pth, .bin, .safetensors), or `torchvision:NAME:WEIGHTS`. One run alone is compared
            with its own baseline. Only weights need torch.
        image: what weights are to make feature maps of; by default the probe of the first run, where there is one and
            the architecture is known.
        arch: torchvision's name of the architecture of files of weights.
        progress: is told how far the reading is.

    Raises:
        ValueError: a side is not what it should be, or the sides have no layer in common.
        FileNotFoundError: a side does not exist.
    """
    if not sides:
        raise ValueError("expected a run, or two or more runs and files of weights, to compare; got none")
    opened: dict[str, Run] = {}
    found = [_opened(given, opened, arch, with_network=image is not None) for given in sides]
    if len(found) == 1:
        thing, label, _ = found[0]
        if not isinstance(thing, Run):
            raise ValueError(f"{label} is weights, and one side alone must be a run; give something to compare it with")
        found.insert(0, (thing, f"{thing.name}@baseline", thing.step("baseline")))
    for thing, _, step in found:
        if isinstance(thing, Run):
            if step is None:
                thing.read_all(progress)
                thing.step("last")
            else:
                thing.record(step)
    return _aligned(found, image)


_Found = tuple["Run | Weights", str, "int | None"]


def _opened(given: Given, opened: dict[str, Run], arch: str | None, *, with_network: bool) -> _Found:
    """A side's run or weights, its label, and the step it is pinned to."""
    if isinstance(given, Run):
        return given, given.name, None
    text = os.fspath(given)
    if text.startswith(_TORCHVISION) or (text.endswith(WEIGHT_SUFFIXES) and not Path(text).is_dir()):
        return _weights(text, arch, with_network=with_network), _weights_label(text), None
    path, which = _pinned(text)
    if path not in opened:
        opened[path] = open_run(path)
    run = opened[path]
    if which is None:
        return run, run.name, None
    return run, f"{run.name}@{which}", run.step(which)


def _pinned(text: str) -> tuple[str, Which | None]:
    match = _PIN.fullmatch(text)
    if match is None or os.path.exists(text):
        return text, None
    path, which = match.groups()
    if which == "baseline":
        return path, "baseline"
    if which == "last":
        return path, "last"
    if which.isdecimal():
        return path, int(which)
    raise ValueError(f"expected a step's number, baseline or last behind the @ of {text!r}; got {which!r}")


def _weights(text: str, arch: str | None, *, with_network: bool) -> Weights:
    try:
        from cnnlog.weights import open_weights
    except ModuleNotFoundError as error:
        raise ValueError(f"{text} is weights, and reading them needs torch and torchvision ({error})") from error
    return open_weights(text, arch=arch, with_network=with_network)


def _weights_label(text: str) -> str:
    return text.removeprefix(_TORCHVISION) if text.startswith(_TORCHVISION) else Path(text).name


def _aligned(found: Sequence[_Found], image: str | os.PathLike[str] | None) -> Comparison:
    notes: list[str] = []
    labels = _unlike([label for _, label, _ in found], [thing for thing, _, _ in found])
    reference = next((i for i, (thing, _, _) in enumerate(found) if isinstance(thing, Run)), 0)
    thing = found[reference][0]
    base = thing.layers if isinstance(thing, Run) else thing.auto()
    names: dict[str, list[str | None]] = {name: [None] * len(found) for name in base}
    for index, (thing, _, _) in enumerate(found):
        own = base if index == reference else thing.layers
        pairs, said = align(base, own)
        if said:
            notes.append(f"{labels[reference]} and {labels[index]} are matched {said}")
        for name in own:
            if name in pairs:
                names[pairs[name]][index] = name
            elif isinstance(thing, Run):
                names.setdefault(name, [None] * len(found))[index] = name
    if len(found) > 1 and not any(sum(name is not None for name in row) > 1 for row in names.values()):
        listed = "; ".join(
            f"{label} has {_some(thing.layers)}" for (thing, _, _), label in zip(found, labels, strict=True)
        )
        raise ValueError(f"the sides have no layer in common: {listed}")
    sides = _sides(found, labels, names, image, notes)
    layers = _matches(sides, names, found)
    for index, side in enumerate(sides):
        lacking = [layer.name for layer in layers if layer.names[index] is None]
        if lacking:
            notes.append(f"{side.label} lacks {', '.join(lacking)}")
    units = {side.run.manifest.unit for side in sides if side.run is not None and side.step is None}
    if len(units) > 1:
        notes.append("the runs count steps differently (epochs, training steps); they are aligned by number")
    return Comparison(sides, layers, notes)


def align(reference: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Match layers' names with those of a reference, if need be without a prefix that they share.

    Args:
        reference: names as one side has them.
        names: as another has them.

    Returns:
        Name -> the reference's name, for those that match; and how they were matched, in words (empty if as they are).

    >>> align(["model.features.0", "model.features.3"], ["features.0", "features.3", "head"])
    ({'features.0': 'model.features.0', 'features.3': 'model.features.3'}, "without the prefix 'model.'")
    """
    plain = {_plain_name(name): name for name in reference}
    own = {_plain_name(name): name for name in names}
    choices = {("", "")}
    for r in plain:
        for n in own:
            if r.endswith(f".{n}"):
                choices.add((r[: -len(n)], ""))
            if n.endswith(f".{r}"):
                choices.add(("", n[: -len(r)]))
    choices.add((_wrapped(plain), _wrapped(own)))

    def matched(choice: tuple[str, str]) -> dict[str, str]:
        ours, theirs = choice
        pairs = {n: ours + n[len(theirs) :] for n in own if n.startswith(theirs)}
        pairs = {n: r for n, r in pairs.items() if r in plain}
        taken = set(pairs.values())
        return {**{n: n for n in own if n in plain and n not in taken and n not in pairs}, **pairs}

    def rank(choice: tuple[str, str]) -> tuple[int, bool, int, tuple[str, str]]:
        known = all(part in _WRAPPERS for prefix in choice for part in prefix.split(".")[:-1])
        return (-len(matched(choice)), not known, len(choice[0]) + len(choice[1]), choice)

    best = min(choices, key=rank)
    pairs = {own[n]: plain[r] for n, r in matched(best).items()}
    prefixes = [repr(prefix) for prefix in best if prefix]
    if any("_orig_mod." in n or "_orig_mod." in r for n, r in pairs.items() if n != r):
        prefixes.append("'_orig_mod.'")
    said = (
        f"without the prefix{'es' if len(prefixes) > 1 else ''} {' and '.join(prefixes)}" if prefixes and pairs else ""
    )
    return pairs, said


def _plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _wrapped(names: Mapping[str, str]) -> str:
    """The usual names of wrappers that all names begin with."""
    prefix = ""
    while True:
        heads = {name[len(prefix) :].split(".")[0] if "." in name[len(prefix) :] else "" for name in names}
        head = heads.pop() if len(heads) == 1 else ""
        if head not in _WRAPPERS:
            return prefix
        prefix += f"{head}."


def _sides(
    found: Sequence[_Found],
    labels: Sequence[str],
    names: Mapping[str, Sequence[str | None]],
    image: str | os.PathLike[str] | None,
    notes: list[str],
) -> list[Side]:
    runs = [thing for thing, _, _ in found if isinstance(thing, Run)]
    with_maps = {
        name
        for name, row in names.items()
        for (thing, _, _), own in zip(found, row, strict=True)
        if isinstance(thing, Run) and own is not None and thing.layer(own).output_shape is not None
    }
    sides = []
    for index, (thing, _, step) in enumerate(found):
        if isinstance(thing, Run):
            probe = thing.manifest.probe.get("fingerprint") if with_maps else None
            sides.append(Side(labels[index], thing, step, probe=probe, source=thing.path))
            continue
        own = [row[index] for row in names.values()]
        filters = {name: thing.filters[name] for name in own if name is not None and name in thing.filters}
        wanted = [row[index] for name, row in names.items() if name in with_maps or not runs]
        there = [name for name in wanted if name is not None]
        maps, fingerprint, said = thing.feature_maps(there, image=image, run=runs[0] if runs else None)
        if said:
            notes.append(f"{labels[index]}: {said}")
        sides.append(Side(labels[index], None, None, filters, maps, fingerprint, thing.source))
    return sides


def _matches(
    sides: Sequence[Side], names: Mapping[str, Sequence[str | None]], found: Sequence[_Found]
) -> list[LayerMatch]:
    layers = []
    for position, (name, row) in enumerate(names.items()):
        has_filters = has_maps = False
        view: render.ResolvedView | None = None
        for side, own in zip(sides, row, strict=True):
            if own is None:
                continue
            if side.run is not None:
                known = side.run.layer(own)
                has_filters |= known.weight_shape is not None
                has_maps |= known.output_shape is not None
                view = view or known.view
            else:
                has_filters |= own in side.filters
                has_maps |= own in side.feature_maps
        if view is None and has_filters:
            shape = next(s.filters[own].shape for s, own in zip(sides, row, strict=True) if own in s.filters)  # type: ignore[index]
            view = render.resolve_view(shape, "auto")
        layers.append(LayerMatch(name, f"{position:02d}_{name}", tuple(row), has_filters, has_maps, view))
    return layers


def _steps(sides: Sequence[Side]) -> tuple[int, ...]:
    free = {step for side in sides if side.run is not None and side.step is None for step in side.run.steps}
    pinned = [side.step for side in sides if side.step is not None]
    return tuple(sorted(free)) if free else (max(pinned, default=0),)


def _look(sides: Sequence[Side]) -> dict[str, Any]:
    """How many channels of weights are shown: as many as of the first run."""
    settings = next((side.run.manifest.settings for side in sides if side.run is not None), {})
    filters, maps = settings.get("filters") or {}, settings.get("feature_maps") or {}
    return {
        "shown": filters.get("shown", 64),
        "slices": filters.get("slices", 16),
        "maps": maps.get("shown", 64),
        "width": maps.get("width", 350),
    }


def _fits(shape: Sequence[int], view: render.View) -> bool:
    try:
        render.resolve_view(tuple(shape), view)
    except ValueError:
        return False
    return True


def _sampled(maps: FloatArray) -> FloatArray:
    """The activations `[positions, n]` of maps `[N, n, h, w]` at the positions where CKA is measured."""
    images, channels, height, width = maps.shape
    at = drift.sample_positions(images, height, width)
    return np.asarray(maps.transpose(0, 2, 3, 1).reshape(-1, channels)[at], dtype=np.float32)


def _unlike(labels: Sequence[str], things: Sequence[Any]) -> list[str]:
    """Labels that differ: with the parent folders where names are alike, with a number where these are, too."""
    result = list(labels)
    for index, label in enumerate(labels):
        if labels.count(label) > 1:
            thing = things[index]
            pin = label[len(thing.name) :] if isinstance(thing, Run) else ""
            source = Path(thing.path if isinstance(thing, Run) else thing.source)
            parts = [part for part in source.parts if part not in ("/", "cnnlog")]
            result[index] = "/".join(parts[-(2 + len(Path(label).parts) - 1) :]) + pin
    return [
        f"{label} ({result[:index].count(label) + 1})" if result[:index].count(label) else label
        for index, label in enumerate(result)
    ]


def _stored(measure: Any) -> str:
    return NUMBER[measure]


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None or math.isnan(spread.mean) else spread.mean


def _means(spreads: Sequence[Spread | None]) -> list[float | None]:
    return [_mean(spread) for spread in spreads]


def _spread_out(line: dict[str, Any], name: str, value: Spread | float | None) -> None:
    """A number as one column, a spread as four."""
    if isinstance(value, Spread):
        parts = {
            "mean": value.mean,
            "lower_quartile": value.lower,
            "median": value.median,
            "upper_quartile": value.upper,
        }
        line.update({f"{name}_{part}": number for part, number in parts.items()})
    elif value is not None:
        line[name] = value


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"

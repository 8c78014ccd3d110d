"""Stored runs and weights side by side: aligned by layer and step, with the numbers between them. No torch.

The module is not called `compare`, for then importing it would replace the function `cnnlog.compare`.
"""

from __future__ import annotations

import html
import os
import textwrap
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlog.comparison.rows import Row, letter, plain, rows_csv, rows_table, verdict_sentence
from cnnlog.comparison.sides import Given, LayerMatch, Side, filters_shape, open_sides
from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.rendering.ranges import AnchoredRange, ChangeRange, Limits, peak
from cnnlog.rendering.views import ResolvedView, cell_width, grid_columns, resolve_view, select_filters, select_maps
from cnnlog.runs.run import NUMBER, Measure, Progress, Spread
from cnnlog.runs.store import StoreError
from cnnlog.runs.table import Table
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "LayerMatch", "Row", "Side", "compare"]

_CURVES: Mapping[str, Measure] = {
    "drift_cosine": "cosine",
    "drift_l2": "l2",
    "update_l2": "update",
    "dead_share": "dead_share",
    "cka": "cka",
}


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
        self._rows: dict[int, list[Row]] = {}
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

    def view_of(self, side: int, layer: LayerMatch) -> ResolvedView | None:
        """How a side's filters of a layer are shown."""
        run, name = self.sides[side].run, layer.names[side]
        if name is None or layer.view is None:
            return layer.view
        if run is not None:
            return run.layer(name).view or layer.view
        shape = filters_shape(self.sides[side], name)
        return layer.view if shape is None else _fitting(shape, layer.view)

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

    def limits(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> Limits | None:
        """The side's own range, anchored at its baseline; None where `shown` is None."""
        run, name = self.sides[side].run, layer.names[side]
        shown = self.shown(side, layer, kind, step)
        if shown is None or name is None:
            return None
        if run is None:
            values = shown if kind == "filters" else shown.swapaxes(0, 1)
            return AnchoredRange(signed=True if kind == "filters" else None).update(values)
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

    def difference_limits(self, layer: LayerMatch, kind: Kind, step: int, side: int = 1) -> Limits | None:
        """The range of `difference`: one for the layer, anchored over the steps, `2**-k` of the first side's peak."""
        measured = self._measured().get((side, layer.name, self._known(step)))
        found = None if measured is None else measured.high.get(kind)
        shown = self.shown(0, layer, kind, step)
        if found is None or shown is None:
            return None
        count = len(shown) if kind == "filters" else shown.shape[1]
        high, doubled = found
        return Limits(np.full(count, high, np.float32), True, np.full(count, doubled, np.int64))

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
        from cnnlog.rendering import figures

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
        ranges: dict[tuple[int, str, Kind], ChangeRange] = {}
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
        if at not in self._rows:
            everything = [self._all_filters(side, at) for side in range(len(self.sides))]
            self._rows[at] = [self._row(layer, at, everything) for layer in self.layers]
            parts = [row.layer for row in self._rows[at] if row.shown_only]
            if parts and at == self.steps[-1]:
                self._note(
                    f"the distances between the sides are of the shown filters of {', '.join(parts)}: all "
                    "are stored at a run's baseline and last step only"
                )
        return list(self._rows[at])

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
                        spread = numbers.get(NUMBER[number], {}).get(name or "")
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
        first = self.sides[0]
        same = [
            side.run is not None and first.run is not None and side.run.path == first.run.path for side in self.sides
        ]
        last = self.steps[-1]
        own = [
            side.run is not None
            and self.step_of(index, last) != side.run.manifest.baseline_step
            and not (same[index] and index > 0)
            for index, side in enumerate(self.sides)
        ]
        verbs = ["moved" if alike else "differs" for alike in same[1:]]
        return verdict_sentence(self.rows(), [side.label for side in self.sides], own=own, verbs=verbs)

    # ---- text

    def table(self) -> Table:
        """`rows()` as a table with one column for each number and side: means over a layer's channels."""
        return rows_table(self.rows(), len(self.sides))

    def to_text(self) -> str:
        """The table with a legend, the notes, and the sentence, for a terminal."""
        table = self.table().to_text()
        legend = [f"{letter(i)}: {self._described(i)}" for i in range(len(self.sides))]
        about = (
            "Means over a layer's channels. drift: cosine distance from the side's own baseline; A to B: the same "
            "between the sides; dead: share of channels never above 0 on the probe; CKA A: of the feature maps with "
            "those of its own baseline; CKA A-B: between the sides, of the shown feature maps."
        )
        notes = [f"Note: {note}." for note in self.notes]
        return "\n".join([*legend, "", table, "", *textwrap.wrap(about, 100), *notes, "", self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Everything in numbers, for JSON: plain values, None for what is not there or not finite."""
        last = self.steps[-1]
        rows = [{**plain(row), "names": list(layer.names)} for layer, row in zip(self.layers, self.rows(), strict=True)]
        return {
            "format": "cnnlog-comparison",
            "version": 1,
            "sides": [
                {"label": side.label, "source": side.source, "step": self.step_of(index, last)}
                for index, side in enumerate(self.sides)
            ],
            "steps": list(self.steps),
            "layers": rows,
            "curves": plain(self.curves()),
            "notes": list(self.notes),
            "verdict": self.verdict(),
        }

    def to_csv(self) -> str:
        """The numbers of `rows()` with quartiles: one line a layer, one column for each number and side."""
        return rows_csv(self.rows(), len(self.sides))

    def __repr__(self) -> str:
        return (
            f"Comparison({', '.join(s.label for s in self.sides)}: {len(self.layers)} layers, {len(self.steps)} steps)"
        )

    def _repr_html_(self) -> str:
        legend = "<br>".join(html.escape(f"{letter(i)}: {self._described(i)}") for i in range(len(self.sides)))
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{legend}</p>{self.table()._repr_html_()}<ul>{notes}</ul><p>{html.escape(self.verdict())}</p>"

    # ---- inside

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def _known(self, step: int) -> int:
        """The nearest step of the comparison not after `step`; its first before that."""
        return self.steps[max(0, bisect_right(self.steps, step) - 1)]

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
                array = select_filters(
                    weight, view=self.view_of(side, layer) or "auto", max_filters=shown, max_slices=slices
                )
            elif kind == "feature_maps" and name in self.sides[side].feature_maps:
                maps = self.sides[side].feature_maps[name]
                cell = cell_width(grid_columns(min(maps.shape[1], self._look["maps"])), self._look["width"])
                array = select_maps(maps, max_maps=self._look["maps"], cell=cell)
            else:
                return None
            self._shown_weights[key] = array
        return self._shown_weights[key]

    def _measured(self) -> dict[tuple[int, str, int], _Between]:
        self.measure()
        assert self._between is not None, "it was just measured"
        return self._between

    def _measure(
        self, side: int, layer: LayerMatch, step: int, ranges: dict[tuple[int, str, Kind], ChangeRange]
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
            key = (side, layer.name, kind)
            if key not in ranges:
                ranges[key] = ChangeRange(peak(first))
            limits = ranges[key].update(change)
            high[kind] = (float(limits.high[0]), int(limits.doubled[0]))
            if kind == "filters":
                moved = drift.change(first, other)
                result = replace(result, cosine=Spread.of(moved.cosine), l2=Spread.of(moved.l2))
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
        measures: tuple[Measure, ...] = ("cosine", "l2", "update", "dead_share", "cka")
        numbers = {m: [self._number(side, layer, m, step) for side in sides] for m in measures}
        return Row(
            layer=layer.name,
            filters=self._count(layer),
            drift_cosine=tuple(numbers["cosine"]),
            drift_l2=tuple(numbers["l2"]),
            update_l2=tuple(numbers["update"]),
            dead_share=tuple(None if s is None else s.mean for s in numbers["dead_share"]),
            cka=tuple(None if s is None else s.mean for s in numbers["cka"]),
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
        between = self._measured()[side, layer.name, self._known(step)]
        if first is not None and other is not None and first.shape == other.shape:
            moved = drift.change(first, other)
            return Spread.of(moved.cosine), Spread.of(moved.l2), between.cka, False
        return between.cosine, between.l2, between.cka, between.cosine is not None

    def _number(self, side: int, layer: LayerMatch, measure: Measure, step: int) -> Spread | None:
        chosen, name = self.sides[side], layer.names[side]
        if name is None:
            return None
        if chosen.run is None:
            maps = chosen.feature_maps.get(name)
            return Spread.of(drift.dead_share(maps)) if measure == "dead_share" and maps is not None else None
        at = self._at(side, layer, "filters" if measure in ("cosine", "l2", "update") else "feature_maps", step)
        return None if at is None else chosen.run.summary(at).numbers.get(NUMBER[measure], {}).get(name)

    def _count(self, layer: LayerMatch) -> int | None:
        for side, name in zip(self.sides, layer.names, strict=True):
            if name is None:
                continue
            shape = filters_shape(side, name)
            if shape is not None:
                return shape[0]
            if side.run is not None and (maps := side.run.layer(name).output_shape) is not None:
                return maps[1]
        return None


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
    found = open_sides(sides, image=image, arch=arch, progress=progress)
    return Comparison(found.sides, found.layers, found.notes)


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


def _fitting(shape: tuple[int, ...], view: ResolvedView) -> ResolvedView:
    """The view, or the automatic one where these filters have other input channels than it needs."""
    try:
        return resolve_view(shape, view)
    except ValueError:
        return resolve_view(shape, "auto")


def _sampled(maps: FloatArray) -> FloatArray:
    """The activations `[positions, n]` of maps `[N, n, h, w]` at the positions where CKA is measured."""
    images, channels, height, width = maps.shape
    at = drift.sample_positions(1, height, width)
    sampled = maps.reshape(images, channels, height * width)[:, :, at]
    return np.asarray(sampled.swapaxes(1, 2).reshape(-1, channels), dtype=np.float32)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"

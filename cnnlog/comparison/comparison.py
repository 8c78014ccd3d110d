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
from cnnlog.messages import some
from cnnlog.metrics import drift
from cnnlog.rendering.ranges import AnchoredRange, ChangeRange, Limits, peak
from cnnlog.rendering.views import ResolvedView, cell_width, grid_columns, resolve_view, select_filters, select_maps
from cnnlog.runs.manifest import StoreError
from cnnlog.runs.run import NUMBER, Measure, Progress
from cnnlog.runs.spread import Spread
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
    """Runs and weights side by side, aligned by layer and step. `cnnlog.compare` makes one.

    Arrays are read one step at a time. Where a method takes `side`, sides are counted from 0, in the order given; the
    first one is what the others are compared with.

    Attributes:
        sides: what is compared, in the order given.
        layers: the layers, in the order of the first run's tags; those that only some sides have come last.
        steps: the steps of all sides that are not pinned to one step (`RUN@12`), rising.
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
        """What you should know of this comparison, in sentences.

        How layers were matched, what a side lacks, which side ends early, and which steps are damaged.
        """
        skipped = (text for side in self.sides if side.run is not None for text in side.run.skipped)
        return tuple(dict.fromkeys([*self._notes, *(f"skipped: {text}" for text in skipped)]))

    # ---- pictures

    def step_of(self, side: int, step: int) -> int | None:
        """Which of a side's own steps is shown at a step of the comparison.

        Args:
            side: the side, counted from 0.
            step: any step's number.

        Returns:
            The nearest step of the side that is not after `step`; the step that the side is pinned to, if it is; None
            before the side's first step, and for weights.
        """
        chosen = self.sides[side]
        if chosen.run is None or chosen.step is not None:
            return chosen.step
        known = chosen.run.steps
        at = bisect_right(known, step)
        return known[at - 1] if at else None

    def held(self, side: int, step: int) -> bool:
        """Whether a side has ended before a step, so that its last step is shown there.

        Args:
            side: the side, counted from 0.
            step: any step's number.
        """
        chosen = self.sides[side]
        return chosen.run is not None and chosen.step is None and step > chosen.run.steps[-1]

    def view_of(self, side: int, layer: LayerMatch) -> ResolvedView | None:
        """How a side's filters of a layer are shown: rgb, gray, slices or mean; None where there are no filters.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.
        """
        run, name = self.sides[side].run, layer.names[side]
        if name is None or layer.view is None:
            return layer.view
        if run is not None:
            return run.layer(name).view or layer.view
        shape = filters_shape(self.sides[side], name)
        return layer.view if shape is None else _fitting(shape, layer.view)

    def shown(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> FloatArray | None:
        """A side's shown filters or feature maps of a layer.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison; the side's nearest step that is not after it is read.

        Returns:
            Filters float32 `[n, k, kH, kW]`, or feature maps `[N, n, h, w]` of N probe images; None where the side has
            none.
        """
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
        """The range that a side's picture of a layer was drawn with: what full colour stands for, for each channel.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.

        Returns:
            The side's own range, anchored at its baseline; None where `shown` gives None.
        """
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
        """What a further side shows minus what the first side shows.

        Args:
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.
            side: the further side, from 1 on.

        Returns:
            float32, filters `[n, k, kH, kW]` or feature maps `[N, n, h, w]`. None where one of the two sides shows
            nothing, where their shapes differ, and for feature maps of different probes.
        """
        if kind == "feature_maps" and not self.same_probe(side):
            return None
        first, other = self.shown(0, layer, kind, step), self.shown(side, layer, kind, step)
        if first is None or other is None or first.shape != other.shape:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(other - first, dtype=np.float32)

    def difference_limits(self, layer: LayerMatch, kind: Kind, step: int, side: int = 1) -> Limits | None:
        """The range that `difference` is drawn with: one for all channels of a layer.

        It is the peak of what the first side shows first, divided by a power of two. If a difference exceeds it, it
        doubles; it never shrinks over the steps.

        Args:
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.
            side: the further side, from 1 on.

        Returns:
            None where `difference` gives None.
        """
        measured = self._measured().get((side, layer.name, self._known(step)))
        found = None if measured is None else measured.high.get(kind)
        shown = self.shown(0, layer, kind, step)
        if found is None or shown is None:
            return None
        count = len(shown) if kind == "filters" else shown.shape[1]
        high, doubled = found
        return Limits(np.full(count, high, np.float32), True, np.full(count, doubled, np.int64))

    def same_probe(self, side: int) -> bool:
        """Whether a side's feature maps are of the same probe as the first side's.

        Args:
            side: the side, counted from 0.
        """
        return self.sides[0].probe is not None and self.sides[0].probe == self.sides[side].probe

    def figure(
        self, layer: str, kind: Kind = Kind.FILTERS, step: int | None = None, *, side: int | None = None, image: int = 0
    ) -> Figure:
        """A matplotlib figure of a layer: the second side minus the first, or one side alone.

        Args:
            layer: the name of a layer, as in `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison; None for the last one.
            side: the side to show alone, counted from 0; None for the difference.
            image: which image of the probe the feature maps are of, counted from 0.

        Raises:
            ValueError: there is no such layer or image, or nothing of this kind to draw.
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
        """One of `layers`, by its name.

        Args:
            name: what the layer is called in this comparison.

        Raises:
            ValueError: there is no such layer; the message names those that there are.
        """
        for match in self.layers:
            if match.name == name:
                return match
        raise ValueError(f"the comparison has no layer {name!r}; it has {some([m.name for m in self.layers], 5)}")

    # ---- numbers

    def measure(self, progress: Progress | None = None) -> None:
        """Measure the distances between the sides at every step. Other methods call this when they need it.

        Args:
            progress: a function that is told how far the work is: `progress("comparing", done, total)`.
        """
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
        """The numbers at one step: one row for each layer.

        Distances between sides are of all filters where both sides have them (at a run's baseline and last step, and in
        weights), else of the shown filters; a row says which.

        Args:
            step: a step of the comparison; None for the last one.
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
        """The numbers over the steps: means over a layer's channels.

        Returns:
            For each measure, for each layer, for each side's label: a list of `(step, value)`, steps rising. The
            measures of a side alone are `drift_cosine`, `drift_l2` (distance to the side's own baseline), `update_l2`
            (to the snapshot before), `dead_share` and `cka` (likeness to its own baseline). Those of a further side are
            `distance_cosine`, `distance_l2` and `cka_between`: how far what it shows is from what the first side shows.
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
        """One sentence that names the layers that moved most and least, at the last step."""
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
        """The numbers at the last step as a table: one row for each layer, one column for each number and side.

        The numbers are means over a layer's channels. The table prints itself.
        """
        return rows_table(self.rows(), len(self.sides))

    def to_text(self) -> str:
        """The table for a terminal, with a legend, the notes and the verdict."""
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
        """All numbers as plain values, for JSON. What does not exist or is not finite is None."""
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
        """The numbers at the last step as CSV text, with quartiles: one line for each layer."""
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
        kinds: tuple[Kind, ...] = (Kind.FILTERS, Kind.FEATURE_MAPS)
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
            if own is not None and any(held == chosen.run.holding(name, Kind.FILTERS, own) for name in weights):
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
        at = self._at(side, layer, Kind.FILTERS if measure in ("cosine", "l2", "update") else Kind.FEATURE_MAPS, step)
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
    """Put stored runs and weights side by side, aligned by layer and step.

    Args:
        sides: what to compare; the first one is what the others are compared with. One run alone is compared with its
            own baseline. Each side is one of these:

            - the folder of a run, or any folder above it that holds exactly one; or an open `Run`
            - such a folder with one step of the run: `RUN@12`, `RUN@baseline` or `RUN@last`
            - a file of weights (.ckpt, .pt, .pth, .bin, .safetensors), which needs torch
            - weights of torchvision's, `torchvision:NAME:WEIGHTS`, such as `torchvision:alexnet:DEFAULT`
        image: the path of an image that the weights make feature maps of. None takes the probe of the first run, where
            the architecture is known: of torchvision's weights, and of files if you give `arch`.
        arch: the architecture of the files of weights, by torchvision's name, such as `"alexnet"`. Only feature maps
            need it. If you give an image alone, the file has to tell its architecture by itself.
        progress: a function that is told how far the reading is: `progress("reading NAME", done, total)`.

    Returns:
        A comparison: `print(comparison.to_text())` shows its table, `comparison.verdict()` says it in one sentence.

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

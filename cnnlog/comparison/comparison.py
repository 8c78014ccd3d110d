"""Stored runs and weights side by side: aligned by layer and step, with the numbers between them. No torch."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from cnnlog.comparison.between import Distances
from cnnlog.comparison.curves import Curves, copied, curves_of
from cnnlog.comparison.old_names import Renamed, old_curves
from cnnlog.comparison.ranges import Whose
from cnnlog.comparison.rows import Row, rows_at, rows_csv, rows_table
from cnnlog.comparison.side_by_side import SideBySide
from cnnlog.comparison.sides import Given, LayerMatch, Side, open_sides
from cnnlog.comparison.verdict import verdict_of
from cnnlog.comparison.words import legend, text_of, values_of
from cnnlog.kinds import Kind, KindName
from cnnlog.messages import some
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.views import ResolvedView
from cnnlog.runs.run import Progress
from cnnlog.runs.table import Table
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "LayerMatch", "Row", "Side", "compare"]


class Comparison:
    """Runs and weights side by side, aligned by layer and step. `cnnlog.compare` makes one.

    Arrays are read one step at a time, so a comparison of long runs fits into memory. Where a method takes `side`,
    sides are counted from 0 in the order given. The first one is what the others are compared with.

    Attributes:
        sides: what is compared, in the order given.
        layers: the layers, in the order of the first run's tags; those that only some sides have come last.
        steps: the steps of all sides that are not pinned to one step (`RUN@12`), rising.
        ranges: whose values the range of a picture covers: `"shared"` for those of all sides, `"own"` for the side's.
    """

    def __init__(
        self, sides: Sequence[Side], layers: Sequence[LayerMatch], notes: Sequence[str], ranges: Whose = "shared"
    ) -> None:
        if ranges not in get_args(Whose):
            raise ValueError(f"ranges must be {' or '.join(map(repr, get_args(Whose)))}; got {ranges!r}")
        self._of = SideBySide(sides, layers, notes)
        self._distances = Distances(self._of, ranges)
        self.ranges = ranges
        self.sides, self.layers, self.steps = self._of.sides, self._of.layers, self._of.steps
        self._rows: dict[int, list[Row]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What you should know of this comparison, in sentences.

        How layers were matched, what a side lacks, which side ends early, which started from other weights, and which
        steps are damaged.
        """
        self._of.note_starts()
        skipped = (text for side in self.sides if side.run is not None for text in side.run.skipped)
        return tuple(dict.fromkeys([*self._of.notes, *(f"skipped: {text}" for text in skipped)]))

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
        return self._of.step_of(side, step)

    def held(self, side: int, step: int) -> bool:
        """Whether a side has ended before a step, so that its last step is shown there.

        Args:
            side: the side, counted from 0.
            step: any step's number.
        """
        return self._of.held(side, step)

    def view_of(self, side: int, layer: LayerMatch) -> ResolvedView | None:
        """How a side's filters of a layer are shown: rgb, gray, slices or mean; None where there are no filters.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.
        """
        return self._of.view_of(side, layer)

    def shown(self, side: int, layer: LayerMatch, kind: Kind | KindName, step: int) -> FloatArray | None:
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
        return self._of.shown(side, layer, Kind(kind), step)

    def limits(self, side: int, layer: LayerMatch, kind: Kind | KindName, step: int) -> Limits | None:
        """The range that a side's picture of a layer is drawn with: what full colour stands for, for each channel.

        It is the same at all steps. Unless you compared with `ranges="own"`, it covers all steps of all sides, so that
        one colour is one value wherever you look; with that it covers all steps of this side. Sides whose layers have
        different shapes share no range.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.

        Returns:
            None where `shown` gives None.
        """
        kind = Kind(kind)
        return self._distances.ranges().limits(layer, kind, side) if self._of.shows(side, layer, kind, step) else None

    def difference(self, layer: LayerMatch, kind: Kind | KindName, step: int, side: int = 1) -> FloatArray | None:
        """What a further side shows minus what the first side shows.

        Args:
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.
            side: the further side, from 1 on.

        Returns:
            float32, filters `[n, k, kH, kW]` or feature maps `[N, n, h, w]`. None where one of the two sides shows
            nothing, where their shapes differ, where the layers started from different weights (`same_start`), and for
            feature maps of different probes.
        """
        return self._of.difference(layer, Kind(kind), step, side)

    def difference_limits(self, layer: LayerMatch, kind: Kind | KindName, step: int, side: int = 1) -> Limits | None:
        """The range that `difference` is drawn with: one for all channels, all steps and all further sides.

        It is the largest range of the layer, divided by `gain`.

        Args:
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: a step of the comparison.
            side: the further side, from 1 on.

        Returns:
            None where `difference` gives None.
        """
        kind = Kind(kind)
        if not self._of.same_start(side, layer) or self._of.pair(layer, kind, step, side) is None:
            return None
        return self._distances.ranges().change_limits(layer, kind)

    def gain(self, layer: LayerMatch, kind: Kind | KindName) -> int:
        """By how much the differences of a layer are enlarged: the layer's largest range over that of `difference`.

        It is the largest of 1, 4, 16 and 64 with which less than 2 % of the values that differ, over all steps and all
        further sides, lie beyond the end of the scale.

        Args:
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
        """
        return self._distances.ranges().gain(layer, Kind(kind))

    def same_start(self, side: int, layer: LayerMatch) -> bool:
        """Whether filter i of a side has to do with filter i of the first side: they started from the same weights.

        What is compared are all filters of the layer at the two runs' baselines, or the weights themselves; the shown
        ones where a run has not stored all.

        Args:
            side: the side, counted from 0.
            layer: one of `layers`.

        Returns:
            False where they started from different weights, and where the shapes of the filters differ; True where one
            of the sides has no filters that could say so.
        """
        return self._of.same_start(side, layer)

    def why_no_difference(self, side: int, layer: LayerMatch, kind: Kind | KindName) -> str:
        """Why a side has no difference to the first side anywhere, in words; empty where it has one.

        Args:
            side: the further side, from 1 on.
            layer: one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
        """
        kind = Kind(kind)
        ranges = self._distances.ranges()
        first, other = ranges.shape(layer, kind, 0), ranges.shape(layer, kind, side)
        if first is None or other is None:
            return "one side has none"
        if kind.per_image and not self.same_probe(side):
            return "the probes are not the same"
        if first != other:
            return "their shapes are not the same"
        return "" if self.same_start(side, layer) else self._of.unlike_starts(side)

    def same_probe(self, side: int) -> bool:
        """Whether a side's feature maps are of the same probe as the first side's.

        Args:
            side: the side, counted from 0.
        """
        return self._of.same_probe(side)

    def figure(
        self,
        layer: str,
        kind: Kind | KindName = Kind.FILTERS,
        step: int | None = None,
        *,
        side: int | None = None,
        image: int = 0,
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
        kind, match, at = Kind(kind), self.layer(layer), self.steps[-1] if step is None else step
        if side is None:
            shown, limits = self.difference(match, kind, at), self.difference_limits(match, kind, at)
            whose = f"{self.sides[1].label} minus {self.sides[0].label}"
        else:
            shown, limits = self.shown(side, match, kind, at), self.limits(side, match, kind, at)
            whose = self.sides[side].label
        if shown is None or limits is None:
            why = self.why_no_difference(1, match, kind) if side is None else ""
            raise ValueError(
                f"there are no {kind.words} of {layer} to draw for {whose} at step {at}" + (f": {why}" if why else "")
            )
        picture = Picture.of(kind, shown, limits, image=image, view=self.view_of(side or 0, match))
        return picture.figure(f"{kind.words.capitalize()} of {layer}, {whose}, step {at}")

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
        self._distances.measure(progress)

    def rows(self, step: int | None = None) -> list[Row]:
        """The numbers at one step: one row for each layer.

        Numbers are kept of all convolutions and linear layers, also of those without pictures. Distances between sides
        are of all filters, and of the outputs at fixed positions of the probe, where both sides have them (at a run's
        baseline and last step, and in weights), else of the shown filters and feature maps; a row says which.

        Args:
            step: a step of the comparison; None for the last one.
        """
        at = self.steps[-1] if step is None else step
        if at not in self._rows:
            self._rows[at] = rows_at(self._of, self._distances, at)
        return list(self._rows[at])

    def curves(self) -> dict[str, dict[str, dict[str, list[tuple[int, float]]]]]:
        """The numbers over the steps; of angles the median of a layer's filters.

        Returns:
            For each measure, for each layer, for each side's label: a list of `(step, value)`, steps rising. The
            measures of a side alone, each against the side's own baseline, are `function_change`, `weight_change`,
            `filter_angle`, `cka_positions`; `update_ratio` or `mean_update_ratio`, `dead_share` and `to_go` (to the
            side's last step). Those of a further side, against the first side, are `function_distance`,
            `weight_distance`, `angle_between` and `cka_between`, which are the numbers of `rows` at the first and the
            last step, where both sides store all that is measured; and `shown_function_distance`,
            `shown_weight_distance`, `shown_angle_between` and `shown_cka_between`, of the shown feature maps and
            filters, at all steps. Names of version 0.1 warn.
        """
        return Renamed(copied(self._curves), old_curves(self._of))

    def verdict(self) -> str:
        """One sentence on the layers that changed most and least, at the last step.

        It begins with the name of the layer that changed most: by its output on the probe, or by its weights where no
        probe was watched.
        """
        return verdict_of(self._of, self.rows())

    # ---- text

    def table(self) -> Table:
        """The numbers at the last step as a table: one row for each layer, one column for each number and side.

        Shares are in percent, angles in degrees (the median of a layer's filters). Filters and channels that are NaN
        are left out, and counted beside the number. The table prints itself; `to_csv` has more numbers.
        """
        return rows_table(self.rows(), len(self.sides))

    def to_text(self) -> str:
        """The table for a terminal, with a legend, the notes and the verdict."""
        return text_of(self._of, self.table().to_text(), self.notes, self.verdict())

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, for JSON. What does not exist or is not finite is None.

        Names of version 0.1, such as `drift_cosine`, are not listed; they warn for one release.
        """
        rows = self.rows()  # before the notes, because it may add one
        return values_of(self._of, rows, self._curves, notes=self.notes, verdict=self.verdict())

    def to_csv(self) -> str:
        """The numbers at the last step as CSV text, with quartiles: one line for each layer."""
        return rows_csv(self.rows(), len(self.sides))

    def __repr__(self) -> str:
        labels = ", ".join(side.label for side in self.sides)
        return f"Comparison({labels}: {len(self.layers)} layers, {len(self.steps)} steps)"

    def _repr_html_(self) -> str:
        sides = "<br>".join(html.escape(line) for line in legend(self._of))
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{sides}</p>{self.table()._repr_html_()}<ul>{notes}</ul><p>{html.escape(self.verdict())}</p>"

    @cached_property
    def _curves(self) -> Curves:
        return curves_of(self._of, self._distances)


def compare(
    *sides: Given,
    image: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    ranges: Whose = "shared",
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
        ranges: what full colour stands for in a side's pictures. `"shared"`: each channel has one range, which covers
            all steps of all sides, so that one colour is one value wherever you look. `"own"`: it covers all steps of
            that side, so that a side with small values is not pale beside one with large ones.
        progress: a function that is told how far the reading is: `progress("reading NAME", done, total)`.

    Returns:
        A comparison: `print(comparison.to_text())` shows its table, `comparison.verdict()` says it in one sentence.

    Raises:
        ValueError: a side is not what it should be, the sides have no layer in common, or there are no such ranges.
        FileNotFoundError: a side does not exist.
    """
    found = open_sides(sides, image=image, arch=arch, progress=progress)
    return Comparison(found.sides, found.layers, found.notes, ranges)

"""Draws the pictures that the trackers get, in ranges that stay anchored over the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind
from cnnlog.messages import by
from cnnlog.rendering.grids import STRIP_CHANNELS, strip_grid
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.png import encode_png
from cnnlog.rendering.ranges import AnchoredRange, ChangeRange, Limits, RangeRule, peak
from cnnlog.rendering.views import View, cell_width, grid_columns, select_filters, select_maps
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.snapshot import FloatArray, Record, Snapshot


@dataclass(frozen=True, kw_only=True)
class Look:
    """How the pictures of one monitor are drawn.

    Attributes:
        shown: how many channels of a layer, at most; always the first ones.
        value_range: what full colour stands for: `"channel"`, what each channel had at the baseline; `"layer"`, what
            the layer had there; `"step"`, the largest value of each channel at each step.
        cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
        width: of a grid in pixels, at most; None draws one pixel a value.
        change: whether the difference to the baseline is drawn, too.
        histograms: whether the trackers get the distributions of all values, too.
        view: how a filter with several input channels is drawn: `"rgb"`, `"gray"`, `"slices"` (a row of cells, one for
            each input channel), `"mean"`, or `"auto"`.
        slices: how many filters, and how many input channels of each, the view slices has at most.
    """

    shown: int = 64
    value_range: RangeRule = "channel"
    cmap: str = "auto"
    width: int | None = 350
    change: bool = True
    histograms: bool = False
    view: View = "auto"
    slices: int = 16


@dataclass(frozen=True)
class LoggedPicture:
    """One drawn picture on its way to the trackers.

    Attributes:
        tag: what the trackers call it.
        png: the bytes of a PNG file.
        size: width and height in pixels.
        description: a sentence on what it shows.
    """

    tag: str
    png: bytes
    size: tuple[int, int]
    description: str


class Drawer:
    """Draws one layer's filters, or its feature maps, in ranges that stay anchored over the steps.

    Args:
        layer: whose pictures.
        kind: filters or feature maps.
        look: how they are drawn.
    """

    def __init__(self, layer: WatchedLayer, kind: Kind, look: Look) -> None:
        self.layer, self.kind, self.look = layer, kind, look
        self.baseline: FloatArray | None = None
        self._range = AnchoredRange(look.value_range, signed=kind.signed)
        self._change_range: ChangeRange | None = None
        self._limits: Limits
        self._change_limits: Limits

    def shown(self, array: FloatArray) -> FloatArray:
        """The part of a layer that is drawn and stored, always of the same channels.

        Args:
            array: all filters `[O, I, kH, kW]`, or all feature maps `[N, C, H, W]`.

        Returns:
            `[n, k, kH, kW]`, or `[N, n, h, w]`: maps larger than their cell are averaged by area.
        """
        look = self.look
        if self.kind is Kind.FILTERS:
            assert self.layer.view is not None, "a layer whose filters are watched has a view"
            return select_filters(array, view=self.layer.view, max_filters=look.shown, max_slices=look.slices)
        cell = cell_width(grid_columns(min(array.shape[1], look.shown)), look.width)
        return select_maps(array, max_maps=look.shown, cell=cell)

    def see(self, shown: FloatArray) -> None:
        """Let the ranges take a step in; the first step is the baseline.

        Args:
            shown: the step's shown part.
        """
        if self.baseline is None:
            self.baseline = shown
        if self._change_range is None:
            self._change_range = ChangeRange(peak(self.baseline))
        self._limits = self._range.update(self.kind.by_channel(shown))
        self._change_limits = self._change_range.update(self.kind.by_channel(self._difference(shown)))

    def pictures(self, shown: FloatArray, step: int, since: int) -> list[LoggedPicture]:
        """Draw a step and its difference to the baseline.

        Args:
            shown: the step's shown part, as `see` took it last.
            step: the step's number.
            since: the number of the baseline's step.
        """
        drawn = self._draw(shown, self._limits, "", step, since)
        if self.look.change:
            drawn += self._draw(self._difference(shown), self._change_limits, "_change", step, since)
        return drawn

    def strip(self, steps: Sequence[int], shown: Sequence[FloatArray]) -> LoggedPicture:
        """Draw the evolution: a row for each of the first channels, a column for each step.

        Of filters drawn as slices a row is the first slice; of feature maps it is the first probe image.

        Args:
            steps: the numbers of the steps.
            shown: the shown part of each step.
        """
        name = self.layer.name
        pictures = [Picture.of(self.kind, step, self._limits, view=self.layer.view) for step in shown]
        first = [picture.first(STRIP_CHANNELS) for picture in pictures]
        cells = np.stack([picture.values for picture in first])
        if cells.ndim == 5 and self.layer.view != "rgb":
            cells = cells[:, :, 0]
        grid = strip_grid(cells, first[0].limits, cmap=self.look.cmap, width=self.look.width)
        png = encode_png(grid, text={"cnnlog": json.dumps({"layer": name, "steps": list(steps)})})
        description = (
            f"{self.kind.words.capitalize()} of `{name}` over the training. Rows: the first {STRIP_CHANNELS} channels "
            f"at most. Columns: steps {', '.join(map(str, steps))}."
        )
        return LoggedPicture(f"evolution/{self.kind}/{self.layer.tag}", png, grid.size, description)

    def states(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Picture kind (`filters`, `filters_change`, ...) -> the state of its range."""
        states: dict[str, dict[str, npt.NDArray[Any]]] = {str(self.kind): self._range.state()}
        if self._change_range is not None:
            states[f"{self.kind}_change"] = self._change_range.state()
        return states

    def restore(self, baseline: FloatArray, ranges: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Go on from a stored run.

        Args:
            baseline: the baseline's shown part.
            ranges: the ranges of the last step: picture kind -> layer -> state.
        """
        name = self.layer.name
        self.baseline = baseline
        self._range = AnchoredRange.from_state(ranges[self.kind][name])
        self._limits = self._range.update(self.kind.by_channel(baseline))  # in its own range: only tells the limits
        self._change_range = ChangeRange.from_state(ranges[f"{self.kind}_change"][name])

    def _difference(self, shown: FloatArray) -> FloatArray:
        assert self.baseline is not None, "see() comes first"
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and drawn as such
            return shown - self.baseline

    def _draw(self, shown: FloatArray, limits: Limits, suffix: str, step: int, since: int) -> list[LoggedPicture]:
        look = self.look
        pictures = Picture.several(self.kind, shown, limits, view=self.layer.view, cmap=look.cmap)
        tag = f"{self.kind}{suffix}/{self.layer.tag}"
        tags = [tag] if len(pictures) == 1 else [f"{tag}/image{i}" for i in range(len(pictures))]
        grown = {int(i): int(limits.doubled[i]) for i in np.flatnonzero(limits.doubled)}
        facts = {"layer": self.layer.name, "step": step, "range": look.value_range, "doubled": grown}
        drawn = []
        for image, (tag, picture) in enumerate(zip(tags, pictures, strict=True)):
            grid = picture.grid(look.width)
            png = encode_png(grid, text={"cnnlog": json.dumps(facts)})
            drawn.append(LoggedPicture(tag, png, grid.size, self._describe(suffix, image, since)))
        return drawn

    def _describe(self, suffix: str, image: int, since: int) -> str:
        layer, look = self.layer, self.look
        if self.kind is Kind.FILTERS:
            what = f"Filters of `{layer.name}` ({layer.kind} {by(layer.weight_shape)}), shown as {layer.view}"
        else:
            shape = by((layer.output_shape or ())[1:])
            what = f"Feature maps of `{layer.name}` ({layer.kind}, {shape}) of probe image {image}"
        if suffix:
            return f"{what}: difference to step {since}. One range for the layer; it doubles when outgrown."
        ranges = {
            "channel": f"Each channel has the range it had at step {since}; it doubles when outgrown, never shrinks.",
            "layer": f"All channels share the range of step {since}; it doubles when outgrown, never shrinks.",
            "step": "Each channel is scaled afresh at every step.",
        }
        return f"{what}. {ranges[look.value_range]} The first {look.shown} channels at most, always the same ones."


class Drawers:
    """Draws all watched layers: one `Drawer` for each layer and kind.

    Args:
        layers: the watched layers, in the order of their tags.
        looks: how each kind is drawn; a kind that is not watched is left out.
    """

    def __init__(self, layers: Sequence[WatchedLayer], looks: Mapping[Kind, Look]) -> None:
        self._by_kind: dict[Kind, dict[str, Drawer]] = {kind: {} for kind in Kind}
        for kind, look in looks.items():
            watched = [layer for layer in layers if kind.shape(layer) is not None]
            self._by_kind[kind] = {layer.name: Drawer(layer, kind, look) for layer in watched}

    def draws(self, kind: Kind) -> bool:
        """Whether a kind is watched in any layer.

        Args:
            kind: filters or feature maps.
        """
        return bool(self._by_kind[kind])

    def shown(self, snapshot: Snapshot, kind: Kind) -> dict[str, FloatArray]:
        """Layer -> the part of it that is drawn and stored.

        Args:
            snapshot: of all channels.
            kind: filters or feature maps.
        """
        return {name: self._by_kind[kind][name].shown(array) for name, array in kind.of(snapshot).items()}

    def see(self, record: Record) -> None:
        """Let the ranges take a step in; the first step is the baseline.

        Args:
            record: of the step.
        """
        for kind in Kind:
            for name, array in kind.of(record).items():
                self._by_kind[kind][name].see(array)

    def ranges(self) -> dict[str, dict[str, dict[str, npt.NDArray[Any]]]]:
        """Picture kind -> layer -> the state of its range; of all layers, for a resume starts from the last step."""
        ranges: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
        for drawers in self._by_kind.values():
            for name, drawer in drawers.items():
                for picture_kind, state in drawer.states().items():
                    ranges.setdefault(picture_kind, {})[name] = state
        return ranges

    def restore(self, baseline: Record, at: Record) -> None:
        """Go on from a stored run.

        Args:
            baseline: the record of its first step.
            at: the record of the step whose ranges are taken up.
        """
        for kind, drawers in self._by_kind.items():
            for name, drawer in drawers.items():
                drawer.restore(kind.of(baseline)[name], at.ranges)

    def pictures(self, record: Record, since: int) -> list[LoggedPicture]:
        """Draw a step.

        Args:
            record: of the step, as `see` took it last.
            since: the number of the baseline's step.
        """
        return [
            picture
            for kind in Kind
            for name, array in kind.of(record).items()
            for picture in self._by_kind[kind][name].pictures(array, record.step, since)
        ]

    def strips(self, records: Sequence[Record]) -> list[LoggedPicture]:
        """Draw the evolution of every layer over some steps.

        Args:
            records: of the steps, rising; a layer's strip shows those that hold the layer.
        """
        drawn = []
        for kind, drawers in self._by_kind.items():
            for name, drawer in drawers.items():
                holding = [record for record in records if name in kind.of(record)]
                steps = [record.step for record in holding]
                drawn.append(drawer.strip(steps, [kind.of(record)[name] for record in holding]))
        return drawn

    def histograms(self, snapshot: Snapshot) -> dict[str, FloatArray]:
        """Tag -> all values of a layer, for those whose distribution is logged.

        Args:
            snapshot: of all channels.
        """
        return {
            f"histograms_{kind}/{drawer.layer.tag}": array.reshape(-1)
            for kind in Kind
            for name, array in kind.of(snapshot).items()
            if (drawer := self._by_kind[kind][name]).look.histograms
        }


def at_baseline(pictures: Sequence[LoggedPicture]) -> list[LoggedPicture]:
    """Copies of the baseline's pictures under tags of one step each, which no viewer's limit on images can drop.

    Args:
        pictures: all of that step; those of changes are left out, for nothing has changed yet.
    """
    alone = [picture for picture in pictures if not picture.tag.split("/")[0].endswith("_change")]
    return [replace(picture, tag=f"baseline/{picture.tag}") for picture in alone]

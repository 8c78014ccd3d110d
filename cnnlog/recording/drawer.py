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
from cnnlog.rendering.colours import ends_in_words
from cnnlog.rendering.facts import facts_of
from cnnlog.rendering.grids import STRIP_CHANNELS, strip_grid
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.png import encode_png
from cnnlog.rendering.ranges import ONE_IN, ROOM, AnchoredRange, ChangeRange, Limits, RangeRule
from cnnlog.rendering.shared_ranges import tight_limits
from cnnlog.rendering.views import View, cell_width, map_columns, most_changed, select_filters, select_maps, thickened
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.steps import Strided
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
        if self.baseline is not None:  # of a run of before, whose cells may have been a pixel wider
            return select_maps(array, max_maps=look.shown, cell=self.baseline.shape[-1])
        columns = map_columns(min(array.shape[1], look.shown), (array.shape[2], array.shape[3]))
        cell = cell_width(columns, look.width)
        return select_maps(array, max_maps=look.shown, cell=cell)

    def see(self, shown: FloatArray) -> None:
        """Let the ranges take a step in; the first step is the baseline.

        Args:
            shown: the step's shown part.
        """
        if self.baseline is None:
            self.baseline = shown
        if self._change_range is None:
            self._change_range = ChangeRange()
        self._limits = self._range.update(self.kind.by_channel(shown))
        self._change_limits = self._change_range.update(self.kind.by_channel(self._difference(shown)))

    def pictures(self, shown: FloatArray, step: int, since: int) -> list[LoggedPicture]:
        """Draw a step and, from the first step after the baseline on, its difference to that.

        TensorBoard keeps the first description of a tag, and only a step with a difference can tell its range.

        Args:
            shown: the step's shown part, as `see` took it last.
            step: the step's number.
            since: the number of the baseline's step.
        """
        drawn = self._draw(shown, self._limits, "", step, since)
        if self.look.change and step != since:
            drawn += self._draw(self._difference(shown), self._change_limits, "_change", step, since)
        return drawn

    def strip(self, chosen: Strided, shown: Sequence[FloatArray]) -> LoggedPicture:
        """Draw the channels that changed most, a row each, over some steps, a column each.

        Of filters drawn as slices a row is the first slice; of feature maps it is the first probe image. A channel has
        one range, which just holds what its row shows.

        Args:
            chosen: the steps.
            shown: the shown part of each step.
        """
        look, name = self.look, self.layer.name
        cells = np.stack([next(self.kind.pictures(step)) for step in shown])
        if cells.ndim == 5 and self.layer.view != "rgb":
            cells = cells[:, :, 0]
        rows = most_changed(cells, STRIP_CHANNELS)
        cells = cells[:, rows]
        limits = tight_limits(cells.swapaxes(0, 1), signed=self.kind.signed)
        cell = cell_width(len(cells), look.width)
        grid = strip_grid(thickened(cells, cell), limits, cmap=look.cmap, width=look.width)
        facts = {
            "layer": name,
            "kind": f"{self.kind}_strip",
            "steps": list(chosen.steps),
            "view": self.layer.view if self.kind is Kind.FILTERS else None,
            **facts_of(grid, limits, channels=rows, cells=len(cells)),
        }
        png = encode_png(grid, text={"cnnlog": json.dumps(facts)})
        description = self._describe_strip(chosen, rows, limits)
        return LoggedPicture(f"{self.kind}_strip/{self.layer.tag}", png, grid.size, description)

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
        drawn = []
        for image, (tag, picture) in enumerate(zip(tags, pictures, strict=True)):
            grid = picture.grid(look.width)
            facts = {
                "layer": self.layer.name,
                "kind": f"{self.kind}{suffix}",
                "step": step,
                "since": since,
                "image": image if self.kind.per_image else None,
                "range": "change" if suffix else look.value_range,
                **picture.facts(grid),
            }
            png = encode_png(grid, text={"cnnlog": json.dumps(facts)})
            description = self._describe(suffix, image, limits, step, since)
            drawn.append(LoggedPicture(tag, png, grid.size, description))
        return drawn

    def _describe(self, suffix: str, image: int, limits: Limits, step: int, since: int) -> str:
        """What a picture shows and what its colours mean, with the numbers of this step."""
        shown = f"The first {self.look.shown} channels at most, always the same ones."
        if suffix:
            return f"{self._what(image)}: difference to step {since}. {self._change_in_words(limits, step)} {shown}"
        rule = self.look.value_range
        ends = f"{_from_to(limits.high)} (the range of step {step})"
        of = {
            "channel": f"Each channel has an end of its own, {ends}: {ROOM:g} times its peak at step {since}.",
            "layer": f"All channels have one end, {ends}: {ROOM:g} times the layer's peak at step {since}.",
            "step": f"Each channel has an end of its own, {ends}: its peak at each step, afresh.",
        }[rule]
        grows = "" if rule == "step" else f" {_GROWS}"
        return f"{self._what(image)}. {self._colours(limits)} {of}{grows} {shown}"

    def _change_in_words(self, limits: Limits, step: int) -> str:
        assert self._change_range is not None, "see() comes first"
        if not self._change_range.is_set:
            return f"Nothing has changed up to step {step}. {self._colours(limits)} {_GROWS}"
        end = f"{limits.high[0]:.3g}"
        ends = f"The ends are −{end} and {end} for all channels (the range of step {step})."
        return f"{self._colours(limits)} {ends} {_GROWS}"

    def _describe_strip(self, chosen: Strided, rows: Sequence[int], limits: Limits) -> str:
        slices = ", of each the first input channel" if self.layer.view == "slices" and not self.kind.per_image else ""
        columns = f"Columns: steps {', '.join(map(str, chosen.steps))}"
        columns += "." if chosen.is_even else f", the stored ones that are nearest to one in {chosen.stride}."
        return (
            f"{self._what(0)}, over the training. Rows: the channels that changed most, {', '.join(map(str, rows))}"
            f"{slices}. {columns} {self._colours(limits)} Each channel has one end for all columns, "
            f"its peak over them: {_from_to(limits.high)}."
        )

    def _what(self, image: int) -> str:
        layer = self.layer
        if self.kind is Kind.FILTERS:
            return f"Filters of `{layer.name}` ({layer.kind} {by(layer.weight_shape)}), shown as {layer.view}"
        shape = by((layer.output_shape or ())[1:])
        of = f"probe image {image}"
        if layer.maps_an_image > 1:  # only the network knows which of them belong together
            maps, k = (layer.output_shape or (0,))[0], layer.maps_an_image
            images = "the probe image" if maps == k else f"{maps // k} probe images"
            of = f"{images}, number {image} of the {maps} that it makes of {'it' if maps == k else 'them'}"
        return f"Feature maps of `{layer.name}` ({layer.kind}, {shape}) of {of}"

    def _colours(self, limits: Limits) -> str:
        if self.kind is Kind.FILTERS and self.layer.view == "rgb":
            return "Mid gray is 0 and full colour the end; beyond it colours stay full. A chequer is NaN or infinity."
        ends, beyond = ends_in_words(self.look.cmap, limits.symmetric)
        return f"{ends[0].upper()}{ends[1:]}; {beyond}."


_GROWS = (
    f"A range doubles when more than {100 // ONE_IN} % of a channel lie beyond it, and never shrinks; a notch above a "
    "cell says that it did."
)


def _from_to(high: FloatArray) -> str:
    low, top = f"{high.min():.3g}", f"{high.max():.3g}"
    return low if low == top else f"from {low} to {top}"


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

    def strips(self, records: Sequence[Record], chosen: Strided) -> list[LoggedPicture]:
        """Draw the strip of every layer over some steps.

        Args:
            records: of the chosen steps, rising; a layer's strip shows those that hold the layer.
            chosen: the steps.
        """
        drawn = []
        for kind, drawers in self._by_kind.items():
            for name, drawer in drawers.items():
                holding = [record for record in records if name in kind.of(record)]
                steps = tuple(record.step for record in holding)
                of_layer = replace(chosen, steps=steps, is_even=chosen.is_even and steps == chosen.steps)
                drawn.append(drawer.strip(of_layer, [kind.of(record)[name] for record in holding]))
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

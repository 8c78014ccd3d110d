"""Draws a layer's pictures, in ranges that stay anchored over the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind
from cnnlog.messages import by
from cnnlog.rendering.grids import filters_grid, maps_grid, strip_grid
from cnnlog.rendering.png import Grid, encode_png
from cnnlog.rendering.ranges import AnchoredRange, ChangeRange, Limits, RangeRule, peak
from cnnlog.rendering.views import View
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.snapshot import FloatArray

STRIP_CHANNELS = 8


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
class Picture:
    """One drawn grid on its way to the trackers."""

    tag: str
    png: bytes
    size: tuple[int, int]
    description: str


class Drawer:
    """Draws one layer's pictures of one kind, with ranges that stay anchored over the steps."""

    def __init__(self, layer: WatchedLayer, kind: Kind, look: Look) -> None:
        self.layer, self.kind, self.look = layer, kind, look
        self.baseline: FloatArray | None = None
        self._range = AnchoredRange(look.value_range, signed=True if kind == "filters" else None)
        self._change_range: ChangeRange | None = None
        self._limits: Limits
        self._change_limits: Limits

    def see(self, shown: FloatArray) -> None:
        """Let the ranges take a step's shown part `[n, k, kH, kW]` or `[N, n, h, w]`; the first is the baseline."""
        if self.baseline is None:
            self.baseline = shown
        if self._change_range is None:
            self._change_range = ChangeRange(peak(self.baseline))
        self._limits = self._range.update(self._by_channel(shown))
        self._change_limits = self._change_range.update(self._by_channel(self._difference(shown)))

    def pictures(self, shown: FloatArray, step: int, since: int) -> list[Picture]:
        """Draw what `see` has just seen, and its difference to the baseline."""
        drawn = self._draw(shown, self._limits, "", step, since)
        if self.look.change:
            drawn += self._draw(self._difference(shown), self._change_limits, "_change", step, since)
        return drawn

    def strip(self, shown: Sequence[FloatArray]) -> Grid:
        """The evolution of the first channels over some steps; one slice a filter, one probe image a map."""
        limits = self._limits
        if self.kind == "filters":
            cells = np.stack([step[:STRIP_CHANNELS] for step in shown])
            cells = cells if self.layer.view == "rgb" else cells[:, :, 0]
        else:
            cells = np.stack([step[0, :STRIP_CHANNELS] for step in shown])
        some = Limits(limits.high[:STRIP_CHANNELS], limits.symmetric, limits.doubled[:STRIP_CHANNELS])
        return strip_grid(cells, some, cmap=self.look.cmap, width=self.look.width)

    def states(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Picture kind -> the state of its range."""
        states: dict[str, dict[str, npt.NDArray[Any]]] = {self.kind: self._range.state()}
        if self._change_range is not None:
            states[f"{self.kind}_change"] = self._change_range.state()
        return states

    def restore(self, baseline: FloatArray, ranges: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Go on from a stored run: its baseline's shown part, and the ranges of its last step."""
        name = self.layer.name
        self.baseline = baseline
        self._range = AnchoredRange.from_state(ranges[self.kind][name])
        self._limits = self._range.update(self._by_channel(baseline))  # in its own range: only tells the limits
        self._change_range = ChangeRange.from_state(ranges[f"{self.kind}_change"][name])

    def _difference(self, shown: FloatArray) -> FloatArray:
        assert self.baseline is not None, "see() comes first"
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and drawn as such
            return shown - self.baseline

    def _by_channel(self, shown: FloatArray) -> FloatArray:
        return shown if self.kind == "filters" else shown.swapaxes(0, 1)

    def _draw(self, shown: FloatArray, limits: Limits, suffix: str, step: int, since: int) -> list[Picture]:
        look = self.look
        if self.kind == "filters":
            assert self.layer.view is not None, "a layer whose filters are watched has a view"
            grids = [filters_grid(shown, limits, view=self.layer.view, cmap=look.cmap, width=look.width)]
        else:
            grids = [maps_grid(maps, limits, cmap=look.cmap, width=look.width) for maps in shown]
        tag = f"{self.kind}{suffix}/{self.layer.tag}"
        tags = [tag] if len(grids) == 1 else [f"{tag}/image{i}" for i in range(len(grids))]
        grown = {int(i): int(limits.doubled[i]) for i in np.flatnonzero(limits.doubled)}
        facts = {"layer": self.layer.name, "step": step, "range": look.value_range, "doubled": grown}
        text = {"cnnlog": json.dumps(facts)}
        return [
            Picture(tag, encode_png(grid, text=text), grid.size, self._describe(suffix, image, since))
            for image, (tag, grid) in enumerate(zip(tags, grids, strict=True))
        ]

    def _describe(self, suffix: str, image: int, since: int) -> str:
        layer, look = self.layer, self.look
        if self.kind == "filters":
            assert layer.weight_shape is not None, "a layer whose filters are watched has a weight"
            what = f"Filters of `{layer.name}` ({layer.kind} {by(layer.weight_shape)}), shown as {layer.view}"
        else:
            assert layer.output_shape is not None, "a layer whose maps are watched has an output"
            what = f"Feature maps of `{layer.name}` ({layer.kind}, {by(layer.output_shape[1:])}) of probe image {image}"
        if suffix:
            return f"{what}: difference to step {since}. One range for the layer; it doubles when outgrown."
        ranges = {
            "channel": f"Each channel has the range it had at step {since}; it doubles when outgrown, never shrinks.",
            "layer": f"All channels share the range of step {since}; it doubles when outgrown, never shrinks.",
            "step": "Each channel is scaled afresh at every step.",
        }
        return f"{what}. {ranges[look.value_range]} The first {look.shown} channels at most, always the same ones."

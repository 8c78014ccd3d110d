"""What each side of a comparison shows of a layer at a step, and what one side shows minus another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnnlog.comparison.sides import LayerMatch, Side, same_filters, shown_shape
from cnnlog.kinds import Kind
from cnnlog.metrics.starts import same_start
from cnnlog.rendering.views import ResolvedView, cell_width, map_columns, resolve_view, select_filters, select_maps
from cnnlog.runs.manifest import StoreError
from cnnlog.snapshot import FloatArray


@dataclass(frozen=True)
class _Look:
    """How weights are shown beside runs: as the first run shows its own layers.

    Attributes:
        shown: how many filters at most.
        slices: how many input channels at most, where each has a cell.
        maps: how many feature maps at most.
        width: of a grid of feature maps in pixels; None without a limit.
    """

    shown: int
    slices: int
    maps: int
    width: int | None

    @classmethod
    def of(cls, sides: Sequence[Side]) -> _Look:
        settings = next((side.run.manifest.settings for side in sides if side.run is not None), {})
        filters, maps = (settings.get(kind) or {} for kind in Kind)
        return cls(filters.get("shown", 64), filters.get("slices", 16), maps.get("shown", 64), maps.get("width", 350))


class SideBySide:
    """The sides of a comparison, and what each of them shows at the steps of all.

    Args:
        sides: what is compared; the first one is what the others are compared with.
        layers: the layers that the sides share, and those that only some have.
        notes: what was said so far.

    Attributes:
        steps: the steps of all sides that are not pinned to one step, rising.
        notes: sentences on what a reader of the comparison should know.
    """

    def __init__(self, sides: Sequence[Side], layers: Sequence[LayerMatch], notes: Sequence[str]) -> None:
        self.sides = tuple(sides)
        self.layers = tuple(layers)
        self.steps = _steps(self.sides)
        self.notes = list(dict.fromkeys(notes))
        self._look = _Look.of(self.sides)
        self._shown_weights: dict[tuple[int, str, Kind], FloatArray] = {}
        self._starts: dict[int, Mapping[str, bool]] = {}
        for index in range(len(self.sides)):
            self._note_end(index)
            self._note_probe(index)

    def note(self, text: str) -> None:
        """Add a sentence to the notes, unless it is there already.

        Args:
            text: the sentence.
        """
        if text not in self.notes:
            self.notes.append(text)

    def known(self, step: int) -> int:
        """The nearest step of the comparison that is not after `step`; its first one where there is none.

        Args:
            step: any number.
        """
        return self.steps[max(0, bisect_right(self.steps, step) - 1)]

    def step_of(self, side: int, step: int) -> int | None:
        """Which of a side's own steps is shown at a step of the comparison; None if it has none yet, or is weights.

        Args:
            side: its number; 0 is the first one.
            step: of the comparison.
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
            side: its number; 0 is the first one.
            step: of the comparison.
        """
        chosen = self.sides[side]
        return chosen.run is not None and chosen.step is None and step > chosen.run.steps[-1]

    def holding(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> int | None:
        """The own step of a side whose filters or feature maps of a layer are shown at a step; None without any.

        Args:
            side: its number; 0 is the first one.
            layer: one of the layers.
            kind: filters or feature maps.
            step: of the comparison.
        """
        run, name, own = self.sides[side].run, layer.names[side], self.step_of(side, step)
        return None if run is None or name is None or own is None else run.holding(name, kind, own)

    def view_of(self, side: int, layer: LayerMatch) -> ResolvedView | None:
        """How a side's filters of a layer are shown; None where there are no filters.

        Args:
            side: its number; 0 is the first one.
            layer: one of the layers.
        """
        run, name = self.sides[side].run, layer.names[side]
        if name is None or layer.view is None:
            return layer.view
        if run is not None:
            return run.layer(name).view or layer.view
        shape = shown_shape(self.sides[side], name)
        return layer.view if shape is None else _fitting(shape, layer.view)

    def shown(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> FloatArray | None:
        """A side's shown filters `[n, k, kH, kW]` or feature maps `[N, n, h, w]`; None where it has none.

        Args:
            side: its number; 0 is the first one.
            layer: one of the layers.
            kind: filters or feature maps.
            step: of the comparison.
        """
        run, name = self.sides[side].run, layer.names[side]
        if name is None:
            return None
        if run is None:
            return self._shown_of_weights(side, layer, name, kind)
        at = self.holding(side, layer, kind, step)
        return None if at is None else kind.of(run.record(at))[name]

    def shows(self, side: int, layer: LayerMatch, kind: Kind, step: int) -> bool:
        """Whether a side shows filters or feature maps of a layer at a step: whether `shown` gives something."""
        name = layer.names[side]
        if self.sides[side].run is None:
            return name is not None and name in kind.of(self.sides[side])
        return self.holding(side, layer, kind, step) is not None

    def pair(self, layer: LayerMatch, kind: Kind, step: int, side: int) -> tuple[FloatArray, FloatArray] | None:
        """What the first side and a further one show, if one can be subtracted from the other; else None.

        Args:
            layer: one of the layers.
            kind: filters or feature maps.
            step: of the comparison.
            side: the further one's number, from 1 on.
        """
        if kind.per_image and not self.same_probe(side):
            return None
        first, other = self.shown(0, layer, kind, step), self.shown(side, layer, kind, step)
        return None if first is None or other is None or first.shape != other.shape else (first, other)

    def difference(self, layer: LayerMatch, kind: Kind, step: int, side: int) -> FloatArray | None:
        """What a further side shows minus what the first side shows; None where that cannot be, or means nothing."""
        pair = self.pair(layer, kind, step, side) if self.same_start(side, layer) else None
        return None if pair is None else minus(pair[1], pair[0])

    def same_start(self, side: int, layer: LayerMatch) -> bool:
        """Whether filter i of a side has to do with filter i of the first side: they started from the same weights.

        What is compared are all filters of the layer at the two runs' baselines, or the weights themselves; the shown
        ones where a run has not stored all. It is done once for each side, and noted.

        Args:
            side: the side, counted from 0.
            layer: one of the layers.

        Returns:
            False where they started from different weights, and where the shapes of the filters differ; True where one
            of the sides has no filters that could say so.
        """
        if side not in self._starts:
            self._starts[side] = self._compared_starts(side)
        return self._starts[side].get(layer.name, True)

    def unlike_starts(self, side: int, layers: Sequence[str] = ()) -> str:
        """Why a side has no difference to the first one, where they started from different weights.

        Args:
            side: the side, counted from 0.
            layers: the names of the layers that this is said of; none for all.
        """
        first, other = self.sides[0].label, self.sides[side].label
        whose = f"the filters of {first} and {other}" + (f" in {', '.join(layers)}" if layers else "")
        return (
            f"{whose} did not start from the same weights, so filter 3 of one has nothing to do with filter 3 of the "
            "other"
        )

    def same_probe(self, side: int) -> bool:
        """Whether a side's feature maps are of the same probe as the first side's.

        Args:
            side: its number; 0 is the first one.
        """
        return self.sides[0].probe is not None and self.sides[0].probe == self.sides[side].probe

    def all_filters(self, side: int, step: int) -> Mapping[str, FloatArray]:
        """All filters of a side at a step, also those that are not shown, where they are stored; else nothing.

        Args:
            side: its number; 0 is the first one.
            step: of the comparison.
        """
        chosen = self.sides[side]
        if chosen.run is None:
            return chosen.weights
        own = self.step_of(side, step)
        for which in ("last", "baseline"):
            try:
                weights, of = chosen.run.weights(which)
            except FileNotFoundError:
                continue
            except StoreError as error:
                self.note(f"skipped: {error}")
                continue
            # With filters kept at every n-th step only, those of the last one stand until the next
            if own is None:
                continue
            if own == of or any(of == chosen.run.holding(name, Kind.FILTERS, own) for name in weights):
                return weights
        return {}

    def note_starts(self) -> None:
        """Note which sides started from other weights than the first one."""
        for side in range(1, len(self.sides)):
            for layer in self.layers[:1]:
                self.same_start(side, layer)

    def all_outputs(self, side: int, step: int) -> Mapping[str, FloatArray]:
        """The layers' outputs `[positions, C]` of a side on the probe at a step, where they are stored."""
        run, own = self.sides[side].run, self.step_of(side, step)
        if run is None or own is None:
            return {}
        for which in ("last", "baseline"):
            try:
                outputs, of = run.outputs(which)
            except FileNotFoundError:
                continue
            except StoreError as error:
                self.note(f"skipped: {error}")
                continue
            if own == of or any(of == run.holding(name, Kind.FEATURE_MAPS, own) for name in outputs):
                return outputs
        return {}

    def is_baseline(self, side: int) -> bool:
        """Whether a side is pinned to its own run's baseline, so that it is what others are measured against."""
        chosen = self.sides[side]
        return chosen.run is not None and chosen.step == chosen.run.manifest.baseline_step

    def says_itself(self, side: int) -> bool:
        """Whether the first side is a further side's own baseline, so that its own numbers say what lies between."""
        first, other = self.sides[0], self.sides[side]
        return (
            self.is_baseline(0) and first.run is not None and other.run is not None and first.run.path == other.run.path
        )

    def described(self, side: int) -> str:
        """A side in a line: its label, and which of its steps is shown at the end.

        Args:
            side: its number; 0 is the first one.
        """
        chosen, last = self.sides[side], self.steps[-1]
        if chosen.run is None:
            return f"{chosen.label} (weights)"
        held = ", held there" if self.held(side, last) else ""
        return f"{chosen.label} (step {self.step_of(side, last)}{held})"

    def _note_end(self, side: int) -> None:
        chosen = self.sides[side]
        if chosen.run is not None and self.held(side, self.steps[-1]):
            last = chosen.run.steps[-1]
            self.note(f"{chosen.label} ends at step {last} and is held there up to step {self.steps[-1]}")

    def _note_probe(self, side: int) -> None:
        first, other = self.sides[0], self.sides[side]
        if first.probe is not None and other.probe is not None and first.probe != other.probe:
            self.note(
                f"the feature maps of {first.label} and {other.label} are of different probes, so there is no "
                "difference of them"
            )

    def _compared_starts(self, side: int) -> Mapping[str, bool]:
        """For each layer whether a side started from the weights of the first one, where that can be told."""
        first, other = self.sides[0].run, self.sides[side].run
        if side == 0 or (first is not None and other is not None and first.path == other.path):
            return {}
        everything = self._filters_at_start(0), self._filters_at_start(side)
        found: dict[str, bool] = {}
        apart = []
        for layer in self.layers:
            pair = [all_of.get(layer.names[of] or "") for of, all_of in zip((0, side), everything, strict=True)]
            if pair[0] is not None and pair[1] is not None:
                names = layer.names[0], layer.names[side]
                pair = [*same_filters(self.sides[0], self.sides[side], names, (pair[0], pair[1]))]
            if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
                pair = [self._shown_at_start(of, layer) for of in (0, side)]
            if pair[0] is None or pair[1] is None:
                continue
            found[layer.name] = same_start(pair[0], pair[1])
            if not found[layer.name] and pair[0].shape == pair[1].shape:
                apart.append(layer.name)
        if apart:
            self.note(self.unlike_starts(side, apart if any(found.values()) else ()))
        return found

    def _filters_at_start(self, side: int) -> Mapping[str, FloatArray]:
        """All filters of a run's baseline, or of weights; nothing where they are not stored."""
        chosen = self.sides[side]
        if chosen.run is None:
            return chosen.weights
        try:
            return chosen.run.weights("baseline")[0]
        except (FileNotFoundError, StoreError):
            return {}

    def _shown_at_start(self, side: int, layer: LayerMatch) -> FloatArray | None:
        """The shown filters of a layer at a run's baseline, or at its first step that can be read; or of weights."""
        run, name = self.sides[side].run, layer.names[side]
        if name is None:
            return None
        if run is None:
            return self._shown_of_weights(side, layer, name, Kind.FILTERS)
        at = next((step for step in run.steps if run.holding(name, Kind.FILTERS, step) == step), None)
        return None if at is None else run.record(at).filters[name]

    def _shown_of_weights(self, side: int, layer: LayerMatch, name: str, kind: Kind) -> FloatArray | None:
        """What is shown of weights, as a run would have stored it.

        Args:
            side: its number; 0 is the first one.
            layer: one of the layers.
            name: what the side calls it.
            kind: filters or feature maps.
        """
        key, chosen, look = (side, layer.name, kind), self.sides[side], self._look
        if name not in kind.of(chosen):
            return None
        if key not in self._shown_weights:
            if kind is Kind.FILTERS:
                view = self.view_of(side, layer) or "auto"
                array = select_filters(chosen.filters[name], view=view, max_filters=look.shown, max_slices=look.slices)
            else:
                maps = chosen.feature_maps[name]
                columns = map_columns(min(maps.shape[1], look.maps), (maps.shape[2], maps.shape[3]))
                cell = cell_width(columns, look.width)
                array = select_maps(maps, max_maps=look.maps, cell=cell)
            self._shown_weights[key] = array
        return self._shown_weights[key]


def minus(further: FloatArray, first: FloatArray) -> FloatArray:
    """The difference of two arrays; infinity minus infinity is NaN.

    Args:
        further: what a further side shows.
        first: what the first one shows, of the same shape.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(further - first, dtype=np.float32)


def _steps(sides: Sequence[Side]) -> tuple[int, ...]:
    free = {step for side in sides if side.run is not None and side.step is None for step in side.run.steps}
    pinned = [side.step for side in sides if side.step is not None]
    return tuple(sorted(free)) if free else (max(pinned, default=0),)


def _fitting(shape: tuple[int, ...], view: ResolvedView) -> ResolvedView:
    """The view, or the automatic one where these filters have other input channels than it needs.

    Args:
        shape: of the filters, `[O, I, kH, kW]`.
        view: how the others are shown.
    """
    try:
        return resolve_view(shape, view)
    except ValueError:
        return resolve_view(shape, "auto")

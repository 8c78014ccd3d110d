"""One stored run, read a step at a time. No torch."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind, KindName
from cnnlog.messages import by, near, some
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.ranges import AnchoredRange, Limits, RangeRule
from cnnlog.rendering.shared_ranges import Extremes, shared_limits, tight_limits
from cnnlog.runs import numbers as names
from cnnlog.runs import over_steps
from cnnlog.runs.manifest import Manifest, MeasuredLayer, StoreError, WatchedLayer
from cnnlog.runs.numbers import Number
from cnnlog.runs.spread import Summary, summary_of
from cnnlog.runs.store import RunStore
from cnnlog.runs.table import Table
from cnnlog.snapshot import FloatArray, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Which = int | Literal["baseline", "last"]
"""A step: its number, the baseline, or the last one that can be read."""

Progress = Callable[[str, int, int], None]
"""A function that is told how far the work is: `progress("reading run a", done, total)`."""

_KEPT_RECORDS = 4


class Run:
    """A stored run, read one step at a time. `cnnlog.open_run` makes one. Reading needs no torch.

    Arrays hold values as they were, not colours. Of every step you get the shown part: the channels that stand in the
    grids. `weights` gives all filters, at the baseline and at the last step.

    Attributes:
        path: the folder of the run, `<log_dir>/cnnlog`.
        name: a short label: the name of the log folder.
        manifest: what was watched and how: layers, settings, probe, versions.
    """

    def __init__(self, store: RunStore, name: str) -> None:
        self._store = store
        self.path = store.folder
        self.manifest: Manifest = store.manifest
        self.name = name
        self._watched = {
            kind: frozenset(layer.name for layer in self.manifest.layers if kind.shape(layer) is not None)
            for kind in Kind
        }
        self._listed = tuple(store.steps)
        self._steps = self._listed
        self._damaged: dict[int, str] = {}
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._summaries: dict[int, Summary] = {}
        self._extremes: dict[tuple[Kind, str], Extremes] | None = None
        if not self._listed:
            raise ValueError(f"{self.path} holds a run without a step: its training ended before the baseline was kept")

    @property
    def steps(self) -> tuple[int, ...]:
        """The stored steps, rising. A step whose file turned out to be damaged is left out; `skipped` tells of it."""
        return self._steps

    @property
    def skipped(self) -> tuple[str, ...]:
        """One sentence for each step file that turned out to be damaged."""
        return tuple(self._damaged[step] for step in sorted(self._damaged))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the watched layers, those that are pictured, in the order of their tags."""
        return tuple(layer.name for layer in self.manifest.layers)

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """The names of all layers that there are numbers of, pictured or not, in order of depth.

        Numbers are kept of every convolution and linear layer; format 1 has those of the watched layers alone.
        """
        return names.in_depth_order([layer.name for layer in self.manifest.measured], self.layers)

    def layer(self, name: str) -> WatchedLayer:
        """What the manifest says of a layer: its tag, kind, shapes and view.

        Args:
            name: the name of a layer, one of `layers` or of `measured`; shapes are of what is pictured, and a layer
                that is only measured has none here.

        Raises:
            ValueError: the run has no such layer; the message offers near ones.
        """
        for layer in self.manifest.layers:
            if layer.name == name:
                return layer
        measured = self.measured_layer(name)
        if measured is not None:
            return WatchedLayer(measured.name, measured.tag, measured.kind)
        offered = near(name, self.measured) or self.layers[:5]
        raise ValueError(f"{self.name} watched no layer {name!r}; there is {', '.join(offered)}")

    def measured_layer(self, name: str) -> MeasuredLayer | None:
        """What the manifest says of the numbers of a layer; None in format 1, and for what is pictured alone.

        Args:
            name: the name of a layer.
        """
        return next((layer for layer in self.manifest.measured if layer.name == name), None)

    def step(self, which: Which) -> int:
        """The number of a step.

        Args:
            which: a step's number, which is checked; `"baseline"`; or `"last"`, the last step that can be read.

        Raises:
            ValueError: the run has no such step (the message names the nearest), or no step can be read.
        """
        if which == "last":
            for step in reversed(self._listed):
                if self._readable(step):
                    return step
            raise ValueError(f"{self.path} holds no step that can be read: {self.skipped[0]}")
        step = self.manifest.baseline_step if which == "baseline" else which
        if step not in self._listed:
            nearest = min(self._listed, key=lambda known: (abs(known - step), known))
            raise ValueError(
                f"{self.name} has no step {step}; the nearest is {nearest}, of {len(self._listed)} from "
                f"{self._listed[0]} to {self._listed[-1]}"
            )
        return step

    def record(self, step: int) -> Record:
        """Everything that is stored of a step: arrays, numbers and ranges. The last 4 that you read stay in memory.

        Args:
            step: a step's number, one of `steps`.

        Raises:
            ValueError: there is no such step, or its file is damaged.
        """
        if step in self._records:
            self._records.move_to_end(step)
            return self._records[step]
        try:
            record = self._store.read_record(self.step(step))
        except StoreError as error:
            self._skip(step, str(error))
            raise
        self._records[step] = record
        while len(self._records) > _KEPT_RECORDS:
            self._records.popitem(last=False)
        if step not in self._summaries:
            self._summaries[step] = summary_of(record, self._of_today(record))
        return record

    def summary(self, step: int) -> Summary:
        """What a step holds, and how its numbers are spread over each layer; each file is read once.

        Args:
            step: a step's number, one of `steps`.

        Raises:
            ValueError: there is no such step, or its file is damaged.
        """
        if step not in self._summaries:
            self.record(step)
        return self._summaries[step]

    def read_all(self, progress: Progress | None = None) -> None:
        """Read the numbers of every step once, so that `summary` has them and `skipped` tells which are damaged.

        Args:
            progress: a function that is told how far the work is: `progress("reading NAME", done, total)`.
        """
        for done, step in enumerate(self._listed):
            self._readable(step)
            if progress is not None:
                progress(f"reading {self.name}", done + 1, len(self._listed))

    def holding(self, layer: str, kind: Kind | KindName, step: int) -> int | None:
        """The nearest step that can be read, holds a layer's filters or feature maps, and is not after `step`.

        Args:
            layer: the name of a layer.
            kind: `"filters"` or `"feature_maps"`.
            step: any step's number; it need not be a stored one.

        Returns:
            The step's number; None if there is no such step.
        """
        kind = Kind(kind)
        if layer not in self._watched[kind]:
            return None  # without a look at every step up to this one
        for at in range(bisect_right(self._listed, step) - 1, -1, -1):
            known = self._listed[at]
            if self._readable(known) and layer in kind.of(self._summaries[known]):
                return known
        return None

    def filters(self, layer: str, step: Which = "last") -> FloatArray:
        """The shown filters of a layer.

        Args:
            layer: the name of a watched layer, one of `layers`.
            step: a step's number, `"baseline"` or `"last"`.

        Returns:
            float32 `[n, k, kH, kW]`: n filters with k channels. k is 3 in the view rgb, 1 in gray and mean, and the
            number of shown input channels in slices.

        Raises:
            ValueError: there is no such layer or step, or the step holds no filters of the layer.
        """
        return self._array(layer, Kind.FILTERS, step)

    def feature_maps(self, layer: str, step: Which = "last") -> FloatArray:
        """The shown feature maps of a layer.

        Args:
            layer: the name of a watched layer, one of `layers`.
            step: a step's number, `"baseline"` or `"last"`.

        Returns:
            float32 `[N, n, h, w]`: N probe images with n channels each. Maps larger than their cell in the grid are
            stored averaged by area.

        Raises:
            ValueError: there is no such layer or step, or the step holds no feature maps of the layer.
        """
        return self._array(layer, Kind.FEATURE_MAPS, step)

    def measured_at(self, number: str, layer: str, step: int) -> int | None:
        """The nearest step that can be read, has a number of a layer, and is not after `step`; None without one.

        Args:
            number: by its full name, such as `filter_norm`.
            layer: the name of a layer.
            step: any step's number; it need not be a stored one.
        """
        if layer not in self.measured:
            return None
        for at in range(bisect_right(self._listed, step) - 1, -1, -1):
            known = self._listed[at]
            if self._readable(known) and layer in self._summaries[known].numbers.get(number, {}):
                return known
        return None

    def numbers(self, name: str, layer: str, step: Which = "last") -> npt.NDArray[np.float64]:
        """A number of a layer at one step, of all its filters or channels, also those that are not shown.

        Args:
            name: one value for the layer, each against the baseline: `function_change` (`|F - F0| / |F0|` of its
                output on the probe), `weight_change` (`|W - W0| / |W0|`; where a normalisation follows, of filters
                scaled to length 1), `cka_positions` (debiased linear CKA of its output at the positions of the probe);
                `update_ratio` (`|W' - W| / |W|` of the last optimiser step before the snapshot) or `mean_update_ratio`
                (the way since the snapshot before, divided by its steps); `dead_share` (of the channels that are
                nowhere above 0 behind the next activation). One value for each filter: `filter_angle` (from its
                baseline, in degrees), `filter_norm` or `norm` (length). One for each channel of pictured feature maps:
                `map_active` or `active` (share of positions above 0), `map_mean` or `mean`, `map_max` or `max`.
                `cosine`, `l2`, `update` and `cka` are the numbers of version 0.1: they warn, and will go.
            layer: the name of a layer, one of `measured`.
            step: a step's number, `"baseline"` or `"last"`.

        Returns:
            float64 `[k]`, one value for each measured filter (`Manifest.measured` says which those are), `[C]` for each
            channel, or `[1]` for the layer. NaN where it is undefined.

        Raises:
            ValueError: the step has no such number of this layer; the message names those that it has.
        """
        at = self.step(step)
        if name in names.STORED_AS:
            return self._old_number(name, self.layer(layer).name, at)
        stored = self._of_today(self.record(at))
        number = names.SHORT.get(name, name)
        if self.layer(layer).name not in stored.get(number, {}):
            have = [known for known in get_args(Number) if layer in stored.get(known, {})]
            raise ValueError(
                f"{self.name} has no {name!r} of {layer} at step {at}; it has {some(have, len(have) or 1)}"
            )
        return np.asarray(stored[number][layer], dtype=np.float64)

    def metrics(self, step: Which = "last") -> dict[str, float]:
        """What the trainer knew when a snapshot was taken: what the module logged, and the learning rates.

        Args:
            step: a step's number, `"baseline"` or `"last"`.

        Returns:
            Name -> value, with names such as `val_loss` and `lr-SGD`. Learning rates have the names that Lightning's
            `LearningRateMonitor` gives them. Empty if nothing was known, as in a run of an older cnnlog.

        Raises:
            ValueError: there is no such step, or its file is damaged.
        """
        return dict(self.summary(self.step(step)).metrics)

    @property
    def provisional(self) -> bool:
        """Whether the state of the last step lies within an epoch: the training ended there.

        A training that goes on writes the step anew when the epoch is complete.
        """
        return self.summary(self.step("last")).provisional

    def weights(self, which: Literal["baseline", "last"]) -> tuple[dict[str, FloatArray], int]:
        """All weights of the layers, also of filters that are not shown.

        Args:
            which: `"baseline"` or `"last"`; of other steps only the shown filters are stored.

        Returns:
            For each layer float32 `[O, I, kH, kW]`, or the measured filters `[k, ...]` of a layer without pictures
            (`Manifest.measured` says which those are); and the step that they are of.

        Raises:
            FileNotFoundError: no filters were watched.
            ValueError: the file is damaged.
        """
        return self._store.read_weights("latest" if which == "last" else which)

    def outputs(self, which: Literal["baseline", "last"]) -> tuple[dict[str, FloatArray], int]:
        """The outputs of the layers on the probe, at a few positions of each image.

        Args:
            which: `"baseline"` or `"last"`; of other steps they are not stored.

        Returns:
            For each layer float32 `[positions, C]`, and the step that they are of.

        Raises:
            FileNotFoundError: the run had no probe, or ended before they were written.
            ValueError: the file is damaged.
        """
        return self._store.read_outputs("latest" if which == "last" else which)

    def probe(self) -> FloatArray:
        """The probe as the network got it: float32, or the whole numbers that the network is fed.

        `[N, C, H, W]`, clips `[N, C, T, H, W]`, signals `[N, C, L]` or latents `[N, D]`.

        Raises:
            FileNotFoundError: the run had no probe.
            ValueError: the file is damaged.
        """
        return self._store.read_probe()

    def probe_picture(self) -> npt.NDArray[np.uint8]:
        """The probe as a picture for people: uint8 `[H, W, 3]`, no wider than the grids, several images in rows.

        Raises:
            FileNotFoundError: the run had no probe.
            ValueError: the file is damaged.
        """
        return self._store.read_probe_picture()

    def limits(self, layer: str, kind: Kind | KindName, step: int) -> Limits:
        """The range that a layer's live picture was drawn with: what full colour stood for, for each channel.

        While a training runs, later values are not known, so this range may differ from step to step. What is drawn
        afterwards has that of `limits_over_steps`. Where a step's file does not say its range, it is the range that
        just holds what the step shows.

        Args:
            layer: the name of a watched layer, one of `layers`.
            kind: `"filters"` or `"feature_maps"`.
            step: the number of a step that holds the layer.
        """
        kind, record = Kind(kind), self.record(step)
        state = record.ranges.get(kind, {}).get(layer)
        shown = kind.by_channel(kind.of(record)[layer])
        if state is None:
            return tight_limits(shown, signed=kind.signed, rule=self._rule(kind))
        stored = AnchoredRange.from_state(state)  # as it was when it had taken what is shown
        return stored.limits() or stored.update(shown)

    def limits_over_steps(self, layer: str, kind: Kind | KindName) -> Limits:
        """The range that figures and exported files are drawn with: it covers every step, and is the same for all.

        A channel's range ends at its largest finite magnitude at any step. A channel that is 0 everywhere takes the
        median range of the layer's others. All layers are found in one pass over the steps, when you first ask.

        Args:
            layer: the name of a watched layer, one of `layers`.
            kind: `"filters"` or `"feature_maps"`.

        Raises:
            ValueError: there is no such layer, or no step holds its filters or feature maps.
        """
        kind = Kind(kind)
        if self._extremes is None:
            self._extremes = {}
            for step in self._listed:
                try:
                    record = self.record(step)
                except StoreError:  # damaged, and remembered
                    continue
                for what in Kind:
                    for name, shown in what.of(record).items():
                        self._extremes.setdefault((what, name), Extremes()).see(what.by_channel(shown))
        if (kind, self.layer(layer).name) not in self._extremes:
            raise ValueError(f"{self.name} holds no {kind.words} of {layer} at any step")
        return shared_limits(self._extremes[kind, layer], signed=kind.signed, rule=self._rule(kind))

    def over_steps(self, name: Number, layer: str | None = None) -> Any:
        """A number over all steps, as a table.

        Args:
            name: as in `numbers`: `function_change`, `weight_change`, `filter_angle`, `update_ratio`,
                `mean_update_ratio`, `cka_positions`, `dead_share`, `filter_norm`, `map_active`, `map_mean`, `map_max`.
            layer: the name of a layer, one of `measured`, for its filters or channels one by one; None for all layers.

        Returns:
            A pandas DataFrame if pandas is installed, else a small table that prints itself. For numbers that a layer
            has one of, its columns are step, layer, value. For those of filters and channels they are step, layer,
            mean, lower_quartile, median, upper_quartile, left_out (how many are NaN); and step, channel, value for one
            layer. Damaged steps are left out; `skipped` tells of them.

        Raises:
            ValueError: there is no such number or layer, or nothing of it is stored.
        """
        return over_steps.over_steps(self, name, layer)

    def drift(self, measure: str = "cosine", layer: str | None = None) -> Any:
        """The table that `over_steps` replaces. It warns for one release.

        Args:
            measure: a name that `over_steps` takes, or `cosine` (cosine distance to the baseline, 0 to 2) or `l2`
                (distance to the baseline as a share of the filter's length there), which are derived from what is
                stored.
            layer: the name of a layer; None for all layers, each summed up.

        Returns:
            A table with the columns step, layer, mean, lower_quartile, median, upper_quartile; for one layer they are
            step, channel, value.

        Raises:
            ValueError: there is no such measure or layer, or nothing of it is stored.
        """
        return over_steps.drift(self, measure, layer)

    def figure(
        self,
        layer: str,
        step: Which = "last",
        kind: Kind | KindName = "filters",
        *,
        image: int = 0,
        cmap: str = "auto",
    ) -> Figure:
        """A matplotlib figure of a layer's filters or feature maps, with title, channel numbers and colour bar.

        Its range covers all steps of the run, so that figures of two steps can be compared.

        Args:
            layer: the name of a watched layer, one of `layers`.
            step: a step's number, `"baseline"` or `"last"`.
            kind: `"filters"` or `"feature_maps"`.
            image: which image of the probe the feature maps are of, counted from 0.
            cmap: the colours: `"auto"` for those of the grids, `"gray"`, or the name of any matplotlib colour map.

        Raises:
            ValueError: there is no such layer, step, image or colour map, or the step holds nothing of this kind.
        """
        kind, number = Kind(kind), self.step(step)
        array = self._array(layer, kind, number)
        limits, view = self.limits_over_steps(layer, kind), self.layer(layer).view
        picture = Picture.of(kind, array, limits, image=image, view=view, cmap=cmap)
        return picture.figure(f"{kind.words.capitalize()} of {layer}, {self.name}, step {number}")

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self.layers)} layers, {len(self.steps)} steps to {self._listed[-1]})"

    def _repr_html_(self) -> str:
        return _html_of(self)

    def _array(self, layer: str, kind: Kind, step: Which) -> FloatArray:
        number = self.step(step)
        self.layer(layer)
        arrays = kind.of(self.record(number))
        if layer not in arrays:
            held = self.holding(layer, kind, self._listed[-1])
            hint = f"the last step that holds them is {held}" if held is not None else "they were not watched"
            raise ValueError(f"{self.name} holds no {kind.words} of {layer} at step {number}; {hint}")
        return arrays[layer]

    def _rule(self, kind: Kind) -> RangeRule:
        """One range a channel or one for the layer, as the run has it."""
        rule: RangeRule = (self.manifest.settings.get(kind) or {}).get("value_range", "channel")
        return rule

    def _of_today(self, record: Record) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
        """The numbers of a step under their names of today."""
        old = names.STORED_AS["cosine"] in record.numbers
        return names.of_today(record.numbers, self._first_norms if old else {}, version=self.manifest.version)

    @cached_property
    def _first_norms(self) -> dict[str, npt.NDArray[np.float64]]:
        """The length of each filter at the baseline; nothing if that cannot be read."""
        try:
            record = self._store.read_record(self.manifest.baseline_step, numbers_only=True)
        except (OSError, StoreError):
            return {}
        return dict(record.numbers.get("filter_norm", {}))

    def _old_number(self, name: str, layer: str, step: int) -> npt.NDArray[np.float64]:
        """A number of version 0.1, derived where it is not stored. It warns."""
        names.warn_of_old(name, stacklevel=4)
        found = names.old_number(name, self.record(step).numbers, layer, self._first_norms)
        if found is None:
            raise ValueError(f"{self.name} has no {name!r} of {layer} at step {step}; take {names.INSTEAD[name]}")
        return np.asarray(found, dtype=np.float64)

    def _readable(self, step: int) -> bool:
        if step not in self._damaged and step not in self._summaries:
            try:
                record = self._store.read_record(step, numbers_only=True)
                self._summaries[step] = summary_of(record, self._of_today(record))
            except StoreError as error:
                self._skip(step, str(error))
            except OSError as error:
                self._skip(step, f"step {step} of {self.path} cannot be read ({error})")
        return step not in self._damaged

    def _skip(self, step: int, why: str) -> None:
        self._damaged[step] = why
        self._steps = tuple(known for known in self._listed if known not in self._damaged)


def _html_of(run: Run) -> str:
    layers = run.manifest.layers
    rows = tuple((layer.name, layer.kind, by(layer.weight_shape), by(layer.output_shape)) for layer in layers)
    table = Table(("layer", "kind", "filters", "feature maps"), rows)
    until = f"{run._listed[-1]} {run.manifest.unit.short}"
    head = f"{run.name}: {run.manifest.architecture}, {len(run.steps)} snapshots to {until}"
    return f"<p><b>{html.escape(head)}</b><br>{html.escape(run.path)}</p>{table._repr_html_()}"

"""Which part of a run is drawn: one layer's filters or feature maps at some steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.shared_ranges import in_words
from cnnlog.rendering.views import ResolvedView
from cnnlog.runs.manifest import StoreError, WatchedLayer
from cnnlog.runs.run import Run
from cnnlog.snapshot import Record

# What says how far a step is from the baseline: the number's name in the files, and in words
_DRIFT: Mapping[Kind, tuple[str, str]] = {
    Kind.FILTERS: ("filter_drift_cosine", "drift"),
    Kind.FEATURE_MAPS: ("cka", "CKA"),
}


@dataclass(frozen=True)
class Wanted:
    """What to draw of a run.

    Attributes:
        layer: the name of a layer; None takes the first one that has the kind. A sheet draws all layers.
        kind: filters or feature maps; None takes filters if there are any. A sheet draws both.
        step: the one step of a sheet or a figure; None takes the last step.
        steps: the columns of a strip or the frames of an animation. None takes all steps; a strip takes up to 8 of
            them, at even strides.
        channels: the rows of a strip; None takes the 8 channels that changed most over its steps.
        image: which image of the probe feature maps are of, counted from 0.
        cmap: the name of a colour map; None takes the run's.
        width: of one grid in pixels, at most.
    """

    layer: str | None = None
    kind: Kind | None = None
    step: int | None = None
    steps: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    image: int = 0
    cmap: str | None = None
    width: int = 700


@dataclass(frozen=True)
class Part:
    """One layer's filters or feature maps at some steps.

    Attributes:
        run: the run.
        layer: the layer.
        kind: filters or feature maps.
        steps: the steps, rising.
        pictures: for each step its picture, in the range over all steps of the run.
        numbers: for each step how far it is from the baseline, in words.
    """

    run: Run
    layer: WatchedLayer
    kind: Kind
    steps: tuple[int, ...]
    pictures: tuple[Picture, ...]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, wanted: Wanted) -> Part:
        """Read the part of a run that is wanted.

        Args:
            run: from `open_run`.
            wanted: which layer, kind and steps.

        Raises:
            ValueError: the run does not have it.
        """
        layer, kind = layer_of(run, wanted)
        steps, pictures, numbers = [], [], []
        for step in run.steps if wanted.steps is None else sorted(set(wanted.steps)):
            try:
                record = run.record(run.step(step))
            except StoreError:  # damaged; the run remembers, and it is said
                continue
            picture = picture_of(run, wanted, layer, kind, record)
            if picture is None and wanted.steps is not None:
                raise ValueError(nothing_there(run, layer, kind, step))
            if picture is None:  # a step of the other monitor
                continue
            steps.append(step)
            pictures.append(picture)
            numbers.append(number_of(record, kind, layer.name))
        if not steps:
            raise ValueError(" ".join([f"no step of {run.name} shows {kind.words} of {layer.name}", *run.skipped]))
        return cls(run, layer, kind, tuple(steps), tuple(pictures), tuple(numbers))

    @property
    def channels(self) -> int:
        """How many channels are shown."""
        return len(self.pictures[0].values)

    @property
    def view(self) -> ResolvedView | None:
        """How filters are shown; None for feature maps."""
        return self.pictures[0].view

    @property
    def cmap(self) -> str:
        """The colour map."""
        return self.pictures[0].cmap

    @property
    def title(self) -> str:
        """What is drawn, in words."""
        return f"{self.kind.words} of {self.layer.name}, steps are {self.run.manifest.unit.words}"

    def only(self, steps: Sequence[int]) -> Part:
        """The part with some of its steps.

        Args:
            steps: which, rising.
        """
        at = [self.steps.index(step) for step in steps]
        return replace(
            self,
            steps=tuple(steps),
            pictures=tuple(self.pictures[number] for number in at),
            numbers=tuple(self.numbers[number] for number in at),
        )

    @property
    def limits(self) -> Limits:
        """One range for all steps of the run."""
        return self.pictures[0].limits

    def legend(self, limits: Limits) -> str:
        """What the colours mean, in a line.

        Args:
            limits: the ranges of the channels that are drawn.
        """
        if self.view == "rgb":
            colours = "mid gray is 0"
        elif self.cmap != "auto":
            colours = f"colours: {self.cmap}"
        else:
            colours = "white is 0, red above, blue below" if limits.symmetric else "black is 0"
        whose = f"each {self.kind.one} in" if len(set(limits.high.tolist())) > 1 else "all in"
        return f"{colours}; {whose} one range over all steps of the run: {in_words(limits)}"

    def refuse_channels(self, channels: Sequence[int]) -> None:
        """Raise a ValueError unless all channels are among those that are shown.

        Args:
            channels: numbers of channels.
        """
        wrong = [channel for channel in channels if not 0 <= channel < self.channels]
        if wrong or not channels:
            raise ValueError(
                f"of {self.layer.name} the run holds the {self.kind.words} 0 to {self.channels - 1}; "
                f"got --channels {','.join(map(str, channels))}"
            )


def layer_of(run: Run, wanted: Wanted) -> tuple[WatchedLayer, Kind]:
    """The layer and the kind that are meant.

    Args:
        run: the run.
        wanted: may name a layer and a kind.

    Raises:
        ValueError: the run has no such layer, or nothing of this kind.
    """
    candidates = run.manifest.layers if wanted.layer is None else (run.layer(wanted.layer),)
    kinds = tuple(Kind) if wanted.kind is None else (wanted.kind,)
    for kind in kinds:
        for layer in candidates:
            if kind.shape(layer) is not None:
                return layer, kind
    there = [layer.name for layer in run.manifest.layers if kinds[0].shape(layer) is not None]
    whose = f"{run.name} holds" if wanted.layer is None else f"layer {wanted.layer!r} has"
    raise ValueError(f"{whose} no {kinds[0].words}; layers that do: {', '.join(there) or 'none'}")


def step_of(run: Run, wanted: Wanted, layer: WatchedLayer, kind: Kind) -> int:
    """The one step that is drawn of a layer: the step that was asked for, else the last one that shows the layer.

    Args:
        run: a stored run.
        wanted: may name a step.
        layer: one of the run's watched layers.
        kind: filters or feature maps.

    Raises:
        ValueError: the step that was asked for does not show it.
    """
    step = run.step("last" if wanted.step is None else wanted.step)
    if wanted.step is None:
        step = run.holding(layer.name, kind, step) or step
    if layer.name not in kind.of(run.record(step)):
        raise ValueError(nothing_there(run, layer, kind, step))
    return step


def nothing_there(run: Run, layer: WatchedLayer, kind: Kind, step: int) -> str:
    """A sentence that a step does not show the layer, and which step near it does.

    Args:
        run: a stored run.
        layer: one of its watched layers.
        kind: what of the layer is asked for.
        step: one of its steps.
    """
    holding = {near for other in run.steps if (near := run.holding(layer.name, kind, other)) is not None}
    nearest = min(holding, key=lambda other: abs(other - step), default=None)
    hint = "no step does" if nearest is None else f"the nearest that does is {nearest}"
    return f"step {step} of {run.name} holds no {kind.words} of {layer.name}; {hint}"


def picture_of(run: Run, wanted: Wanted, layer: WatchedLayer, kind: Kind, record: Record) -> Picture | None:
    """A layer at one step, in the range over all steps of the run; None if the step does not show it.

    Args:
        run: the run.
        wanted: says which image of the probe feature maps are of, and may name other colours than the run's.
        layer: the layer.
        kind: filters or feature maps.
        record: the step.

    Raises:
        ValueError: the probe has no such image.
    """
    shown = kind.of(record).get(layer.name)
    if shown is None:
        return None
    limits, cmap = run.limits_over_steps(layer.name, kind), cmap_of(run, wanted, kind)
    if kind.per_image and not 0 <= wanted.image < len(shown):
        raise ValueError(f"the probe's images are 0 to {len(shown) - 1}; got --image {wanted.image}")
    return Picture.of(kind, shown, limits, image=wanted.image, view=layer.view, cmap=cmap)


def number_of(record: Record, kind: Kind, layer: str) -> str:
    """How far a layer is from the baseline at a step, in words; empty if no number says so.

    Args:
        record: the step.
        kind: filters or feature maps.
        layer: its name.
    """
    name, word = _DRIFT[kind]
    values = record.numbers.get(name, {}).get(layer)
    return "" if values is None else f"{word} {drift.mean_of_finite(values):.3g}"


def cmap_of(run: Run, wanted: Wanted, kind: Kind) -> str:
    """The colour map that was asked for, else the run's.

    Args:
        run: a stored run.
        wanted: may name a colour map.
        kind: filters or feature maps.
    """
    return wanted.cmap or str(run.manifest.settings.get(kind, {}).get("cmap", "auto"))


def pixels_of(grid: Grid) -> Image.Image:
    """A grid as a PIL image, RGB.

    Args:
        grid: with a palette or without.
    """
    if grid.palette is None:
        return Image.fromarray(grid.pixels)
    return Image.fromarray(np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[grid.pixels])

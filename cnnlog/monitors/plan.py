"""What is watched, and how: from what was asked for to the layers, the manifest and the files of the probe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Literal, get_args

from cnnlog import __version__
from cnnlog.capture.layers import LayerInfo, LayerSpec, read_as, select, with_rows
from cnnlog.capture.measuring import Measured, measured, samples_of
from cnnlog.capture.probe import Probe
from cnnlog.capture.rng import PASS_SEED
from cnnlog.kinds import Kind, Unit
from cnnlog.messages import some
from cnnlog.recording.drawer import LoggedPicture, Look
from cnnlog.rendering.colours import palette
from cnnlog.rendering.png import Grid, encode_png
from cnnlog.rendering.probe_picture import probe_picture
from cnnlog.rendering.ranges import RangeRule
from cnnlog.rendering.views import View, resolve_view
from cnnlog.runs.manifest import Manifest, MeasuredLayer, WatchedLayer
from cnnlog.runs.writers import own_mark
from cnnlog.snapshot import FloatArray

OnError = Literal["warn", "raise"]
WIDTH_LIMIT = 10_000  # small cells are enlarged up to it
Weights = Literal["train", "ema"]


@dataclass(frozen=True)
class Plan:
    """What one monitor was asked for.

    Attributes:
        layers: `"auto"`, names, globs or module types.
        look: how its pictures are drawn.
        unit: what its steps count.
        every: a snapshot is due each time so many are complete; None for none but those of `at_steps`.
        on_error: `"warn"` warns once of each kind of problem, `"raise"` raises it.
        probe: the fixed input; None takes the first image of the data.
        through: the sub-module that the probe runs through; None runs it through the model.
        weights: `"train"` shows those being trained, `"ema"` their averages.
        at_steps: a snapshot is due after each of these optimiser steps, too.
        channels_last: where the channels are in outputs of which that cannot be known; None where nobody said it.
    """

    layers: LayerSpec
    look: Look
    unit: Unit
    every: int | None
    on_error: OnError
    probe: Probe | None
    through: str | None
    weights: Weights = "train"
    channels_last: bool | None = None
    at_steps: tuple[int, ...] = ()

    @property
    def counts_steps(self) -> bool:
        """Whether it needs steps that are optimiser steps."""
        return self.unit is Unit.STEP or bool(self.at_steps)

    def is_due(self, counted: Unit, before: int, now: int) -> bool:
        """Whether a snapshot is due between two counts.

        Args:
            counted: what is counted.
            before: how many were complete.
            now: how many are.
        """
        if counted is Unit.STEP and any(before < step <= now for step in self.at_steps):
            return True
        return counted is self.unit and self.every is not None and now // self.every > before // self.every

    def schedule(self) -> str:
        """When snapshots are due, in words."""
        every = None if self.every is None else f"every {self.every} {self.unit.short}"
        steps = f"at steps {some([str(step) for step in self.at_steps])}" if self.at_steps else None
        said = " and ".join(part for part in (every, steps) if part is not None)
        return said.replace("every 1 epochs", "every epoch").replace("every 1 training steps", "every training step")

    def settings(self) -> dict[str, Any]:
        """The arguments as plain values, for the manifest."""
        named: list[Any] = [self.layers] if isinstance(self.layers, (str, type)) else list(self.layers)
        names = [item if isinstance(item, str) else item.__qualname__ for item in named]
        return {
            "layers": names,
            "every": self.every,
            "unit": self.unit.value,
            "weights": self.weights,
            **vars(self.look),
            **({"at_steps": list(self.at_steps)} if self.at_steps else {}),
        }


@dataclass(frozen=True)
class Watched:
    """What is watched of one model.

    Attributes:
        filter_layers: names of the layers whose filters are watched.
        map_layers: names of the layers whose feature maps are watched.
        layers: all of these, in the order of the tags.
        channels_last: those of `map_layers` whose output has the channels last.
        taken: for each layer that numbers are kept of, what to take of it.
        measured: the same layers, as the manifest has them.
    """

    filter_layers: tuple[str, ...]
    map_layers: tuple[str, ...]
    layers: tuple[WatchedLayer, ...]
    taken: tuple[Measured, ...]
    measured: tuple[MeasuredLayer, ...]
    channels_last: tuple[str, ...] = ()


def plan_of(
    who: str,
    *,
    layers: LayerSpec,
    probe: Probe | str | Sequence[str] | None,
    look: Look,
    shown: str,
    unit: Unit,
    every: int | None,
    on_error: OnError,
    through: str | None,
    weights: Weights = "train",
    at_steps: tuple[int, ...] = (),
    channels_last: bool | None = None,
    layers_are: str = "layers",
) -> Plan:
    """Check what was asked for.

    Args:
        who: the caller's name, used in error messages.
        layers: `"auto"`, names, globs or module types; at least one.
        probe: the fixed input, or the path of an image, or several paths; None takes the first image of the data.
        look: how pictures are drawn.
        shown: what the caller calls the number of channels that a grid shows, used in error messages.
        unit: what steps count.
        every: a snapshot is due each time so many are complete; None for none but those of `at_steps`.
        on_error: `"warn"` or `"raise"`.
        through: the sub-module that the probe runs through; None runs it through the model.
        weights: `"train"` shows those being trained, `"ema"` their averages.
        at_steps: a snapshot is due after each of these optimiser steps, too; checked already.
        channels_last: where the channels are in outputs of which that cannot be known; None leaves it open.
        layers_are: what the caller calls `layers`, used in error messages.

    Raises:
        ValueError: an argument has a value that cannot be.
        TypeError: `layers` or `probe` is of another kind.
        FileNotFoundError: no such probe image.
    """
    _refuse_layers(who, layers_are, layers)
    _refuse_look(who, look, shown)
    for name, value, allowed in (("on_error", on_error, get_args(OnError)), ("weights", weights, get_args(Weights))):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{who} expected {name} as one of {', '.join(allowed)}, got {value!r}.")
    if through is not None and (not isinstance(through, str) or not through.strip()):
        raise TypeError(f"{who} expected through as the name of a sub-module, or None, got {through!r}.")
    if channels_last is not None and not isinstance(channels_last, bool):
        raise TypeError(f"{who} expected channels_last as True, False or None, got {channels_last!r}.")
    if probe is not None and not isinstance(probe, Probe):
        probe = Probe.from_images(_image_paths(who, probe))
    return Plan(layers, look, unit, every, on_error, probe, through, weights, channels_last, at_steps)


def choose(infos: Sequence[LayerInfo], *, filters: Plan | None, maps: Plan | None) -> Watched:
    """Choose the layers. Numbers are kept of all convolutions and linear layers, whatever is pictured.

    Args:
        infos: what `capture.survey` found.
        filters: what was asked for filters; None watches none.
        maps: what was asked for feature maps; None watches none.

    Raises:
        ValueError: no such layer, or one whose filters cannot be shown as asked for.
    """
    infos = read_as(infos, channels_last=maps.channels_last if maps else None)
    filter_layers = select(infos, filters.layers, kind=Kind.FILTERS) if filters else ()
    map_layers = select(infos, maps.layers, kind=Kind.FEATURE_MAPS) if maps else ()
    view = filters.look.view if filters else "auto"
    taken = measured(infos)
    named = {*filter_layers, *map_layers, *(layer.name for layer in taken)}
    tags = _tags([info.name for info in infos if info.name in named])
    return Watched(
        filter_layers,
        map_layers,
        layers=_watched(infos, filter_layers, map_layers, view, tags),
        taken=taken,
        measured=_measured(infos, taken, tags),
        channels_last=tuple(info.name for info in infos if info.name in map_layers and info.channels_last),
    )


def manifest_of(
    watched: Watched,
    *,
    filters: Plan | None,
    maps: Plan | None,
    probe: Probe | None,
    baseline_step: int,
    architecture: str,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a run that begins now.

    Args:
        watched: the layers.
        filters: what was asked for filters; None if none are watched.
        maps: what was asked for feature maps; None if none are watched.
        probe: the fixed input; None for a run without one.
        baseline_step: the first step.
        architecture: the network's name.
        hyper_parameters: plain values; None for none.
    """
    return Manifest(
        layers=watched.layers,
        measured=watched.measured,
        unit=unit_of(filters, maps),
        baseline_step=baseline_step,
        settings={
            **({Kind.FILTERS.value: filters.settings()} if filters else {}),
            **({Kind.FEATURE_MAPS.value: maps.settings()} if maps else {}),
        },
        probe=_facts(probe),
        versions={"cnnlog": __version__, **{name: version(name) for name in ("torch", "lightning")}},
        architecture=architecture,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hyper_parameters=dict(hyper_parameters or {}),
        writer=own_mark(),
    )


def unit_of(*plans: Plan | None) -> Unit:
    """What the steps of a run count: optimiser steps as soon as one plan counts these.

    Args:
        plans: what was asked for; None for a kind that is not watched.
    """
    return Unit.STEP if any(plan is not None and plan.counts_steps for plan in plans) else Unit.EPOCH


def refuse_other(old: Manifest, new: Manifest) -> None:
    """Refuse to go on with a run if its pictures and numbers would not stay comparable.

    Args:
        old: of the stored run.
        new: of the one that shall go on with it.

    Raises:
        ValueError: they count other steps, or differ in layers, probe or settings.
    """
    for what, before, now in (
        ("unit of steps", old.unit, new.unit),
        ("layers", [_shape_of(layer) for layer in old.layers], [_shape_of(layer) for layer in new.layers]),
        ("probe", old.probe.get("fingerprint"), new.probe.get("fingerprint")),
        ("settings", _shaping(old.settings), _shaping(new.settings)),
    ):
        if before != now:
            raise ValueError(
                f"the run that is resumed had other {what} ({before}) than this one ({now}); give the same, or begin a "
                "new run in another folder"
            )


def probe_files(probe: Probe | None, *, width: int | None) -> tuple[FloatArray, LoggedPicture] | None:
    """The probe as the recorder wants it: its tensor, and its pictures, as many in a row as fit.

    Args:
        probe: the fixed input; None without one.
        width: of the pictures in pixels, at most; None for no limit but that of all pictures.
    """
    if probe is None:
        return None
    shape = probe.tensor.shape
    pixels = probe_picture(probe.pictures, width=width or WIDTH_LIMIT, photos=len(shape) > 3 and shape[1] == 3)
    grid = Grid(pixels, None)
    png = encode_png(grid, text={"cnnlog-probe": "1"}, level=6)
    return probe.tensor.numpy(), LoggedPicture("probe", png, grid.size, f"The probe: {', '.join(probe.names)}.")


def _tags(names: Sequence[str]) -> dict[str, str]:
    """Layer -> `00_name`: its position, with as many digits as the last one needs, so that names sort by position."""
    digits = max(2, len(str(len(names) - 1)))
    return {name: f"{position:0{digits}d}_{name}" for position, name in enumerate(names)}


def _measured(
    infos: Sequence[LayerInfo], taken: Sequence[Measured], tags: Mapping[str, str]
) -> tuple[MeasuredLayer, ...]:
    by_name = {info.name: info for info in infos}
    layers = []
    for layer in taken:
        info = by_name[layer.name]
        shape = info.full_shape
        layers.append(
            MeasuredLayer(
                name=info.name,
                tag=tags[info.name],
                kind=info.kind,
                weight_shape=info.weight_shape or (),
                output_shape=shape,
                filters=layer.filters,
                normalised=None if info.behind is None else info.behind.normalised,
                activation=None if info.behind is None else info.behind.activation,
                samples=0 if shape is None else samples_of(shape, channels_last=layer.channels_last),
            )
        )
    return tuple(layers)


def _watched(
    infos: Sequence[LayerInfo], filters: Sequence[str], maps: Sequence[str], view: View, tags: Mapping[str, str]
) -> tuple[WatchedLayer, ...]:
    layers = [info for info in infos if info.name in filters or info.name in maps]
    watched = []
    for info in layers:
        weight = with_rows(info.weight_shape or ()) if info.name in filters else None
        resolved = None
        if weight is not None:
            try:
                resolved = resolve_view(weight, view)
            except ValueError as error:
                raise ValueError(f"Layer {info.name!r}: {error}") from error
        watched.append(
            WatchedLayer(
                name=info.name,
                tag=tags[info.name],
                kind=info.kind,
                weight_shape=weight,
                output_shape=info.output_shape if info.name in maps else None,
                view=resolved,
                maps_an_image=info.maps_an_image if info.name in maps else 1,
            )
        )
    return tuple(watched)


def _facts(probe: Probe | None) -> dict[str, Any]:
    if probe is None:
        return {}
    shape = list(probe.tensor.shape)
    return {"fingerprint": probe.fingerprint, "names": list(probe.names), "shape": shape, "seed": PASS_SEED}


def _refuse_layers(who: str, argument: str, layers: Any) -> None:
    several = [layers] if isinstance(layers, (str, type)) else layers
    if not isinstance(several, Sequence) or not all(isinstance(item, (str, type)) for item in several):
        raise TypeError(f'{who} expected {argument} as "auto", names, globs or module types, got {layers!r}.')
    if not several or any(isinstance(item, str) and not item.strip() for item in several):
        raise ValueError(
            f"{who} expected {argument} to name at least one layer, got {layers!r}: give names, globs, module types or "
            '"auto".'
        )


def _refuse_look(who: str, look: Look, shown: str) -> None:
    for name, number, least in (("width", look.width, 16), (shown, look.shown, 1), ("max_slices", look.slices, 1)):
        unlimited = name == "width" and number is None
        if not unlimited and (not isinstance(number, int) or isinstance(number, bool) or number < least):
            more = ", or None" if name == "width" else ""
            raise ValueError(f"{who} expected {name} to be a whole number from {least} on{more}, got {number!r}.")
    if look.width is not None and look.width > WIDTH_LIMIT:
        raise ValueError(f"{who} expected width to be {WIDTH_LIMIT} pixels at most, or None, got {look.width}.")
    for name, switch in (("change", look.change), ("histograms", look.histograms)):
        if not isinstance(switch, bool):
            raise TypeError(f"{who} expected {name} to be True or False, got {switch!r}.")
    if not isinstance(look.cmap, str):
        raise TypeError(f'{who} expected cmap as "auto" or the name of a colour map, got {look.cmap!r}.')
    for name, value, allowed in (
        ("value_range", look.value_range, get_args(RangeRule)),
        ("view", look.view, get_args(View)),
    ):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{who} expected {name} as one of {', '.join(allowed)}, got {value!r}.")
    palette(look.cmap, True)  # refuses an unknown colour map


def _image_paths(who: str, probe: Any) -> list[str | os.PathLike[str]]:
    paths = [probe] if isinstance(probe, (str, os.PathLike)) else probe
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise TypeError(
            f"{who} expected probe as a Probe or the paths of images, got {type(probe).__name__}: wrap a tensor with "
            "Probe.from_tensor, opened images with Probe.from_images."
        )
    return list(paths)


def _shaping(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that decide what is stored.

    Args:
        settings: of a manifest: kind -> the look of its pictures.
    """
    parts = ("shown", "slices", "width", "value_range")
    return {
        kind: {**{part: look.get(part) for part in parts}, "weights": look.get("weights", "train")}
        for kind, look in settings.items()
    }


def _shape_of(layer: WatchedLayer) -> tuple[Any, ...]:
    return (layer.name, layer.weight_shape, layer.output_shape, layer.view)

"""What is compared: opens runs and weights, and lists the layers that they share. Runs need no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlog.comparison.matching import align
from cnnlog.messages import by, some
from cnnlog.rendering.views import ResolvedView, resolve_view
from cnnlog.runs.finding import open_run
from cnnlog.runs.run import Progress, Run, Which
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from cnnlog.models.weights import Weights

Given = str | os.PathLike[str] | Run
WEIGHT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_TORCHVISION = "torchvision:"
_PIN = re.compile(r"(.+)@([^@/\\]+)", re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        label: what it is called: short, and different from the labels of the other sides.
        run: the stored run; None for weights.
        step: the one step that is compared; None if all steps of the run are, and for weights.
        filters: for each pictured layer of weights all filters `[O, I, kH, kW]`; empty for runs.
        feature_maps: for each layer of weights all feature maps `[N, C, H, W]`; empty for runs.
        probe: the fingerprint of the images that the feature maps are of; None without feature maps.
        source: the path or the name that it was opened from.
        weights: for each layer of weights all of them, `[O, I, kH, kW]` or `[O, I]`, also of layers without pictures;
            empty for runs.
    """

    label: str
    run: Run | None
    step: int | None
    filters: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    feature_maps: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    probe: str | None = None
    source: str = ""
    weights: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class LayerMatch:
    """One layer of the comparison.

    Attributes:
        name: what it is called here.
        tag: `00_name`, in the order of the comparison.
        names: what each side calls it; None where a side lacks it.
        has_filters: whether at least one side shows filters of it. A layer of which only numbers are kept has none.
        has_maps: whether at least one side shows feature maps of it.
        view: how its filters are shown: rgb, gray, slices or mean; None without filters.
    """

    name: str
    tag: str
    names: tuple[str | None, ...]
    has_filters: bool
    has_maps: bool
    view: ResolvedView | None


@dataclass(frozen=True)
class Aligned:
    """Sides that belong together.

    Attributes:
        sides: what is compared, in the order given.
        layers: the layers that they share, and those that only some have.
        notes: sentences on how that was found, and on what is missing.
    """

    sides: tuple[Side, ...]
    layers: tuple[LayerMatch, ...]
    notes: tuple[str, ...]


def open_sides(
    given: Sequence[Given],
    *,
    image: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    progress: Progress | None = None,
) -> Aligned:
    """Open the sides of a comparison and match their layers.

    Args:
        given: what to compare: runs, their folders, such a folder with a step (`RUN@12`), files of weights, or weights
            of torchvision's (`torchvision:NAME:WEIGHTS`). The first one is what the others are compared with.
        image: the path of an image that weights make feature maps of; None takes the probe of the first run.
        arch: the architecture of files of weights, by torchvision's name.
        progress: a function that is told how far the reading is: `progress("reading NAME", done, total)`.

    Raises:
        ValueError: a side is not what it should be, or the sides have no layer in common.
        FileNotFoundError: a side does not exist.
    """
    if not given:
        raise ValueError("expected a run, or two or more runs and files of weights, to compare; got none")
    opened: dict[str, Run] = {}
    found = [_opened(one, opened, arch, with_network=image is not None) for one in given]
    if len(found) == 1:
        thing, label, _ = found[0]
        if not isinstance(thing, Run):
            raise ValueError(f"{label} is weights, and one side alone must be a run; give something to compare it with")
        found.insert(0, (thing, f"{thing.name}@baseline", thing.step("baseline")))
    if (image or arch) and all(isinstance(thing, Run) for thing, _, _ in found):
        raise ValueError(
            "an image and an architecture are for weights, and no side is a file of weights; leave them out"
        )
    for thing, _, step in found:
        if isinstance(thing, Run):
            if step is None:
                thing.read_all(progress)
                thing.step("last")
            else:
                thing.record(step)
    return _aligned(found, image)


_Found = tuple["Run | Weights", str, "int | None"]


def _opened(given: Given, opened: dict[str, Run], arch: str | None, *, with_network: bool) -> _Found:
    """A side's run or weights, its label, and the step it is pinned to.

    Args:
        given: what was given for the side.
        opened: the runs so far, by path; a run that is opened is added.
        arch: torchvision's name of the network of weights; None reads it from the file.
        with_network: weights need a network, because feature maps are made of it.
    """
    if isinstance(given, Run):
        return given, given.name, None
    text = os.fspath(given)
    if text.startswith(_TORCHVISION) or (text.endswith(WEIGHT_SUFFIXES) and not Path(text).is_dir()):
        return _weights(text, arch, with_network=with_network), _weights_label(text), None
    path, which = _pinned(text)
    if path not in opened:
        opened[path] = open_run(path)
    run = opened[path]
    if which is None:
        return run, run.name, None
    return run, f"{run.name}@{which}", run.step(which)


def _pinned(text: str) -> tuple[str, Which | None]:
    match = _PIN.fullmatch(text)
    if match is None or os.path.exists(text):
        return text, None
    path, which = match.groups()
    if which == "baseline":
        return path, "baseline"
    if which == "last":
        return path, "last"
    if which.isdecimal():
        return path, int(which)
    raise ValueError(f"expected a step's number, baseline or last behind the @ of {text!r}; got {which!r}")


def _weights(text: str, arch: str | None, *, with_network: bool) -> Weights:
    try:
        from cnnlog.models.weights import open_weights
    except ModuleNotFoundError as error:
        raise ValueError(f"{text} is weights, and reading them needs torch and torchvision ({error})") from error
    return open_weights(text, arch=arch, with_network=with_network)


def _weights_label(text: str) -> str:
    return text.removeprefix(_TORCHVISION) if text.startswith(_TORCHVISION) else Path(text).name


def _aligned(found: Sequence[_Found], image: str | os.PathLike[str] | None) -> Aligned:
    notes: list[str] = []
    labels = _unlike([label for _, label, _ in found], [thing for thing, _, _ in found])
    reference = next((i for i, (thing, _, _) in enumerate(found) if isinstance(thing, Run)), 0)
    thing = found[reference][0]
    base = thing.measured if isinstance(thing, Run) else tuple(thing.weights)
    names: dict[str, list[str | None]] = {name: [None] * len(found) for name in base}
    for index, (thing, _, _) in enumerate(found):
        own = base if index == reference else thing.measured if isinstance(thing, Run) else thing.layers
        if not isinstance(thing, Run) and thing.note:
            notes.append(f"{labels[index]}: {thing.note}")
        pairs, said = align(base, own)
        if said:
            notes.append(f"{labels[reference]} and {labels[index]} are matched {said}")
        for name in own:
            if name in pairs:
                names[pairs[name]][index] = name
            elif isinstance(thing, Run):
                names.setdefault(name, [None] * len(found))[index] = name
    if len(found) > 1 and not any(sum(name is not None for name in row) > 1 for row in names.values()):
        listed = "; ".join(
            f"{label} has {some(thing.layers, 5)}" for (thing, _, _), label in zip(found, labels, strict=True)
        )
        raise ValueError("; ".join([f"the sides have no layer in common: {listed}", *notes]))
    shown = [thing.layers if isinstance(thing, Run) else thing.auto() for thing, _, _ in found]
    runs_alone = any(isinstance(thing, Run) for thing, _, _ in found)
    pictured = {
        name
        for name, row in names.items()
        for (thing, _, _), own, some_of in zip(found, row, shown, strict=True)
        if own in some_of and (isinstance(thing, Run) or not runs_alone)
    }
    sides = _sides(found, labels, names, image, notes, pictured=pictured)
    layers = _matches(sides, names)
    for index, side in enumerate(sides):
        lacking = [layer.name for layer in layers if layer.names[index] is None]
        if lacking:
            notes.append(f"{side.label} lacks {', '.join(lacking)}")
    notes += _unlike_shapes(sides, layers)
    units = {side.run.manifest.unit for side in sides if side.run is not None and side.step is None}
    if len(units) > 1:
        notes.append("the runs count steps differently (epochs, training steps); they are aligned by number")
    return Aligned(tuple(sides), tuple(layers), tuple(notes))


def _sides(
    found: Sequence[_Found],
    labels: Sequence[str],
    names: Mapping[str, Sequence[str | None]],
    image: str | os.PathLike[str] | None,
    notes: list[str],
    *,
    pictured: Container[str],
) -> list[Side]:
    runs = [thing for thing, _, _ in found if isinstance(thing, Run)]
    with_maps = {
        name
        for name, row in names.items()
        for (thing, _, _), own in zip(found, row, strict=True)
        if isinstance(thing, Run) and own is not None and thing.layer(own).output_shape is not None
    }
    sides = []
    for index, (thing, _, step) in enumerate(found):
        if isinstance(thing, Run):
            sampled = any(layer.samples for layer in thing.manifest.measured)
            probe = thing.manifest.probe.get("fingerprint") if with_maps or sampled else None
            sides.append(Side(labels[index], thing, step, probe=probe, source=thing.path))
            continue
        own = {row[index]: name for name, row in names.items() if row[index] is not None}
        weights = {name: array for name, array in thing.weights.items() if name in own}
        filters = {name: array for name, array in weights.items() if array.ndim == 4 and own[name] in pictured}
        wanted = [row[index] for name, row in names.items() if name in (with_maps if runs else pictured)]
        there = [name for name in wanted if name is not None]
        maps, fingerprint, said = thing.feature_maps(there, image=image, run=runs[0] if runs else None)
        if said:
            notes.append(f"{labels[index]}: {said}")
        sides.append(Side(labels[index], None, None, filters, maps, fingerprint, thing.source, weights))
    return sides


def _matches(sides: Sequence[Side], names: Mapping[str, Sequence[str | None]]) -> list[LayerMatch]:
    layers = []
    for position, (name, row) in enumerate(names.items()):
        there = [(side, own) for side, own in zip(sides, row, strict=True) if own is not None]
        shapes = [shape for side, own in there if (shape := shown_shape(side, own)) is not None]
        maps = any(
            own in side.feature_maps if side.run is None else side.run.layer(own).output_shape is not None
            for side, own in there
        )
        views = (side.run.layer(own).view for side, own in there if side.run is not None)
        view = next((view for view in views if view is not None), None)
        if view is None and shapes:
            view = resolve_view(shapes[0], "auto")
        layers.append(LayerMatch(name, f"{position:02d}_{name}", tuple(row), bool(shapes), maps, view))
    return layers


def shown_shape(side: Side, name: str) -> tuple[int, ...] | None:
    """The shape `(O, I, kH, kW)` of a layer's filters, if a side shows them; else None.

    Args:
        side: the side.
        name: what the side calls the layer.
    """
    if side.run is not None:
        return side.run.layer(name).weight_shape
    return tuple(side.filters[name].shape) if name in side.filters else None


def filters_shape(side: Side, name: str) -> tuple[int, ...] | None:
    """The shape of a layer's filters, `(O, I, kH, kW)` or `(O, I)` of a linear layer; None if they are not known.

    Args:
        side: the side.
        name: what the side calls the layer.
    """
    if side.run is not None:
        measured = side.run.measured_layer(name)
        return side.run.layer(name).weight_shape if measured is None else measured.weight_shape
    return tuple(side.weights[name].shape) if name in side.weights else None


def _unlike_shapes(sides: Sequence[Side], layers: Sequence[LayerMatch]) -> list[str]:
    """Sentences on layers whose filters cannot be compared.

    Args:
        sides: what is compared; the first one is what the others are compared with.
        layers: matched over the sides.
    """
    notes = []
    for layer in layers:
        shapes = [
            None if name is None else filters_shape(side, name) for side, name in zip(sides, layer.names, strict=True)
        ]
        for side, shape in zip(sides[1:], shapes[1:], strict=True):
            if shape is not None and shapes[0] is not None and shape != shapes[0]:
                notes.append(
                    f"{layer.name} has {by(shapes[0])} filters in {sides[0].label} and {by(shape)} in {side.label}, "
                    "so there is no distance"
                )
    return notes


def _unlike(labels: Sequence[str], things: Sequence[Any]) -> list[str]:
    """Labels that differ: with the parent folders where names are alike, with a number where these are, too.

    Args:
        labels: of the sides, some of them alike.
        things: the run or the weights of each.
    """
    result = list(labels)
    for index, label in enumerate(labels):
        if labels.count(label) > 1:
            thing = things[index]
            pin = label[len(thing.name) :] if isinstance(thing, Run) else ""
            source = Path(thing.path if isinstance(thing, Run) else thing.source)
            parts = [part for part in source.parts if part not in ("/", "cnnlog")]
            result[index] = "/".join(parts[-(2 + len(Path(label).parts) - 1) :]) + pin
    return [
        f"{label} ({result[:index].count(label) + 1})" if result[:index].count(label) else label
        for index, label in enumerate(result)
    ]


def same_filters(
    first: Side, other: Side, names: tuple[str | None, str | None], pair: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """The filters of a layer that two sides measure: of very large layers not all, though a file may hold all of them.

    Args:
        first: a side.
        other: another one.
        names: what the two call the layer.
        pair: what the two hold of the layer's filters, `[k, ...]` each.
    """
    sizes, choices = set(), []
    for side, name in zip((first, other), names, strict=True):
        measured = None if side.run is None or name is None else side.run.measured_layer(name)
        if measured is not None and measured.filters is not None:
            choices.append(measured.filters)
            sizes.add(measured.weight_shape[0])
    if not choices or any(choice != choices[0] for choice in choices):
        return pair
    chosen = (array[list(choices[0])] if len(array) in sizes else array for array in pair)
    return next(chosen), next(chosen)

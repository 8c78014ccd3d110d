"""A comparison as a TensorBoard run of its own: the grids of each side and their differences, at every step.

The sides are called A, B, ... The layer `00_conv1`, say, has these tags:

- `compare_filters/00_conv1/A`, `.../B` and `.../B-A`: the filters of each side, and their difference
- `compare_feature_maps/00_conv1/A`, `.../B` and `.../B-A`: the same of feature maps; with several probe images each has
  its own tag, `.../A/image0`, `.../A/image1`, ...
- `compare_numbers/shown_function_distance/00_conv1/B-A`: `|B - A| / |A|` of the shown feature maps
- `compare_numbers/shown_weight_distance/00_conv1/B-A`: `|B - A| / |A|` of the shown filters
- `compare_numbers/shown_angle_between/00_conv1/B-A`: the median angle between the shown filters, in degrees
- `compare_numbers/shown_cka_between/00_conv1/B-A`: the debiased linear CKA of the shown feature maps
- `compare_numbers/function_distance/00_conv1/B-A` and the others without `shown_`: the same of all that is measured, as
  the comparison's table has it, at the first and the last step

Where A is B's own baseline these are B's own `function_change`, `weight_change`, `filter_angle` and `cka_positions`,
of all channels, under `compare_numbers/function_change/00_conv1/B` and so on.

Ranges are those of the comparison: the same at all steps and, unless you asked for own ones, for all sides. The card of
a tag tells them, and each PNG's text holds them as JSON under `cnnlog`, so that a picture can be read without the runs.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from cnnlog.comparison.comparison import Comparison
from cnnlog.comparison.pictures import Key, pictures
from cnnlog.comparison.rows import BETWEEN, letter
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.png import Grid, encode_png
from cnnlog.rendering.shared_ranges import in_words
from cnnlog.runs.run import Progress
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.tensorboard import TensorBoardTracker

SUFFIX = ".cnnlog-compare"


def refuse_folder(folder: Path, *, force: bool) -> None:
    """Raise an error, before any work, if the run cannot be written into a folder.

    Args:
        folder: the folder; it need not exist.
        force: whether there may be other files in it.

    Raises:
        FileExistsError: there is something in it, and `force` is not given; or it is a file.
        PermissionError: it is read-only, or the nearest folder above it that exists is.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file; give a folder for the TensorBoard run")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise FileExistsError(f"{str(folder)!r} is not empty; give another folder, or --force to add to it")
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{str(nearest)!r} is read-only; give another folder for the TensorBoard run")


def write_board(
    comparison: Comparison, folder: Path, *, force: bool = False, width: int = 350, progress: Progress | None = None
) -> Path:
    """Write the run's event file: completely, or not at all.

    Args:
        comparison: what to draw.
        folder: where to write; it is made if need be.
        force: whether there may be other files in the folder. An earlier comparison's event file there is replaced.
        width: of a grid in pixels, at most.
        progress: a function that is told how far the work is: `progress("drawing for TensorBoard", done, total)`.

    Returns:
        The event file.

    Raises:
        FileExistsError: there is something in the folder, and `force` is not given; or it is a file.
        PermissionError: it is read-only, or the nearest folder above it that exists is.
    """
    refuse_folder(folder, force=force)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    try:
        events = EventFile(str(draft), suffix=SUFFIX, live=False)
        try:
            tracker, numbers = TensorBoardTracker(events), _numbers(comparison)
            for done, step in enumerate(comparison.steps):
                _add_step(tracker, comparison, step, width)
                for tag, value in numbers.get(step, ()):
                    tracker.add_scalar(tag, value, step)
                tracker.commit(step)
                if progress is not None:
                    progress("drawing for TensorBoard", done + 1, len(comparison.steps))
        finally:
            events.close()
        for earlier in folder.glob(f"*{SUFFIX}"):
            earlier.unlink()
        (written,) = draft.iterdir()
        made = []
        return written.rename(folder / written.name)
    finally:
        for left in draft.iterdir() if draft.exists() else ():
            left.unlink()
        for empty in [draft, *made]:
            if empty.exists():
                empty.rmdir()


def _add_step(tracker: TensorBoardTracker, comparison: Comparison, step: int, width: int) -> None:
    for _, found in groupby(pictures(comparison, step), key=lambda one: replace(one[0], image=0)):
        of_images = list(found)
        for key, coloured in of_images:
            tag = f"compare_{key.kind}/{comparison.layers[key.layer].tag}/{_whose(key)}"
            tag += f"/image{key.image}" if len(of_images) > 1 else ""
            picture = replace(coloured, cmap="auto")  # one palette, whatever the runs'
            grid = picture.grid(width)
            text = {"cnnlog": json.dumps(_facts(comparison, key, picture, grid, step))}
            described = _described(comparison, key, picture, step)
            tracker.add_image(tag, encode_png(grid, text=text), grid.size, step, description=described)


def _whose(key: Key) -> str:
    """The part of a tag that says which side is shown, or what minus what.

    Args:
        key: which picture.
    """
    return f"{letter(key.side)}-{letter(0)}" if key.change else letter(key.side)


def _described(comparison: Comparison, key: Key, picture: Picture, step: int) -> str:
    """What a picture shows and what its colours mean, as its card says it."""
    layer, label = comparison.layers[key.layer], comparison.sides[key.side].label
    range_ = in_words(picture.limits)
    if key.change:
        gain = comparison.gain(layer, key.kind)
        what = f"{layer.name} of {label} minus {comparison.sides[0].label}"
        return f"{what}. All cells, steps and sides: {range_}, the layer's largest range divided by {gain} (×{gain})."
    own = comparison.step_of(key.side, step)
    what = f"{layer.name} of {label}" + ("" if own is None else f", its step {own} at step {step}")
    whose = "all steps and sides" if comparison.ranges == "shared" else "all its steps"
    return f"{what}. Each {key.kind.one} in one range for {whose}: {range_}."


def _facts(comparison: Comparison, key: Key, picture: Picture, grid: Grid, step: int) -> dict[str, Any]:
    """What a program needs to turn a picture's colours back into values, without the runs.

    Args:
        comparison: the sides.
        key: which picture.
        picture: its values and ranges.
        grid: what was drawn of it.
        step: of the comparison.
    """
    layer = comparison.layers[key.layer]
    return {
        "layer": layer.name,
        "kind": key.kind,
        "step": step,
        "side": _whose(key),
        "gain": comparison.gain(layer, key.kind) if key.change else None,
        **picture.facts(grid),
    }


def _numbers(comparison: Comparison) -> dict[int, list[tuple[str, float]]]:
    """Step -> tags and values of what lies between the sides.

    Args:
        comparison: the sides.
    """
    curves, by_label = comparison.curves(), {side.label: letter(i) for i, side in enumerate(comparison.sides)}
    tags = {layer.name: layer.tag for layer in comparison.layers}
    numbers: dict[int, list[tuple[str, float]]] = {}
    names = [f"{prefix}{column.number}" for prefix in ("", "shown_") for column in BETWEEN]
    between = [number for number in names if number in curves]
    own = ["function_change", "weight_change", "filter_angle", "cka_positions"]
    for measure in between or [number for number in own if number in curves]:
        for layer, sides in curves[measure].items():
            for label, curve in sides.items():
                whose = f"{by_label[label]}-{letter(0)}" if between else by_label[label]
                for step, value in curve:
                    numbers.setdefault(step, []).append((f"compare_numbers/{measure}/{tags[layer]}/{whose}", value))
    return numbers

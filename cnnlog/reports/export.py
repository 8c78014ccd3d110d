"""A stored run as files to show: strips, contact sheets, animations, figures.

Everything is drawn with the ranges that the run stored, so that in one file a colour always means the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from cnnlog.kinds import Kind
from cnnlog.metrics import drift
from cnnlog.rendering.colours import palette
from cnnlog.rendering.grids import filters_grid, maps_grid, strip_grid
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits, RangeRule
from cnnlog.reports.animation import Colours, save_apng
from cnnlog.reports.canvas import INK, LARGE, MARGIN, PALE, SMALL, SPACE, Page, font_of, shortened, width_of
from cnnlog.runs import places, whole_files
from cnnlog.runs.run import Run
from cnnlog.runs.store import StoreError, WatchedLayer
from cnnlog.snapshot import FloatArray, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Literal["strip", "sheet", "gif", "apng", "figure"]

SUFFIXES: Mapping[Form, tuple[str, ...]] = {
    "strip": (".png",),
    "sheet": (".png",),
    "gif": (".gif",),
    "apng": (".png", ".apng"),
    "figure": (".png", ".pdf", ".svg"),
}
STRIP_STEPS = 8
STRIP_CHANNELS = 8
HELD = 1500  # milliseconds that the first and the last frame stand
PLAYED = 6000  # milliseconds that the frames between them take in all, as far as the next line lets them
FRAME = (60, 400)

_WORDS: Mapping[Kind, str] = {"filters": "filters", "feature_maps": "feature maps"}


@dataclass(frozen=True)
class Wanted:
    """What to draw of a run.

    Attributes:
        layer: its name; None takes the first that has the kind. A sheet draws all.
        kind: filters or feature maps; None takes filters where there are any. A sheet draws both.
        step: the one step of a sheet or a figure; None takes the last.
        steps: the columns of a strip or the frames of an animation; None takes 8 spread over the run, or all.
        channels: the rows of a strip; None takes the first 8.
        image: which of the probe's images the feature maps are of.
        cmap: a colour map; None takes the run's.
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
class Exported:
    """A file that was written, and sentences on what a reader of it should know."""

    path: Path
    notes: tuple[str, ...] = ()


def export(
    run: Run, forms: Sequence[Form], wanted: Wanted, output: Path | None = None, *, force: bool = False
) -> tuple[Exported, ...]:
    """Draw a stored run into files, each written whole or not at all.

    Args:
        run: from `open_run`.
        forms: `strip` (rows: channels, columns: steps), `sheet` (all layers at one step), `gif` and `apng` (one layer
            through time), `figure` (one layer at one step, with a colour bar).
        wanted: which part of the run.
        output: the file, of a single form; or a folder, where files are named after what they show
            (`2_finetuned-conv1-filters.gif`). None: the current folder.
        force: replace files that are there.

    Raises:
        ValueError: a layer, kind, step, channel or file name that cannot be; nothing was written.
        FileExistsError: a file is there; nothing was written.
        OSError: a file cannot be written.
    """
    _refuse(forms, wanted, output)
    paths = {form: _free(_target(run, form, wanted, output), form, force=force) for form in forms}
    drawn = {form: _drawn(run, form, wanted) for form in forms}
    for form, save in drawn.items():
        with whole_files.whole(paths[form], force=force) as temporary:
            save(temporary)
    return tuple(Exported(path, (*run.skipped, *_rounded(run, form, wanted))) for form, path in paths.items())


def _refuse(forms: Sequence[Form], wanted: Wanted, output: Path | None) -> None:
    """What was asked for must be one thing, and must have an effect."""
    if not forms:
        raise ValueError(f"say what to make of the run: {', '.join(f'--{form}' for form in SUFFIXES)}")
    if len(forms) > 1 and output is not None and not output.is_dir():
        raise ValueError(f"{len(forms)} files are to be made, so --output must be a folder; got {str(output)!r}")
    for option, given, users in (
        ("--steps", wanted.steps is not None, ("strip", "gif", "apng")),
        ("--channels", wanted.channels is not None, ("strip",)),
        ("--step", wanted.step is not None, ("sheet", "figure")),
        ("--layer", wanted.layer is not None, ("strip", "gif", "apng", "figure")),
    ):
        if given and not set(users) & set(forms):
            raise ValueError(f"{option} is for {', '.join(f'--{form}' for form in users)}; leave it out")
    if wanted.cmap is not None:
        palette(wanted.cmap, True)  # refuses an unknown colour map


def _free(path: Path, form: Form, *, force: bool) -> Path:
    """The path, if a file of this form can be made there."""
    if path.suffix.lower() not in SUFFIXES[form]:
        raise ValueError(f"a {form} is written as {' or '.join(SUFFIXES[form])}; got {str(path)!r}")
    whole_files.refuse_target(path, force=force)
    return path


def _drawn(run: Run, form: Form, wanted: Wanted) -> Callable[[Path], None]:
    """What writes the drawing to a file."""
    if form == "figure":
        from cnnlog.rendering import figures

        made = figure(run, wanted)
        return lambda path: figures.save(made, path)
    if form in ("gif", "apng"):
        animation = Animation(run, wanted)
        return animation.save_gif if form == "gif" else animation.save_apng
    picture = strip(run, wanted) if form == "strip" else sheet(run, wanted)
    return lambda path: picture.save(path, format="PNG")


# --- the forms -----------------------------------------------------------------------------------------------------


def strip(run: Run, wanted: Wanted) -> Image.Image:
    """One layer's evolution, labelled: rows are channels, columns are steps.

    Cf. Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, figure 4, where columns are the
    epochs 1, 2, 5, 10, 20, 30, 40 and 64. All steps are drawn in the range of the last one. Of filters shown as slices,
    a row is a filter's first input channel.
    """
    part = _Part.of(run, wanted)
    if wanted.steps is None:
        part = part.thinned(STRIP_STEPS)
    cells = np.stack(part.arrays)
    if part.kind == "filters" and part.layer.view != "rgb":
        cells = cells[:, :, 0]
    channels = tuple(range(min(STRIP_CHANNELS, part.channels))) if wanted.channels is None else wanted.channels
    part.refuse_channels(channels)
    columns = [str(step) for step in part.steps]
    font = font_of(SMALL)
    widest = max(width_of(font, text) for text in columns) + SPACE
    limits = _some(part.limits(), channels)
    width = max(wanted.width, len(columns) * widest)
    grid = _picture(strip_grid(cells[:, list(channels)], limits, cmap=part.cmap, width=width))
    one = "filter" if part.kind == "filters" else "map"
    labels = [f"{one} {channel}" for channel in channels]
    left = max(width_of(font, label) for label in [*labels, "step"]) + SPACE
    slices = ", first input channel" if part.kind == "filters" and part.layer.view == "slices" else ""
    page = Page(left + grid.width, run.name, f"{part.title}{slices}", part.legend(limits))
    top = page.height + SMALL + SPACE
    page.extend(SMALL + SPACE + grid.height)
    page.image.paste(grid, (MARGIN + left, top))
    page.write((MARGIN, top - SPACE // 2), "step", SMALL, PALE, anchor="ls")
    for number, text in enumerate(columns):
        x = MARGIN + left + round((number + 0.5) * (grid.width + 1) / len(columns))
        page.write((x, top - SPACE // 2), text, SMALL, INK, anchor="ms")
    for number, text in enumerate(labels):
        y = top + round((number + 0.5) * (grid.height + 1) / len(labels))
        page.write((MARGIN + left - SPACE, y), text, SMALL, INK, anchor="rm")
    return page.image


def sheet(run: Run, wanted: Wanted) -> Image.Image:
    """All layers at one step, labelled, each in the range that is stored with it."""
    step = run.step("last" if wanted.step is None else wanted.step)
    record = run.record(step)
    kinds: list[Kind] = [wanted.kind] if wanted.kind else ["filters", "feature_maps"]
    blocks = [_block(run, wanted, layer, kinds, record) for layer in run.manifest.layers]
    blocks = [block for block in blocks if block]
    if not blocks:
        words = " and no ".join(_WORDS[kind] for kind in kinds)
        raise ValueError(f"{run.name} holds no {words} at step {step}: give another --step or --kind")
    cell = max(picture.width for block in blocks for _, picture in block)
    wide = len(max(blocks, key=len)) * (cell + 2 * SPACE)
    heights = [max(picture.height for _, picture in block) + 2 * SMALL + 3 * SPACE for block in blocks]

    def rows(columns: int) -> list[int]:
        return [max(heights[start : start + columns]) for start in range(0, len(blocks), columns)]

    # The number of columns whose page comes nearest to 4:3
    columns = min(range(1, len(blocks) + 1), key=lambda n: abs(math.log(n * wide / sum(rows(n)) / (4 / 3))))
    lines = (f"all layers at step {step} ({_unit(run)})", "each channel in the range that is stored with this step")
    page = Page(columns * wide - 2 * SPACE, run.name, *lines)
    tops = np.cumsum([page.height, *rows(columns)])
    page.extend(int(tops[-1] - tops[0]))
    for position, block in enumerate(blocks):
        row, column = divmod(position, columns)
        for number, (label, picture) in enumerate(block):
            x, y = MARGIN + column * wide + number * (cell + 2 * SPACE), int(tops[row])
            for line, (text, ink) in enumerate(zip(label, (INK, PALE), strict=True)):
                fitted = shortened(text, font_of(SMALL), cell)
                page.write((x, y + (line + 1) * (SMALL + 3)), fitted, SMALL, ink, anchor="ls")
            page.image.paste(picture, (x, y + 2 * (SMALL + 3) + SPACE))
    return page.image


def figure(run: Run, wanted: Wanted) -> Figure:
    """One layer at one step as a matplotlib figure: titled, numbered, with a colour bar."""
    layer, kind = _layer(run, wanted)
    step = _step(run, wanted, layer, kind)
    return run.figure(layer.name, step, kind, image=wanted.image, cmap=_cmap(run, wanted, kind))


class Animation:
    """One layer through time, with the step drawn in; frames are drawn when they are asked for.

    Args:
        run: from `open_run`.
        wanted: layer, kind and steps.
    """

    def __init__(self, run: Run, wanted: Wanted) -> None:
        self._run, self._part, self._wanted = run, _Part.of(run, wanted), wanted
        self._limits = self._part.limits()
        self.steps = self._part.steps
        between = min(max(PLAYED // max(1, len(self.steps) - 2), FRAME[0]), FRAME[1])
        last = len(self.steps) - 1
        self.durations = tuple(HELD if number in (0, last) else between for number in range(len(self.steps)))

    def frame(self, number: int) -> Image.Image:
        """One frame, RGB; all are of one size."""
        part = self._part
        shown, width = part.arrays[number], self._wanted.width
        grid = _picture(_grid(part.layer, part.kind, shown, self._limits, cmap=part.cmap, width=width))
        page = Page(max(grid.width, 320), self._run.name, part.title, part.legend(self._limits))
        top = page.height + LARGE + SPACE
        page.extend(LARGE + 2 * SPACE + grid.height)
        page.write((MARGIN, top), f"step {part.steps[number]}", LARGE, INK, anchor="ls")
        page.write((page.image.width - MARGIN, top), part.numbers[number], SMALL, PALE, anchor="rs")
        page.image.paste(grid, (MARGIN, top + SPACE))
        return page.image

    def save_gif(self, path: Path) -> None:
        """Write a GIF, which repeats; its 256 colours are exact for all but filters in colour."""
        colours = Colours(self.frame(number) for number in range(len(self.steps)))
        frames = (colours.indexed(self.frame(number)) for number in range(len(self.steps)))
        options = {"duration": list(self.durations), "loop": 0, "optimize": False}
        next(frames).save(path, format="GIF", save_all=True, append_images=frames, **options)

    def save_apng(self, path: Path) -> None:
        """Write an animated PNG, which repeats; its colours are exact."""
        save_apng((self.frame(number) for number in range(len(self.steps))), self.durations, path)


# --- reading the run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One layer's filters or maps at some steps, and what is written beside them."""

    run: Run
    layer: WatchedLayer
    kind: Kind
    cmap: str
    steps: tuple[int, ...]
    arrays: tuple[FloatArray, ...]  # [n, k, kH, kW] or [n, h, w]
    ranges: tuple[Limits, ...]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, wanted: Wanted) -> _Part:
        layer, kind = _layer(run, wanted)
        steps, arrays, ranges, numbers = [], [], [], []
        for step in run.steps if wanted.steps is None else sorted(set(wanted.steps)):
            try:
                record = run.record(run.step(step))
            except StoreError:  # damaged; the run remembers, and it is said
                continue
            shown = getattr(record, kind).get(layer.name)
            if shown is None and wanted.steps is not None:
                raise ValueError(_nothing_there(run, layer, kind, step))
            if shown is None:  # a step of the other monitor
                continue
            steps.append(step)
            arrays.append(shown if kind == "filters" else _image(shown, wanted.image))
            ranges.append(run.limits(layer.name, kind, step))
            numbers.append(_number(record, kind, layer.name))
        if not steps:
            raise ValueError(" ".join([f"no step of {run.name} shows {_WORDS[kind]} of {layer.name}", *run.skipped]))
        cmap = _cmap(run, wanted, kind)
        return cls(run, layer, kind, cmap, tuple(steps), tuple(arrays), tuple(ranges), tuple(numbers))

    @property
    def channels(self) -> int:
        return len(self.arrays[0])

    @property
    def title(self) -> str:
        return f"{_WORDS[self.kind]} of {self.layer.name}, steps are {_unit(self.run)}"

    def thinned(self, n: int) -> _Part:
        """`n` of the steps at most, spread evenly, the first and the last among them."""
        at = np.unique(np.linspace(0, len(self.steps) - 1, n).round().astype(int))
        parts = {name: tuple(getattr(self, name)[i] for i in at) for name in ("steps", "arrays", "ranges", "numbers")}
        return _Part(**{**vars(self), **parts})

    def limits(self) -> Limits:
        """One range for all the steps: the last one's, for ranges only grow."""
        last = self.ranges[-1]
        if self._rule != "step":
            return last
        high = np.max([limits.high for limits in self.ranges], axis=0)
        return Limits(high, any(limits.symmetric for limits in self.ranges), last.doubled)

    def legend(self, limits: Limits) -> str:
        """What the colours mean, in a line."""
        if self.kind == "filters" and self.layer.view == "rgb":
            colours = "mid gray is 0"
        elif self.cmap != "auto":
            colours = f"colours: {self.cmap}"
        else:
            colours = "white is 0, red above, blue below" if limits.symmetric else "black is 0"
        since = f"step {self.run.manifest.baseline_step}"
        whose = {
            "channel": f"each {'filter' if self.kind == 'filters' else 'map'} in its range of {since}",
            "layer": f"one range for the layer, of {since}",
            "step": "each channel in one range for the steps shown here",
        }[self._rule]
        grown = int(limits.doubled.max(initial=0))
        times = f", doubled up to {grown} times" if grown > 1 else ", some doubled since" if grown else ""
        return f"{colours}; {whose}{times}"

    def refuse_channels(self, channels: Sequence[int]) -> None:
        wrong = [channel for channel in channels if not 0 <= channel < self.channels]
        if wrong or not channels:
            raise ValueError(
                f"of {self.layer.name} the run holds the {_WORDS[self.kind]} 0 to {self.channels - 1}; "
                f"got --channels {','.join(map(str, channels))}"
            )

    @property
    def _rule(self) -> RangeRule:
        rule: RangeRule = self.run.manifest.settings.get(self.kind, {}).get("value_range", "channel")
        return rule


def _layer(run: Run, wanted: Wanted) -> tuple[WatchedLayer, Kind]:
    def has(layer: WatchedLayer, kind: Kind) -> bool:
        return (layer.weight_shape if kind == "filters" else layer.output_shape) is not None

    candidates = run.manifest.layers if wanted.layer is None else (run.layer(wanted.layer),)
    kinds: tuple[Kind, ...] = ("filters", "feature_maps") if wanted.kind is None else (wanted.kind,)
    for kind in kinds:
        for layer in candidates:
            if has(layer, kind):
                return layer, kind
    there = [layer.name for layer in run.manifest.layers if has(layer, kinds[0])]
    whose = f"{run.name} holds" if wanted.layer is None else f"layer {wanted.layer!r} has"
    raise ValueError(f"{whose} no {_WORDS[kinds[0]]}; layers that do: {', '.join(there) or 'none'}")


def _step(run: Run, wanted: Wanted, layer: WatchedLayer, kind: Kind) -> int:
    """The one step that is drawn of a layer: the one asked for, else the last that holds it."""
    step = run.step("last" if wanted.step is None else wanted.step)
    if wanted.step is None:
        step = run.holding(layer.name, kind, step) or step
    if layer.name not in getattr(run.record(step), kind):
        raise ValueError(_nothing_there(run, layer, kind, step))
    return step


def _nothing_there(run: Run, layer: WatchedLayer, kind: Kind, step: int) -> str:
    holding = {near for other in run.steps if (near := run.holding(layer.name, kind, other)) is not None}
    nearest = min(holding, key=lambda other: abs(other - step), default=None)
    hint = "no step does" if nearest is None else f"the nearest that does is {nearest}"
    return f"step {step} of {run.name} holds no {_WORDS[kind]} of {layer.name}; {hint}"


def _image(shown: FloatArray, image: int) -> FloatArray:
    if not 0 <= image < len(shown):
        raise ValueError(f"the probe's images are 0 to {len(shown) - 1}; got --image {image}")
    one: FloatArray = shown[image]
    return one


def _number(record: Record, kind: Kind, layer: str) -> str:
    """How far a step's picture is from the baseline's."""
    name, word = ("filter_drift_cosine", "drift") if kind == "filters" else ("cka", "CKA")
    values = record.numbers.get(name, {}).get(layer)
    return "" if values is None else f"{word} {drift.mean_of_finite(values):.3g}"


def _cmap(run: Run, wanted: Wanted, kind: Kind) -> str:
    return wanted.cmap or str(run.manifest.settings.get(kind, {}).get("cmap", "auto"))


def _unit(run: Run) -> str:
    return "completed epochs" if run.manifest.unit == "epoch" else "optimiser steps"


# --- drawing -------------------------------------------------------------------------------------------------------


def _block(
    run: Run, wanted: Wanted, layer: WatchedLayer, kinds: Sequence[Kind], record: Record
) -> list[tuple[tuple[str, str], Image.Image]]:
    """A layer's pictures on the contact sheet, each under two lines of text."""
    pictures = []
    for kind in kinds:
        shown = getattr(record, kind).get(layer.name)
        if shown is None:
            continue
        one = shown if kind == "filters" else _image(shown, wanted.image)
        limits, cmap = run.limits(layer.name, kind, record.step), _cmap(run, wanted, kind)
        grid = _grid(layer, kind, one, limits, cmap=cmap, width=wanted.width // 2)
        shape = layer.weight_shape if kind == "filters" else (layer.output_shape or ())[1:]
        facts = "  ".join([" × ".join(map(str, shape or ())), _number(record, kind, layer.name)]).strip()
        pictures.append(((f"{layer.name} {_WORDS[kind]}", facts), _picture(grid)))
    return pictures


def _grid(layer: WatchedLayer, kind: Kind, shown: FloatArray, limits: Limits, *, cmap: str, width: int) -> Grid:
    if kind == "feature_maps":
        return maps_grid(shown, limits, cmap=cmap, width=width)
    assert layer.view is not None, "a layer whose filters are watched has a view"
    return filters_grid(shown, limits, view=layer.view, cmap=cmap, width=width)


def _picture(grid: Grid) -> Image.Image:
    if grid.palette is None:
        return Image.fromarray(grid.pixels)
    return Image.fromarray(np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[grid.pixels])


def _some(limits: Limits, channels: Sequence[int]) -> Limits:
    return Limits(limits.high[list(channels)], limits.symmetric, limits.doubled[list(channels)])


# --- writing -------------------------------------------------------------------------------------------------------


def _rounded(run: Run, form: Form, wanted: Wanted) -> tuple[str, ...]:
    if form != "gif":
        return ()
    layer, kind = _layer(run, wanted)
    if kind == "filters" and layer.view == "rgb":
        return ("a GIF has 256 colours, so those of these filters are rounded; --apng keeps them",)
    return ()


def _target(run: Run, form: Form, wanted: Wanted, output: Path | None) -> Path:
    """The file to write; named after what is in it, where only a folder is given."""
    if output is not None and not output.is_dir():
        return output
    parts = [run.name]
    if form == "sheet":
        parts += [*([_WORDS[wanted.kind]] if wanted.kind else []), "sheet"]
        parts.append(f"step{run.step('last' if wanted.step is None else wanted.step)}")
    else:
        layer, kind = _layer(run, wanted)
        parts += [layer.name, _WORDS[kind]]
        last = f"step{_step(run, wanted, layer, kind)}" if form == "figure" else ""
        parts += [part for part in ({"strip": "strip", "apng": "animated"}.get(form, last),) if part]
    name = "-".join(places.shortened(re.sub(r"[^\w.=+-]+", "_", part), 80) for part in parts)
    return (output or Path()) / (name + SUFFIXES[form][0])

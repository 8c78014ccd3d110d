"""A comparison as one HTML file that opens from disk: a slider through all steps, and a readable page without scripts.

The pictures of all steps are packed as reels (see `frames`), so that 200 steps of 20 layers stay within tens of MB.
Steps are read one at a time; what is kept meanwhile is the packed reels.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

import cnnlog
from cnnlog import charts, files, frames, render
from cnnlog.comparison import Comparison, LayerMatch, Row, Side
from cnnlog.frames import DETAILS, Detail, Reel, Scene
from cnnlog.run import Kind, Progress, Spread

PAGE_BYTES = 30_000_000
IMAGES = 4
MOVED = 60
_BASE64 = 4 / 3
_SAMPLES = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERS = {"norm": "filter_norm", "drift": "filter_drift_cosine", "active": "map_active"}
_COLOURS = ("#3b7dd8", "#d9622b", "#2f9e6e", "#b54ac2", "#b8860b", "#0fa3b1", "#d6336c", "#7a6ff0")


@dataclass(frozen=True)
class Page:
    """What was written: where, its bytes, and how much of the pictures it holds, in a sentence."""

    path: str
    bytes: int
    detail: str


@dataclass(frozen=True)
class _Key:
    """One picture of the page: a side's, or, with `change`, that side's difference to the first."""

    layer: int
    kind: Kind
    side: int
    image: int
    change: bool = False


def write_report(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    title: str = "",
    page_bytes: int = PAGE_BYTES,
    progress: Progress | None = None,
) -> Page:
    """Write the page; either all of it or nothing.

    Args:
        comparison: what to show.
        path: of the HTML file.
        force: replace an existing file.
        title: the heading; empty takes the sides' labels.
        page_bytes: about how many the pictures may take. Where all of them need more, wide feature maps are averaged
            by area, then fewer channels are shown, and the page says so.
        progress: told how far the work is: `progress("drawing", steps done, steps)`.

    Raises:
        FileExistsError: the file is there, and `force` is not given.
        OSError: it cannot be written; found out before the work.
    """
    target = Path(path)
    with files.whole(target, force=force) as temporary:
        html, detail = _page(comparison, title=title, page_bytes=page_bytes, progress=progress or (lambda *done: None))
        temporary.write_text(html, encoding="utf-8")
    return Page(str(target), target.stat().st_size, detail)


def _page(comparison: Comparison, *, title: str, page_bytes: int, progress: Progress) -> tuple[str, str]:
    comparison.measure(progress)
    pictures = _Pictures(comparison)
    film = pictures.film(int(page_bytes / _BASE64), progress)
    sides = _sides(comparison, film.steps)
    template = _templates().get_template("report.html.j2")
    js = Markup(_source("report.js"))
    blocks: dict[str, str] = {}
    data = _data(comparison, film, sides, blocks)
    layers = [_layer(comparison, film, sides, number) for number in range(len(comparison.layers))]
    used = {figure["bar"] for layer in layers for group in layer["groups"] for figure in group["figures"]}
    context = {
        "title": title or " | ".join(side["label"] for side in sides),
        "version": cnnlog.__version__,
        "script_hash": f"sha256-{_text64(hashlib.sha256(js.encode()).digest())}",
        "css": Markup(_source("report.css")),
        "js": js,
        "verdict": comparison.verdict(),
        "notes": comparison.notes,
        "unit": _unit(comparison),
        "last_step": film.steps[-1],
        "n_steps": len(film.steps),
        "n_images": film.images,
        "images": _image_names(comparison, film.images),
        "sides": sides,
        "layers": layers,
        "bars": [{"name": name, "colours": _bar(name)} for name in sorted({*used, *data["palettes"]} - {""})],
        "table": _table(comparison),
        "curves": _curves(comparison, sides),
        "detail_note": film.sentence(),
        "moved": _moved(comparison, sides, data["moved"]),
        "probes": _probes(comparison, sides),
        "settings": _settings(comparison),
        "data": _script_json(data),
        "blocks": [(name, Markup(text)) for name, text in blocks.items()],
    }
    return template.render(context), film.sentence()


# --- pictures ------------------------------------------------------------------------------------------------------


class _Film:
    """The packed pictures of all steps."""

    def __init__(self, steps: tuple[int, ...], detail: Detail, images: int, numbers: _Numbers) -> None:
        self.steps = steps
        self.detail = detail
        self.images = images
        self.reels: dict[_Key, Reel] = {}
        self.numbers = numbers
        self.reduced: set[str] = set()

    def sentence(self) -> str:
        """What the page shows less of than the runs hold."""
        detail = self.detail
        texts = {
            "steps": f"The slider has {len(self.steps)} of the steps, evenly spread.",
            "map size": f"Feature maps are averaged by area to at most {detail.cell} × {detail.cell} pixels.",
            "maps": f"Of each layer the first {detail.maps} feature maps are shown, at most.",
            "filter size": "Large filters are averaged by area.",
            "filters": f"Of each layer the first {detail.filters} filters are shown, at most; of those shown as slices "
            f"{detail.slices}.",
        }
        said = [text for what, text in texts.items() if what in self.reduced]
        if not said:
            return "All shown cells of the runs, at the size they are stored in."
        return " ".join([*said, "The runs hold them all, at full size; this keeps the page small."])


class _Pictures:
    """Goes through a comparison's pictures, one step at a time."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def film(self, budget: int, progress: Progress) -> _Film:
        """All pictures, as fine as fits the budget of bytes."""
        steps = self.comparison.steps
        position, n_steps = 0, len(steps)
        if n_steps > 1:
            position, n_steps = frames.fitting(self._pairs(), steps=n_steps, budget=budget)
        while True:
            film = self._pack(frames.spread(steps, n_steps), DETAILS[position], progress)
            too_much = sum(reel.size for reel in film.reels.values()) / budget
            if too_much <= 1:
                return film
            if position < len(DETAILS) - 1:
                position += 1
            elif n_steps > 2:
                n_steps = max(2, int(0.9 * n_steps / too_much))
            else:
                return film

    def _pairs(self) -> Iterator[tuple[dict[_Key, Scene], dict[_Key, Scene]]]:
        steps = self.comparison.steps
        for at in np.unique(np.linspace(0, len(steps) - 2, _SAMPLES).round().astype(int)):
            yield self._scenes(steps[at]), self._scenes(steps[at + 1])

    def _pack(self, steps: tuple[int, ...], detail: Detail, progress: Progress) -> _Film:
        film = _Film(steps, detail, self._images(), _Numbers(self.comparison))
        if len(steps) < len(self.comparison.steps):
            film.reduced.add("steps")
        for position, step in enumerate(steps):
            for key, scene in self._scenes(step).items():
                kept = scene.kept(detail)
                reel = film.reels.setdefault(key, Reel(at=[-1] * position))
                own = self._own_step(key, step)
                if reel.steps and reel.steps[-1] == own:
                    continue
                reel.add(kept, own)
                _note_reduction(film.reduced, scene, kept)
            for reel in film.reels.values():
                if len(reel.at) == position:
                    reel.hold()
            film.numbers.see(position, step, film.reels)
            progress("drawing", position + 1, len(steps))
        return film

    def _own_step(self, key: _Key, step: int) -> int:
        """The step that a side's picture is of at a step of the page."""
        side, name = self.comparison.sides[key.side], self.comparison.layers[key.layer].names[key.side]
        own = self.comparison.step_of(key.side, step)
        if key.change or side.run is None or own is None or name is None:
            return step if side.run is not None else 0
        held = side.run.holding(name, key.kind, own)
        return own if held is None else held

    def _images(self) -> int:
        counts = [
            maps.shape[0]
            for layer in self.comparison.layers
            for side in range(len(self.comparison.sides))
            if (maps := self.comparison.shown(side, layer, "feature_maps", self.comparison.steps[-1])) is not None
        ]
        return min(IMAGES, max(counts, default=1))

    def _scenes(self, step: int) -> dict[_Key, Scene]:
        """Every picture at a step, at full size."""
        found: dict[_Key, Scene] = {}
        for number, layer in enumerate(self.comparison.layers):
            for side in range(len(self.comparison.sides)):
                found.update(self._of_side(number, layer, side, step))
            for side in range(1, len(self.comparison.sides)):
                found.update(self._differences(number, layer, side, step))
        return found

    def _of_side(self, number: int, layer: LayerMatch, side: int, step: int) -> Iterator[tuple[_Key, Scene]]:
        comparison = self.comparison
        filters, limits = (
            comparison.shown(side, layer, "filters", step),
            comparison.limits(side, layer, "filters", step),
        )
        if filters is not None and limits is not None:
            view = comparison.view_of(side, layer) or render.resolve_view(filters.shape, "auto")
            scene = Scene(filters, limits, view, _cmap(comparison.sides[side], "filters"))
            yield _Key(number, "filters", side, 0), scene
        maps = comparison.shown(side, layer, "feature_maps", step)
        limits = comparison.limits(side, layer, "feature_maps", step)
        if maps is not None and limits is not None:
            cmap = _cmap(comparison.sides[side], "feature_maps")
            for image in range(min(len(maps), IMAGES)):
                yield _Key(number, "feature_maps", side, image), Scene(maps[image], limits, None, cmap)

    def _differences(self, number: int, layer: LayerMatch, side: int, step: int) -> Iterator[tuple[_Key, Scene]]:
        comparison = self.comparison
        filters = comparison.difference(layer, "filters", step, side)
        limits = comparison.difference_limits(layer, "filters", step, side)
        if filters is not None and limits is not None:
            view = comparison.view_of(0, layer) or render.resolve_view(filters.shape, "auto")
            if view == "rgb":  # colours have no white at 0
                filters, view = frames.strongest(filters), "gray"
            yield _Key(number, "filters", side, 0, change=True), Scene(filters, limits, view)
        maps = comparison.difference(layer, "feature_maps", step, side)
        limits = comparison.difference_limits(layer, "feature_maps", step, side)
        if maps is not None and limits is not None:
            for image in range(min(len(maps), IMAGES)):
                yield _Key(number, "feature_maps", side, image, change=True), Scene(maps[image], limits, None)


def _note_reduction(reduced: set[str], scene: Scene, kept: Scene) -> None:
    what = "map" if scene.view is None else "filter"
    if kept.values.shape[-2:] != scene.values.shape[-2:]:
        reduced.add(f"{what} size")
    if kept.values.shape[:-2] != scene.values.shape[:-2]:
        reduced.add(f"{what}s")


def _cmap(side: Side, kind: Kind) -> str:
    settings = side.run.manifest.settings.get(kind) if side.run is not None else None
    cmap = str((settings or {}).get("cmap", "auto"))
    try:
        render.palette(cmap, True)
    except ValueError:  # a colour map that was registered where the run was made
        return "auto"
    return cmap


# --- what stands around the pictures -------------------------------------------------------------------------------


def _sides(comparison: Comparison, steps: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "colour": index % 5,
            "letter": _LETTERS[index] if index < len(_LETTERS) else f"S{index + 1}",
            "label": side.label,
            "about": _about_side(side),
            "last": comparison.step_of(index, steps[-1]),
        }
        for index, side in enumerate(comparison.sides)
    ]


def _about_side(side: Side) -> str:
    if side.run is None:
        return f"weights, {side.source}" if side.source else "weights"
    steps = f"{len(side.run.steps)} steps" if side.step is None else f"step {side.step}, pinned"
    return f"{side.run.manifest.architecture}, {steps}, {side.run.manifest.created[:10]}"


def _unit(comparison: Comparison) -> str:
    units = {side.run.manifest.unit for side in comparison.sides if side.run is not None}
    return units.pop() if len(units) == 1 else "step"


def _layer(comparison: Comparison, film: _Film, sides: list[dict[str, Any]], number: int) -> dict[str, Any]:
    layer = comparison.layers[number]
    groups = []
    kinds: tuple[tuple[Kind, str], ...] = (("filters", "Filters"), ("feature_maps", "Feature maps on the probe"))
    for kind, heading in kinds:
        there = [key for key in film.reels if (key.layer, key.kind) == (number, kind)]
        if not there:
            continue
        wanted = [_Key(number, kind, side, 0) for side in range(len(sides))]
        wanted += [_Key(number, kind, side, 0, change=True) for side in range(1, len(sides))]
        figures = [_figure(comparison, film, sides, key) for key in wanted]
        groups.append({"kind": kind, "title": heading, "about": _about_group(film, there), "figures": figures})
    return {
        "name": layer.name,
        "about": _about_layer(comparison, layer),
        "colour": _colour(number, len(comparison.layers)),
        "groups": groups,
        "has_filters": layer.has_filters,
    }


def _figure(comparison: Comparison, film: _Film, sides: list[dict[str, Any]], key: _Key) -> dict[str, Any]:
    side = sides[key.side]
    title = f"{side['letter']} − {sides[0]['letter']}, white where alike" if key.change else side["label"]
    name = comparison.layers[key.layer].name
    what = "Filters" if key.kind == "filters" else "Feature maps"
    figure = {
        "key": _id(key),
        "role": "difference" if key.change else "side",
        "side": side,
        "title": title,
        "when": "",
        "png": "",
        "size": (0, 0),
        "low": "",
        "high": "",
        "bar": "",
    }
    reel = film.reels.get(key)
    if reel is None or reel.last is None:
        why = _no_difference(comparison, film, key) if key.change else f"{side['label']} has none"
        return {**figure, "alt": f"{what} of {name}: {why}."}
    grid = reel.last.draw(width=350)
    when = f"{_unit(comparison)} {reel.steps[-1]}" if comparison.sides[key.side].run is not None else ""
    if when and reel.steps[-1] != film.steps[-1]:
        when += " (its last)"
    layout = reel.last.layout()
    low, high, bar = _scale(reel)
    return {
        **figure,
        "when": when,
        "png": _text64(render.png(grid, level=6)),
        "size": grid.size,
        "low": low,
        "high": high,
        "bar": bar,
        "alt": f"{what} of {name}, {title}, {when}: {layout['n']} of {layout['h']} by {layout['w']} pixels",
    }


def _no_difference(comparison: Comparison, film: _Film, key: _Key) -> str:
    sides = [_Key(key.layer, key.kind, side, 0) in film.reels for side in (0, key.side)]
    if not all(sides):
        return "no difference, for one side has none"
    if key.kind == "feature_maps" and not comparison.same_probe(key.side):
        return "no difference, for the probes are not the same"
    return "no difference, for their shapes are not the same"


def _scale(reel: Reel) -> tuple[str, str, str]:
    """The ends of the last frame's range, and the class of its bar."""
    assert reel.last is not None, "it has frames"
    symmetric, high, doubled = reel.symmetric[-1], reel.high[-1], reel.doubled[-1]
    bar = "rgb" if reel.last.view == "rgb" else _palette_name(reel.last.cmap, symmetric)
    if high is not None:
        return (f"−{_number(high)}" if symmetric else "0"), _number(high), bar
    grown = f" (up to ×{2**doubled})" if doubled else ""
    return ("−own range" if symmetric else "0"), f"own range{grown}", bar


def _about_group(film: _Film, keys: Sequence[_Key]) -> str:
    scene = next(film.reels[key].last for key in keys)
    assert scene is not None, "it has frames"
    layout = scene.layout()
    if scene.view is None:
        return f"{layout['n']} shown, {layout['h']} × {layout['w']}"
    size = f"{layout['h']} × {layout['w']}"
    if scene.view == "slices":
        return f"{layout['n']} filters (rows) by {layout['k']} input channels (columns), {size}"
    colours = {
        "rgb": ", in colour: mid gray is 0; the difference is that of the colour that changed most",
        "mean": ", averaged over input channels",
        "gray": "",
    }[scene.view]
    return f"{layout['n']} shown, {size}{colours}"


def _about_layer(comparison: Comparison, layer: LayerMatch) -> str:
    for side, name in zip(comparison.sides, layer.names, strict=True):
        if side.run is None or name is None:
            continue
        watched = next((one for one in side.run.manifest.layers if one.name == name), None)
        if watched is not None:
            shape = f", {' × '.join(map(str, watched.weight_shape))}" if watched.weight_shape else ""
            return f"{watched.kind}{shape}"
    return ""


def _colour(number: int, of: int) -> str:
    """Up to eight layers take colours that are told apart at a glance; more go round the hues in order of depth."""
    return _COLOURS[number] if of <= len(_COLOURS) else f"hsl({265 - 265 * number / (of - 1):.0f} 62% 52%)"


def _image_names(comparison: Comparison, images: int) -> list[str]:
    for side in comparison.sides:
        if side.run is not None and side.run.manifest.probe:
            names = [str(name) for name in side.run.manifest.probe.get("names", ())]
            return [names[i] if i < len(names) else f"image {i + 1}" for i in range(images)]
    return [f"image {i + 1}" for i in range(images)]


# --- numbers -------------------------------------------------------------------------------------------------------

_MEASURES = (
    ("drift_cosine", "Drift", "cosine distance of the filters from the side's own baseline, mean of a layer (0 to 2)"),
    ("drift_l2", "Drift, relative", "|w − baseline| / |baseline|, mean of a layer's filters"),
    ("update_l2", "Update size", "|w − step before| / |step before|, mean of a layer's filters"),
    ("distance_cosine", "Distance from A", "cosine distance of the shown filters from those of the first side"),
    ("dead_share", "Dead share", "share of channels that are nowhere above 0 on the probe (0 to 1)"),
    ("cka", "CKA with the baseline", "linear CKA of the feature maps on the probe with those of the own baseline"),
    ("cka_between", "CKA with A", "linear CKA of the shown feature maps with those of the first side"),
)


def _curves(comparison: Comparison, sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = comparison.curves()
    steps = float(comparison.steps[0]), float(comparison.steps[-1])
    measures = []
    for name, title, about in _MEASURES:
        by_layer = found.get(name, {})
        lines = {
            side["index"]: [
                (layer.name, number, by_layer[layer.name][side["label"]])
                for number, layer in enumerate(comparison.layers)
                if side["label"] in by_layer.get(layer.name, {})
            ]
            for side in sides
            if comparison.sides[side["index"]].step is None
        }
        everything = [curve for some in lines.values() for _, _, curve in some]
        if not everything:
            continue
        values = charts.extent(everything)
        panels = [
            {"side": sides[index], "chart": charts.chart(some, steps=steps, values=values)}
            for index, some in lines.items()
            if some
        ]
        measures.append({"name": name, "title": title, "about": about, "panels": panels})
    return measures


def _table(comparison: Comparison) -> dict[str, Any]:
    rows = comparison.rows()
    columns: list[tuple[str, str, int | None, Callable[[Row], Any]]] = [("filters", "", None, lambda row: row.filters)]
    for text, title, name, between in (
        ("drift", "cosine distance from the side's own baseline, mean (quartiles)", "drift_cosine", False),
        ("from A", "cosine distance from the first side, mean (quartiles)", "distance_cosine", True),
        ("dead share", "share of channels nowhere above 0 on the probe", "dead_share", False),
        ("CKA", "linear CKA with the side's own baseline", "cka", False),
        ("CKA with A", "linear CKA with the first side, of the shown feature maps", "cka_between", True),
    ):
        for side in range(1 if between else 0, len(comparison.sides)):
            at = side - 1 if between else side
            pick = functools.partial(_entry, name=name, at=at)
            if any(pick(row) is not None for row in rows):
                columns.append((text, title, side, pick))
    head: list[dict[str, Any]] = [{"text": "layer", "title": "", "side": None}]
    head += [{"text": text, "title": title, "side": side} for text, title, side, _ in columns]
    caption = (
        "At the last step. Means of a layer's filters, with their quartiles; drift is from the side's own baseline."
    )
    if any(row.shown_only for row in rows):
        caption += " Distances are of the shown part of the filters where a side stores no more at that step."
    return {
        "head": head,
        "rows": [
            {"number": number, "name": row.layer, "cells": [_cell(pick(row)) for *_, pick in columns]}
            for number, row in enumerate(rows)
        ],
        "caption": caption,
    }


def _entry(row: Row, *, name: str, at: int) -> Any:
    return getattr(row, name)[at]


def _cell(value: Spread | float | None) -> tuple[str, str]:
    """A number, and the quartiles around it where it is a mean."""
    if isinstance(value, Spread):
        return _number(value.mean), f"{_number(value.lower)} to {_number(value.upper)}" if value.finite > 1 else ""
    return _number(value), ""


def _moved_rows(comparison: Comparison, film: _Film) -> list[list[list[Any]]]:
    """For each side, its shown filters by drift at its last step, the farthest first: layer, filter, drift."""
    sides: list[list[list[Any]]] = []
    for index in range(len(comparison.sides)):
        rows: list[list[Any]] = []
        for number in range(len(comparison.layers)):
            reel = film.reels.get(_Key(number, "filters", index, 0))
            drift = _channel_numbers(comparison, number, index, "cosine", comparison.steps[-1])
            if reel is None or reel.last is None or drift is None:
                continue
            shown = drift[: reel.last.layout()["n"]]
            rows += [[number, channel, float(f"{v:.4g}")] for channel, v in enumerate(shown) if math.isfinite(v)]
        rows.sort(key=lambda row: (-row[2], row[0], row[1]))
        # Enough for the sheet of all layers, and of any one of them.
        taken: dict[int, int] = {}
        kept = []
        for place, row in enumerate(rows):
            taken[row[0]] = taken.get(row[0], 0) + 1
            if place < MOVED or taken[row[0]] <= MOVED // 2:
                kept.append(row)
        sides.append(kept)
    return sides


def _moved(comparison: Comparison, sides: list[dict[str, Any]], rows: list[list[list[Any]]]) -> dict[str, Any]:
    with_rows = [side for side in sides if rows[side["index"]]]
    first = max(with_rows, key=lambda side: rows[side["index"]][0][2], default=None)
    listed = []
    for number, channel, _ in rows[first["index"]][:20] if first else []:
        drifts = []
        for side in with_rows:
            values = _channel_numbers(comparison, number, side["index"], "cosine", comparison.steps[-1])
            drifts.append(_number(values[channel]) if values is not None and channel < len(values) else "–")
        listed.append({"layer": comparison.layers[number].name, "filter": channel, "drift": drifts})
    about = "Sorted by cosine distance from the own baseline at the last step; of the filters that are shown."
    if not with_rows:
        about = "No side has stored how far its filters moved."
    return {"about": about, "sides": with_rows, "first": first["index"] if first else 0, "rows": listed}


def _channel_numbers(
    comparison: Comparison, number: int, side: int, name: str, step: int
) -> npt.NDArray[np.float64] | None:
    run, own = comparison.sides[side].run, comparison.layers[number].names[side]
    at = comparison.step_of(side, step)
    if run is None or own is None or at is None:
        return None
    kind: Kind = "feature_maps" if name == "active" else "filters"
    held = run.holding(own, kind, at)
    try:
        return None if held is None else run.numbers(name, own, held)
    except ValueError:
        return None


# --- the page's data -----------------------------------------------------------------------------------------------


def _data(comparison: Comparison, film: _Film, sides: list[dict[str, Any]], blocks: dict[str, str]) -> dict[str, Any]:
    """What the script works on; packed bytes go to `blocks`, under the names that stand here."""
    palettes: dict[str, str] = {}
    pictures: dict[str, dict[str, Any]] = {}
    for key, reel in film.reels.items():
        assert reel.last is not None, "every reel has a frame"
        name = f"b{len(blocks)}"
        blocks[name] = _text64(reel.pack())
        both = [_palette_name(reel.last.cmap, symmetric) for symmetric in (False, True)]
        for symmetric in set(reel.symmetric):
            palettes[both[symmetric]] = _text64(render.palette(reel.last.cmap, symmetric))
        picture = pictures.setdefault(
            _id(key),
            {"layer": key.layer, "kind": key.kind, "side": None if key.change else key.side, "reels": []},
        )
        picture["reels"].append(
            {
                "block": name,
                "at": reel.at,
                "steps": reel.steps,
                "symmetric": [int(symmetric) for symmetric in reel.symmetric],
                "high": [None if high is None else float(f"{high:.4g}") for high in reel.high],
                "doubled": reel.doubled,
                "grown": reel.grown,
                "layout": reel.last.layout(),
                "rgb": reel.last.view == "rgb",
                "palettes": both,
            }
        )
    found = comparison.curves()
    return {
        "unit": _unit(comparison),
        "steps": film.steps,
        "images": film.images,
        "gap": render.GAP,
        "top": render.TOP,
        "zero": render.ZERO,
        "sides": [{key: side[key] for key in ("letter", "label", "last")} for side in sides],
        "layers": [{"name": layer.name, "filters": layer.has_filters} for layer in comparison.layers],
        "palettes": palettes,
        "pictures": pictures,
        "numbers": film.numbers.packed(blocks),
        "curves": {
            name: [
                [_curve(found[name].get(layer.name, {}).get(side["label"])) for side in sides]
                for layer in comparison.layers
            ]
            for name, _, _ in _MEASURES
            if name in found
        },
        "moved": _moved_rows(comparison, film),
    }


def _curve(points: Sequence[tuple[int, float]] | None) -> list[list[float | None]]:
    return [[step, float(f"{value:.4g}") if math.isfinite(value) else None] for step, value in points or ()]


class _Numbers:
    """Each shown filter's numbers over the steps, of each layer and side."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._of: dict[tuple[int, int], dict[str, list[npt.NDArray[np.float64]]]] = {}
        self._steps: dict[tuple[int, int], list[int]] = {}
        self._at: dict[tuple[int, int], list[int]] = {}

    def see(self, position: int, step: int, reels: Mapping[_Key, Reel]) -> None:
        """Take a step's numbers of what the reels show."""
        for number, layer in enumerate(self.comparison.layers):
            for side in range(len(self.comparison.sides)):
                own = self.comparison.step_of(side, step)
                if self.comparison.sides[side].run is None or layer.names[side] is None or own is None:
                    continue
                key = (number, side)
                steps = self._steps.setdefault(key, [])
                at = self._at.setdefault(key, [-1] * position)
                if not steps or steps[-1] != own:
                    self._take(key, step, reels)
                    steps.append(own)
                at.append(len(steps) - 1)

    def _take(self, key: tuple[int, int], step: int, reels: Mapping[_Key, Reel]) -> None:
        number, side = key
        kinds: tuple[Kind, ...] = ("filters", "feature_maps")
        mine = [reels.get(_Key(number, kind, side, 0)) for kind in kinds]
        n = max((reel.last.layout()["n"] for reel in mine if reel is not None and reel.last is not None), default=0)
        for name in ("norm", "cosine", "active"):
            values = _channel_numbers(self.comparison, number, side, name, step)
            if values is not None:
                self._of.setdefault(key, {}).setdefault(name, []).append(values[:n])

    def packed(self, blocks: dict[str, str]) -> dict[int, dict[int, Any]]:
        """Layer -> side -> where they are: 16 bits each, from the smallest to the largest of their kind."""
        found: dict[int, dict[int, Any]] = {}
        for key, by_name in self._of.items():
            frames_of = len(self._steps[key])
            measures, parts = [], []
            for name, rows in by_name.items():
                if len(rows) != frames_of or len({len(row) for row in rows}) != 1:
                    continue  # not at every step: no curve
                values = np.stack(rows)
                low, high, whole = _sixteen_bits(values)
                measures.append(
                    {"name": "drift" if name == "cosine" else name, "low": low, "high": high, "n": values.shape[1]}
                )
                parts += [(whole >> 8).astype(np.uint8).tobytes(), (whole & 255).astype(np.uint8).tobytes()]
            if not measures:
                continue
            block = f"b{len(blocks)}"
            deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
            blocks[block] = _text64(deflate.compress(b"".join(parts)) + deflate.flush())
            entry = {"block": block, "steps": self._steps[key], "at": self._at[key], "measures": measures}
            found.setdefault(key[0], {})[key[1]] = entry
        return found


def _sixteen_bits(values: npt.NDArray[np.float64]) -> tuple[float, float, npt.NDArray[np.uint16]]:
    finite = np.isfinite(values)
    low, high = float(values.min(initial=np.inf, where=finite)), float(values.max(initial=-np.inf, where=finite))
    if not finite.any():
        return 0.0, 0.0, np.full(values.shape, 65535, np.uint16)
    with np.errstate(invalid="ignore"):
        whole = np.rint((np.where(finite, values, low) - low) / ((high - low) or 1.0) * 65534).astype(np.uint16)
    whole[~finite] = 65535
    return low, high, whole


# --- probe, settings, small things ---------------------------------------------------------------------------------


def _probes(comparison: Comparison, sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each probe once, with the sides that it belongs to."""
    found: dict[str, dict[str, Any]] = {}
    for side, chosen in zip(sides, comparison.sides, strict=True):
        if chosen.run is None:
            continue
        fingerprint = str(chosen.run.manifest.probe.get("fingerprint", chosen.run.path))
        if fingerprint in found:
            found[fingerprint]["sides"].append(side)
            continue
        try:
            pixels = chosen.run.probe_picture()
        except (OSError, ValueError):
            continue
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        names = [str(name) for name in chosen.run.manifest.probe.get("names", ())] or ["probe"]
        shape = " × ".join(str(size) for size in chosen.run.manifest.probe.get("shape", ()))
        found[fingerprint] = {
            "sides": [side],
            "names": names,
            "about": f"{shape}, sha256 {fingerprint[:12]}",
            "png": _text64(buffer.getvalue()),
            "size": (pixels.shape[1], pixels.shape[0]),
            "alt": f"What the network saw at every step: {', '.join(names)}",
        }
    return list(found.values())


def _settings(comparison: Comparison) -> list[dict[str, Any]]:
    """What made each side: one row a setting."""
    columns: list[dict[str, str]] = []
    for index, side in enumerate(comparison.sides):
        column = {"label": side.label, "source": side.source}
        if side.run is not None:
            manifest = side.run.manifest
            own = comparison.step_of(index, comparison.steps[-1])
            column |= {
                "architecture": manifest.architecture,
                "created": manifest.created,
                "run": manifest.run_id,
                "steps": f"{len(side.run.steps)}, from {side.run.steps[0]} to {side.run.steps[-1]}; shown last: {own}",
                "unit of a step": manifest.unit,
                "baseline": str(manifest.baseline_step),
            }
            column |= {f"version of {name}": str(version) for name, version in manifest.versions.items()}
            column |= dict(_flat("probe", manifest.probe))
            column |= dict(_flat("", manifest.settings))
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column if name != "label")
    return [{"name": name, "values": [column.get(name, "–") for column in columns]} for name in names]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{prefix}, {key}" if prefix else str(key).replace("_", " "), part)
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(str(part) for part in value)
    else:
        yield prefix, str(value)


def _id(key: _Key) -> str:
    return f"{key.layer}-{key.kind}-{'d' if key.change else 's'}{key.side}"


def _palette_name(cmap: str, symmetric: bool) -> str:
    """A name that can stand in a class attribute, whatever the colour map is called."""
    return f"p-{cmap}-{'signed' if symmetric else 'from0'}"


def _bar(name: str) -> list[str]:
    """The colours of a scale, for a CSS gradient."""
    if name == "rgb":
        return [f"rgb({v},{v},{v})" for v in (4, 128, 252)]
    cmap, symmetric = name.removeprefix("p-").rsplit("-", 1)
    table = np.frombuffer(render.palette(cmap, symmetric == "signed"), np.uint8).reshape(-1, 3)
    chosen = table[np.linspace(0, render.TOP, 13).round().astype(int)]
    return [f"rgb({r},{g},{b})" for r, g, b in chosen]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}".replace("-", "−")


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _script_json(data: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined)

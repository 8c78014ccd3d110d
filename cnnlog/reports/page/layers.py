"""The pictures of a page, layer by layer: the last step's, with captions, scales and alternative texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlog.comparison.comparison import Comparison, LayerMatch
from cnnlog.comparison.pictures import Key
from cnnlog.kinds import Kind
from cnnlog.rendering.colours import TOP, palette
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.png import encode_png
from cnnlog.rendering.shared_ranges import ends
from cnnlog.reports.page.about import unit
from cnnlog.reports.page.film import Film
from cnnlog.reports.page.reels import layout

_COLOURS = ("#3b7dd8", "#d9622b", "#2f9e6e", "#b54ac2", "#b8860b", "#0fa3b1", "#d6336c", "#7a6ff0")


def layer_section(comparison: Comparison, film: Film, sides: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """A layer's heading and its pictures: for each kind those of every side, then the differences to the first side.

    Args:
        comparison: the comparison.
        film: the pictures.
        sides: the sides as the page names them.
        number: the position of the layer in the comparison.
    """
    match = comparison.layers[number]
    groups = []
    for kind in Kind:
        shown = next((reel.last for key, reel in film.reels.items() if (key.layer, key.kind) == (number, kind)), None)
        if shown is None:
            continue
        wanted = [Key(number, kind, side) for side in range(len(sides))]
        wanted += [Key(number, kind, side, change=True) for side in range(1, len(sides))]
        figures = [_figure(comparison, film, sides, key) for key in wanted]
        heading = kind.words.capitalize() + (" on the probe" if kind.per_image else "")
        groups.append({"kind": kind, "title": heading, "about": _about_group(shown), "figures": figures})
    return {
        "name": match.name,
        "about": _about_layer(comparison, match),
        "colour": _colour(number, len(comparison.layers)),
        "groups": groups,
        "has_filters": match.has_filters,
    }


def _figure(comparison: Comparison, film: Film, sides: list[dict[str, Any]], key: Key) -> dict[str, Any]:
    side = sides[key.side]
    title = f"{side['letter']} − {sides[0]['letter']}, white where alike" if key.change else side["label"]
    name = comparison.layers[key.layer].name
    what = key.kind.words.capitalize()
    figure = {
        "key": key.name,
        "role": "difference" if key.change else "side",
        "side": side,
        "title": title,
        "when": "",
        "png": b"",
        "size": (0, 0),
        "low": "",
        "high": "",
        "gain": "",
        "bar": "",
    }
    reel = film.reels.get(key)
    if reel is None or reel.last is None:
        why = _no_difference(comparison, key) if key.change else f"{side['label']} has none"
        return {**figure, "alt": f"{what} of {name}: {why}."}
    grid = reel.last.grid(350, bare=True)
    when = f"{unit(comparison)} {reel.steps[-1]}" if comparison.sides[key.side].run is not None else ""
    if when and reel.steps[-1] != film.steps[-1] and comparison.sides[key.side].step is None:
        when += " (its last)"
    cells = layout(reel.last)
    low, high = ends(reel.last.limits)
    return {
        **figure,
        "when": when,
        "png": encode_png(grid, level=6),
        "size": grid.size,
        "low": low,
        "high": high,
        "gain": f"×{comparison.gain(comparison.layers[key.layer], key.kind)}" if key.change else "",
        "bar": "rgb" if reel.last.view == "rgb" else palette_name(reel.last.cmap, reel.last.limits.symmetric),
        "alt": f"{what} of {name}, {title}, {when}: {cells['n']} of {cells['h']} by {cells['w']} pixels",
    }


def _no_difference(comparison: Comparison, key: Key) -> str:
    why = comparison.why_no_difference(key.side, comparison.layers[key.layer], key.kind)
    return f"no difference, for {why}" if why else "no difference at these steps"


def _about_group(picture: Picture) -> str:
    cells = layout(picture)
    if picture.view is None:
        return f"{cells['n']} shown, {cells['h']} × {cells['w']}"
    size = f"{cells['h']} × {cells['w']}"
    if picture.view == "slices":
        return f"{cells['n']} filters (rows) by {cells['k']} input channels (columns), {size}"
    colours = {
        "rgb": ", in colour: mid gray is 0; the difference is that of the colour that changed most",
        "mean": ", averaged over input channels",
        "gray": "",
    }[picture.view]
    return f"{cells['n']} shown, {size}{colours}"


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
    """Up to eight layers take colours that are told apart at a glance; more go round the hues in order of depth.

    Args:
        number: of the layer, from 0 on.
        of: how many layers there are.
    """
    return _COLOURS[number] if of <= len(_COLOURS) else f"hsl({265 - 265 * number / (of - 1):.0f} 62% 52%)"


def palette_name(cmap: str, symmetric: bool) -> str:
    """A name for a palette, as the page's style sheet and script use it.

    Args:
        cmap: the colour map.
        symmetric: whether the range is -end to end.
    """
    return f"p-{cmap}-{'signed' if symmetric else 'from0'}"


def bar(name: str) -> list[str]:
    """The colours of a scale, for a CSS gradient.

    Args:
        name: `"rgb"`, or a palette's name.
    """
    if name == "rgb":
        return [f"rgb({v},{v},{v})" for v in (4, 128, 252)]
    cmap, symmetric = name.removeprefix("p-").rsplit("-", 1)
    table = np.frombuffer(palette(cmap, symmetric == "signed"), np.uint8).reshape(-1, 3)
    chosen = table[np.linspace(0, TOP, 13).round().astype(int)]
    return [f"rgb({r},{g},{b})" for r, g, b in chosen]

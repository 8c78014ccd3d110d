"""What the page's script works on, and the packed bytes that it unpacks."""

from __future__ import annotations

import base64
from typing import Any

from cnnlog.comparison.comparison import Comparison
from cnnlog.rendering.colours import GAP, palette
from cnnlog.reports.page.about import unit
from cnnlog.reports.page.film import Film
from cnnlog.reports.page.layers import palette_name
from cnnlog.reports.page.numbers import curve_points, moved_rows, short
from cnnlog.reports.page.reels import layout


def data(comparison: Comparison, film: Film, sides: list[dict[str, Any]], blocks: dict[str, bytes]) -> dict[str, Any]:
    """What the page's script works on.

    Args:
        comparison: the comparison.
        film: the pictures.
        sides: the sides as the page names them.
        blocks: gets the packed bytes, each under the name that stands for them in what is returned.
    """

    def keep(packed: bytes) -> str:
        name = f"b{len(blocks)}"
        blocks[name] = packed
        return name

    palettes: dict[str, str] = {}
    pictures: dict[str, dict[str, Any]] = {}
    for key, reel in film.reels.items():
        assert reel.last is not None, "every reel has a frame"
        limits, name = reel.last.limits, palette_name(reel.last.cmap, reel.last.limits.symmetric)
        palettes[name] = text64(palette(reel.last.cmap, limits.symmetric))
        picture = pictures.setdefault(
            key.name,
            {"layer": key.layer, "kind": key.kind, "side": None if key.change else key.side, "reels": []},
        )
        picture["reels"].append(
            {
                "block": keep(reel.pack()),
                "at": reel.at,
                "steps": reel.steps,
                "symmetric": limits.symmetric,
                "high": [short(float(high)) for high in limits.high],
                "layout": layout(reel.last),
                "rgb": reel.last.view == "rgb",
                "palette": name,
            }
        )
    return {
        "unit": unit(comparison),
        "steps": film.steps,
        "images": film.images,
        "gap": GAP,
        "sides": [{key: side[key] for key in ("letter", "label", "last", "pinned")} for side in sides],
        "layers": [{"name": layer.name, "filters": layer.has_filters} for layer in comparison.layers],
        "palettes": palettes,
        "pictures": pictures,
        "numbers": film.lives.packed(keep),
        "curves": curve_points(comparison, sides),
        "moved": moved_rows(comparison, film),
    }


def text64(packed: bytes) -> str:
    """Bytes as text that can stand in a page.

    Args:
        packed: any bytes.
    """
    return base64.b64encode(packed).decode("ascii")

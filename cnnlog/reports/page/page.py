"""A comparison as one HTML file that opens from disk: a slider through all steps, and a readable page without scripts.

The pictures of all steps are packed by their differences, so 200 steps of 20 layers stay within tens of MB.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import cnnlog
from cnnlog.comparison.comparison import Comparison
from cnnlog.reports.page import about, numbers
from cnnlog.reports.page.data import data, text64
from cnnlog.reports.page.film import Filming
from cnnlog.reports.page.layers import bar, layer_section
from cnnlog.runs import whole_files
from cnnlog.runs.run import Progress

PAGE_BYTES = 30_000_000
_BASE64 = 4 / 3


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written.

    Attributes:
        path: the HTML file.
        bytes: its size.
        detail: a sentence on what it shows less of than the runs store.
    """

    path: str
    bytes: int
    detail: str


def write_report(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    title: str = "",
    page_bytes: int = PAGE_BYTES,
    progress: Progress | None = None,
) -> WrittenPage:
    """Write the page: completely, or not at all.

    Args:
        comparison: what to show.
        path: the HTML file.
        force: whether to replace a file that is there.
        title: the heading; empty for the labels of the sides.
        page_bytes: about how many bytes the pictures may take. If they need more, wide feature maps are averaged by
            area, then fewer channels are shown, and the page says so.
        progress: a function that is told how far the work is: `progress("drawing", done, total)`.

    Raises:
        FileExistsError: the file is there, and `force` is not given.
        OSError: it cannot be written; found out before the work.
    """
    target = Path(path)
    with whole_files.whole(target, force=force) as temporary:
        html, detail = _page(comparison, title=title, page_bytes=page_bytes, progress=progress or (lambda *done: None))
        temporary.write_text(html, encoding="utf-8")
    return WrittenPage(str(target), target.stat().st_size, detail)


def _page(comparison: Comparison, *, title: str, page_bytes: int, progress: Progress) -> tuple[str, str]:
    comparison.measure(progress)
    film = Filming(comparison).film(int(page_bytes / _BASE64), progress)
    sides = about.sides(comparison, film.steps)
    template = _templates().get_template("page.html.j2")
    js = Markup(_source("page.js"))
    blocks: dict[str, bytes] = {}
    for_script = data(comparison, film, sides, blocks)
    layers = [layer_section(comparison, film, sides, number) for number in range(len(comparison.layers))]
    used = {figure["bar"] for layer in layers for group in layer["groups"] for figure in group["figures"]}
    context = {
        "title": title or " | ".join(side["label"] for side in sides),
        "version": cnnlog.__version__,
        "script_hash": f"sha256-{text64(hashlib.sha256(js.encode()).digest())}",
        "css": Markup(_source("page.css")),
        "js": js,
        "verdict": comparison.verdict(),
        "notes": comparison.notes,
        "unit": about.unit(comparison),
        "last_step": film.steps[-1],
        "n_steps": len(film.steps),
        "n_images": film.images,
        "images": about.image_names(comparison, film.images),
        "sides": sides,
        "layers": layers,
        "bars": [{"name": name, "colours": bar(name)} for name in sorted({*used, *for_script["palettes"]} - {""})],
        "table": numbers.table(comparison),
        "curves": numbers.curves(comparison, sides),
        "detail_note": film.sentence(),
        "moved": numbers.moved(comparison, sides, for_script["moved"]),
        "probes": about.probes(comparison, sides),
        "settings": about.settings(comparison),
        "data": _script_json(for_script),
        "blocks": blocks,
    }
    return template.render(context), film.sentence()


def _script_json(content: Any) -> Markup:
    """JSON that cannot end the script element that it stands in.

    Args:
        content: lists, dictionaries, texts and finite numbers.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _source(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _templates() -> jinja2.Environment:
    loader = jinja2.FunctionLoader(_source)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = text64
    return environment

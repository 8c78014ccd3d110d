"""A written page, as a parser sees it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cnnlog.comparison.comparison import Comparison
from cnnlog.reports.page.page import WrittenPage, write_report

VOID = {"meta", "img", "input"}


class Seen(HTMLParser):
    """The page as a browser without scripts takes it: elements in order, and whether they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.elements[-1][1].get("id", "")] = data
        elif not self.open or self.open[-1] != "style":
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])


def written(comparison: Comparison, path: Path, **options: Any) -> tuple[WrittenPage, Seen]:
    page = write_report(comparison, path, **options)
    return page, Seen(path.read_text(encoding="utf-8"))

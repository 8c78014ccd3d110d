"""Our Markdown as tests see it: its pages, and what each block of code in them is there for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.places import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FOR_CONTRIBUTORS = [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "SECURITY")]

Treatment = Literal["run", "run alone", "checked", "excerpt", "not code"]

# What the first line of a block says -> what the tests do with the block.
TREATMENTS: dict[str, Treatment] = {
    "python": "run",  # after those above it on its page
    "python loop": "run alone",
    "python fabric": "run alone",
    "python ignite": "run alone",
    "yaml": "run alone",
    "sh": "checked",  # each command exists and takes these arguments; those that are quick are run
    "python excerpt": "excerpt",
    "text": "not code",
}
_FENCE = re.compile(r"^ *```+ *(.*?) *$")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    line: int
    info: str
    text: str

    @property
    def treatment(self) -> Treatment:
        if self.info not in TREATMENTS:
            raise ValueError(
                f"{self.page}, line {self.line}: a block begins with one of {', '.join(TREATMENTS)}, so that a test "
                f"runs it or a reader sees that it is an excerpt; this one begins with {self.info!r}"
            )
        return TREATMENTS[self.info]

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block, in words, without comments."""
        lines = (line.split("#")[0].split() for line in self.text.replace("\\\n", " ").splitlines())
        return [words for words in lines if words]


def blocks(page: Path) -> list[Block]:
    """The blocks of code on a page; Sphinx's directives in braces are none."""
    return blocks_of(page.read_text(encoding="utf-8"), page.name)


def blocks_of(text: str, page: str) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    held: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            held.append(line)
        elif opened is None:
            opened, held = (number, fence[1]), []
        else:
            start, info = opened
            if not info.startswith("{"):
                found.append(Block(page, start, info, "\n".join([*held, ""])))
            opened = None
    if opened is not None:
        raise ValueError(f"{page}, line {opened[0]}: the block does not end")
    return found


def prose(text: str) -> list[tuple[int, str]]:
    """The lines outside of blocks and tables, by number; code in them is left out."""
    lines, inside = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside and not line.lstrip().startswith("|"):
            lines.append((number, re.sub(r"`[^`]*`", "code", line)))
    return lines

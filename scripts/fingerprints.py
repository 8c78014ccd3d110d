"""Names and SHA-256 sums of all that a folder holds: arrays, pictures, scalars, the parts of a page, texts.

No module of cnnlog reads the files here, so that a change of its readers cannot hide a change of what they read. What
differs from one execution to the next (times, ids, versions, host names) is replaced by a word before it is hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

Sums = dict[str, str]
"""Name -> SHA-256 of the content."""

_DATE = re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+\d\d:\d\d|Z)?)?")
_CLOCK = re.compile(r"\b\d{1,2}:\d\d:\d\d\b")
_RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")
_OUR_VERSION = re.compile(r"\bcnnlog \d+\.\d+[.\w]*")
_SCRIPT_HASH = re.compile(r"sha256-[A-Za-z0-9+/=]{44}")
_OTHER_VERSIONS = re.compile(r"(version of [^<]*</th>)(?:<td>[^<]*</td>)+")
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.\d+\.[^/\n]*?(?=(\.cnnlog-compare)?$)", re.MULTILINE)
_PIECES = re.compile(r"(?=<(?:header|main|section|article|dialog)\b)")
_TEXTS = {".csv", ".md", ".txt", ".json", ".yaml", ".svg"}
_IN_A_CHECKPOINT = ("FilterMonitor", "FeatureMapMonitor")


def fingerprints(root: Path) -> Sums:
    """The sums of all files below a folder; what they are called says where a difference lies.

    Args:
        root: the folder; what it is called, and where it lies, is left out of everything.
    """
    steady = Steady(root)
    sums: Sums = {}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        name = path.relative_to(root).as_posix()
        for part, content in _parts(path, steady):
            sums[f"{name}{part}"] = digest(content)
    for folder in sorted({path.parent for path in files if "tfevents" in path.name}):
        name = folder.relative_to(root).as_posix()
        for part, content in _event_parts(folder, steady):
            sums[f"{name}/events{part}"] = digest(content)
    names = (_EVENT_FILE.sub("events", path.relative_to(root).as_posix()) for path in files)
    sums["names of the files"] = digest("\n".join(sorted(names)))
    return sums


def digest(content: bytes | str) -> str:
    """The SHA-256 of bytes, or of a text in UTF-8."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def differences(old: Sums, new: Sums) -> dict[str, list[str]]:
    """The names that differ, are missing or are new; kinds without a name are left out."""
    found = {
        "differs": [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]],
        "missing": sorted(old.keys() - new.keys()),
        "new": sorted(new.keys() - old.keys()),
    }
    return {kind: names for kind, names in found.items() if names}


class Steady:
    """Takes out of a text what may differ between two executions that do the same.

    Args:
        root: the folder that everything was written to.
    """

    def __init__(self, root: Path) -> None:
        self._roots = sorted({str(root), str(root.absolute()), str(root.resolve())}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with words in place of paths, times, ids and versions."""
        for root in self._roots:
            text = text.replace(root, "<root>")
        for pattern, word in (
            (_DATE, "<date>"),
            (_CLOCK, "<time>"),
            (_RUN_ID, "<run>"),
            (_OUR_VERSION, "cnnlog <version>"),
            (_SCRIPT_HASH, "<script>"),
            (_OTHER_VERSIONS, r"\1<version>"),
            (_EVENT_FILE, "<events>"),
        ):
            text = pattern.sub(word, text)
        return text


def _parts(path: Path, steady: Steady) -> Iterator[tuple[str, bytes | str]]:
    """The parts of a file that are hashed one by one: the end of the name, and the content."""
    if path.name == "manifest.json":
        yield from _manifest_parts(json.loads(path.read_text(encoding="utf-8")), steady)
    elif path.suffix == ".json":
        yield "", steady(path.read_text(encoding="utf-8"))
        for where, value in _leaves(json.loads(path.read_text(encoding="utf-8")), depth=2):
            yield where or "/", steady(json.dumps(value))
    elif path.suffix == ".safetensors":
        yield from _array_parts(path.read_bytes())
    elif path.suffix == ".html":
        yield from _page_parts(path.read_text(encoding="utf-8"), steady)
    elif path.suffix == ".ckpt":
        yield from _checkpoint_parts(path, steady)
    elif path.suffix in _TEXTS:
        yield "", steady(path.read_text(encoding="utf-8"))
    elif "tfevents" not in path.name:
        yield "", path.read_bytes()


# --- the files of a run ----------------------------------------------------------------------------------------------


def _manifest_parts(manifest: dict[str, Any], steady: Steady) -> Iterator[tuple[str, str]]:
    manifest["versions"] = sorted(manifest["versions"])
    manifest.pop("writer", None)  # the process
    for key, value in manifest.items():
        yield f"/{key}", steady(json.dumps(value))
    yield "/keys", json.dumps(list(manifest))


def _array_parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A safetensors file: the length of the header (8 bytes), the header as JSON, the arrays."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    yield "/metadata", json.dumps(header.pop("__metadata__", None), sort_keys=True).encode()
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = data[8 + length + begin : 8 + length + end]
        yield f"/{name}", f"{entry['dtype']} {entry['shape']} ".encode() + array


def _checkpoint_parts(path: Path, steady: Steady) -> Iterator[tuple[str, str]]:
    """What the monitors keep in Lightning's checkpoint; the rest of it is not theirs."""
    held = torch.load(path, map_location="cpu", weights_only=True)
    for key, state in held.get("callbacks", {}).items():
        if key.startswith(_IN_A_CHECKPOINT):
            yield f"/{key}", steady(json.dumps(state, sort_keys=True))


# --- TensorBoard's events --------------------------------------------------------------------------------------------


def _event_parts(folder: Path, steady: Steady) -> Iterator[tuple[str, str]]:
    """Every item of all event files of a folder, by tag and step, and the order of the items of each step.

    Which of a folder's files an item is in may differ, for files begin anew with a process.
    """
    items: dict[str, list[str]] = {}
    for event in read_events(folder):
        tags = [value.tag for value in event.summary.value]
        if len(tags) > 1:
            items.setdefault(f"/order@{event.step}", []).append(digest("\n".join(tags)))
        for value in event.summary.value:
            if not value.tag.startswith("_hparams_"):  # Lightning's, with times in it
                items.setdefault(f"/{value.tag}@{event.step}", []).append(digest(_item(value, steady)))
    for name, found in items.items():
        yield name, "\n".join(sorted(found))


def read_events(folder: Path) -> Iterator[Any]:
    """The events of all event files in a folder, up to where a kill cut one off."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        yield from LegacyEventFileLoader(str(path)).Load()


def _item(value: Any, steady: Steady) -> bytes:
    kind = value.WhichOneof("value")
    metadata = value.metadata
    description = steady(metadata.summary_description)
    about = [kind, metadata.plugin_data.plugin_name, metadata.display_name, description, str(metadata.data_class)]
    if kind == "image":
        about += [str(part) for part in (value.image.width, value.image.height, value.image.colorspace)]
        payload = value.image.encoded_image_string
    elif kind == "simple_value":
        payload = struct.pack("<d", value.simple_value)
    else:
        payload = getattr(value, kind).SerializeToString(deterministic=True)
    return b"\n".join(["\n".join(about).encode(), metadata.plugin_data.content, payload])


# --- the page --------------------------------------------------------------------------------------------------------


def _page_parts(html: str, steady: Steady) -> Iterator[tuple[str, str]]:
    """A comparison's page: its style, its scripts, each block of data, each picture, and pieces of what is left."""
    blocks: dict[str, str] = {}
    texts: dict[str, str] = {}
    pictures: list[str] = []

    def take_script(found: re.Match[str]) -> str:
        name = found["id"] or f"code{len(texts)}"
        (blocks if 'type="text/plain"' in found["attributes"] else texts)[name] = found["body"]
        return f"<script {name}>"

    def take_picture(found: re.Match[str]) -> str:
        pictures.append(found[0])
        return f"<picture {len(pictures) - 1}>"

    script = r"<script(?P<attributes>(?:[^>]*?id=\"(?P<id>[^\"]*)\")?[^>]*)>(?P<body>.*?)</script>"
    left = re.sub(script, take_script, html, flags=re.DOTALL)
    left = re.sub(r"data:[\w/+-]+;base64,[A-Za-z0-9+/=]+", take_picture, left)
    styles = re.findall(r"<style>(.*?)</style>", left, re.DOTALL)
    left = re.sub(r"<style>.*?</style>", "<style>", left, flags=re.DOTALL)
    data = json.loads(texts.pop("data"))
    yield from ((f"/data{where}", steady(json.dumps(value))) for where, value in _leaves(data, depth=5, blocks=blocks))
    yield from ((f"/block/{name}", body) for name, body in blocks.items())
    yield from ((f"/script/{name}", body) for name, body in texts.items())
    yield from ((f"/style/{number}", body) for number, body in enumerate(styles))
    yield from ((f"/picture/{number}", body) for number, body in enumerate(pictures))
    yield from ((f"/html/{number:02d}", steady(piece)) for number, piece in enumerate(_PIECES.split(left)))


def _leaves(
    value: Any, *, depth: int, where: str = "", blocks: dict[str, str] | None = None
) -> Iterator[tuple[str, Any]]:
    """The parts of a JSON value, some levels down; where the name of a block stands, the block's sum is put."""
    if isinstance(value, dict) and depth and value:
        for key, part in value.items():
            yield from _leaves(part, depth=depth - 1, where=f"{where}/{key}", blocks=blocks)
    elif isinstance(value, list) and depth and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(part, depth=depth - 1, where=f"{where}/{number}", blocks=blocks)
    else:
        yield where, _with_blocks(value, blocks or {})


def _with_blocks(value: Any, blocks: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_blocks(part, blocks) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_blocks(part, blocks) for part in value]
    return digest(blocks[value]) if isinstance(value, str) and value in blocks else value

"""Where a file lies: a path as it is, or an address that fsspec knows."""

from __future__ import annotations

import hashlib
import os
import re
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

_URL = re.compile(r"([A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+://")


def locate(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `path`, and the path on it.

    Only an address that begins like one is taken for one: fsspec itself would read `runs/a::b` and `runs/x://y`, which
    are good names for a local folder, as several file systems in a row.

    Example:
        >>> locate("/runs/resnet::fine/v0")[1]
        '/runs/resnet::fine/v0'
    """
    if not _URL.match(path):
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(path))
    fs, bare = fsspec.core.url_to_fs(path)
    fs.invalidate_cache(bare)  # object stores keep a listing for good, and another machine may have written since
    return fs, str(bare)


def inside(name: str) -> str:
    """A name as folders under another one: never outside of it, and such as every file system takes.

    What the locale has no bytes for is spelled out, see `spelled`.

    Example:
        >>> inside("../a:b/c")
        '%2e%2e/a%3ab/c'
    """
    legal = (re.sub(r'^\.+$|[<>:"\\|?*\x00-\x1f]', _escape, part) for part in name.split("/"))
    return "/".join(shortened(spelled(part), 120) for part in legal)


def spelled(name: str) -> str:
    """The name, with every character that names of files cannot hold in this locale as the %-codes of its UTF-8.

    Under UTF-8 that is none; under Latin-1, which older clusters have, all of most languages.
    """
    return "".join(character if _has_bytes(character) else quote(character) for character in name)


def _has_bytes(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return True


def shortened(name: str, limit: int) -> str:
    """The name, or its beginning and a hash if it takes more than `limit` bytes, for names of files are limited."""
    data = name.encode()
    if len(data) <= limit:
        return name
    return f"{data[: limit - 13].decode(errors='ignore')}-{hashlib.sha256(data).hexdigest()[:12]}"


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{ord(character):02x}" for character in found[0])

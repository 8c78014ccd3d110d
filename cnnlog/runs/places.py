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
    """The file system of a path, and the path on it.

    fsspec itself would read `runs/a::b` and `runs/x://y` as several file systems in a row. Both are good names for a
    local folder, so only what begins like an address is taken for one.

    Args:
        path: a path, or an address that fsspec knows.

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
    """A name as folders below another one: never outside of it, and with characters that every file system takes.

    Characters that the locale has no bytes for become the %-codes of their UTF-8.

    Args:
        name: any text, such as a tag; a slash in it begins a folder.

    Example:
        >>> inside("../a:b/c")
        '%2e%2e/a%3ab/c'
    """
    legal = (re.sub(r'^\.+$|[<>:"\\|?*\x00-\x1f]', _escape, part) for part in name.split("/"))
    return "/".join(shortened(spelled(part), 120) for part in legal)


def spelled(name: str) -> str:
    """The name, with every character that names of files cannot hold in this locale as the %-codes of its UTF-8.

    In UTF-8 that is none. In Latin-1, which older clusters have, it is every character of most languages.

    Args:
        name: any text.
    """
    return "".join(character if _has_bytes(character) else quote(character) for character in name)


def _has_bytes(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return True


def shortened(name: str, limit: int) -> str:
    """A name that is not too long for a file: itself, or its beginning and a hash.

    Args:
        name: any text.
        limit: how many bytes it may take.
    """
    data = name.encode()
    if len(data) <= limit:
        return name
    return f"{data[: limit - 13].decode(errors='ignore')}-{hashlib.sha256(data).hexdigest()[:12]}"


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{ord(character):02x}" for character in found[0])

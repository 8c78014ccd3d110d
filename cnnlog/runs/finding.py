"""A stored run, found in a folder or below it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from cnnlog.messages import some
from cnnlog.runs.manifest import VERSION
from cnnlog.runs.places import locate
from cnnlog.runs.run import Run
from cnnlog.runs.store import FOLDER, MANIFEST, RunStore

_VERSION = re.compile(r"version_\d+")


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a stored run, to read its arrays and numbers. This needs no torch.

    Args:
        path: the folder that the monitors (or `cnnlog.watch`) wrote, `<log_dir>/cnnlog`, or any folder above it that
            holds exactly one run, such as `lightning_logs/version_0`. An address that fsspec knows, such as
            `s3://bucket/logs`, does as well.

    Returns:
        The run. Arrays are read when you ask for them.

    Raises:
        FileNotFoundError: there is no run in this folder or below it.
        ValueError: there are several (the message lists them), or the run is damaged, has no step, or was written by a
            newer version.
    """
    given = os.fspath(path)
    folder = _the_run(given)
    return Run(RunStore.open(folder), _label(folder))


def _the_run(path: str) -> str:
    if RunStore.exists(path):
        return path
    found = list(_runs_below(path))
    if not found:
        fs, bare = locate(path)
        if not fs.exists(bare):
            raise FileNotFoundError(
                f"{path} does not exist; give a run's folder, <log_dir>/{FOLDER}, or a parent of it"
            )
        raise FileNotFoundError(
            f"{path} holds no cnnlog run: no {MANIFEST} of ours in it or below; give the folder that the monitors "
            f"wrote, <log_dir>/{FOLDER}"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} runs, and one is needed; give one of {some(found, 8)}")
    return found[0]


def _runs_below(path: str) -> Iterator[str]:
    fs, bare = locate(path)
    fs.invalidate_cache()  # the listings below it, too
    found = []
    for folder, subfolders, files in fs.walk(bare):
        if MANIFEST in files and _is_run(folder_url := fs.unstrip_protocol(folder) if "://" in path else str(folder)):
            found.append(folder_url)
            del subfolders[:]
        for name in [name for name in subfolders if name.startswith(".")]:
            subfolders.remove(name)
    yield from sorted(folder for folder in found if f"{folder}-{VERSION}" not in found)  # where an older one goes on


def _is_run(folder: str) -> bool:
    """Other programs write a manifest.json, too; one in a folder of our name is ours even if it is damaged.

    Args:
        folder: has a file of the manifest's name; a path, or an address that fsspec knows.
    """
    if folder.rstrip("/").rsplit("/", 1)[-1] == FOLDER:
        return True
    try:
        RunStore.open(folder)
    except (ValueError, OSError):
        return False
    return True


def _label(folder: str) -> str:
    """A short name: the log folder's, and its parent's where that is just `version_0`.

    Args:
        folder: of a run's files; a path, or an address that fsspec knows.
    """
    parts = [part for part in os.path.abspath(folder).split("/") if part] if "://" not in folder else folder.split("/")
    if len(parts) > 1 and parts[-1] in (FOLDER, f"{FOLDER}-{VERSION}"):
        parts = parts[:-1]
    if len(parts) > 1 and _VERSION.fullmatch(parts[-1]):
        return "/".join(parts[-2:])
    return parts[-1] if parts else folder

"""Files that a person asked for: written whole or not at all, and never over another by accident."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_target(path: Path, *, force: bool) -> None:
    """Say early that a file cannot be written.

    Raises:
        FileExistsError: it is there, and `force` is not given; a folder is never replaced.
        FileNotFoundError: its folder is not there.
        PermissionError: its folder is read-only.
    """
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a folder; give the name of a file")
    if path.exists() and not force:
        raise FileExistsError(f"{str(path)!r} exists; give another name, or --force to replace it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; make it, or give another name")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder of {str(path)!r} is read-only; give a name in another one")


@contextmanager
def whole(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary name, of the same ending, that becomes `path` if all goes well and vanishes if not.

    Raises:
        FileExistsError, FileNotFoundError, PermissionError: see `refuse_target`.
    """
    refuse_target(path, force=force)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)

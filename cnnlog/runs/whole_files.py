"""Files that are written whole or not at all: those of a run, and those that a person asked for."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from cnnlog.runs.places import locate


def refuse_target(path: Path, *, force: bool) -> None:
    """Say early that a file cannot be written.

    Args:
        path: of the file.
        force: replace a file that exists. A folder is never replaced.

    Raises:
        FileExistsError: the file exists and you did not say `force`, or it is a folder.
        FileNotFoundError: its folder does not exist.
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
    """A temporary name with the same ending. It becomes `path` if all goes well, and vanishes if not.

    Args:
        path: of the file that a person asked for.
        force: replace a file that exists. A folder is never replaced.

    Raises:
        FileExistsError: the file exists and you did not say `force`, or it is a folder.
        FileNotFoundError: its folder does not exist.
        PermissionError: its folder is read-only.
    """
    refuse_target(path, force=force)
    draft = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    with _becoming(str(path), draft=str(draft), new=False):
        yield draft


def join(folder: str, name: str) -> str:
    """The address of a file in a folder.

    Args:
        folder: a path, or an address that fsspec knows.
        name: of the file.
    """
    return folder.rstrip("/") + "/" + name


def read_bytes(url: str) -> bytes:
    """All bytes of a file.

    Args:
        url: its path, or its address that fsspec knows.
    """
    fs, path = locate(url)
    return bytes(fs.cat_file(path))


def write_bytes(url: str, data: bytes, *, new: bool = False) -> None:
    """Write a file whole, or nothing of it.

    Args:
        url: its path, or its address that fsspec knows. Its folder is made.
        data: all of its bytes.
        new: refuse to replace a file that exists, with FileExistsError.
    """
    fs, path = locate(url)
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    if not isinstance(fs, LocalFileSystem):  # object stores put an object whole, and have no rename
        if new:
            _pipe_new(fs, path, data)
        else:
            fs.pipe_file(path, data)
        return
    with renamed(path, new=new) as temporary, open(temporary, "wb") as file:
        file.write(data)


def _pipe_new(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a whole file that must not be there; of several at once one succeeds, where the store can see to that.

    Args:
        fs: a file system that is not local.
        path: as this file system has it.
        data: the file's bytes.
    """
    if fs.exists(path):
        raise FileExistsError(path)
    if "mode" not in inspect.signature(fs.pipe_file).parameters:  # an older fsspec, or a file system that has no such
        fs.pipe_file(path, data)
        return
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:  # remote file systems raise errors of their own
        if isinstance(error, FileExistsError) or fs.exists(path):
            raise FileExistsError(path) from error
        fs.pipe_file(path, data)  # a store that cannot do that; if it is down, this raises, too


@contextmanager
def renamed(path: str, *, new: bool = False) -> Iterator[str]:
    """A temporary name. It becomes `path` if all goes well, and vanishes if not.

    Args:
        path: of a local file.
        new: refuse to replace a file that exists, with FileExistsError.
    """
    draft = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with _becoming(path, draft=draft, new=new):
        yield draft


@contextmanager
def _becoming(path: str, *, draft: str, new: bool) -> Iterator[None]:
    try:
        yield
        if new:
            _link(draft, path)
        else:
            os.replace(draft, path)
    finally:
        if os.path.isdir(draft):
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(draft)


def _link(temporary: str, path: str) -> None:
    """Give `temporary` the name `path`, which must be free: unlike a rename, a link never replaces a file.

    Args:
        temporary: of a local file that exists.
        path: the name to give it.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.exists(path):
            raise FileExistsError(path) from None
        os.replace(temporary, path)

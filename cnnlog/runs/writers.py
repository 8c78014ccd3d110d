"""Which process writes a run, and whether it still can: a run that died at its start must not lock its folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform

ENDED = ""
"""The mark of a run that ended as it should, and of one whose writer is not known: nobody else begins there."""
FAILED = "failed"
"""The mark of a run that an exception ended."""

_under_way: set[str] = set()


def begins(run_id: str) -> None:
    """A run is under way in this process.

    Args:
        run_id: of the run.
    """
    _under_way.add(run_id)


def ends(run_id: str) -> None:
    """A run is not under way in this process any more.

    Args:
        run_id: of the run.
    """
    _under_way.discard(run_id)


def own_mark() -> str:
    """The mark of this process, `machine:pid:start`, for the manifest of a run that it writes.

    The machine is a hash that names nobody; the start tells the process from a later one with the same number.
    """
    return f"{_machine()}:{os.getpid()}:{_started(os.getpid())}"


def is_gone(mark: str, run_id: str) -> bool:
    """Whether the writer of a run writes no more. A process of another machine cannot be seen, so it may still write.

    Args:
        mark: what the run's manifest says of its writer.
        run_id: of the run.

    >>> is_gone(FAILED, "1"), is_gone(ENDED, "1"), is_gone("another machine:1:2", "1")
    (True, False, False)
    """
    if mark in (ENDED, FAILED):
        return mark == FAILED
    machine, _, process = mark.rpartition(":")[0].partition(":")
    if machine != _machine() or not process.isdecimal():
        return False
    if mark == own_mark():
        return run_id not in _under_way
    return not _is_alive(int(process)) or _started(int(process)) != mark.rpartition(":")[2]


@functools.cache
def _machine() -> str:
    """What tells this machine, and this container on it, from others."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where that cannot be seen."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # to ask there with signal 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return _state(pid) != "Z"  # ended, and its parent has not asked for the end


def _state(pid: int) -> str:
    """The kernel's letter for the state of a process; empty where that cannot be seen."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, behind its name; nothing where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []

"""Child processes without the seconds that importing lightning takes: one process imports it, and forks the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from support.places import environment

TEMPLATE = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
import {module} as module
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies, for which os.kill would find a process
for line in sys.stdin:
    function, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.stdout = sys.stderr
        try:
            getattr(module, function)(*arguments)
        finally:
            os._exit(0)
    print(child, flush=True)
"""


class Forks:
    """Calls functions of a test module, each in a process of its own.

    Args:
        file: the module's file; what it imports, all processes have.
    """

    def __init__(self, file: str) -> None:
        path = Path(file)
        script = TEMPLATE.format(module=path.stem)
        self._lock = threading.Lock()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(path.parent),
        )

    def start(self, function: str, *arguments: object) -> int:
        """Call a function with plain values; the id of its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps([function, *arguments]), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline())

    def wait(self, *processes: int, timeout: float = 120) -> None:
        """Wait until they have ended, for so many seconds at most."""
        until = time.monotonic() + timeout
        for process in processes:
            while is_alive(process):
                assert time.monotonic() < until, f"a process has not ended within {timeout:.0f} s"
                time.sleep(0.001)

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True

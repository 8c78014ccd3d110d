"""Where the parts of the checkout lie, and how a process of its own finds `support`."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = ROOT / "scripts"


def environment(*folders: Path) -> dict[str, str]:
    """This process's environment, with `tests` and further folders on the path of Python."""
    path = [str(TESTS), *map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part)}

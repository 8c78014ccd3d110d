#!/usr/bin/env python3
"""Prove that a change of the code changed nothing that it makes: every output of a set of seeded runs, hashed.

    .venv/bin/python scripts/outputs.py before.json              hash what this code makes
    .venv/bin/python scripts/outputs.py --against before.json    hash again, and name what is no longer the same
    .venv/bin/python scripts/outputs.py --work DIR after.json    keep the files, to look at what differs
    .venv/bin/python scripts/outputs.py --small small.json       a few of them, in seconds

Only the public names, the command and the files themselves are used, so that it works whichever modules there are. The
sums hold for one machine and one set of installed packages: another processor may add numbers in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from environment import advice

SCRIPTS = Path(__file__).resolve().parent
SETTINGS = {
    "CNNLOG_OUTPUTS": "1",  # tells that the others are set
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "110",
    "TERMINAL_WIDTH": "110",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "SOURCE_DATE_EPOCH": "0",
    "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)]),
}


def main() -> int:
    """Hash, and write or compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="where to write name -> SHA-256, as JSON")
    parser.add_argument("--against", type=Path, metavar="OLD", help="an earlier such file to compare with")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder for the runs, which is kept")
    parser.add_argument("--small", action="store_true", help="one training under Lightning and one loop")
    asked = parser.parse_args()
    if asked.out is None and asked.against is None:
        parser.error("give a file to write, or --against a file to compare with")
    if "CNNLOG_OUTPUTS" not in os.environ:  # how many threads there are, and which code is imported, is decided now
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
    old = json.loads(asked.against.read_text()) if asked.against else None
    if asked.work is not None:
        asked.work.mkdir(parents=True)
        new = _made(asked.work.absolute(), small=asked.small)
    else:
        with tempfile.TemporaryDirectory() as folder:
            new = _made(Path(folder), small=asked.small)
    if asked.out is not None:
        asked.out.write_text(json.dumps(new, indent=0, sort_keys=True) + "\n")
    if old is None:
        print(f"{len(new)} outputs hashed")
        return 0
    return _report(old, new)


def _made(folder: Path, *, small: bool) -> dict[str, str]:
    try:
        from fingerprints import fingerprints
        from output_commands import make_all
        from output_runs import make_few
    except ModuleNotFoundError as error:
        raise advice(".venv/bin/python scripts/outputs.py", error) from error

    before = Path.cwd()
    os.chdir(folder)  # so that no path says where the folder is
    try:
        (make_few if small else make_all)()
        return fingerprints(folder)
    finally:
        os.chdir(before)


def _report(old: dict[str, str], new: dict[str, str]) -> int:
    from fingerprints import differences

    found = differences(old, new)
    for kind, names in found.items():
        print("\n".join(f"{kind}: {name}" for name in names))
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
    print(f"{len(new)} outputs, {counts or 'all as before'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Several processes: rank 0 alone watches, and no rank notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training import events, image_steps

from cnnlog.store import RunStore

SCRIPT = Path(__file__).with_name("ddp_training.py")


def run(folder: Path, how: str) -> list[dict[str, Any]]:
    """What each of the two ranks ends with; a hang is a failure."""
    folder.mkdir()
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "ddp", how],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("how", ["watched", "failing"])
def test_two_processes_end_as_if_unwatched(how: str, tmp_path: Path) -> None:
    plain, watched = run(tmp_path / "plain", "plain"), run(tmp_path / how, how)
    for before, after in zip(plain, watched, strict=True):
        assert before["mode"] == after["mode"]
        assert torch.equal(before["rng"], after["rng"])
        assert all(torch.equal(before["weights"][name], value) for name, value in after["weights"].items())
    steps = [0, 1, 2] if how == "watched" else [0, 1]
    assert RunStore.open(str(tmp_path / how / "run" / "v0" / "cnnlog")).steps == steps
    assert image_steps(events(tmp_path / how / "run" / "v0"))["filters/00_net.0"] == steps

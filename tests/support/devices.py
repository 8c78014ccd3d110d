"""Where a test runs: on the CPU everywhere, and on a CUDA device where there is one (`-m gpu` runs these alone)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]
ACCELERATORS = ["cpu", pytest.param("gpu", marks=GPU)]


def on(accelerator: str) -> dict[str, Any]:
    """The trainer's options for a device; a GPU adds up in another order each time unless it is told not to."""
    return {"accelerator": accelerator, "devices": 1, "deterministic": accelerator == "gpu"}

"""Where a test runs: on the CPU everywhere, and on a CUDA device where there is one (`-m gpu` runs these alone)."""

from __future__ import annotations

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]
ACCELERATORS = ["cpu", pytest.param("gpu", marks=GPU)]

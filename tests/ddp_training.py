"""A DDP training of two processes on the CPU; each writes what it ends with. Run by test_ddp.

python ddp_training.py FOLDER STRATEGY watched|plain|failing
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from training import TinyCNN, loader, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor


class FailsOnTheProbe(TinyCNN):
    """Its forward raises in eval mode from the second epoch on, which rank 0 alone runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.current_epoch >= 1:
            raise RuntimeError("not in eval mode")
        return super().forward(x)


def main(folder: Path, strategy: str, how: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = FailsOnTheProbe() if how == "failing" else TinyCNN()
    callbacks = [] if how == "plain" else [FilterMonitor(), FeatureMapMonitor(probe())]
    run = trainer(
        folder,
        callbacks,
        devices=2,
        strategy=strategy,
        logger=TensorBoardLogger(folder, name="run", version="v0"),
        max_epochs=2,
    )
    run.fit(module, DataLoader(loader().dataset, batch_size=4, shuffle=True))
    state = {
        "weights": module.state_dict(),
        "rng": torch.get_rng_state(),
        "mode": [m.training for m in module.modules()],
    }
    torch.save(state, folder / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])

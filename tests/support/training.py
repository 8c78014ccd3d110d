"""A training small enough to run in a test, with everything that a real one has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cnnlog
from cnnlog import Probe

PACKAGE = Path(cnnlog.__file__).parent


class TinyCNN(L.LightningModule):
    """Two convolutions on 16 px images: 6 RGB filters of 5x5, then 10 filters of 3x3."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 10, 3),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x).mean((2, 3)))

    def training_step(self, batch: Sequence[torch.Tensor], _: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Sequence[torch.Tensor], _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loader(images: int = 16, batch_size: int = 4) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(
        torch.rand(images, 3, 16, 16, generator=generator), torch.randint(0, 3, (images,), generator=generator)
    )
    return DataLoader(data, batch_size=batch_size)


def probe(images: int = 1) -> Probe:
    return Probe.from_tensor(torch.rand(images, 3, 16, 16, generator=torch.Generator().manual_seed(4)))


def trainer(folder: Path, callbacks: Sequence[L.Callback], **more: Any) -> L.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": TensorBoardLogger(folder, name="run", version="v0"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(callbacks=list(callbacks), **{**options, **more})


def fit(trainer: L.Trainer, module: L.LightningModule, *, validate: bool = False, **more: Any) -> None:
    trainer.fit(module, loader(), loader() if validate else None, **more)


def events(folder: Path | str) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0, "histograms": 0})
    return found.Reload()


def image_steps(found: EventAccumulator) -> dict[str, list[int]]:
    return {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]}


def ours(warning: warnings.WarningMessage) -> bool:
    """Whether it was given by the package, or by something else about one of the package's lines.

    Paths name cnnlog for many reasons: a checkout, an environment or a temporary folder may be called so.
    """
    return str(warning.message).startswith("cnnlog: ") or Path(warning.filename).is_relative_to(PACKAGE)

"""Event files as a run writes them, made without training."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

TAGS = ("filters/00_conv1", "filters/01_conv2", "feature_maps/00_conv1")
SCALAR = "numbers/weight_change/00_conv1"


def write_run(folder: Path, *, steps: int = 31, tags: Iterable[str] = TAGS, seed: int = 0) -> Path:
    """One event file with a picture per tag and step, and one scalar per step, written after the pictures."""
    generator = np.random.default_rng(seed)
    writer = EventFileWriter(str(folder))
    for step in range(steps):
        pictures = [(tag, generator.integers(0, 255, (32, 32), dtype=np.uint8)) for tag in tags]
        values = [Summary.Value(tag=tag, image=_summary_image(pixels)) for tag, pixels in pictures]
        values.append(Summary.Value(tag=SCALAR, simple_value=step / 100))
        writer.add_event(Event(wall_time=1e9 + step, step=step, summary=Summary(value=values)))
    writer.close()
    return folder


def _summary_image(pixels: np.ndarray) -> Summary.Image:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    height, width = pixels.shape
    return Summary.Image(height=height, width=width, colorspace=1, encoded_image_string=encoded.getvalue())


def train_run(folder: Path, *, epochs: int = 30, seed: int = 0) -> Path:
    """A real training of a small CNN with both monitors, on stripes that it has to tell apart by their direction."""
    import lightning as L
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from cnnlog import FeatureMapMonitor, FilterMonitor

    class Stripes(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 7, stride=2, padding=3)
            self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        upright = torch.rand(32, 1) < 0.5
        wave = torch.sin(torch.arange(32) * 0.9 + torch.rand(32, 1) * 6.28)
        stripes = torch.where(upright[..., None], wave[:, None, :], wave[:, :, None])
        images = stripes[:, None] + 0.3 * torch.randn(32, 3, 32, 32)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=TensorBoardLogger(folder.parent, name="", version=folder.name),
            callbacks=[FilterMonitor(), FeatureMapMonitor()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(Stripes(), DataLoader(TensorDataset(images, upright[:, 0].long()), batch_size=16))
    return folder

"""Train a small CNN with LightningCLI on stripes that it draws itself, watched as `config.yaml` says.

python examples/cli/train.py fit --config examples/cli/config.yaml
python examples/cli/train.py fit --config examples/cli/config.yaml --print_config
python examples/cli/train.py fit --config examples/cli/config.yaml --model.lr 0.01 --trainer.max_epochs 20
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Stripes(L.LightningDataModule):
    """Coloured stripes on noise `[3, size, size]`; the class is one of four angles."""

    def __init__(self, images: int = 512, size: int = 32, batch_size: int = 32) -> None:
        super().__init__()
        self.images, self.size, self.batch_size = images, size, batch_size

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self._draw(self.images, seed=1), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self._draw(max(1, self.images // 4), seed=2), self.batch_size)

    def _draw(self, n: int, *, seed: int) -> TensorDataset:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (n,), generator=random)
        wavelength, phase, red, green, blue = torch.rand(5, n, 1, 1, generator=random)
        axis = torch.arange(self.size)
        angle = (labels * math.pi / 4)[:, None, None]
        along = axis[:, None] * angle.sin() + axis * angle.cos()
        wave = 0.5 + 0.5 * torch.sin(2 * math.pi * (along / (4 + 4 * wavelength) + phase))
        colour = torch.stack([red, green, blue], dim=1)
        noise = 0.1 * torch.randn(n, 3, self.size, self.size, generator=random)
        return TensorDataset((colour * wave[:, None] + noise).clamp(0, 1), labels)


class SmallCNN(L.LightningModule):
    """Two convolutions and a linear layer."""

    def __init__(self, channels: int = 16, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.conv1 = nn.Conv2d(3, channels, 7, padding=3)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.head = nn.Linear(2 * channels, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        scores: torch.Tensor = self.head(F.relu(self.conv2(maps)).mean((2, 3)))
        return scores

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", right, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def main(args: Sequence[str] | None = None, *, run: bool = True) -> LightningCLI:
    return LightningCLI(SmallCNN, Stripes, seed_everything_default=1, args=None if args is None else [*args], run=run)


if __name__ == "__main__":
    main()

"""The demo's network, and the three recipes by which it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a run is trained.

    Attributes:
        rate: the peak learning rate of the convolutions.
        head_rate: the peak learning rate of the classifier.
        decay: the weight decay of the first layer. A strong decay removes whatever the task does not need, so that the
            noise which a filter started from fades.
    """

    rate: float
    head_rate: float
    decay: float


PRETRAIN = Recipe(rate=3e-3, head_rate=3e-3, decay=4.0)
FINETUNE = Recipe(rate=1e-3, head_rate=1e-2, decay=4.0)
SCRATCH = Recipe(rate=3e-3, head_rate=1e-2, decay=0.5)


class DemoNet(L.LightningModule):
    """Two convolutions, the first with filters large enough to look at (11x11), and a linear classifier.

    The weights of the first layer start small, and nothing normalises its output. So only filters that grow with the
    task are of use, and they come out clean.

    Args:
        classes: how many classes the classifier tells apart.
        recipe: how the network is trained.
    """

    def __init__(self, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 36, 11, stride=2)
        self.conv2 = nn.Conv2d(36, 48, 3, padding=1)
        self.head = nn.Linear(48, classes)
        nn.init.normal_(self.conv1.weight, std=0.03)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]  # a conv without bias=False has one
        self.recipe = recipe
        self.accuracies: list[float] = []
        self._right = self._seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[N, 3, H, W]` -> scores `[N, classes]`; any size from 15 on.

        Args:
            images: float32, from -1.5 to 1.5.
        """
        maps = F.avg_pool2d(F.relu(self.conv1(images)), 2)
        scores: torch.Tensor = self.head(F.relu(self.conv2(maps)).mean((2, 3)))
        return scores

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross-entropy.

        Args:
            batch: images `[N, 3, H, W]` and their classes `[N]`.
            batch_idx: its number in the epoch; not used.
        """
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Count what is classified rightly.

        Args:
            batch: images `[N, 3, H, W]` and their classes `[N]`.
            batch_idx: its number in the epoch; not used.
        """
        self._right += int((self(batch[0]).argmax(1) == batch[1]).sum())
        self._seen += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy."""
        self.accuracies.append(self._right / self._seen)
        self._right = self._seen = 0
        self.log("val_acc", self.accuracies[-1], prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW, one learning-rate cycle over the whole training."""
        recipe, rest = self.recipe, [self.conv1.bias, *self.conv2.parameters()]
        groups = [
            {"params": [self.conv1.weight], "lr": recipe.rate, "weight_decay": recipe.decay},
            {"params": rest, "lr": recipe.rate, "weight_decay": 0.01},
            {"params": [*self.head.parameters()], "lr": recipe.head_rate, "weight_decay": 0.01},
        ]
        optimizer = torch.optim.AdamW(groups)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [recipe.rate, recipe.rate, recipe.head_rate],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.2,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

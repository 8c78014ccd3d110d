"""Fine-tune any torchvision classifier on a folder of images, and watch its filters and feature maps.

    python examples/finetune.py --data FOLDER --arch squeezenet1_1 --weights DEFAULT --probe IMAGE

FOLDER holds `train` and `val`, and each of them one folder of images for each class.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.models import Loaded, load_classifier, replace_head


class Classifier(L.LightningModule):
    """A torchvision classifier and how to train it."""

    def __init__(
        self, model: nn.Module, head: Sequence[str], *, lr: float, freeze_backbone: bool, warmup: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.head = tuple(head)
        self.lr = lr
        self.warmup = warmup
        self.freeze_backbone = freeze_backbone
        self.accuracies: list[float] = []
        self._right = self._seen = 0
        if freeze_backbone:
            model.requires_grad_(False)
            for name in self.head:
                model.get_submodule(name).requires_grad_(True)

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(images)

    def on_train_epoch_start(self) -> None:
        if self.freeze_backbone:  # batch norm would go on learning the images' statistics
            self.model.eval()
            for name in self.head:
                self.model.get_submodule(name).train()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        scores = self(images)
        # GoogLeNet and Inception give the auxiliary classifiers' scores, too, while they train
        main, *auxiliary = (scores,) if isinstance(scores, torch.Tensor) else scores
        loss = F.cross_entropy(main, labels)
        for part in auxiliary:
            loss = loss + 0.3 * F.cross_entropy(part, labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self._right += int((self(batch[0]).argmax(1) == batch[1]).sum())
        self._seen += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        accuracy, self._right, self._seen = self._right / self._seen, 0, 0
        self.log("val_acc", accuracy)
        self.accuracies.append(accuracy)
        self.print(f"epoch {self.current_epoch + 1}: {accuracy:.1%} of the validation images right")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        if self.warmup is None:
            return optimizer
        epochs = self.trainer.max_epochs or 1
        rise = LinearLR(optimizer, 1 / (self.warmup + 1), total_iters=self.warmup)
        fall = CosineAnnealingLR(optimizer, max(1, epochs - self.warmup))
        return [optimizer], [SequentialLR(optimizer, [rise, fall], milestones=[self.warmup])]


def main(argv: Sequence[str] | None = None) -> Classifier:
    """Fine-tune; returns what was trained."""
    args = arguments(argv)
    L.seed_everything(args.seed, workers=True, verbose=False)
    try:
        loaded = load_classifier(args.arch, args.weights)
        look, augment = pipelines(loaded, args.size)
        train, val = folders(args.data, augment, look)
        probe = Probe.from_images(args.probe, transform=look) if args.probe else Probe.from_dataset(val)
        head = replace_head(loaded.model, len(train.classes))
    except (ValueError, OSError) as error:
        sys.exit(f"finetune: {error}")
    module = Classifier(loaded.model, head, lr=args.lr, freeze_backbone=args.freeze_backbone, warmup=args.warmup)
    weights = Path(args.weights).stem if Path(args.weights).suffix else args.weights
    logger = TensorBoardLogger(args.out, name=f"{loaded.name}-{weights}")
    print(f"{loaded.name} ({args.weights}), {len(train)} images of {', '.join(train.classes)}; {len(val)} to validate")
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator=args.accelerator,
        devices=1,
        logger=logger,
        callbacks=[FilterMonitor(), FeatureMapMonitor(probe)],
        num_sanity_val_steps=0,
        log_every_n_steps=5,
    )
    # A batch of a single image, left over at the end, is more than batch norm can take
    loading: dict[str, Any] = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            trainer.fit(
                module,
                DataLoader(train, args.batch_size, shuffle=True, drop_last=len(train) > args.batch_size, **loading),
                DataLoader(val, args.batch_size, **loading),
            )
        except ValueError as error:  # what the monitors refuse before the first step
            sys.exit(f"finetune: {error}")
    print(f"Watch it: cnnlog tensorboard {args.out}")
    return module


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    assert __doc__ is not None, "the text above is the help"
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="holds train and val, by class")
    parser.add_argument("--arch", default="squeezenet1_1", help="any classifier of torchvision")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT (downloads), none, or a .pt or .safetensors FILE")
    parser.add_argument("--probe", metavar="IMAGE", help="whose feature maps to watch; else the first to validate")
    parser.add_argument("--epochs", type=_at_least_1, default=7)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument(
        "--warmup",
        type=_at_least_1,
        metavar="EPOCHS",
        help="raise the rate over so many epochs, then lower it along a cosine; else it stays",
    )
    parser.add_argument("--batch-size", type=_at_least_1, default=16)
    parser.add_argument("--size", type=_at_least_1, help="height and width; else what the architecture was made for")
    parser.add_argument("--freeze-backbone", action="store_true", help="train the new head only")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs"), metavar="DIR")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ...")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def pipelines(loaded: Loaded, size: int | None) -> tuple[transforms.Compose, transforms.Compose]:
    """How an image is made an input: to look at, and, augmented, to train with."""
    preset: Any = loaded.transform  # torchvision's: crop size, mean and deviation that the weights were trained with
    size = size or preset.crop_size[0]
    end = [transforms.ToTensor(), transforms.Normalize(preset.mean, preset.std)]
    look = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *end]
    augment = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end]
    return transforms.Compose(look), transforms.Compose(augment)


def folders(data: Path, augment: transforms.Compose, look: transforms.Compose) -> tuple[ImageFolder, ImageFolder]:
    """The images to train with and to validate with, which must be of the same classes."""
    for part in ("train", "val"):
        if not (data / part).is_dir():
            raise FileNotFoundError(
                f"expected the folder {data / part}, with one folder of images for each class; there is none."
            )
    train, val = ImageFolder(str(data / "train"), augment), ImageFolder(str(data / "val"), look)
    if train.classes != val.classes:
        raise ValueError(
            f"expected the same classes to train and to validate, but {data / 'train'} has {', '.join(train.classes)} "
            f"and {data / 'val'} has {', '.join(val.classes)}."
        )
    return train, val


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, but got {number}")
    return number


if __name__ == "__main__":
    main()

"""What the literature finds of a fine-tuning, found again: SqueezeNet 1.1 with ImageNet weights on photographs.

Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?", NIPS 2014, and Zeiler and
Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014: lower layers are general and hardly change,
upper ones are adapted. The weights and the photographs are not in the repository: CNNLOG_REAL_INPUT names the folder
that has `weights/` and `data/ants_bees/`, by default `shared` beside the checkout. pytest's option -s shows the
measured values.
"""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from support.places import ROOT
from support.training import trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, compare
from cnnlog.runs.store import RunStore

REAL = Path(os.environ.get("CNNLOG_REAL_INPUT", ROOT.parent / "shared"))
WEIGHTS = REAL / "weights" / "squeezenet1_1-imagenet-fp16.safetensors"
PHOTOGRAPHS = REAL / "data" / "ants_bees"
SIZE, EPOCHS = 128, 3
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOGRAPHS.exists()),
    reason="needs real weights and photographs; CNNLOG_REAL_INPUT names their folder",
)


def photograph(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255
    return ((torch.from_numpy(pixels) - MEAN) / STD).permute(2, 0, 1).contiguous()


class Photographs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, part: str) -> None:
        folders = sorted(folder for folder in (PHOTOGRAPHS / part).iterdir() if folder.is_dir())
        paths = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.jpg"))]
        self._items = [(photograph(path), label) for path, label in paths]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._items[index]


class Tuned(L.LightningModule):
    """SqueezeNet with a new head for two classes."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.net = torchvision.models.squeezenet1_1()
        self.net.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
        self.net.classifier[1] = nn.Conv2d(512, 2, 1)
        self.net.features.requires_grad_(not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(x)
        return scores

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 5e-5)


@pytest.fixture(scope="module")
def training() -> Photographs:
    return Photographs("train")


def tuned(folder: Path, training: Photographs, *, frozen: bool, epochs: int) -> RunStore:
    torch.manual_seed(0)
    module = Tuned(frozen=frozen)
    probe = Probe.from_tensor(photograph(sorted((PHOTOGRAPHS / "val").glob("*/*.jpg"))[0])[None])
    monitors = [FilterMonitor(), FeatureMapMonitor(probe)]
    loader = DataLoader(training, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    trainer(folder, monitors, max_epochs=epochs).fit(module, loader)
    return RunStore.open(str(folder / "run" / "v0" / "cnnlog"))


def rank_correlation(values: list[float]) -> float:
    """Spearman's, with the order that the values are given in."""
    ranks = np.argsort(np.argsort(values))
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def test_upper_layers_change_more_and_the_first_hardly_turns(training: Photographs, tmp_path: Path) -> None:
    run = tuned(tmp_path, training, frozen=False, epochs=EPOCHS)
    numbers, layers = run.read_record(EPOCHS).numbers, [layer.name for layer in run.manifest.measured]
    assert len(layers) == 26
    change = [float(numbers["function_change"][layer][0]) for layer in layers]
    correlation = rank_correlation(change)
    print("rank correlation of function_change with depth:", correlation)
    assert correlation >= 0.9
    angles = numbers["filter_angle"]["net.features.0"]
    print("degrees that the first layer's filters turned, median:", float(np.nanmedian(angles)))
    assert 0 < np.nanmedian(angles) < 1
    assert np.nanmax(angles) < 1
    assert numbers["weight_change"]["net.features.0"][0] < numbers["weight_change"]["net.classifier.1"][0]

    # Whether lower layers settle first is told as it is: the papers do not agree, and three epochs are few.
    curves = compare(run.folder).curves()["to_go"]
    to_go = {layer: dict(next(iter(by_side.values()))) for layer, by_side in curves.items()}
    assert len(to_go) == 4
    for layer, curve in to_go.items():
        assert (curve[0], curve[EPOCHS]) == (1, 0), layer
        print(f"to go of {layer} after each epoch:", [round(curve[epoch], 3) for epoch in range(EPOCHS + 1)])
    settled = rank_correlation([curve[1] for curve in to_go.values()])
    print("rank correlation of what is to go after the first epoch with depth:", settled)


def test_a_frozen_backbone_stands_exactly_still(training: Photographs, tmp_path: Path) -> None:
    run = tuned(tmp_path, training, frozen=True, epochs=1)
    numbers, head = run.read_record(1).numbers, "net.classifier.1"
    for number in ("weight_change", "filter_angle", "function_change"):
        moved = {layer: np.nanmax(values) for layer, values in numbers[number].items()}
        assert moved.pop(head) > 0, number
        assert set(moved.values()) == {0.0}, number
        assert len(moved) == 25
    assert set(numbers["update_ratio"]) == {head}

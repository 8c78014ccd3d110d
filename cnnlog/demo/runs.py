"""The demo: filters form, are fine-tuned, and form again from scratch, on two image tasks drawn here.

Task one, `gratings`: which angle, width and colour do the stripes have, or which colour do the spots have.
Task two, `weaves`: which two of four angles cross in a piece of cloth, and which colours does one thread have.
A network that has learnt task one has the filters for task two.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnnlog.capture.probe import Probe
from cnnlog.metrics.drift import mean_of_finite
from cnnlog.monitors.callbacks import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import FOLDER, RunStore
from cnnlog.snapshot import FloatArray

IntArray = npt.NDArray[np.int64]
SIZE = 40
GRATING_CLASSES = 30
WEAVE_CLASSES = 12

_GREY = (1.0, 1.0, 1.0)
_RED_GREEN = (1.0, -1.0, -0.1)
_BLUE_YELLOW = (-0.55, -0.45, 1.0)
_HUES = ((1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))


# --- the two tasks ---------------------------------------------------------------------------------------------------


def gratings(n: int, *, seed: int) -> tuple[FloatArray, IntArray]:
    """Draw patches of stripes, and coloured spots, at random places, on noise.

    Classes 0-15: grey stripes at 8 angles, narrow (0-7) and wide (8-15); 16-19: red-green stripes at 4 angles;
    20-23: blue-yellow ones; 24-29: spots of 6 colours. Phase, place, size and contrast say nothing of the class.

    Returns:
        Images `[n, 3, 40, 40]`, 0 is mid-grey, about -1 to 1; labels `[n]`.

    Example:
        >>> images, labels = gratings(2, seed=0)
        >>> images.shape, labels.shape
        ((2, 3, 40, 40), (2,))
    """
    draw = _Draw(n, seed)
    labels = draw.rng.integers(0, GRATING_CLASSES, n)
    grey, spots = labels < 16, labels >= 24
    turn = np.where(grey, labels % 8 / 8, labels % 4 / 4) + draw.rng.uniform(-0.05, 0.05, n)
    angle = draw.each(turn * np.pi)
    shortest = np.where(grey & (labels >= 8), 8.0, 5.0)
    longest = np.where(grey & (labels < 8), 6.7, 11.0)
    wavelength = draw.each(np.exp(draw.rng.uniform(np.log(shortest), np.log(longest))))
    stripes = np.zeros((n, SIZE, SIZE), np.float32)
    for _ in range(5):
        dx, dy, size = draw.x - draw.between(-13, 13), draw.y - draw.between(-13, 13), draw.between(2.5, 4)
        wave = np.cos(2 * np.pi * (dx * np.cos(angle) + dy * np.sin(angle)) / wavelength + draw.between(0, 2 * np.pi))
        stripes += np.exp(-(dx**2 + dy**2) / (2 * size**2)) * wave
    stripes = np.tanh(2 * stripes)
    spot, size = np.zeros_like(stripes), draw.between(2, 5)
    for _ in range(4):
        dx, dy = draw.x - draw.between(-13, 13), draw.y - draw.between(-13, 13)
        spot = np.maximum(spot, np.exp(-(dx**2 + dy**2) / (2 * size**2)))
    palette = np.array([_GREY] * 16 + [_RED_GREEN] * 4 + [_BLUE_YELLOW] * 4 + list(_HUES), np.float32)
    ink = np.where(draw.each(spots), spot, stripes) * draw.between(0.5, 1)
    return draw.on_noise(ink[:, None] * palette[labels][:, :, None, None]), labels


def weaves(n: int, *, seed: int) -> tuple[FloatArray, IntArray]:
    """Draw round pieces of cloth: grey threads under coloured ones that cross them, on noise.

    The class is the pair of angles (6 pairs of 4 angles) times the coloured threads' palette (red or green: 0-5,
    blue or yellow: 6-11). Which of the two angles is on top, and which of its two colours it has, says nothing.

    Returns:
        Images `[n, 3, 40, 40]`, 0 is mid-grey, about -1 to 1; labels `[n]`.

    Example:
        >>> images, labels = weaves(2, seed=0)
        >>> images.shape, labels.shape
        ((2, 3, 40, 40), (2,))
    """
    draw = _Draw(n, seed)
    labels = draw.rng.integers(0, WEAVE_CLASSES, n)
    pair = np.stack(np.triu_indices(4, 1))[:, labels % 6]
    pair = np.where(draw.rng.random(n) < 0.5, pair, pair[::-1])
    turn = pair / 4 + draw.rng.uniform(-0.06, 0.06, (2, n))

    def threads(turn: npt.NDArray[np.float64]) -> FloatArray:
        angle, wavelength = draw.each(turn * np.pi), draw.between(6, 10)
        phase = 2 * np.pi * (draw.x * np.cos(angle) + draw.y * np.sin(angle)) / wavelength + draw.between(0, 2 * np.pi)
        shade: FloatArray = 0.5 + 0.5 * np.tanh(3 * (np.cos(phase) - 0.3))
        return shade

    under, over = threads(turn[0])[:, None], threads(turn[1])[:, None]
    sign = np.where(draw.rng.random((2, n)) < 0.5, -1, 1).astype(np.float32)[:, :, None, None, None]
    palette = np.array([_RED_GREEN, _BLUE_YELLOW], np.float32)[labels // 6][:, :, None, None]
    cloth = sign[0] * under * (1 - over) + sign[1] * over * palette
    distance = np.hypot(draw.x - draw.between(-5, 5), draw.y - draw.between(-5, 5)) - draw.between(11, 18)
    return draw.on_noise(cloth * (draw.between(0.4, 0.9) / (1 + np.exp(distance)))[:, None]), labels


class _Draw:
    """Coordinates and random numbers for `n` images at once."""

    def __init__(self, n: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._n = n
        axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
        self.y, self.x = axis[:, None], axis[None, :]

    def each(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value an image `[n]` -> `[n, 1, 1]`."""
        values = values[:, None, None]
        return values if values.dtype == bool else values.astype(np.float32)

    def between(self, low: float, high: float) -> FloatArray:
        """A random number for each image `[n, 1, 1]`."""
        values: FloatArray = self.rng.uniform(low, high, (self._n, 1, 1)).astype(np.float32)
        return values

    def on_noise(self, images: npt.NDArray[Any]) -> FloatArray:
        noise = self.rng.standard_normal(images.shape, np.float32)
        noisy: FloatArray = np.clip(images + 0.2 * noise, -1.5, 1.5).astype(np.float32)
        return noisy


# --- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a run is trained.

    Attributes:
        rate: peak learning rate of the convolutions.
        head_rate: that of the classifier.
        decay: weight decay of the first layer. A strong one takes away whatever the task does not hold up, so that
            the noise a filter started from fades.
    """

    rate: float
    head_rate: float
    decay: float


PRETRAIN = Recipe(rate=3e-3, head_rate=3e-3, decay=4.0)
FINETUNE = Recipe(rate=1e-3, head_rate=1e-2, decay=4.0)
SCRATCH = Recipe(rate=3e-3, head_rate=1e-2, decay=0.5)


class DemoNet(L.LightningModule):
    """Two convolutions, the first with filters large enough to look at (11x11), and a linear classifier.

    The weights of the first layer start small and nothing normalises its output: only filters that grow by what the
    task tells them are of use, and they come out clean.

    Args:
        classes: how many the classifier tells apart.
        recipe: how to train.
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
        """Images `[N, 3, H, W]` -> scores `[N, classes]`; any size from 15 on."""
        maps = F.avg_pool2d(F.relu(self.conv1(images)), 2)
        scores: torch.Tensor = self.head(F.relu(self.conv2(maps)).mean((2, 3)))
        return scores

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross-entropy."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Count what is classified rightly."""
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


# --- the three runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoRun:
    """One of the three trainings.

    Attributes:
        name: of the run, and of its folder.
        folder: TensorBoard's events; the store is in `cnnlog/` under it.
        accuracies: share of the validation images classified rightly, after each epoch.
        drift: layer -> mean cosine distance of its filters at the last step to those at the first.
    """

    name: str
    folder: Path
    accuracies: tuple[float, ...]
    drift: Mapping[str, float]


@dataclass(frozen=True)
class DemoResult:
    """The folder that holds the three runs, and the runs."""

    folder: Path
    pretrained: DemoRun
    finetuned: DemoRun
    scratch: DemoRun


def run_demo(
    out: str | os.PathLike[str] = "cnnlog-demo",
    *,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
    echo: Callable[[str], None] = print,
) -> DemoResult:
    """Train on `gratings`; fine-tune that on `weaves`; train on `weaves` from scratch. All three are watched.

    Args:
        out: folder for the three runs; if something is in it already, the next free of `out-2`, `out-3`, ... is taken.
        seed: of images, weights and order. The caller's random number generators are left alone.
        quick: two epochs on few images, to see that it works; the filters stay noise.
        progress: show progress bars.
        echo: takes the lines that say what is done.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = free_folder(Path(out))
    epochs, many, few, held_out = (2, 64, 64, 32) if quick else (12, 2560, 512, 512)
    one = [_draw(gratings, n, seed=3 * seed + i, progress=progress) for i, n in enumerate((many, held_out))]
    two = [_draw(weaves, n, seed=3 * seed + i, progress=progress) for i, n in enumerate((few, held_out))]
    probe = _probe(seed=3 * seed + 2)

    def train(name: str, title: str, net: DemoNet, data: list[TensorDataset], batch: int) -> DemoRun:
        echo(title)
        return _train(net, data, folder / name, probe=probe, batch=batch, epochs=epochs, seed=seed, progress=progress)

    with _quiet(), _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DemoNet(GRATING_CLASSES, PRETRAIN)
        first = train("1_pretrained", "1/3  from noise: gratings", net, one, 64)
        tuned = DemoNet(WEAVE_CLASSES, FINETUNE)
        tuned.conv1.load_state_dict(net.conv1.state_dict())
        tuned.conv2.load_state_dict(net.conv2.state_dict())
        second = train("2_finetuned", "2/3  fine-tuned: weaves", tuned, two, 32)
        third = train("3_from_scratch", "3/3  from noise: weaves", DemoNet(WEAVE_CLASSES, SCRATCH), two, 32)
    return DemoResult(folder, first, second, third)


def free_folder(out: Path) -> Path:
    """`out` if nothing is in it, else the first such of `out-2`, `out-3`, ..."""
    folder, number = out, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = out.with_name(f"{out.name}-{number}")
    return folder


def summary(result: DemoResult) -> str:
    """What the demo prints in the end: where the runs lie, the table, the line that opens TensorBoard."""
    runs = (result.pretrained, result.finetuned, result.scratch)
    width = max(len(run.name) for run in runs)
    lines = ["", f"The runs are in {result.folder}:"]
    lines += [f"  {run.name:<{width}}  {run.accuracies[-1]:4.0%} of unseen images right" for run in runs]
    column = max(len(layer) for layer in ("layer", *result.finetuned.drift))
    lines += ["", "How far the filters moved (mean cosine distance to the run's first step; 0 is not at all):"]
    lines += [f"  {'layer':<{column}}  fine-tuned  from scratch"]
    lines += [
        f"  {layer:<{column}}  {drift:10.3f}  {result.scratch.drift[layer]:12.3f}"
        for layer, drift in result.finetuned.drift.items()
    ]
    lines += ["", "Watch them:", f"  {tensorboard_line(result.folder)}"]
    return "\n".join(lines)


def tensorboard_line(folder: Path) -> str:
    """The command that opens TensorBoard on `folder`; with its path, unless the shell finds this very environment's."""
    ours = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    command = "tensorboard"
    if ours.exists() and (found is None or Path(found).resolve() != ours.resolve()):
        command = os.path.relpath(ours) if ours.is_relative_to(Path.cwd()) else str(ours)
    return f"{shlex.quote(command)} --logdir {shlex.quote(str(folder))}"


def _draw(
    task: Callable[..., tuple[FloatArray, IntArray]], n: int, *, seed: int, progress: bool, part: int = 256
) -> TensorDataset:
    """`n` images in parts, to show how far it is; each part has its own seed."""
    starts = range(0, n, part)
    bar = track(starts, f"     drawing {n} {task.__name__}", transient=True, disable=not progress)
    parts = [task(min(part, n - start), seed=1_000_003 * seed + start) for start in bar]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


def _probe(*, seed: int) -> Probe:
    """Two gratings above two weaves, in one image of twice the size; the network takes any."""
    (a, b), (c, d) = gratings(2, seed=seed)[0], weaves(2, seed=seed)[0]
    image = np.concatenate([np.concatenate([a, b], axis=2), np.concatenate([c, d], axis=2)], axis=1)
    half = (0.5, 0.5, 0.5)
    return Probe.from_tensor(torch.from_numpy(image), names=["gratings and weaves"], mean=half, std=half)


def _train(
    net: DemoNet,
    data: list[TensorDataset],
    folder: Path,
    *,
    probe: Probe,
    batch: int,
    epochs: int,
    seed: int,
    progress: bool,
) -> DemoRun:
    order = torch.Generator().manual_seed(seed)
    callbacks: list[Callback] = [FilterMonitor(), FeatureMapMonitor(probe)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(folder.parent.parent, name=folder.parent.name, version=folder.name),
        callbacks=[*callbacks, _Bar()] if progress else callbacks,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=math.ceil(len(data[0]) / batch),
    )
    trainer.fit(
        net,
        DataLoader(data[0], batch_size=batch, shuffle=True, generator=order),
        DataLoader(data[1], batch_size=256),
    )
    store = RunStore.open(str(folder / FOLDER))
    drift = store.read_record(store.steps[-1]).numbers["filter_drift_cosine"]
    return DemoRun(
        name=folder.name,
        folder=folder,
        accuracies=tuple(net.accuracies),
        drift={layer.name: float(mean_of_finite(drift[layer.name])) for layer in store.manifest.layers},
    )


class _Bar(Callback):
    """One bar for a whole run, with the last accuracy."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        text = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %")
        self._bar = Progress(*text, TimeElapsedColumn())
        self._task = self._bar.add_task("     training", total=int(trainer.estimated_stepping_batches))
        self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val_acc"])
        self._bar.update(self._task, description=f"     training, {accuracy:4.0%} right")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._bar.stop()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network gains nothing by more, loses much where cores are busy, and ends alike on every machine."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on hardware, workers and its services, which say nothing to a person trying the demo."""
    names: tuple[Literal["lightning.pytorch", "lightning.fabric"], ...] = ("lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for remark in (".*does not have many workers.*", r".*isinstance\(treespec, LeafSpec\)"):
                warnings.filterwarnings("ignore", message=remark)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

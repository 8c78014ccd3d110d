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
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track
from torch.utils.data import DataLoader, TensorDataset

from cnnlog.capture.probe import Probe
from cnnlog.demo.network import FINETUNE, PRETRAIN, SCRATCH, DemoNet
from cnnlog.demo.tasks import GRATING_CLASSES, WEAVE_CLASSES, IntArray, gratings, weaves
from cnnlog.monitors.callbacks import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.finding import open_run
from cnnlog.snapshot import FloatArray


@dataclass(frozen=True)
class DemoRun:
    """One of the three trainings.

    Attributes:
        name: the name of the run and of its folder.
        folder: has TensorBoard's events, and the store in `cnnlog/`.
        accuracies: the share of the validation images that are classified rightly, after each epoch.
        changed: layer -> how far its weights are from those of the first step at the last, `|W - W0| / |W0|`.
    """

    name: str
    folder: Path
    accuracies: tuple[float, ...]
    changed: Mapping[str, float]


@dataclass(frozen=True)
class DemoResult:
    """The three trainings.

    Attributes:
        folder: has a folder for each of the runs.
        pretrained: the first one, on `gratings`.
        finetuned: the second one, on `weaves`, from the filters of the first.
        scratch: the third one, on `weaves`, from noise.
    """

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
        out: the folder for the three runs. If something is in it, the first free one of `out-2`, `out-3`, ... is taken.
        seed: of images, weights and order. Your own random number generators are left alone.
        quick: train for two epochs on few images, to see that it works. The filters stay noise.
        progress: show progress bars.
        echo: a function that is given the lines which say what is done.

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
    """A folder with nothing in it: the wanted one, or else the first free one of `out-2`, `out-3`, ...

    Args:
        out: the wanted folder.
    """
    folder, number = out, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = out.with_name(f"{out.name}-{number}")
    return folder


def summary(result: DemoResult) -> str:
    """What the demo prints in the end: where the runs are, a table, and the line that opens TensorBoard.

    Args:
        result: the three trainings.
    """
    runs = (result.pretrained, result.finetuned, result.scratch)
    width = max(len(run.name) for run in runs)
    lines = ["", f"The runs are in {result.folder}:"]
    lines += [f"  {run.name:<{width}}  {run.accuracies[-1]:4.0%} of unseen images right" for run in runs]
    column = max(len(layer) for layer in ("layer", *result.finetuned.changed))
    lines += ["", "How far the weights moved (from the run's first step, relative to their size there):"]
    lines += [f"  {'layer':<{column}}  fine-tuned  from scratch"]
    lines += [
        f"  {layer:<{column}}  {changed:10.1%}  {result.scratch.changed[layer]:12.1%}"
        for layer, changed in result.finetuned.changed.items()
    ]
    lines += ["", "Watch them:", f"  {tensorboard_line(result.folder)}"]
    return "\n".join(lines)


def tensorboard_line(folder: Path) -> str:
    """The command that opens TensorBoard on a folder.

    It has the path of this environment's TensorBoard, unless that is the one which the shell finds by itself.

    Args:
        folder: has the runs.
    """
    ours = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    command = "tensorboard"
    if ours.exists() and (found is None or Path(found).resolve() != ours.resolve()):
        command = os.path.relpath(ours) if ours.is_relative_to(Path.cwd()) else str(ours)
    return f"{shlex.quote(command)} --logdir {shlex.quote(str(folder))}"


def _draw(
    task: Callable[..., tuple[FloatArray, IntArray]], n: int, *, seed: int, progress: bool, part: int = 256
) -> TensorDataset:
    """Images, drawn in parts to show how far it is. Each part has its own seed."""
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
    run = open_run(folder)
    return DemoRun(
        name=folder.name,
        folder=folder,
        accuracies=tuple(net.accuracies),
        changed={layer: float(run.numbers("weight_change", layer)[0]) for layer in run.layers},
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
    """Train in one thread.

    So small a network gains nothing by more threads, and loses much if the cores are busy. With one thread it ends
    alike on every machine.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's remarks on hardware, workers and its services, which do not help you to try the demo."""
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

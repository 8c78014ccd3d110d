"""Seeded trainings that make everything a run can hold; each function fills folders below the current one.

Folders: `runs` (watched trainings), `python` (what the watchers say), `given` (checkpoints).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from fingerprints import read_events
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import disable_possible_user_warnings
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, watch

SIDE = 20
KILLED_AFTER = 3  # steps that a killed training has stored, beside its baseline


# --- a network and its data ------------------------------------------------------------------------------------------


class Tiny(L.LightningModule):
    """Four convolutions that differ in how they are shown: RGB, many input channels, depthwise, 1x1.

    Args:
        logs: log the loss. Killed trainings do not, for how much of it is in the file then is a matter of chance.
    """

    def __init__(self, *, logs: bool = True) -> None:
        super().__init__()
        self.logs = logs
        self.colours = nn.Conv2d(3, 6, 5, padding=2)
        self.first = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.LeakyReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 5, 1, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[N, 3, H, W]` to scores `[N, 3]`."""
        maps = self.mix(torch.relu(self.depthwise(self.second(self.first(self.colours(images))))))
        scores: torch.Tensor = self.head(torch.relu(maps).mean((2, 3)))
        return scores

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross-entropy, logged if asked for."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def tiny(seed: int, *, logs: bool = True) -> Tiny:
    """The network with weights of a seed."""
    torch.manual_seed(seed)
    return Tiny(logs=logs)


def batches(*, shuffle: bool = False) -> DataLoader[Any]:
    """24 images whose brightest channel is their class, in batches of 8."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 3, (24,), generator=generator)
    images = torch.rand(24, 3, SIDE, SIDE, generator=generator) + nn.functional.one_hot(labels, 3)[:, :, None, None]
    order = torch.Generator().manual_seed(6)
    return DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=shuffle, generator=order)


def probe(images: int = 1) -> Probe:
    """Random images that count as normalised."""
    tensor = torch.rand(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    half = (0.5, 0.5, 0.5)
    return Probe.from_tensor(tensor, names=[f"noise {i}" for i in range(images)], mean=half, std=half)


def fit(
    net: L.LightningModule,
    callbacks: Sequence[L.Callback],
    logger: Logger | bool,
    *,
    epochs: int = 3,
    root: Path = Path("runs"),
    shuffle: bool = True,
    ckpt_path: Path | None = None,
) -> None:
    """Train the network on the same batches."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=list(callbacks),
        default_root_dir=root,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(net, batches(shuffle=shuffle), ckpt_path=ckpt_path)


def board(name: str, *, version: str = "v0") -> TensorBoardLogger:
    """A TensorBoard logger below `runs`."""
    return TensorBoardLogger("runs", name=name, version=version, default_hp_metric=False)


def keep(folder: Path) -> ModelCheckpoint:
    """Checkpoints of every epoch."""
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


# --- trainings under Lightning ---------------------------------------------------------------------------------------


def plain_runs() -> None:
    """Everything at its default, twice with other weights, and once with the checkpoints of a run."""
    for name, seed, epochs in (("plain", 0, 4), ("other", 1, 3)):
        monitors = [FilterMonitor(), FeatureMapMonitor(probe())]
        fit(tiny(seed), [*monitors, keep(Path("given", name))], board(name), epochs=epochs)
    fit(tiny(2), [FilterMonitor(), FeatureMapMonitor()], board("first_image"), epochs=1)


def styled_runs() -> None:
    """What the monitors' arguments change."""
    from lightning.pytorch.callbacks import (
        EMAWeightAveraging,
    )  # older Lightnings, which the small form runs with, lack it

    common: dict[str, Any] = {"value_range": "layer", "histograms": True, "every_n_epochs": 2}
    fit(
        tiny(3),
        [FilterMonitor(view="slices", max_slices=4, **common), FeatureMapMonitor(probe(3), max_maps=4, **common)],
        board("images"),
        epochs=4,
    )
    steps: dict[str, Any] = {"every_n_train_steps": 2, "value_range": "step", "cmap": "viridis", "width": 120}
    layers = ["colours", "second.*"]
    fit(
        tiny(4),
        [FilterMonitor(layers, max_filters=5, **steps), FeatureMapMonitor(probe(), [nn.ReLU, nn.Conv2d], **steps)],
        board("steps"),
    )
    fit(
        tiny(5),
        [FilterMonitor(view="mean", change=False, cmap="gray"), FeatureMapMonitor(probe(), change=False, width=None)],
        CSVLogger("runs", name="files", version="v0"),
    )
    fit(tiny(6), [FilterMonitor()], logger=False, root=Path("runs/unlogged"), epochs=2)
    fit(tiny(7), [FeatureMapMonitor(probe(2))], logger=False, root=Path("runs/unlogged"), epochs=1)
    fit(tiny(8), [FilterMonitor(), FeatureMapMonitor(probe())], Told(Path("runs/told")), epochs=2)
    ema: dict[str, Any] = {"weights": "ema"}
    averaged = [EMAWeightAveraging(decay=0.5), FilterMonitor(**ema), FeatureMapMonitor(probe(), **ema)]
    fit(tiny(9), averaged, board("averaged"))


class Told(Logger):
    """A logger that nobody knows, with a method for images; writes down what it is told.

    Args:
        folder: for what it writes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._numbers: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Of the logger."""
        return "told"

    @property
    def version(self) -> str:
        """Of the run."""
        return "v0"

    @property
    def save_dir(self) -> str:
        """Where pictures and numbers go."""
        return str(self._folder)

    def log_hyperparams(self, *arguments: Any, **more: Any) -> None:
        """Leave them out."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep the numbers."""
        self._numbers |= {f"{tag}@{step}": float(value) for tag, value in metrics.items()}

    def log_image(self, tag: str, image: Image.Image, step: int, caption: str = "") -> None:
        """Write the picture and its caption."""
        path = self._folder / "told" / f"{tag.replace('/', '-')}-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(caption)

    def finalize(self, status: str) -> None:
        """Write the numbers."""
        (self._folder / "told" / "numbers.json").write_text(json.dumps(self._numbers, sort_keys=True))


# --- killed and resumed ----------------------------------------------------------------------------------------------


def start_killed() -> list[int]:
    """Begin two trainings that will be killed; the ids of their processes. To be called before there are threads."""
    return [_fork(functools.partial(_train_until_killed, name)) for name in ("killed", "behind")]


def resumed_runs(killed: Sequence[int]) -> None:
    """Go on with the killed trainings: one as it is, one that lost its last picture, and one in another folder."""
    for process in killed:
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"expected a training killed by SIGKILL, but its process ended with status {status}")
    _cut_last_pictures(Path("runs/behind/v0"))
    for name, version in (("killed", "v0"), ("behind", "v0"), ("killed", "carried")):
        last = Path("runs", name, "checkpoints", f"epoch={KILLED_AFTER - 2}.ckpt")
        fit(tiny(1, logs=False), _watched_to_be_killed(), board(name, version=version), epochs=5, ckpt_path=last)


def _watched_to_be_killed() -> list[L.Callback]:
    return [FilterMonitor(histograms=True), FeatureMapMonitor(probe())]


def _train_until_killed(name: str) -> None:
    folder = Path("runs", name)
    callbacks = [*_watched_to_be_killed(), Kill(folder / "v0"), keep(folder / "checkpoints")]
    fit(tiny(0, logs=False), callbacks, board(name), epochs=5)


class Kill(L.Callback):
    """Kills its own process when everything of a step is stored, and before the checkpoint of that epoch is.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the step to be stored, and kill."""
        if trainer.current_epoch + 1 < KILLED_AFTER:
            return
        until = time.monotonic() + 120
        while not _has_pictures(self._folder, KILLED_AFTER):  # they are sent when the step is stored
            if time.monotonic() > until:
                raise TimeoutError(f"no pictures of step {KILLED_AFTER} in {self._folder}")
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)


def _has_pictures(folder: Path, step: int) -> bool:
    return any(_shows(event, step) for event in read_events(folder))


def _shows(event: Any, step: int) -> bool:
    return bool(event.step == step and any(value.tag.startswith("filters/") for value in event.summary.value))


def _cut_last_pictures(folder: Path) -> None:
    """Leave of the event file what stands before the last step's pictures, as an earlier kill would have."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, at = path.read_bytes(), 0
    for event in read_events(folder):
        if _shows(event, KILLED_AFTER):
            path.write_bytes(data[:at])
            return
        at += 16 + struct.unpack("<Q", data[at : at + 8])[0]  # length, its sum, the event, its sum
    raise RuntimeError(f"expected pictures of step {KILLED_AFTER} in {path}, but there are none")


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(1)  # it should have been killed


# --- loops of one's own ----------------------------------------------------------------------------------------------


def watched_loops() -> None:
    """Loops with an event file, without, with a writer of their own; broken values; a second half."""
    _loop("runs/loop", range(4), seed=0)
    _loop("runs/loop_without", range(3), seed=1, tensorboard=False, view="mean", map_layers=["mix"], unit="step")
    with contextlib.closing(SummaryWriter("runs/loop_writer")) as writer:
        _loop("runs/loop_writer", range(3), seed=2, tensorboard=writer, histograms=True)
    _loop("runs/loop_broken", range(4), seed=3, broken_at=2)
    _loop("runs/loop_resumed", range(3), seed=4)
    _loop("runs/loop_resumed", range(5), seed=4, resume=3)
    _loop("runs/loop_filters", range(2), seed=5, images=None)


def _loop(
    folder: str, steps: Sequence[int], *, seed: int, broken_at: int = -1, images: int | None = 1, **more: Any
) -> None:
    net = tiny(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    with watch(net, None if images is None else probe(images), folder, **more) as watcher:
        for step in steps:
            if step:
                _one_epoch(net, optimizer)
            if step == broken_at:
                _break(net)
            watcher.snapshot(step, global_step=3 * step)
    written = Path("python", Path(folder).name + ".txt")
    written.parent.mkdir(exist_ok=True)
    written.write_text(f"{watcher!r}\n{watcher.layers}\n{watcher.folder}\n", encoding="utf-8")


def _one_epoch(net: Tiny, optimizer: torch.optim.Optimizer) -> None:
    for images, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _break(net: Tiny) -> None:
    """Make one filter NaN, one infinite, one 40 times as large, and one layer dead."""
    net.colours.weight[2] *= 40
    for parameter in net.depthwise.parameters():
        parameter.zero_()
    net.mix.weight[0], net.mix.weight[1, 0] = torch.nan, torch.inf


# --- a small part, and what all have in common ----------------------------------------------------------------------


def make_few() -> None:
    """Make a small part of it, in seconds: a training under Lightning, and a loop."""
    with seeded():
        monitors = [FilterMonitor(histograms=True), FeatureMapMonitor(probe(2))]
        fit(tiny(0), [*monitors, keep(Path("given"))], board("plain"), epochs=2)
        _loop("runs/loop", range(3), seed=1)


@contextlib.contextmanager
def seeded() -> Iterator[list[warnings.WarningMessage]]:
    """One thread, no names of chance in an SVG, and none of Lightning's remarks; gives the warnings."""
    import matplotlib as mpl

    print(f"outputs of {Path(cnnlog.__file__).parent}", file=sys.stderr)
    mpl.rcParams["svg.hashsalt"] = "cnnlog"
    torch.set_num_threads(1)
    disable_possible_user_warnings()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said

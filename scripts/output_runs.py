"""Seeded runs that between them make everything that cnnlog writes; each function fills folders below the current one.

Folders: `runs` (watched trainings), `demo`, `replays`, `compare`, `export`, `show`, `said` (what commands print),
`python` (what the public objects give), and `given` (what is made here for the commands to work on).
"""

from __future__ import annotations

import contextlib
import inspect
import io
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
import numpy as np
import safetensors.torch
import torch
import torchvision
from fingerprints import read_events
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import disable_possible_user_warnings
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, compare, open_run, watch

ARCH = "squeezenet1_1"
MEASURES = ("cosine", "l2", "update", "norm", "dead_share", "cka", "active", "mean", "max")
SIDE = 20
KILLED_AFTER = 3  # steps that a killed training has stored, beside its baseline
DRAWN_AGAIN = ("runs/behind/v0", "runs/killed/carried")  # event files with pictures of what an earlier process stored


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
        maps = self.mix(torch.relu(self.depthwise(self.second(self.first(self.colours(images))))))
        scores: torch.Tensor = self.head(torch.relu(maps).mean((2, 3)))
        return scores

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def tiny(seed: int, *, logs: bool = True) -> Tiny:
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
    return TensorBoardLogger("runs", name=name, version=version, default_hp_metric=False)


def keep(folder: Path) -> ModelCheckpoint:
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
        return "told"

    @property
    def version(self) -> str:
        return "v0"

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    def log_hyperparams(self, *arguments: Any, **more: Any) -> None:
        """Leave them out."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._numbers |= {f"{tag}@{step}": float(value) for tag, value in metrics.items()}

    def log_image(self, tag: str, image: Image.Image, step: int, caption: str = "") -> None:
        path = self._folder / "told" / f"{tag.replace('/', '-')}-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(caption)

    def finalize(self, status: str) -> None:
        (self._folder / "told" / "numbers.json").write_text(json.dumps(self._numbers, sort_keys=True))


# --- killed and resumed ----------------------------------------------------------------------------------------------


def start_killed() -> list[int]:
    """Begin two trainings that will be killed; the ids of their processes. To be called before there are threads."""
    return [_fork(lambda name=name: _train_until_killed(name)) for name in ("killed", "behind")]  # type: ignore[misc]


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
    written.write_text(f"{watcher!r}\n{watcher.layers}\n{watcher.folder}\n")


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


# --- the command -----------------------------------------------------------------------------------------------------


def command(name: str, *arguments: object) -> None:
    """Type a command; what it says, and its exit code, becomes `said/<name>.txt`."""
    from cnnlog.cli import main

    out, before = io.StringIO(), sys.argv
    sys.argv = ["cnnlog", *(str(argument) for argument in arguments)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    path = Path("said", f"{name}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{out.getvalue()}\nexit code: {code}\n")


def demo() -> None:
    """The demo's three runs, in their quick form."""
    command("demo", "demo", "--quick", "--out", "demo")
    path = Path("said/demo.txt")
    lines = [line.split() for line in path.read_text().splitlines()]  # without bars, and the path of this Python
    path.write_text("\n".join(" ".join(line) for line in lines if "--logdir" not in line and "━" not in "".join(line)))


def given_files() -> None:
    """Weights of a torchvision network, and images."""
    folder = Path("given")
    for name, seed in (("weights_a", 0), ("weights_b", 1)):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(ARCH, num_classes=10)
        safetensors.torch.save_file(model.state_dict(), folder / f"{name}.safetensors")
        (folder / "trained").mkdir(exist_ok=True)
        torch.save(
            {"state_dict": model.state_dict(), "epoch": seed, "global_step": 3 * seed + 3},
            folder / "trained" / f"epoch={seed}.ckpt",
        )
    pixels = np.random.default_rng(7).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((144, 120), Image.Resampling.BICUBIC).save(folder / "image.png")


def replays() -> None:
    """Checkpoints of our own class, and of a torchvision network."""
    ours = ("given/plain", "--module", "output_runs:Tiny")
    command("replay", "replay", *ours, "--probe-of", "runs/plain", "-o", "replays/plain")
    options = ("--chart", "--size", 32, "--unit", "step", "--layers", "colours,mix", "--max", 4, "--no-tensorboard")
    command("replay_steps", "replay", *ours, *options, "--view", "mean", "-o", "replays/steps")
    command("replay_filters", "replay", *ours, "--baseline", "given/other/epoch=0.ckpt", "-o", "replays/filters")
    theirs = ("given/trained", "--arch", ARCH, "--chart", "--size", 48, "--mean", "0.5,0.5,0.5", "--std", "1,1,1")
    command("replay_arch", "replay", *theirs, "-o", "replays/arch")


def comparisons() -> None:
    """One run, two, three sides, pinned steps, weights; as text, page, JSON, CSV and TensorBoard run."""
    sides = {
        "one": ("runs/plain",),
        "two": ("runs/plain", "runs/other"),
        "three": ("runs/other", "runs/files", "given/plain/epoch=3.ckpt"),
        "pinned": ("runs/plain@baseline", "runs/plain@last", "runs/other@2"),
        "images": ("runs/images", "runs/steps"),
        "resumed": ("runs/killed/v0", "runs/killed/carried"),
        "broken": ("runs/loop", "runs/loop_broken"),
        "weights": ("given/weights_a.safetensors", "given/weights_b.safetensors", "--arch", ARCH),
        "of_probe": ("replays/arch", "given/weights_a.safetensors", "--arch", ARCH),
        "maps": ("replays/arch", "given/weights_b.safetensors", "--arch", ARCH, "--image", "given/image.png"),
    }
    Path("compare").mkdir()
    for name, given in sides.items():
        to = f"compare/{name}"
        files = ("-o", f"{to}.html", "--json", f"{to}.json", "--csv", f"{to}.csv", "--tensorboard", to)
        command(f"compare_{name}", "compare", *given, *files)
    command("compare_again", "compare", "runs/plain", "--csv", "compare/one.csv")


def exports() -> None:
    """Every form of both kinds, and what the options change."""
    forms = ("--strip", "--sheet", "--gif", "--apng", "--figure")
    for run in ("plain", "images", "loop_broken", "loop_filters"):
        for kind in ("filters", "feature_maps"):
            folder = Path("export", run, kind)
            folder.mkdir(parents=True)
            command(f"export_{run}_{kind}", "export", f"runs/{run}", *forms, "--kind", kind, "-o", folder)
    to = Path("export")
    for suffix in ("pdf", "svg"):
        for kind in ("filters", "feature_maps"):
            figure = ("--figure", "--kind", kind, "--layer", "second.0", "--step", 2)
            command(f"export_{kind}_{suffix}", "export", "runs/plain", *figure, "-o", to / f"{kind}.{suffix}")
    few = ("--strip", "--layer", "second.0", "--steps", "0,2", "--channels", "4,1", "--cmap", "magma", "--width", 200)
    command("export_few", "export", "runs/plain", *few, "-o", to / "few.png")
    one = ("--gif", "--kind", "feature_maps", "--layer", "mix", "--steps", "0,2", "--image", 2)
    command("export_one", "export", "runs/images", *one, "-o", to / "one.gif")
    command("export_sheet", "export", "demo/2_finetuned", "--sheet", "--step", 1, "-o", to / "sheet.png")
    command("export_again", "export", "demo/2_finetuned", "--sheet", "-o", to / "sheet.png")


def shown() -> None:
    """`layers` and `show`, with a file of weights."""
    file, to = "given/weights_a.safetensors", Path("show")
    to.mkdir()
    weights = (ARCH, "--weights", "given/weights_b.safetensors")
    command("layers", "layers", file, "--arch", ARCH, "--size", 64)
    for figure in ((), ("--figure",)):
        end = "figure" if figure else "grid"
        first = ("--arch", ARCH, "--layer", "features.0", "-o", to / f"rgb_{end}.png")
        command(f"show_filters_{end}", "show", "filters", file, *first, *figure)
        slices = ("--layer", "features.3.expand3x3", "--max", 9, "--cmap", "auto", "--range", "layer")
        command(f"show_slices_{end}", "show", "filters", *weights, *slices, "-o", to / f"slices_{end}.png", *figure)
        maps = ("--image", "given/image.png", "--layer", "features.0", "--max", 12, "-o", to / f"maps_{end}.png")
        command(f"show_maps_{end}", "show", "maps", file, "--arch", ARCH, *maps, *figure)
    mean = ("--layer", "features.3.squeeze", "--view", "mean", "--figure")
    command("show_svg", "show", "filters", *weights, *mean, "-o", to / "mean.svg")


def helps_and_refusals() -> None:
    """What a person reads who asks for help, or for what cannot be."""
    commands = ("layers", "show filters", "show maps", "compare", "tensorboard", "export", "replay", "demo")
    for name in ("", "show", *commands):
        command(f"help/{name.replace(' ', '_') or 'cnnlog'}", *name.split(), "--help")
    refused: dict[str, tuple[object, ...]] = {
        "no_run": ("export", "runs/nothing", "--gif"),
        "several_runs": ("export", "runs", "--gif"),
        "layer": ("export", "runs/plain", "--gif", "--layer", "colors"),
        "step": ("compare", "runs/plain@9", "runs/other"),
        "steps": ("export", "runs/plain", "--strip", "--steps", "0,x"),
        "channel": ("export", "runs/plain", "--strip", "--channels", "99"),
        "suffix": ("export", "runs/plain", "--gif", "-o", "export/a.png"),
        "arch": ("layers", "squeezenet1_2"),
        "show_layer": ("show", "filters", ARCH, "--weights", "none", "--layer", "features.1", "-o", "a.png"),
        "show_suffix": ("show", "filters", ARCH, "--weights", "none", "--layer", "features.0", "-o", "a.pdf"),
        "cmap": ("show", "filters", ARCH, "--weights", "none", "--layer", "classifier.1", "-o", "a.png", "--cmap", "n"),
        "replay": ("replay", "given/plain", "--arch", ARCH, "--module", "output_runs:Tiny"),
        "replay_class": ("replay", "given/plain", "--module", "output_runs:Tniy"),
        "nothing_shared": ("compare", "runs/plain", "replays/arch"),
        "alone": ("compare", "given/weights_a.safetensors"),
    }
    for name, arguments in refused.items():
        command(f"refused/{name}", *arguments)


# --- from Python -----------------------------------------------------------------------------------------------------


def from_python() -> None:
    """What the public objects give: signatures, a run's tables, arrays and figures, a comparison's texts."""
    folder = Path("python")
    folder.mkdir(exist_ok=True)
    (folder / "signatures.txt").write_text("\n".join(_signatures()) + "\n")
    for path in ("runs/plain", "runs/images", "runs/files", "runs/killed/v0", "runs/loop_broken", "demo/2_finetuned"):
        _read_run(path, folder / path.replace("/", "-"))
    for sides in (("runs/plain",), ("runs/plain", "runs/other"), ("runs/plain", "given/other/epoch=2.ckpt")):
        made = compare(*sides)
        name = folder / f"compare-{'-'.join(Path(side).stem for side in sides)}"
        name.with_suffix(".json").write_text(json.dumps(made.to_dict()))
        name.with_suffix(".csv").write_text(made.to_csv())
        texts = (made.to_text(), made.verdict(), repr(made), made._repr_html_(), repr(made.curves()))
        name.with_suffix(".txt").write_text("\n---\n".join(texts))
        made.figure("second.0").savefig(name.with_suffix(".png"))
    probes = (
        Probe.chart(64),
        Probe.from_images("given/image.png", size=32),
        Probe.from_dataset(batches().dataset, (0, 5)),
    )
    pictures = {str(i): torch.from_numpy(np.stack(made.pictures).copy()) for i, made in enumerate(probes)}
    safetensors.torch.save_file(pictures, folder / "probes.safetensors")
    (folder / "probes.txt").write_text("\n".join(f"{made!r} {made.fingerprint} {made.names}" for made in probes))


def _read_run(path: str, to: Path) -> None:
    run: Any = open_run(path)
    to.mkdir()
    for measure in MEASURES:
        for layer in (None, run.layers[0]):
            try:
                table = run.drift(measure, layer).to_csv(index=False)
            except ValueError as error:
                table = str(error)
            (to / f"drift-{measure}-{layer}.csv").write_text(table)
    arrays: dict[str, torch.Tensor] = {}
    for layer in run.layers:
        for measure in MEASURES:
            with contextlib.suppress(ValueError):
                arrays[f"numbers/{measure}/{layer}"] = torch.from_numpy(run.numbers(measure, layer))
        for which in ("baseline", "last"):
            for kind, read in (("filters", run.filters), ("maps", run.feature_maps)):
                with contextlib.suppress(ValueError):
                    arrays[f"{kind}/{which}/{layer}"] = torch.from_numpy(read(layer, which))
    arrays = {name: array.clone().contiguous() for name, array in arrays.items()}
    safetensors.torch.save_file(arrays, to / "arrays.safetensors")
    (to / "about.txt").write_text(f"{run!r}\n{run._repr_html_()}\n{run.steps}\n{run.layers}\n{run.skipped}\n")
    run.figure(run.layers[0]).savefig(to / "filters.png")
    run.figure(run.layers[-1], kind="feature_maps", cmap="magma").savefig(to / "maps.png")


def _signatures() -> Iterator[str]:
    """The public names, and the arguments they take."""
    yield ", ".join(dir(cnnlog))
    functions: list[Callable[..., Any]] = [FilterMonitor, FeatureMapMonitor, watch, open_run, compare, Probe]
    functions += [Probe.from_images, Probe.from_tensor, Probe.from_dataset, Probe.chart]
    for public in functions:
        for name, parameter in inspect.signature(public).parameters.items():
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            yield f"{public.__qualname__}: {parameter.kind.description} {name}{default}"


# --- all of it -------------------------------------------------------------------------------------------------------


def make_all() -> None:
    """Make everything in the current folder, which must be empty."""
    with _seeded() as said:
        Path("given").mkdir()
        killed = start_killed()
        given_files()
        for part in (plain_runs, styled_runs, watched_loops, demo):
            _timed(part)
        _timed(lambda: resumed_runs(killed), "resumed_runs")
        for part in (replays, comparisons, exports, shown, helps_and_refusals, from_python):
            _timed(part)
    ours = sorted({str(warning.message) for warning in said if str(warning.message).startswith("cnnlog")})
    Path("said/warnings.txt").write_text("\n".join(ours) + "\n")


def make_few() -> None:
    """Make a small part of it, in seconds: a training under Lightning, and a loop."""
    with _seeded():
        monitors = [FilterMonitor(histograms=True), FeatureMapMonitor(probe(2))]
        fit(tiny(0), [*monitors, keep(Path("given"))], board("plain"), epochs=2)
        _loop("runs/loop", range(3), seed=1)


def _timed(part: Callable[[], None], name: str = "") -> None:
    begun = time.monotonic()
    part()
    print(f"{time.monotonic() - begun:5.1f} s  {name or part.__name__}", file=sys.stderr)


@contextlib.contextmanager
def _seeded() -> Iterator[list[warnings.WarningMessage]]:
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

"""What a snapshot costs, side by side in one run: the monitors, make_grid + add_image, and matplotlib + add_figure.

Everything is measured inside one training per network, at the end of its epochs, taking turns, so that a noisy machine
is noisy for all; the table shows medians. Every filter is moved by noise between the epochs, which is the worst case
for the bytes of a picture of change.

    scripts/bench             AlexNet and ResNet-50, about five minutes on two cores
    scripts/bench --snapshot  CPU time of a snapshot as a multiple of a bare pass, on one thread; of the loan
    scripts/bench --memory    memory and open files over 1,000 snapshots of a small network
    scripts/bench --compare   time and memory of `cnnlog compare`, by number of steps
    scripts/bench --page      how long the page of a comparison takes to show a step
    scripts/bench --quick     a tiny network, to see that the script runs
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import advice

try:
    import lightning as L
    import matplotlib as mpl
    import torch
    import torchvision
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.utilities import disable_possible_user_warnings
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.tensorboard import SummaryWriter

    from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
except ModuleNotFoundError as error:
    raise advice("scripts/bench", error) from error

CHANNELS = 64
WAYS = ("bare forward", "cnnlog", "make_grid + add_image", "matplotlib 8x8 + add_figure")
BARE, OURS, MAKE_GRID, MATPLOTLIB = WAYS


@dataclass(frozen=True)
class Cost:
    """What one snapshot took: seconds of the training thread, of all threads (CPU), bytes added to files."""

    blocked: float
    cpu: float
    events: int
    store: int


Costs = dict[str, dict[int, list[Cost]]]
"""Way -> epoch -> what its snapshots took."""


class Meter:
    """Measures one piece of work, and what the background does after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settle()
        self.sizes = self._sizes()
        self.cpu = time.process_time()
        self.start = time.perf_counter()
        self.blocked = 0.0

    def stop(self, flush: Callable[[], object] = lambda: None) -> Cost:
        """What the work took; `flush` writes out what a file's writer still holds back."""
        self.blocked = time.perf_counter() - self.start
        settle()
        flush()
        settle()
        cpu = time.process_time() - self.cpu
        events, store = (after - before for after, before in zip(self._sizes(), self.sizes, strict=True))
        return Cost(self.blocked, cpu, events, store)

    def _sizes(self) -> tuple[int, int]:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        events = sum(path.stat().st_size for path in files if "tfevents" in path.name)
        return events, sum(path.stat().st_size for path in files if path.suffix == ".safetensors")


def settle() -> None:
    """Wait until no thread of this process works any more (those of OpenMP spin a while after a forward pass)."""
    while True:
        before = time.process_time()
        time.sleep(0.15)
        if time.process_time() - before < 0.003:
            return


class Noisy(L.LightningModule):
    """Trains nothing: moves every convolution's weights by a hundredth of their spread, once a step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.automatic_optimization = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network, as it is."""
        output: torch.Tensor = self.net(x)
        return output

    def training_step(self, _: object) -> None:
        """Move the weights, whatever the batch is."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        with torch.no_grad():
            for weight in convolution_weights(self.net):
                weight.add_(torch.randn_like(weight) * (0.01 * weight.std()))
        optimizer.step()  # counts the step; there are no gradients

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that never gets a gradient: Lightning counts steps by it."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Before(L.Callback):
    """Stands before the monitors: measures the other ways at each epoch's end, then starts the clock for ours."""

    def __init__(self, net: nn.Module, probe: torch.Tensor, layers: Sequence[str], folder: Path, slow: int) -> None:
        self.ways = {BARE: self._bare, MAKE_GRID: self._make_grid, MATPLOTLIB: self._matplotlib}
        self.costs: Costs = {way: {} for way in WAYS}
        self.net, self.probe, self.folder, self.slow = net, probe, folder, slow
        self.layers = {name: module for name, module in net.named_modules() if name in layers}
        assert len(self.layers) == len(layers), layers
        self.writers = {way: SummaryWriter(str(folder / way.split()[0])) for way in (MAKE_GRID, MATPLOTLIB)}
        self.ours: Meter | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the other ways, in an order that changes from epoch to epoch; then start the clock for ours."""
        epoch = trainer.current_epoch
        first, second = (MAKE_GRID, MATPLOTLIB) if epoch % 2 else (MATPLOTLIB, MAKE_GRID)
        for way in (first, second, *[BARE] * 5):
            if way == MATPLOTLIB and not 0 < epoch <= self.slow:
                continue
            writer = self.writers.get(way)
            meter = Meter(self.folder / way.split()[0])
            self.ways[way](epoch)
            self._note(way, epoch, meter.stop(writer.flush if writer else lambda: None))
        self.ours = Meter(self.folder / "ours")

    def after_ours(self, trainer: L.Trainer) -> None:
        """Stop the clock: the monitors have returned."""
        assert self.ours is not None, "the monitors stand between the two callbacks"
        assert isinstance(trainer.logger, TensorBoardLogger)
        self._note(OURS, trainer.current_epoch, self.ours.stop(trainer.logger.experiment.flush))

    def _note(self, way: str, epoch: int, cost: Cost) -> None:
        if epoch > 0:  # the first time loads modules, opens files and warms caches
            self.costs[way].setdefault(epoch, []).append(cost)

    def _bare(self, _: int) -> None:
        modes = {module: module.training for module in self.net.modules()}
        self.net.eval()
        with torch.no_grad():
            self.net(self.probe)
        for module, training in modes.items():
            module.training = training

    def _arrays(self) -> dict[str, torch.Tensor]:
        """What one sees shown: the first 64 filters (as RGB, else their first channel), and feature maps, a layer."""
        maps: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, output: maps.__setitem__(name, output.detach().clone())

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.layers.items()]
        self._bare(0)
        for hook in hooks:
            hook.remove()
        arrays = {}
        for name, module in self.layers.items():
            weight = module.weight.detach()
            arrays[f"filters/{name}"] = (weight if weight.shape[1] == 3 else weight[:, :1])[:CHANNELS]
            arrays[f"feature_maps/{name}"] = maps[name][0, :CHANNELS, None]
        return arrays

    def _make_grid(self, epoch: int) -> None:
        for tag, cells in self._arrays().items():
            grid = torchvision.utils.make_grid(cells, nrow=8, normalize=True, scale_each=True, padding=1)
            self.writers[MAKE_GRID].add_image(tag, grid, epoch)

    def _matplotlib(self, epoch: int) -> None:
        from matplotlib import pyplot

        for tag, cells in self._arrays().items():
            figure, axes = pyplot.subplots(8, 8, figsize=(8, 8))
            for axis in axes.flat:
                axis.axis("off")
            for axis, cell in zip(axes.flat, cells, strict=False):
                spread = (cell - cell.min()) / (cell.max() - cell.min())
                axis.imshow(spread.permute(1, 2, 0), cmap="gray")
            self.writers[MATPLOTLIB].add_figure(tag, figure, epoch)


class After(L.Callback):
    """Stands after the monitors and stops the clock that `Before` started."""

    def __init__(self, before: Before) -> None:
        self.before = before

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.before.after_ours(trainer)


def convolution_weights(net: nn.Module) -> Iterable[torch.Tensor]:
    """The filters of all 2-D convolutions."""
    return (module.weight for module in net.modules() if isinstance(module, nn.Conv2d))


def five_layers(net: nn.Module) -> list[str]:
    """Five convolutions, or all there are: what `"auto"` takes for AlexNet; evenly spread for deeper networks."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    count = min(5, len(names))
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]


def quiet_trainer(**arguments: Any) -> L.Trainer:
    """A trainer on the CPU that prints nothing and keeps no checkpoint; `arguments` are Lightning's."""
    return L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **arguments,
    )


def batches(count: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """`Noisy` looks at none of them: each stands for one step of the training."""
    return DataLoader(TensorDataset(torch.zeros(count, 1)))


def measure(name: str, net: nn.Module, size: int, *, repeats: int, slow: int) -> Costs:
    """Train a network that nothing moves but noise, and measure every way at the end of each epoch.

    Args:
        name: what the table calls the network.
        net: the network.
        size: height and width of the probe.
        repeats: how many epochs count; one more comes before them.
        slow: in how many of these epochs matplotlib draws, too.
    """
    probe = Probe.chart(size)
    layers = five_layers(net)
    with tempfile.TemporaryDirectory(prefix="cnnlog-bench-") as scratch:
        folder = Path(scratch)
        before = Before(net, probe.tensor, layers, folder, slow)
        watched = [f"net.{layer}" for layer in layers]
        monitors = [
            FilterMonitor(watched, max_filters=CHANNELS),
            FeatureMapMonitor(probe, watched, max_maps=CHANNELS),
        ]
        logger = TensorBoardLogger(folder / "ours", name=name, version="run")
        trainer = quiet_trainer(
            max_epochs=repeats + 1, logger=logger, callbacks=[before, *monitors, After(before)], log_every_n_steps=1
        )
        trainer.fit(Noisy(net), batches(1))
        for writer in before.writers.values():
            writer.close()
    return before.costs


def table(name: str, size: int, layers: Sequence[str], costs: Costs) -> str:
    """What `measure` found, as a table in Markdown."""

    def values(way: str, what: str, epoch: int) -> list[float]:
        return [getattr(cost, what) for cost in costs[way][epoch]]

    def middle(way: str, what: str) -> float:
        return statistics.median(value for epoch in costs[way] for value in values(way, what, epoch))

    def ratio(way: str, what: str) -> float:
        """To the bare forward passes of the same epoch: a slow moment of the machine is slow for both."""
        bare = {epoch: statistics.median(values(BARE, what, epoch)) for epoch in costs[way]}
        return statistics.median(value / bare[epoch] for epoch in costs[way] for value in values(way, what, epoch))

    lines = [
        f"### {name}, probe 1x3x{size}x{size}, {len(layers)} layers, up to {CHANNELS} channels each",
        "",
        f"Layers: {', '.join(layers)}.",
        "",
        "| per snapshot | thread blocked, ms | at best | x forward | all threads, CPU ms | x forward "
        "| events, kB | store, kB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for way in WAYS:
        if costs[way]:
            best = min(value for epoch in costs[way] for value in values(way, "blocked", epoch))
            blocked = f"{1000 * middle(way, 'blocked'):.1f} | {1000 * best:.1f} | {ratio(way, 'blocked'):.2f}"
            cpu = f"{1000 * middle(way, 'cpu'):.0f} | {ratio(way, 'cpu'):.2f}"
            files = " | ".join(f"{middle(way, what) / 1000:.0f}" for what in ("events", "store"))
            lines.append(f"| {way} | {blocked} | {cpu} | {files} |")
    counted = ", ".join(f"{way}: {sum(map(len, costs[way].values()))}" for way in WAYS)
    return "\n".join([*lines, "", f"Medians ({counted}); each ratio is to the forward passes of the same epoch."])


def machine() -> str:
    """Date, processor and versions, in one line: numbers of another machine are others."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists() and (
        found := re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8"))
    ):
        processor = found[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"torch {torch.__version__} ({torch.get_num_threads()} threads), lightning {L.__version__}"
    return f"{datetime.date.today()}, {processor}, {cores} cores, Python {platform.python_version()}, {versions}"


class MemoryWatch(L.Callback):
    """Notes resident memory and open files at some steps, with the background at rest."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps
        self.seen: list[tuple[int, float, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        """Look, if this is one of the steps."""
        if trainer.global_step in self.steps:
            settle()
            resident = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
            assert resident is not None
            open_files = len(list(Path("/proc/self/fd").iterdir()))
            self.seen.append((trainer.global_step, int(resident[1]) / 1024, open_files))


def memory(snapshots: int) -> str:
    """Resident memory and open files over so many snapshots, as a table in Markdown."""
    net = tiny_net()
    probe = Probe.chart(64)
    watch = MemoryWatch([max(snapshots * part // 10, 1) for part in (1, 2, 5, 10)])
    with tempfile.TemporaryDirectory(prefix="cnnlog-bench-") as scratch:
        every: dict[str, Any] = {"every_n_epochs": None, "every_n_train_steps": 1}
        trainer = quiet_trainer(
            max_epochs=1,
            logger=TensorBoardLogger(scratch),
            callbacks=[FilterMonitor(**every), FeatureMapMonitor(probe, **every), watch],
        )
        trainer.fit(Noisy(net), batches(snapshots))
        files = len(list(Path(scratch).rglob("step-*.safetensors")))
    rows = [f"| {step:,} | {resident:.1f} | {open_files} |" for step, resident, open_files in watch.seen]
    growth = watch.seen[-1][1] - watch.seen[0][1]
    return "\n".join(
        [
            f"### Memory over {snapshots:,} snapshots of a small network",
            "",
            "| snapshots | resident, MiB | open files |",
            "|--:|--:|--:|",
            *rows,
            "",
            f"From the first row to the last: {growth:+.1f} MiB; {files:,} steps in the store.",
        ]
    )


def tiny_net() -> nn.Module:
    """Two convolutions, so that a snapshot takes next to nothing."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )


def main() -> None:
    """Run what the options ask for, and print its table."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny network, few repeats")
    parser.add_argument("--snapshot", action="store_true", help="CPU time on one thread instead")
    parser.add_argument("--memory", action="store_true", help="memory over 1,000 snapshots instead")
    parser.add_argument("--compare", action="store_true", help="`cnnlog compare` by number of steps instead")
    parser.add_argument("--page", action="store_true", help="its page in a browser instead")
    parser.add_argument("--repeats", type=int, default=9, help="epochs that count (default: %(default)s)")
    parser.add_argument("--slow", type=int, default=3, help="of them, those with matplotlib (default: %(default)s)")
    parser.add_argument("--nets", nargs="+", choices=["AlexNet", "ResNet-50"], default=["AlexNet", "ResNet-50"])
    chosen = parser.parse_args()
    if chosen.snapshot:
        script = str(Path(__file__).with_name("bench_snapshot.py"))
        os.execv(sys.executable, [sys.executable, script, *(["--quick"] if chosen.quick else [])])
    if chosen.compare or chosen.page:
        flags = [flag for flag in ("quick", "page") if getattr(chosen, flag)]
        script = str(Path(__file__).with_name("bench_compare.py"))
        os.execv(sys.executable, [sys.executable, script, *(f"--{flag}" for flag in flags)])

    mpl.use("Agg")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    print(machine(), end="\n\n", flush=True)
    if chosen.memory:
        print(memory(20 if chosen.quick else 1000))
        return
    if chosen.quick:
        nets = {"A tiny network": (tiny_net, 32)}
        chosen.repeats, chosen.slow = 1, 1
    else:
        known = {"AlexNet": torchvision.models.alexnet, "ResNet-50": torchvision.models.resnet50}
        nets = {name: (known[name], 224) for name in chosen.nets}
    for name, (make, size) in nets.items():
        net = make()
        costs = measure(name, net, size, repeats=chosen.repeats, slow=chosen.slow)
        print(table(name, size, five_layers(net), costs), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

"""What one snapshot costs as a multiple of a bare forward pass: CPU time of the training's thread, and of all threads.

One torch thread; bare passes stand between the snapshots, so that a noisy machine is noisy for both; medians. Between
two snapshots every weight is moved by a hundredth of its mean, so that nothing can be left out as unchanged.

    scripts/bench --snapshot            four networks, about a minute
    scripts/bench --snapshot --quick    a tiny network, to see that the script runs
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from environment import advice

try:
    import torch
    import torchvision
    from torch import nn

    import cnnlog
    from cnnlog import Probe
    from cnnlog.capture.loan import borrow
    from cnnlog.capture.reach import Reach
except ModuleNotFoundError as error:
    raise advice("scripts/bench", error) from error

SNAPSHOTS, PASSES = 15, 3


class Block(nn.Module):
    """Two convolutions and what goes around them, as in a ResNet for small images."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.around = nn.ReLU(), nn.Sequential()
        if stride > 1:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both, and what goes around them."""
        inside = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        result: torch.Tensor = self.relu(self.around(x) + inside)
        return result


def resnet20() -> nn.Module:
    """The ResNet for images of 32 pixels, with 20 layers (He et al. 2016)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(inputs, outputs, 2 if outputs > inputs else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def tiny() -> nn.Module:
    """Two convolutions, so that everything takes next to nothing."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AlexNet": (torchvision.models.alexnet, 224),
    "ResNet-50": (torchvision.models.resnet50, 224),
    "MobileNetV3-L": (torchvision.models.mobilenet_v3_large, 224),
    "ResNet-20": (resnet20, 32),
}


@dataclass
class Times:
    """Seconds of CPU time, each measured several times."""

    bare: list[float] = field(default_factory=list)
    thread: list[float] = field(default_factory=list)
    everything: list[float] = field(default_factory=list)
    walk: list[float] = field(default_factory=list)
    loan: list[float] = field(default_factory=list)


def settle() -> None:
    """Wait until no thread of this process works any more."""
    while True:
        before = time.process_time()
        time.sleep(0.05)
        if time.process_time() - before < 0.004:
            return


def measure(net: nn.Module, size: int, snapshots: int) -> Times:
    """What snapshots, loans and bare passes of a network take, in turns."""
    times = Times()
    image = torch.rand(1, 3, size, size)
    with tempfile.TemporaryDirectory(prefix="cnnlog-bench-") as folder:
        watched = cnnlog.watch(net.train(), Probe.chart(size), folder)
        watched.snapshot(0)
        for step in range(1, snapshots + 1):
            with torch.no_grad():
                for weight in net.parameters():
                    weight.add_(0.01 * weight.abs().mean() * torch.randn_like(weight))
                net.eval()
                for _ in range(PASSES):
                    times.bare.append(_taken(lambda: net(image)))
                net.train()
            settle()
            everything = time.process_time()
            times.thread.append(_taken(lambda at=step: watched.snapshot(at)))
            settle()
            times.everything.append(time.process_time() - everything)
            times.walk.append(_taken(lambda: Reach([*net.modules()]).put_back(registered=True)))
            times.loan.append(_taken(lambda: _lend(net)))
        watched.close()
    return times


def _lend(net: nn.Module) -> None:
    with borrow(net):
        pass


def _taken(work: Callable[..., object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def row(name: str, net: nn.Module, times: Times) -> str:
    """A row of the table."""
    bare = statistics.median(times.bare)
    modules = sum(1 for _ in net.modules())
    walk, loan = statistics.median(times.walk), statistics.median(times.loan)
    return (
        f"| {name} | {bare * 1e3:.1f} | {statistics.median(times.thread) / bare:.2f} | "
        f"{statistics.median(times.everything) / bare:.2f} | {modules} | {walk * 1e3:.2f} | "
        f"{walk * 1e3 * 250 / modules:.2f} | {loan * 1e3:.2f} |"
    )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench --snapshot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny network, few repeats")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="tensorboard")
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, load before {load}, "
        f"torch {torch.__version__}, one thread; medians of {2 if chosen.quick else SNAPSHOTS} snapshots",
        end="\n\n",
    )
    print("| network | bare pass, ms | thread | all | modules | walk, ms | walk of 250 modules, ms | loan, ms |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, (make, size) in ({"A tiny network": (tiny, 32)} if chosen.quick else NETS).items():
        net = make()
        print(row(name, net, measure(net, size, 2 if chosen.quick else SNAPSHOTS)), flush=True)


if __name__ == "__main__":
    main()

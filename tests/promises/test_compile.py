"""Compiled models: watching one compiles nothing again, breaks no graph, and leaves the training as it was."""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.devices import ACCELERATORS, on
from support.inertness import Trained, differences, trace
from support.training import probe
from torch import nn
from torch._dynamo.utils import counters

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

IMAGE = (3, 16, 16)
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++"))) and HEADERS.exists()


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compilable(Trained):
    """Reads its losses outside of the training step, where they would break the graph."""

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        output = self(batch[0])
        return (output - torch.rand_like(output)).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item().hex())


class Net(nn.Sequential):
    """With a forward of its own: torch 2.6 compiles none of `nn.Sequential` in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self:
            x = part(x)
        return x


def build() -> Compilable:
    """With what an observer disturbs: batch statistics, an activation in place, a draw."""
    return Compilable(
        Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(4, 4, 3))
    )


def whole(module: Trained, backend: str) -> Any:
    return torch.compile(module, backend=backend)


def part(module: Trained, backend: str) -> Any:
    compiled: Any = torch.compile(module.net, backend=backend)
    module.net = compiled
    return module


def in_place(module: Trained, backend: str) -> Any:
    module.compile(backend=backend)
    return module


def part_in_place(module: Trained, backend: str) -> Any:
    module.net.compile(backend=backend)
    return module


def monitors() -> Sequence[L.Callback]:
    return [FilterMonitor(every_n_train_steps=1), FeatureMapMonitor(probe(), every_n_train_steps=1)]


def trained(
    how: Callable[[Trained, str], Any],
    backend: str,
    make: Callable[[], Sequence[L.Callback]],
    folder: Path,
    accelerator: str = "cpu",
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """What the training left behind, and what the compiler counted meanwhile."""
    torch._dynamo.reset()
    counters.clear()
    left = trace(build, IMAGE, make, folder, images=8, fitted=lambda module: how(module, backend), **on(accelerator))
    return left, {kind: dict(counters[kind]) for kind in ("frames", "stats", "graph_break")}


@pytest.mark.parametrize("how", [whole, part, in_place, part_in_place])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_compiled_model_trains_as_if_unwatched_and_is_compiled_once(
    accelerator: str, how: Callable[[Trained, str], Any], backend: str, tmp_path: Path
) -> None:
    if backend == "inductor" and not COMPILER:
        pytest.skip("inductor needs a C++ compiler and Python's headers, and there are none")
    if backend == "inductor" and " " in tempfile.gettempdir():
        pytest.skip("inductor gives the compiler names of temporary files unquoted, and TMPDIR has a space")
    if backend == "inductor" and " " in torch.__file__ and torch.__version__ < "2.15":  # seen in 2.6, not in 2.15
        pytest.skip("this torch gives the compiler its own folder unquoted, and its path has a space")
    plain, counted = trained(how, backend, list, tmp_path, accelerator)
    watched, counted_watched = trained(how, backend, monitors, tmp_path, accelerator)
    assert differences(plain, watched) == []
    assert counted_watched == counted
    assert counted["graph_break"] == {}
    assert counted["stats"]["unique_graphs"] == 1  # it was compiled at all, and once
    run = RunStore.open(str(tmp_path / "cnnlog_logs" / "version_0" / "cnnlog"))
    assert [layer.name for layer in run.manifest.layers] == ["net.0", "net.4"]
    assert run.steps == [0, 1, 2, 3, 4]


class Careless(L.Callback):
    """A monitor as people write it."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.eval()
        with torch.no_grad():
            pl_module(probe().tensor)
        pl_module.train()


class Printing(Careless):
    """One that hooks the model for good."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.get_submodule("net").register_forward_hook(lambda *_: print())


@pytest.mark.parametrize(("careless", "seen"), [(Careless, "stats"), (Printing, "graph_break")])
def test_the_counts_see_careless_monitors(careless: type[L.Callback], seen: str, tmp_path: Path) -> None:
    _, counted = trained(in_place, "eager", list, tmp_path)
    _, disturbed = trained(in_place, "eager", lambda: [careless()], tmp_path)
    assert disturbed[seen] != counted[seen]

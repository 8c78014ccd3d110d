"""Two trainings that begin at the same moment do not mix: one has the folder, the other is told so before it trains."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.forks import Forks
from support.training import TinyCNN, events, fit, image_steps, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor, watch
from cnnlog.runs.store import RunStore

pytestmark = pytest.mark.once

ROUNDS = 5
EPOCHS = 2


class Gate(L.Callback):
    """Stands before the monitors, and lets both processes through together."""

    def __init__(self, folder: Path, who: int, delay: float) -> None:
        self.folder, self.who, self.delay = folder, who, delay

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        at_gate(self.folder, self.who, self.delay)


def at_gate(folder: Path, who: int, delay: float) -> None:
    (folder / f"ready{who}").touch()
    while not (folder / f"ready{1 - who}").exists():
        pass
    until = time.perf_counter() + delay
    while time.perf_counter() < until:
        pass


def run(where: str, how: str, who: int, delay: float) -> None:
    """Train in a child process, and leave what came of it."""
    folder = Path(where)
    torch.manual_seed(who)
    module, error = TinyCNN(), ""
    weight = module.get_parameter("net.0.weight")
    first = weight.detach().flatten().tolist()
    try:
        if how == "watch":
            at_gate(folder, who, delay)
            watched(module.net, folder)
        else:
            loggers: dict[str, Any] = {"tensorboard": TensorBoardLogger, "csv": CSVLogger}
            logger = loggers[how](folder, name="run", version="v0") if how in loggers else False
            monitors = [FilterMonitor(), FeatureMapMonitor(probe())]
            fit(trainer(folder, [Gate(folder, who, delay), *monitors], logger=logger, max_epochs=EPOCHS), module)
    except ValueError as refused:
        error = str(refused)
    trained = weight.detach().flatten().tolist() != first
    (folder / f"done{who}").write_text(json.dumps({"error": error, "trained": trained, "first": first}))


def watched(net: nn.Module, folder: Path) -> None:
    with watch(net, probe(), folder / "run" / "v0") as watcher:
        for step in range(EPOCHS + 1):
            watcher.snapshot(step)
            nn.init.normal_(net.get_parameter("0.weight"))


def both(forks: Forks, folder: Path, how: str, delay: float) -> list[dict[str, Any]]:
    delays = (delay, 0.0) if delay > 0 else (0.0, -delay)
    forks.wait(*[forks.start("run", str(folder), how, who, delays[who]) for who in (0, 1)])
    return [json.loads((folder / f"done{who}").read_text()) for who in (0, 1)]


@pytest.mark.parametrize("how", ["tensorboard", "csv", "watch"])
def test_the_second_is_refused(how: str, forks: Forks, tmp_path: Path) -> None:
    chance = random.Random(how)
    layer = "net.0" if how != "watch" else "0"
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        first, second = sorted(
            both(forks, folder, how, chance.uniform(-0.003, 0.003)), key=lambda result: len(result["error"])
        )
        assert first["error"] == "", "one of them trains"
        assert first["trained"]
        assert not second["trained"]
        store = folder / "run" / "v0" / "cnnlog"
        for part in (
            f"{store} already holds a run of ",
            "expected a new folder",
            "another log_dir" if how == "watch" else "another logger name or version",
        ):
            assert part in second["error"]
        kept = RunStore.open(str(store))
        assert kept.steps == list(range(EPOCHS + 1))
        for begun in (kept.read_weights("baseline")[0], kept.read_record(0).filters):
            np.testing.assert_array_equal(begun[layer].flatten(), np.float32(first["first"]))
        if how != "csv":
            drawn = image_steps(events(folder / "run" / "v0"))
            assert drawn[f"filters/00_{layer}"] == list(range(EPOCHS + 1)), "the other's pictures are not among them"


def test_without_a_logger_each_gets_a_folder(forks: Forks, tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = both(forks, folder, "none", chance.uniform(-0.003, 0.003))
        assert [result["error"] for result in results] == ["", ""]
        runs = [RunStore.open(str(folder / "cnnlog_logs" / f"version_{n}" / "cnnlog")) for n in (0, 1)]
        assert [one.steps for one in runs] == [list(range(EPOCHS + 1))] * 2
        begun = [one.read_weights("baseline")[0]["net.0"].flatten().tolist() for one in runs]
        assert sorted(begun) == sorted(result["first"] for result in results)


def test_a_watcher_that_took_nothing_gives_the_folder_up(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    refused = pytest.raises(ValueError, match=r"already holds a run of 0 snapshots, begun at .*expected a new folder")
    with watch(net, probe(), tmp_path), refused:
        watch(net, probe(), tmp_path)
    with watch(net, probe(), tmp_path) as watcher:
        watcher.snapshot(0)
    assert RunStore.open(str(tmp_path / "cnnlog")).steps == [0]

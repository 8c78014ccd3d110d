"""A thousand epochs: memory, files and threads stay as they are, nothing stays hooked, the events grow evenly."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.forks import Forks
from support.training import trainer
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.data import DataLoader, TensorDataset

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.runs.store import RunStore

pytestmark = pytest.mark.once

EPOCHS = 1000
LOOKS = (250, 500, 750, 1000)
RESIDENT_GROWTH = 8.0  # MiB from epoch 250 to 1000: under 11 kB an epoch, where one snapshot has about 10


class Small(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def hooks(model: nn.Module) -> list[str]:
    """Everything that hangs on the model, its parameters, or on all modules."""
    found = [
        f"{name}.{kind}"
        for name, module in model.named_modules()
        for kind, held in vars(module).items()
        if "hook" in kind and isinstance(held, dict) and held
    ]
    found += [f"{name} (parameter)" for name, parameter in model.named_parameters() if parameter._backward_hooks]
    everywhere = {kind: held for kind, held in vars(torch_module).items() if kind.startswith("_global_")}
    return found + [kind for kind, held in everywhere.items() if "hook" in kind and isinstance(held, dict) and held]


class Watch(L.Callback):
    """Stands behind the monitors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hooked: list[str] = []
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.hooked += hooks(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.hooked += hooks(pl_module)
        if trainer.current_epoch + 1 in LOOKS:
            monitor = vars(trainer)["callbacks"][0]
            monitor._session._live.recorder.drain(trackers=True)
            resident = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
            assert resident is not None
            events = [path.stat().st_size for path in self.folder.rglob("*tfevents*")]
            self.seen.append(
                {
                    "resident": int(resident[1]) / 1024,
                    "files": len(list(Path("/proc/self/fd").iterdir())),
                    "threads": threading.active_count(),
                    "events": sum(events),
                }
            )


def run(where: str) -> None:
    folder = Path(where)
    torch.manual_seed(0)
    watch = Watch(folder)
    monitors = [FilterMonitor(), FeatureMapMonitor(Probe.from_tensor(torch.rand(1, 3, 10, 10)))]
    data = DataLoader(TensorDataset(torch.rand(2, 3, 10, 10)), batch_size=2)
    trainer(folder, [*monitors, watch], max_epochs=EPOCHS).fit(Small(), data)
    (folder / "result.json").write_text(json.dumps({"hooked": watch.hooked, "seen": watch.seen}))


@pytest.mark.timeout(600)  # half a minute on two idle cores
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory from /proc")
def test_a_thousand_epochs(tmp_path: Path) -> None:
    with Forks(__file__) as forks:
        forks.wait(forks.start("run", str(tmp_path)), timeout=560)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["hooked"] == [], "between snapshots nothing of ours is on the model"
    seen = {what: [look[what] for look in result["seen"]] for what in result["seen"][0]}
    print(seen)
    assert len(seen["resident"]) == len(LOOKS)
    assert max(seen["resident"]) - seen["resident"][0] < RESIDENT_GROWTH, seen["resident"]
    assert len(set(seen["files"])) == 1, seen["files"]
    assert len(set(seen["threads"])) == 1, seen["threads"]
    grown = [after - before for before, after in zip(seen["events"], seen["events"][1:], strict=False)]
    assert max(grown) < 1.03 * min(grown), "the event file grows by as much in each quarter"
    assert len(RunStore.open(str(tmp_path / "run" / "v0" / "cnnlog")).steps) == EPOCHS + 1


def test_a_hook_would_be_seen() -> None:
    model = Small()
    assert hooks(model) == []
    handles = [
        model.net[0].register_forward_hook(lambda *_: None),
        model.register_forward_pre_hook(lambda *_: None),
        model.net[2].register_full_backward_hook(lambda *_: None),
        model.net.register_state_dict_post_hook(lambda *_: None),
        model.get_parameter("net.0.weight").register_hook(lambda grad: None),
        torch_module.register_module_forward_hook(lambda *_: None),
    ]
    assert len(hooks(model)) >= len(handles)
    for handle in handles:
        handle.remove()
    assert hooks(model) == []

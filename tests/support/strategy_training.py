"""Trainings of two processes on the CPU; each writes what it ends with. Run by test_strategies.

python strategy_training.py FOLDER STRATEGY-HOW...

STRATEGY is ddp, ddp_spawn or fsdp2; HOW is plain (without monitors), watched, failing (the probe cannot go through the
model after the first epoch), raising (as failing, with on_error="raise") or refused (a layer that does not exist);
sparse is watched every few epochs only, and kept the same behind a callback that might swap the weights at the end;
compiling is plain with a compiled model, and compiled the same watched; averaging is plain beside an average of the
weights, and averaged the same with that average watched.
torch-sharded is FSDP2 without Lightning. All but `ddp_spawn` share two processes, which `ddp`, given first, starts.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from support.training import TinyCNN, loader, probe, trainer
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from cnnlog import FeatureMapMonitor, FilterMonitor, watch
from cnnlog.capture.capture import capture, survey
from cnnlog.capture.sharding import gathered, local_part
from cnnlog.monitors import live_run


class Fuse(nn.ReLU):
    """Fails in a probe's pass, deep inside the model, once it is lit."""

    lit = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.lit and not self.training:
            raise RuntimeError("blown")
        return super().forward(x)


class Net(TinyCNN):
    def __init__(self, folder: Path, strategy: str, how: str) -> None:
        super().__init__()
        self.net[4] = Fuse(inplace=True)
        if strategy == "fsdp2":  # frozen, for torch trains SyncBatchNorm on GPUs only; DDP refuses it there outright
            self.net.append(nn.SyncBatchNorm(10).eval())
        self.folder, self.strategy, self.how = folder, strategy, how
        self.seen: list[Any] = []

    @property
    def fuse(self) -> Fuse:
        fuse = self.net[4]
        assert isinstance(fuse, Fuse)
        return fuse

    def configure_model(self) -> None:
        if self.strategy == "fsdp2":
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
            for part in (self.net[0], self.net, self):
                fully_shard(part, mesh=mesh)
        if self.how in ("compiling", "compiled"):
            self.net.compile(backend="aot_eager")

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        self.log("synced", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
        self.seen.append(float(loss.item()).hex())
        return loss

    def on_validation_start(self) -> None:
        self.fuse.lit = False

    def on_validation_end(self) -> None:
        self.fuse.lit = self.how in ("failing", "raising") and self.current_epoch == 0

    def on_train_epoch_end(self) -> None:  # after the monitors' hook: is the model as validation left it?
        self.seen.append([(name, type(tensor).__name__) for name, tensor in self.named_parameters()])
        self.seen.append([_notes(module) for module in self.modules() if isinstance(module, FSDPModule)])

    def on_fit_end(self) -> None:
        (optimiser,) = self.trainer.optimizers
        tensors = {f"optimiser {key}": self.trainer.optimizers[0].state[value]["momentum_buffer"]
                   for key, value in enumerate(optimiser.param_groups[0]["params"])}  # fmt: skip
        tensors |= self.state_dict()
        state = {
            "whole": {name: gathered(tensor) for name, tensor in tensors.items()},
            "held": {name: local_part(tensor).clone() for name, tensor in tensors.items()},
            "generators": (torch.get_rng_state(), repr(random.getstate()), repr(np.random.get_state())),  # noqa: NPY002
            "flags": [(type(module).__name__, module.training) for module in self.modules()],
            "hooks": [_hooks(module) for module in self.modules()],
            "seen": self.seen,
            "compiler": {kind: dict(counters[kind]) for kind in ("frames", "stats", "graph_break")},
        }
        torch.save(state, self.folder / f"rank{self.global_rank}.pt")


def _hooks(module: nn.Module) -> list[int]:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._state_dict_pre_hooks)
    return [*map(len, hooks), len(module._load_state_dict_pre_hooks)]


def _notes(module: Any) -> list[str]:
    state = module._get_fsdp_state()
    group = state._fsdp_param_group
    return [
        str(state._training_state),
        str(group and group._training_state),
        str(state._state_ctx.iter_forward_root),
        str(len(state._comm_ctx.post_forward_order)),
    ]


class Averages(L.Callback):
    """Averages a sharded model as one has to: a copy made before it is sharded, and sharded like it."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.average = AveragedModel(pl_module, avg_fn=get_ema_avg_fn(0.5))

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        average: Any = self.average.module
        for part in (average.net[0], average.net, average):
            fully_shard(part, mesh=pl_module.device_mesh["data_parallel"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.average.update_parameters(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        held = {name: gathered(tensor).tolist() for name, tensor in self.average.module.state_dict().items()}
        pl_module.seen.append(held)


class Ends(L.Callback):
    """Might put other weights into the module at the end, for all that the monitors after it can know."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass


def callbacks(how: str) -> list[L.Callback]:
    if how == "averaging":
        return [Averages()]
    if how == "averaged":
        return [Averages(), FilterMonitor(weights="ema"), FeatureMapMonitor(probe(), weights="ema")]
    if how in ("plain", "compiling"):
        return []
    if how in ("sparse", "kept"):
        ours = [FilterMonitor(every_n_epochs=2), FeatureMapMonitor(probe(), every_n_epochs=5)]
        return [*([Ends()] if how == "kept" else []), *ours]
    on_error: Any = "raise" if how == "raising" else "warn"
    layers = "nowhere" if how == "refused" else "auto"
    return [FilterMonitor(on_error=on_error), FeatureMapMonitor(probe(), layers, on_error=on_error)]


def fit(folder: Path, strategy: str, how: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 - the global generator is under test
    torch.manual_seed(0)
    module = Net(folder, strategy, how)
    run = trainer(
        folder,
        callbacks(how),
        devices=2,
        strategy=ModelParallelStrategy(2, 1) if strategy == "fsdp2" else strategy,
        logger=TensorBoardLogger(folder, name="run", version="v0"),
        max_epochs=3,
        num_sanity_val_steps=0,
    )
    begin, error = time.monotonic(), ""
    data = DataLoader(loader().dataset, batch_size=4, shuffle=True)
    try:
        run.fit(module, data, loader())
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    after = {
        "error": error,
        "seconds": time.monotonic() - begin,
        "status": str(run.state.status),
        "metrics": {name: value.item() for name, value in run.callback_metrics.items()},
        "whole": {name: gathered(tensor) for name, tensor in module.state_dict().items()},
    }
    torch.save(after, folder / f"after{run.global_rank}.pt")


try:
    import peft
except ImportError:
    with_peft = False
else:
    with_peft = True


class Sharded(nn.Module):
    """One layer of each awkward kind: shards of unequal size, an empty one, a transposed one, computed weights.

    Those that are `computed` with float buffers cannot be in a lower precision, and not of DTensors.
    """

    def __init__(self, *, computed: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.block = nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 4, 2, groups=2))
        self.one = nn.Conv2d(4, 1, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))
        self.spectral, self.pruned = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        if computed:
            nn.utils.parametrizations.spectral_norm(self.spectral)
            prune.l1_unstructured(self.pruned, "weight", 0.5)
        self.adapted = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)
        if with_peft:
            peft.inject_adapter_in_model(
                peft.LoraConfig(target_modules=["adapted"], r=2, use_dora=True, init_lora_weights=False), self
            )
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("adapted.base_layer" not in name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pruned(self.spectral(self.normed(self.one(self.block(self.stem(x))))))
        return self.head(self.adapted(x).mean((2, 3)))

    def shard(self, policy: MixedPrecisionPolicy) -> Sharded:
        for part in (self.stem, self.block, self.one, self.normed, self.spectral, self.pruned, self.adapted, self):
            fully_shard(part, mp_policy=policy)
        return self


LAYERS = ("stem", "block.0", "block.2", "one", "normed", "spectral", "pruned", "adapted")


def sharded_facts(folder: Path) -> dict[str, Any]:
    """What is compared of FSDP2 in plain PyTorch: with the unsharded model, and with a training that nobody watches."""
    rank = torch.distributed.get_rank()
    facts: dict[str, Any] = {"errors": {}}
    for name, policy in (("float", MixedPrecisionPolicy()), ("half", MixedPrecisionPolicy(torch.bfloat16))):
        torch.manual_seed(1)
        plain = Sharded(computed=name == "float")
        torch.manual_seed(1)
        spread = Sharded(computed=name == "float").shard(policy)
        for kind, model in (("plain", plain), ("sharded", spread)):
            snapshot = capture(model, probe(2), filter_layers=LAYERS, map_layers=LAYERS, step=0, epoch=0, global_step=0)
            facts[f"{name} {kind}"] = [
                {layer: torch.from_numpy(array) for layer, array in arrays.items()}
                for arrays in (snapshot.filters, snapshot.feature_maps)
            ]
        facts[f"{name} kinds"] = [[info.kind for info in survey(model, probe())] for model in (plain, spread)]

    def fails_once(*arguments: Any, step: int, **more: Any) -> Any:
        snapshot = capture(*arguments, step=step, **more)
        if rank == 1 and step == 2:
            raise MemoryError("only here")
        return snapshot

    with mock.patch.object(live_run, "capture", fails_once):
        for watched in (False, True):
            torch.manual_seed(2)
            model = Sharded(computed=True).shard(MixedPrecisionPolicy())
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            where = folder / "watched"
            watcher = watch(model, probe(), where, through="stem", map_layers=["stem"]) if watched else None
            torch.manual_seed(10 + rank)
            losses = []
            for step in range(4):
                if watcher is not None:
                    watcher.snapshot(step)
                optimiser.zero_grad()
                loss = model(torch.rand(4, 3, 16, 16)).square().mean()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.item()).hex())
            if watcher is not None:
                watcher.close()
            trained = {name: gathered(tensor) for name, tensor in model.state_dict().items()}
            facts["watched" if watched else "unwatched"] = [losses, trained, torch.get_rng_state()]
    facts["errors"]["folder"] = _error(lambda: watch(model, probe(), where, through="stem"))
    wrong = [None] if rank == 0 else []  # what rank 0 alone is asked for
    facts["errors"]["trackers"] = _error(lambda: watch(model, probe(), folder / "refused", trackers=wrong))
    facts["errors"]["fsdp1"] = _error(lambda: capture(
        FullyShardedDataParallel(TinyCNN().net, device_id=torch.device("cpu")), probe(),
        filter_layers=["0"], map_layers=(), step=0, epoch=0, global_step=0,
    ))  # fmt: skip
    if rank == 0:  # alone: in eval mode a SyncBatchNorm waits for nobody
        norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
        maps = capture(norm, probe(), filter_layers=(), map_layers=["1"], step=0, epoch=0, global_step=0).feature_maps
        facts["norm"] = [maps["1"].shape, norm[1].training, _error(lambda: norm(torch.rand(2, 3, 8, 8)))]
    return facts


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        place = Path(sys.argv[1]) / name
        place.mkdir(exist_ok=True)
        if name == "torch-sharded":
            torch.save(sharded_facts(place), place / f"rank{torch.distributed.get_rank()}.pt")
        else:
            fit(place, *name.split("-"))

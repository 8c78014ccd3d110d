"""What forward writes into the user's own log is written by the training alone, not by a look at the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnnlog import FeatureMapMonitor, Probe


class Talks(L.LightningModule):
    """Writes a number to every logger that it can reach, at each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.conv(x)
        self.passes += 1
        mean = float(output.detach().mean())
        own: Any = self.logger
        if isinstance(own, TensorBoardLogger):
            own.experiment.add_scalar("by the experiment", mean, self.passes)
        own.log_metrics({"by the logger": mean}, step=self.passes)
        for logger in [*self.loggers, self.trainer.logger]:
            assert logger is not None
            logger.log_metrics({"by the trainer": mean}, step=self.passes)
        self.log("by the module", mean)
        return output

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def logged(folder: Path, logger: type[Any], callbacks: list[L.Callback]) -> object:
    torch.manual_seed(0)
    own: Logger = logger(folder, name="log", version=0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=own,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Talks(), batches())
    if logger is CSVLogger:
        return (folder / "log" / "version_0" / "metrics.csv").read_text()
    events = EventAccumulator(str(folder / "log" / "version_0")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "by the" in tag]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_look_writes_nothing_into_the_users_log(logger: type[Any], tmp_path: Path) -> None:
    probe = Probe(torch.rand(1, 3, 8, 8))
    plain = logged(tmp_path / "plain", logger, [])
    watched = logged(tmp_path / "watched", logger, [FeatureMapMonitor(probe)])
    assert watched == plain
    assert "by the" in str(plain)


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(4, 3, 8, 8)), batch_size=2)


def watched(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[FeatureMapMonitor(Probe(torch.rand(1, 3, 8, 8)))],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


class Steers(Talks):
    """Steers the training from forward, in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.trainer.should_stop = True
            assert self.trainer.should_stop
        output: torch.Tensor = self.conv(x)
        return output


def test_what_forward_sets_on_the_trainer_is_not_set(tmp_path: Path) -> None:
    module = Steers()
    run = watched(tmp_path, max_epochs=2)
    run.fit(module, batches())
    assert run.global_step == 4
    assert module.trainer is run


class Schedules(Steers):
    """Changes a learning rate in forward, in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            for optimizer in self.trainer.optimizers:
                optimizer.param_groups[0]["lr"] *= 0.5
        output: torch.Tensor = self.conv(x)
        return output


def test_a_learning_rate_that_forward_changes_is_told(tmp_path: Path) -> None:
    run = watched(tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match="changes what nobody can give back afterwards: an optimiser"):
        run.fit(Schedules(), batches())

"""Where pictures and numbers go: one small module a tracker, all behind `Sink`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Sink(Protocol):
    """A tracker, as the recorder sees it. Called from one background thread, with rising steps on every tag."""

    name: str

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log one picture: PNG bytes of `size` (width, height), with a sentence on what it shows."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log one number."""

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Log one text."""

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Log the distribution of `values`."""

    def commit(self, step: int) -> None:
        """Send what was added for `step`."""

    def last_step(self) -> int | None:
        """The last step whose filters or feature maps the tracker has, -1 without any; None if it cannot tell."""


def sinks_for(loggers: Sequence[Any], *, folder: str, unit: str) -> tuple[list[Sink], list[Any]]:
    """The sinks of a trainer, and those of its loggers that take no pictures.

    Pictures become files in the run's folder for a `CSVLogger`, and where nothing else takes them. A ClearML task of
    this process is served, too: where there is a TensorBoard logger, ClearML copies what that one writes.

    Args:
        loggers: the Lightning loggers of the trainer.
        folder: where the run is stored.
        unit: what steps count, `"epoch"` or `"step"`.
    """
    found = {id(logger): sink_for(logger, folder=folder, unit=unit) for logger in loggers}
    sinks = [sink for sink in found.values() if sink is not None]
    names = {sink.name for sink in sinks}
    if not names & {"TensorBoard", "ClearML"} and (task := _clearml_task()) is not None:
        from cnnlog.trackers.clearml import ClearMLSink

        sinks.append(ClearMLSink(task))
    if not loggers or any("CSVLogger" in kinds(logger) for logger in loggers):
        from cnnlog.trackers.picture_files import PictureFiles

        sinks.append(PictureFiles(folder))
    refused = [logger for logger in loggers if found[id(logger)] is None and "CSVLogger" not in kinds(logger)]
    return sinks, refused


def sink_for(logger: Any, *, folder: str, unit: str) -> Sink | None:
    """The sink for a Lightning logger, or `None` if it takes no pictures itself.

    Loggers are told by the name of their classes, so that those of `lightning` and of `pytorch_lightning` are alike
    and no tracker's package is imported before it is used.
    """
    known = kinds(logger)
    sink: Sink | None = None
    if "TensorBoardLogger" in known:
        from cnnlog.trackers.tensorboard import TensorBoardSink

        sink = TensorBoardSink(logger)
    elif "WandbLogger" in known:
        from cnnlog.trackers.wandb import WandbSink

        sink = WandbSink(logger, unit=unit)
    elif "MLFlowLogger" in known:
        from cnnlog.trackers.mlflow import MLflowSink

        sink = MLflowSink(logger)
    elif "CometLogger" in known:
        from cnnlog.trackers.comet import CometSink

        sink = CometSink(logger, unit=unit)
    elif "AimLogger" in known:
        from cnnlog.trackers.aim import AimSink

        sink = AimSink(logger, unit=unit)
    elif "ClearMLLogger" in known:
        from cnnlog.trackers.clearml import ClearMLSink, task_of

        sink = ClearMLSink(task_of(logger))
    elif "CSVLogger" not in known:
        from cnnlog.trackers.other import OtherSink

        sink = OtherSink.of(logger)
    return sink


def kinds(logger: Any) -> set[str]:
    """The names of a logger's class and of those that it inherits from."""
    return {cls.__name__ for cls in type(logger).__mro__}


def _clearml_task() -> Any:
    """The task that the user's script has begun with `Task.init`, if any."""
    clearml = sys.modules.get("clearml")
    return clearml.Task.current_task() if clearml is not None else None

"""Where pictures and numbers go: one small module a tracker, all behind `Tracker`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Tracker(Protocol):
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


def trackers_for(loggers: Sequence[Any], *, folder: str, unit: str) -> tuple[list[Tracker], list[Any]]:
    """The trackers of a trainer, and those of its loggers that take no pictures.

    Pictures become files in the run's folder for a `CSVLogger`, and where nothing else takes them. A ClearML task of
    this process is served, too: where there is a TensorBoard logger, ClearML copies what that one writes.

    Args:
        loggers: the Lightning loggers of the trainer.
        folder: where the run is stored.
        unit: what steps count, `"epoch"` or `"step"`.
    """
    found = {id(logger): tracker_for(logger, folder=folder, unit=unit) for logger in loggers}
    trackers = [tracker for tracker in found.values() if tracker is not None]
    names = {tracker.name for tracker in trackers}
    if not names & {"TensorBoard", "ClearML"} and (task := _clearml_task()) is not None:
        from cnnlog.trackers.clearml import ClearMLTracker

        trackers.append(ClearMLTracker(task))
    if not loggers or any("CSVLogger" in kinds(logger) for logger in loggers):
        from cnnlog.trackers.picture_files import PictureFiles

        trackers.append(PictureFiles(folder))
    refused = [logger for logger in loggers if found[id(logger)] is None and "CSVLogger" not in kinds(logger)]
    return trackers, refused


def tracker_for(logger: Any, *, folder: str, unit: str) -> Tracker | None:
    """The tracker for a Lightning logger, or `None` if it takes no pictures itself.

    Loggers are told by the name of their classes, so that those of `lightning` and of `pytorch_lightning` are alike
    and no tracker's package is imported before it is used.
    """
    known = kinds(logger)
    tracker: Tracker | None = None
    if "TensorBoardLogger" in known:
        from cnnlog.trackers.tensorboard import TensorBoardTracker

        tracker = TensorBoardTracker(logger)
    elif "WandbLogger" in known:
        from cnnlog.trackers.wandb import WandbTracker

        tracker = WandbTracker(logger, unit=unit)
    elif "MLFlowLogger" in known:
        from cnnlog.trackers.mlflow import MLflowTracker

        tracker = MLflowTracker(logger)
    elif "CometLogger" in known:
        from cnnlog.trackers.comet import CometTracker

        tracker = CometTracker(logger, unit=unit)
    elif "AimLogger" in known:
        from cnnlog.trackers.aim import AimTracker

        tracker = AimTracker(logger, unit=unit)
    elif "ClearMLLogger" in known:
        from cnnlog.trackers.clearml import ClearMLTracker, task_of

        tracker = ClearMLTracker(task_of(logger))
    elif "CSVLogger" not in known:
        from cnnlog.trackers.other import OtherTracker

        tracker = OtherTracker.of(logger)
    return tracker


def kinds(logger: Any) -> set[str]:
    """The names of a logger's class and of those that it inherits from."""
    return {cls.__name__ for cls in type(logger).__mro__}


def _clearml_task() -> Any:
    """The task that the user's script has begun with `Task.init`, if any."""
    clearml = sys.modules.get("clearml")
    return clearml.Task.current_task() if clearml is not None else None

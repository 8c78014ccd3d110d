"""Where pictures and numbers go: one small module a tracker, all behind `Tracker`.

In: a tracker's own handle, such as a W&B run or a `SummaryWriter`. Out: the `Tracker` for it. No tracker's package is
imported before a handle of it is here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Unit

EVENT_WRITERS = frozenset({("torch", "SummaryWriter"), ("tensorboardX", "SummaryWriter"), ("cnnlog", "EventFile")})
COMET = frozenset(("comet_ml", name) for name in ("Experiment", "OfflineExperiment", "CometExperiment"))
RUNS = frozenset({("wandb", "Run"), ("aim", "Run"), ("trackio", "Run"), ("clearml", "Task")})


class Tracker(Protocol):
    """A tracker, as the recorder sees it.

    A thread of its own adds and commits, with rising steps on every tag. `last_step` is asked before the first of them.

    Attributes:
        name: what warnings call it.
    """

    name: str

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log one picture: PNG bytes of `size` (width, height), with a sentence on what it shows.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log one number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Log one text.

        Args:
            tag: the text's name.
            markdown: the text, as Markdown.
            step: the step that it belongs to.
        """

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Log the distribution of `values`.

        Args:
            tag: the histogram's name.
            values: the values, float32 of any shape. Those that are not finite are left out.
            step: the step that they belong to.
        """

    def commit(self, step: int) -> None:
        """Send what was added for `step`.

        Args:
            step: the step that is complete.
        """

    def last_step(self) -> int | None:
        """The last step whose filters or feature maps the tracker has, -1 without any; None if it cannot tell."""


def trackers_for(handles: Sequence[Any], *, folder: str, unit: Unit, files: bool) -> list[Tracker]:
    """The trackers behind handles, each once.

    A ClearML task of this process is served, too, but not beside a `SummaryWriter` of torch: ClearML copies what that
    writes.

    Args:
        handles: what `tracker_of` takes.
        folder: where the run is stored.
        unit: what steps count.
        files: pictures become files in the run's folder, too.
    """
    found = {identity(handle): tracker_of(handle, unit=unit) for handle in handles}
    trackers = [tracker for tracker in found.values() if tracker is not None]
    copied = any(("torch", "SummaryWriter") in classes_of(handle) for handle in handles)
    if not copied and (task := _clearml_task()) is not None and identity(task) not in found:
        from cnnlog.trackers.clearml import ClearMLTracker

        trackers.append(ClearMLTracker(task))
    if files:
        from cnnlog.trackers.picture_files import PictureFiles

        trackers.append(PictureFiles(folder))
    return trackers


def tracker_of(handle: Any, *, unit: Unit) -> Tracker | None:  # noqa: PLR0911  # one a tracker
    """The tracker behind a handle, or `None` if the handle takes no pictures.

    Args:
        handle: a `SummaryWriter` of torch or tensorboardX, an `EventFile`, a run of W&B, Aim or Trackio, an MLflow
            client and a run's id as a tuple, a Comet experiment, a ClearML task, or any object with a method for
            images by a common name.
        unit: what steps count.
    """
    known = classes_of(handle)
    if known & EVENT_WRITERS:
        from cnnlog.trackers.tensorboard import TensorBoardTracker, events_of

        return TensorBoardTracker(events_of(handle))
    if ("wandb", "Run") in known:
        from cnnlog.trackers.wandb import WandbTracker

        return WandbTracker(handle, unit=unit)
    if is_mlflow(handle):
        from cnnlog.trackers.mlflow import MLflowTracker

        return MLflowTracker(*handle)
    if known & COMET:
        from cnnlog.trackers.comet import CometTracker

        return CometTracker(handle, unit=unit)
    if ("aim", "Run") in known:
        from cnnlog.trackers.aim import AimTracker

        return AimTracker(handle, unit=unit)
    if ("clearml", "Task") in known:
        from cnnlog.trackers.clearml import ClearMLTracker

        return ClearMLTracker(handle)
    if ("trackio", "Run") in known:
        from cnnlog.trackers.trackio import TrackioTracker

        return TrackioTracker(handle)
    from cnnlog.trackers.other import OtherTracker

    return OtherTracker.of(handle)


def takes_pictures(handle: Any) -> bool:
    """Whether there is a tracker behind a handle. No tracker is made to find out.

    Args:
        handle: a tracker's own object, or any other.
    """
    from cnnlog.trackers.other import OtherTracker

    return is_known(handle) or OtherTracker.of(handle) is not None


def is_known(handle: Any) -> bool:
    """Whether it is the handle of a tracker that is known here, and not only an object with a method for images.

    Args:
        handle: any object.
    """
    return is_mlflow(handle) or bool(classes_of(handle) & (EVENT_WRITERS | COMET | RUNS))


def writes_events(handle: Any) -> bool:
    """Whether it is a `SummaryWriter` of torch or tensorboardX, or an `EventFile`.

    Args:
        handle: any object.
    """
    return bool(classes_of(handle) & EVENT_WRITERS)


def identity(handle: Any) -> Any:
    """What two handles have in common if they lead to the same place; the handles must be kept alive.

    Args:
        handle: what `tracker_of` takes.
    """
    return handle[1] if is_mlflow(handle) else id(handle)


def is_mlflow(handle: Any) -> bool:
    """Whether it is an MLflow client with a run's id.

    Args:
        handle: any object.
    """
    return (
        isinstance(handle, tuple)
        and len(handle) == 2
        and ("mlflow", "MlflowClient") in classes_of(handle[0])
        and isinstance(handle[1], str)
    )


def classes_of(handle: Any) -> set[tuple[str, str]]:
    """Package and name of its class, and of those that it inherits from.

    Args:
        handle: any object.
    """
    return {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(handle).__mro__}


def _clearml_task() -> Any:
    """The task that the user's script has begun with `Task.init`, if any."""
    clearml = sys.modules.get("clearml")
    return clearml.Task.current_task() if clearml is not None else None

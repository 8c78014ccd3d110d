"""From Lightning's loggers, and those that follow their model, to the handle of the tracker behind each."""

from __future__ import annotations

from typing import Any

from cnnlog.trackers import is_known

_WITH_EXPERIMENT = {"TensorBoardLogger", "WandbLogger", "CometLogger", "AimLogger"}


def is_logger(thing: Any) -> bool:
    """Whether it is a logger of Lightning's: of its Trainer, or of its Fabric.

    Args:
        thing: any object.
    """
    return any(
        cls.__name__ == "Logger" and cls.__module__.startswith(("lightning", "pytorch_lightning"))
        for cls in type(thing).__mro__
    )


def takes_only_numbers(logger: Any) -> bool:
    """Whether it is a `CSVLogger`, beside which pictures become files.

    Args:
        logger: a logger of Lightning's, or one that follows its model.
    """
    return "CSVLogger" in names_of(logger)


def handle_of(logger: Any) -> Any:
    """The handle, which `trackers.tracker_of` takes; None for a `CSVLogger`, which has none.

    Loggers are told by the names of their classes, so that those of `lightning` and of `pytorch_lightning` are alike.
    A logger that is not known is its own handle, unless its `experiment` is that of a tracker which is known.

    Args:
        logger: a logger of Lightning's, or one that follows its model.
    """
    known = names_of(logger)
    if known & _WITH_EXPERIMENT:
        return logger.experiment
    if "MLFlowLogger" in known:
        return logger.experiment, logger.run_id
    if "ClearMLLogger" in known:
        return _task_of(logger)
    if takes_only_numbers(logger):
        return None
    experiment = getattr(logger, "experiment", None)
    return experiment if is_known(experiment) else logger


def _task_of(logger: Any) -> Any:
    """The task of a ClearML logger: its `task` or its `experiment`, for there are several packages of the name.

    Args:
        logger: a `ClearMLLogger`, of whichever package.
    """
    for name in ("task", "_task", "experiment"):
        held = getattr(logger, name, None)
        if hasattr(held, "get_logger"):
            return held
    raise LookupError(f"{type(logger).__name__} has no ClearML task as its `task` or `experiment`")


def names_of(logger: Any) -> set[str]:
    """The names of its class and of those that it inherits from.

    Args:
        logger: any object.
    """
    return {cls.__name__ for cls in type(logger).__mro__}

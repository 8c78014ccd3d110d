"""What somebody gives as `trackers=`: checked at once, in words that say what to give instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from cnnlog.trackers import COMET, EVENT_WRITERS, classes_of, is_mlflow, takes_pictures
from cnnlog.trackers.loggers import handle_of, is_logger, takes_only_numbers
from cnnlog.trackers.other import IMAGE_METHODS

_KNOWN = (
    "a SummaryWriter, a W&B, Aim or Trackio run, an (MlflowClient, run id) tuple, a Comet experiment, a ClearML task, "
    "or an object with a method for images"
)

_IS_CLOSED: tuple[tuple[frozenset[tuple[str, str]], Callable[[Any], bool]], ...] = (
    (EVENT_WRITERS, lambda writer: getattr(writer, "file_writer", writer) is None),
    (frozenset({("wandb", "Run")}), lambda run: getattr(run, "_is_finished", False) is True),
    (COMET, lambda experiment: getattr(experiment, "ended", False) is True),
    (frozenset({("aim", "Run")}), lambda run: getattr(run, "_resources", run) is None),
    (frozenset({("clearml", "Task")}), lambda task: getattr(task, "_at_exit_called", False) is True),
    (frozenset({("trackio", "Run")}), lambda run: run._stop_flag.is_set() is True),
)
"""The classes of a tracker's handle, and how one tells that it is closed; none of them says so in public."""


def handles_given(who: str, trackers: Any) -> list[Any]:
    """The handles in a list that somebody gave; for a Lightning logger, the handle behind it.

    Args:
        who: the caller's name, used in error messages.
        trackers: what was given.

    Raises:
        TypeError: it is no list, or something in it takes no pictures.
        ValueError: something in it is closed.
    """
    if not isinstance(trackers, (list, tuple)):
        raise TypeError(f"{who} expected trackers as a list of handles, got {_said(trackers)}: write trackers=[...].")
    if is_mlflow(trackers):
        raise TypeError(f"{who} expected trackers as a list, got one tuple: write trackers=[(client, run_id)].")
    return [_handle(who, f"trackers[{place}]", given) for place, given in enumerate(trackers)]


def refuse_closed(who: str, name: str, handle: Any) -> None:
    """Refuse a handle that was closed, which would drop what it gets or open a file that nobody closes.

    Args:
        who: the caller's name, used in error messages.
        name: the argument's.
        handle: a tracker's own.

    Raises:
        ValueError: it is closed.
    """
    known = classes_of(handle)
    if any(known & classes and is_closed(handle) for classes, is_closed in _IS_CLOSED):
        kind = type(handle).__name__
        raise ValueError(f"{who} expected {name} to be open, but the {kind} is closed: open a new one.")


def _handle(who: str, name: str, given: Any) -> Any:
    handle = given
    if is_logger(given):
        if takes_only_numbers(given):
            raise TypeError(
                f"{who} expected {name} to take pictures, which a {type(given).__name__} does not: leave it out. With "
                "tensorboard=False and no tracker, pictures become files."
            )
        handle = handle_of(given)
    instead = _instead(handle)
    if instead or not takes_pictures(handle):
        raise TypeError(f"{who} expected {name} as {_KNOWN}, got {_said(given)}{instead or _without_method()}.")
    refuse_closed(who, name, handle)
    return handle


def _instead(handle: Any) -> str:
    """What to give instead of a handle that never is one; empty otherwise.

    Args:
        handle: what was given, or what stands behind a logger that was given.
    """
    if handle is None:
        return ": begin the run first, for example with wandb.init()"
    if isinstance(handle, ModuleType):
        return ": give the run that is under way, for example wandb.run"
    if inspect.isclass(handle):
        return ": give an object of it"
    if type(handle).__name__ == "MlflowClient":
        return ": give it with the run's id, (client, run_id)"
    if isinstance(handle, tuple) and not is_mlflow(handle):
        return ": the only tuple that is known is (MlflowClient, run id)"
    return ""


def _without_method() -> str:
    return f", which has no method such as {IMAGE_METHODS[0]} or {IMAGE_METHODS[1]} that takes a tag and an image"


def _said(given: Any) -> str:
    text = repr(given)
    if given is None or isinstance(given, (str, bool, int, float)):
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(given, ModuleType):
        return f"the module {given.__name__}"
    if inspect.isclass(given):
        return f"the class {given.__name__}"
    if isinstance(given, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in given) or 'nothing'}"
    return f"an object of the class {type(given).__name__}"

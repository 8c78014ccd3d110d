"""Where the run of a `Trainer` is kept: below its first logger's folder, or in a folder of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import lightning as L
import torch

from cnnlog.capture.probe import Probe, probe_as_kept
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.live_run import RunPlace, claim, new_baseline, taken
from cnnlog.monitors.plan import refuse_other
from cnnlog.runs.manifest import VERSION, Manifest
from cnnlog.runs.places import inside
from cnnlog.runs.store import FOLDER, RunStore, folder_of_format

_INSTEAD = (
    "Choose another logger name or version, delete the folder, or resume that run with trainer.fit(ckpt_path=...)."
)
_unnamed: WeakKeyDictionary[L.Trainer, str] = WeakKeyDictionary()
"""Where the run of a trainer without a logger lies, so that its next fit goes on there."""


@dataclass
class Memory:
    """What outlives a fit. Primitives only, because it goes into the user's checkpoints.

    Attributes:
        folder: of the run's files; empty before there is a run.
        run_id: tells the run from another one in the same folder.
        step: the last step that was captured; -1 before the baseline.
        warned: the kinds of problems that were warned of; these are not kept in checkpoints.
    """

    folder: str = ""
    run_id: str = ""
    step: int = -1
    warned: set[str] = field(default_factory=set)


def place_of(trainer: L.Trainer, manifest: Manifest, *, memory: Memory, now: int, alarm: Alarm) -> RunPlace:
    """Where a fit's run is kept. Rank 0 alone may ask, because this claims the folder.

    Args:
        trainer: about to train.
        manifest: of a run that begins now.
        memory: of an earlier fit or a checkpoint; it tells which stored run is this training's own.
        now: the step that the training is at.
        alarm: warned if the baseline from before a resume is lost.

    Raises:
        ValueError: the folder holds a run that this fit must not mix with, or cannot go on with.
    """
    folder = _run_folder(trainer, memory)
    if folder is not None and not trainer.loggers and _holds_another(folder, manifest):
        folder = _free_folder(trainer)  # nobody named the old one, so nobody can name another
    went_back = trainer.ckpt_path is None and now < memory.step  # the loops were reset, which begins a training anew
    if not went_back and (trainer.global_step > 0 or trainer.ckpt_path is not None):
        folder = folder if folder is None else folder_of_format(folder)
        old = _resumed_run(folder, manifest, memory=memory, now=now, alarm=alarm)
    else:
        old = None
        folder = _clear(trainer, folder, memory)
    if folder is None:
        return RunPlace(None, old)
    if old is not None and old.folder == folder:
        store = old
    else:
        if old is not None:
            first, from_ = old.manifest.baseline_step, old.folder
            manifest = dataclasses.replace(manifest, baseline_step=first, carried_from=from_)
        store = _claim(trainer, folder, manifest)
    if not trainer.loggers:
        _unnamed[trainer] = store.folder
    return RunPlace(store, old)


def kept_probe(trainer: L.Trainer, memory: Memory) -> tuple[bool, Probe | None]:
    """Whether a fit will go on with a stored run, and the probe of that run, if it has one.

    Args:
        trainer: about to train.
        memory: of an earlier fit or a checkpoint.
    """
    if trainer.global_step == 0 and trainer.ckpt_path is None:
        return False, None
    folder = _run_folder(trainer, memory)
    for place in (folder if folder is None else folder_of_format(folder), memory.folder or None):
        try:
            stored = _stored(place)
            if stored is None:
                continue
            facts = stored.manifest.probe
            if not facts:
                return True, None
            return True, probe_as_kept(torch.from_numpy(stored.read_probe()), names=facts.get("names"))
        except (OSError, ValueError):  # place_of says what is wrong with a run that cannot be gone on with
            continue
    return False, None


def is_rehearsal(trainer: L.Trainer) -> bool:
    """Whether the trainer only tries itself out (`fast_dev_run`); nothing is kept then.

    Args:
        trainer: any.
    """
    return bool(getattr(trainer, "fast_dev_run", False))


def _run_folder(trainer: L.Trainer, memory: Memory) -> str | None:
    """Where the run's files go; None in `fast_dev_run`, which keeps nothing.

    Args:
        trainer: about to train.
        memory: of an earlier fit or a checkpoint.
    """
    if is_rehearsal(trainer):
        return None
    if not trainer.loggers:
        last = _unnamed.get(trainer)  # of an earlier fit, unless a checkpoint of another run has been loaded since
        return last if last is not None and memory.folder in ("", last) else _free_folder(trainer)
    logger = trainer.loggers[0]
    if getattr(logger, "log_dir", None) is None:  # a tracker's save_dir is common to its runs, so that these are added
        parts = (logger.save_dir or trainer.default_root_dir, logger.name, logger.version)
        save_dir, *named = (str(part) for part in parts if part is not None)
        return "/".join([save_dir, *(inside(part) for part in named), FOLDER])
    return f"{logger.log_dir}/{FOLDER}"  # not trainer.log_dir: that waits for the other ranks, and rank 0 alone is here


def _free_folder(trainer: L.Trainer) -> str:
    """The first free folder of a training without a logger.

    Args:
        trainer: has the root folder, `default_root_dir`.
    """
    root = f"{trainer.default_root_dir}/cnnlog_logs"
    number = 0
    while RunStore.exists(f"{root}/version_{number}/{FOLDER}"):
        number += 1
    return f"{root}/version_{number}/{FOLDER}"


def _holds_another(folder: str, manifest: Manifest) -> bool:
    """Whether a folder holds a run that one of this manifest cannot go on with.

    Args:
        folder: of a run's files; it need not exist.
        manifest: of a run that begins now.
    """
    if not RunStore.exists(folder):
        return False
    try:
        refuse_other(RunStore.open(folder).manifest, manifest)
    except ValueError:
        return True
    return False


def _stored(folder: str | None) -> RunStore | None:
    return RunStore.open(folder) if folder is not None and RunStore.exists(folder) else None


def _clear(trainer: L.Trainer, folder: str | None, memory: Memory) -> str | None:
    """A folder that is free for a run that begins: what is there is our own, of a fit that made no further step.

    Args:
        trainer: about to train; without a logger, nobody has chosen the folder, and another one will do.
        folder: of the run's files; None keeps nothing.
        memory: of an earlier fit.

    Raises:
        ValueError: another run is in a folder that was named, or more than the baseline of ours.
    """
    here = _stored(folder)
    if here is None or here.is_abandoned():  # `claim` deletes what was abandoned
        return folder
    if here.manifest.run_id == memory.run_id and here.steps in ([], [here.manifest.baseline_step]):
        here.delete()
        return folder
    if trainer.loggers:
        raise taken(here, _INSTEAD)
    return _free_folder(trainer)


def _resumed_run(folder: str | None, manifest: Manifest, *, memory: Memory, now: int, alarm: Alarm) -> RunStore | None:
    """The stored run that a resumed fit goes on from; None if there is none to be found, which is warned of.

    Args:
        folder: of the run's files; None keeps nothing.
        manifest: of a run that begins now.
        memory: of an earlier fit or a checkpoint.
        now: the step that the training is at.
        alarm: takes the warning.

    Raises:
        ValueError: the folder holds another run, or one that this fit cannot go on with.
    """
    here = _stored(folder)
    if here is not None:
        goes_on = here.folder == f"{memory.folder}-{VERSION}"  # of a run of an older format, whose checkpoint this is
        is_ours = not memory.run_id or here.manifest.run_id == memory.run_id or goes_on
        if not is_ours and not here.is_abandoned():
            raise ValueError(
                f"{here.folder} holds another run than the one this checkpoint comes from "
                f"({memory.folder}): expected that one or a new folder. Choose another logger name or version."
            )
        if here.steps and is_ours:
            refuse_other(here.manifest, manifest)
            return here
        here.delete()  # it could never store its baseline, or it holds nothing else; there is nothing to go on from
    try:
        if not memory.folder:
            raise LookupError("the checkpoint was written without the monitors")
        old = RunStore.open(memory.folder)
        refuse_other(old.manifest, manifest)
    except (OSError, ValueError, LookupError) as error:
        alarm.warn("baseline", f"no baseline from before the resume: {error}; {new_baseline(now)}")
        return None
    return old


def _claim(trainer: L.Trainer, folder: str, manifest: Manifest) -> RunStore:
    """Make the folder this run's; without a logger, another one if a run has begun there at the same moment.

    Args:
        trainer: about to train.
        folder: of the run's files.
        manifest: of the run.

    Raises:
        ValueError: another run is in the folder of a logger.
    """
    while True:
        try:
            return claim(folder, manifest)
        except FileExistsError:
            if trainer.loggers:
                raise taken(RunStore.open(folder), _INSTEAD) from None
        folder = _free_folder(trainer)

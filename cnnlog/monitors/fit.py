"""What the monitors of one `Trainer` share while it fits: probe, layers, folder, recorder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from cnnlog.capture.capture import capture, placed, survey
from cnnlog.capture.layer_table import layer_table
from cnnlog.capture.layers import LayerInfo
from cnnlog.capture.probe import Probe, default_probe
from cnnlog.capture.sharding import is_sharded, plain_type, refuse_flattened
from cnnlog.capture.transfer import sent
from cnnlog.kinds import Unit
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.plan import Plan, manifest_of, probe_files, refuse_other, watch
from cnnlog.monitors.ranks import Ranks
from cnnlog.recording.problems import Problem
from cnnlog.recording.recorder import Recorder
from cnnlog.runs.manifest import Manifest
from cnnlog.runs.places import inside
from cnnlog.runs.store import FOLDER, RunStore
from cnnlog.trackers import Tracker, kinds, trackers_for


@dataclass
class Memory:
    """What outlives a fit: where the run lies. Primitives only, for it goes into the user's checkpoints."""

    folder: str = ""
    run_id: str = ""
    step: int = -1
    warned: set[str] = field(default_factory=set)


class Session:
    """One fit, watched; each process of the training has one.

    Rank 0 alone has a recorder. It alone captures, too, unless the model is sharded over the processes: then all do,
    and what the others have captured is dropped.

    Args:
        trainer: about to train; the baseline is captured here and now.
        module: the module it trains, unwrapped.
        filters: what the `FilterMonitor` was asked for, `None` without one; likewise `maps`.
        memory: of an earlier fit or a checkpoint.
        shown: the module that is looked at: the one it trains, or an averaged copy.

    Raises:
        ValueError: something asked for is not possible with this model, probe or folder.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        *,
        filters: Plan | None,
        maps: Plan | None,
        memory: Memory,
        shown: torch.nn.Module,
    ) -> None:
        plans = [plan for plan in (filters, maps) if plan is not None]
        self.memory = memory
        self._trainer, self._module, self._shown = trainer, module, shown
        self._filters, self._maps = filters, maps
        self._ranks = Ranks(several=trainer.world_size > 1, first=trainer.is_global_zero)
        self._alarm = Alarm(
            raises=any(plan.on_error == "raise" for plan in plans),
            warned=memory.warned,
            say=rank_zero_info,
            ranks=self._ranks,
        )
        self._problems: list[Problem] = []
        self._through = next((plan.through for plan in plans if plan.through), None)
        self.unit: Unit = plans[0].unit
        self._last_global_step = trainer.global_step
        self._recorder: Recorder | None = None
        with self._ranks.together():
            refuse_flattened(module if trainer.model is None else trainer.model)
            self._spread = Ranks(several=self._ranks.several and is_sharded(shown))  # those that capture
            self._captures = self._spread.several or self._ranks.first
            if self._captures:
                self.probe, infos = self._survey()
                self.watched = watch(infos, filters=filters, maps=maps)
        self._start()

    @property
    def recorder(self) -> Recorder:
        """Rank 0's."""
        assert self._recorder is not None, "rank 0 alone has a recorder"
        return self._recorder

    # ---- the start

    def _survey(self) -> tuple[Probe | None, tuple[LayerInfo, ...]]:
        asked = [plan.probe for plan in (self._maps, self._filters) if plan is not None and plan.probe is not None]
        if asked:
            return asked[0], self._look_over(asked[0])
        try:
            with self._spread.together():
                probe = default_probe(_dataset(self._trainer))
            probe = self._spread.share(probe)  # a data set that augments gives every process another image
            return probe, self._look_over(probe)
        except (TypeError, ValueError, LookupError):
            if self._maps is not None:
                raise
            return None, self._look_over(None)  # filters need no probe; only "auto" then knows no resolutions

    def _look_over(self, probe: Probe | None) -> tuple[LayerInfo, ...]:
        return survey(self._shown, probe, run=self._run, through=self._through)

    def _run(self, module: torch.nn.Module, tensor: torch.Tensor) -> None:
        """Run the probe as the trainer runs a batch: on its device, in its precision."""
        precision = self._trainer.precision_plugin
        with precision.forward_context():
            if self._shown is not self._module:  # it was copied before the trainer moved or converted the other
                module(placed(module, tensor))
                return
            module(precision.convert_input(sent(tensor, self._module.device)))

    def _start(self) -> None:
        """Open the run on rank 0, and take the baseline unless an earlier run goes on."""
        texts = self._table() if self._captures else {}
        try:
            with self._ranks.together():
                if self._ranks.first:
                    self._open(texts)
            self._begin()
        except BaseException:
            if self._recorder is not None:
                self._recorder.close()  # nobody else has this session yet
                if self._recorder.store is not None:
                    self._recorder.store.release()
            raise

    def _begin(self) -> None:
        self._last_step = self._ranks.share(self._recorder.last_step if self._recorder is not None else -1)
        fresh = self._last_step < 0
        if fresh:
            self.take(self._now(), filters=self._filters is not None, maps=self._maps is not None)
        if self._recorder is not None:
            self._recorder.drain()
        self.report()
        if self._recorder is not None and (self._recorder.step_bytes or fresh):
            rank_zero_info(self._announcement(self.memory.folder or None))

    def _open(self, texts: dict[str, str]) -> None:
        trainer = self._trainer
        manifest = manifest_of(
            self.watched,
            filters=self._filters,
            maps=self._maps,
            probe=self.probe,
            baseline_step=self._now(),
            architecture=plain_type(self._module).__name__,
        )
        folder = _run_folder(trainer)
        resumed = trainer.global_step > 0 or trainer.ckpt_path is not None
        old = self._earlier_run(folder, manifest, resumed=resumed)
        carried = old is not None and old.folder != folder
        if old is not None:
            manifest = _continue_manifest(manifest, old, carried=carried)
        store = old
        if folder is None:
            store = None
        elif old is None or carried:
            store = self._claim(folder, manifest)
            folder = store.folder
        self._recorder = Recorder(
            self.watched.layers,
            filters=self._filters.look if self._filters else None,
            maps=self._maps.look if self._maps else None,
            store=store,
            trackers=self._trackers(folder),
            probe=probe_files(self.probe),
            texts=texts,
        )
        if old is not None:
            self._go_on(old, carried=carried)
        self.memory.folder = store.folder if store is not None else ""
        self.memory.run_id = manifest.run_id

    def _go_on(self, old: RunStore, *, carried: bool) -> None:
        try:
            self.recorder.resume(old, now=self._now(), carried=carried)
        except (OSError, ValueError, LookupError) as error:
            if not carried:
                raise ValueError(f"The run in {old.folder} cannot be continued: {error}") from error
            self._alarm.warn(
                "baseline", f"the baseline in {old.folder} cannot be read ({error}); {_new_baseline(self._now())}"
            )

    def _earlier_run(self, folder: str | None, manifest: Manifest, *, resumed: bool) -> RunStore | None:
        """The stored run that this fit goes on from, if any."""
        here = RunStore.open(folder) if folder is not None and RunStore.exists(folder) else None
        mine = here is not None and here.manifest.run_id == self.memory.run_id
        if here is not None and not resumed and not (mine and here.steps in ([], [0])):
            raise _taken(here)
        if not resumed:
            if here is not None:
                here.delete_manifest()  # our own, of a fit that ended before its first step
            return None
        if here is not None:
            if self.memory.run_id and not mine:
                raise ValueError(
                    f"{here.folder} holds another run than the one this checkpoint comes from "
                    f"({self.memory.folder}): expected that one or a new folder. Choose another logger name or version."
                )
            if here.steps:
                refuse_other(here.manifest, manifest)
                return here
            here.delete_manifest()  # it could never store its baseline, so there is nothing to go on from
        try:
            if not self.memory.folder:
                raise LookupError("the checkpoint was written without the monitors")
            old = RunStore.open(self.memory.folder)
            refuse_other(old.manifest, manifest)
        except (OSError, ValueError, LookupError) as error:
            self._alarm.warn("baseline", f"no baseline from before the resume: {error}; {_new_baseline(self._now())}")
            return None
        return old

    def _claim(self, folder: str, manifest: Manifest) -> RunStore:
        """Make the folder this run's, before anything of it is written there."""
        while True:
            store = RunStore(folder, manifest)
            try:
                store.create()
                return store
            except Exception as error:
                if not isinstance(error, FileExistsError) or not RunStore.exists(folder):
                    return store  # it cannot be written; the recorder tries again, and warns
            if self._trainer.loggers:
                raise _taken(RunStore.open(folder))
            folder = _unnamed_run(self._trainer)  # the last one is of a training that has begun at the same moment

    def _trackers(self, folder: str | None) -> list[Tracker]:
        if _is_rehearsal(self._trainer):
            return []
        assert folder is not None, "only a rehearsal has no folder"
        trackers, refused = trackers_for(self._trainer.loggers, folder=folder, unit=self.unit)
        for logger in refused:
            self._alarm.warn(
                f"logger {type(logger).__name__}",
                f"{type(logger).__name__} is given no pictures; every snapshot is in the store, {folder}",
            )
        return trackers

    def _table(self) -> dict[str, str]:
        if self.probe is None or not self._trainer.loggers or _is_rehearsal(self._trainer):
            return {}
        watched = {layer.name for layer in self.watched.layers}
        try:
            with self._trainer.precision_plugin.forward_context():
                example = self._trainer.precision_plugin.convert_input(self.probe.tensor.to(self._module.device))
                table = layer_table(self._module, example, watched=watched, through=self._through)
                return {"layers": table.to_markdown()}
        except Exception as error:  # torchinfo knows fewer kinds of models than we watch
            self._alarm.warn("table", f"no table of layers: {error}")
            return {}

    def _announcement(self, folder: str | None) -> str:
        names = ", ".join(layer.name for layer in self.watched.layers)
        what = " and ".join(
            ([f"the filters of {len(self.watched.filter_layers)}"] if self.watched.filter_layers else [])
            + ([f"the feature maps of {len(self.watched.map_layers)}"] if self.watched.map_layers else [])
        )
        plan = self._filters or self._maps
        assert plan is not None, "a session has a monitor"
        schedule = f"every {plan.every} {'epochs' if self.unit == 'epoch' else 'training steps'}"
        on = (
            f" of {', '.join(self.probe.names)} {list(self.probe.tensor.shape)}"
            if self.probe and self.watched.map_layers
            else ""
        )
        size = f"{self.recorder.step_bytes / 1e6:.2f} MB stored"
        if self.recorder.step_pictures_bytes:
            size += f" and {self.recorder.step_pictures_bytes / 1e6:.2f} MB of pictures"
        if self._shown is not self._module:
            on += " with averaged weights"
        view = ""
        logdir = next((lg.log_dir for lg in self._trainer.loggers if "TensorBoardLogger" in kinds(lg)), None)
        if folder is None:
            size = "nothing is kept in fast_dev_run"
        elif logdir is not None:
            view = f"; view: tensorboard --logdir {shlex.quote(str(logdir))}"
        return (
            f"cnnlog watches {what} layers ({names}){on}, {schedule.replace('every 1 epochs', 'every epoch')}: "
            f"{size} a snapshot in {folder}{view}"
        )

    # ---- every step

    def _now(self) -> int:
        return self._trainer.current_epoch if self.unit == "epoch" else self._trainer.global_step

    def after_epoch(self) -> None:
        """An epoch is complete: capture what is due."""
        if self.unit == "epoch":
            self._take_due(self._trainer.current_epoch, self._trainer.current_epoch + 1)
        self.report()

    def after_batch(self) -> None:
        """A batch is through: capture what is due, if it ended with optimiser steps."""
        before, now = self._last_global_step, self._trainer.global_step
        self._last_global_step = now
        if self.unit == "step" and now > before:
            due = self._take_due(before, now)
            if due or not self._ranks.several:  # telling the other processes costs more than a step may
                self.report()

    def _take_due(self, before: int, now: int) -> bool:
        due = [plan is not None and now // plan.every > before // plan.every for plan in (self._filters, self._maps)]
        if any(due) and now > self._last_step:
            if self._last_step < 0:  # the baseline failed; this one takes its place, so it must be whole
                due = [self._filters is not None, self._maps is not None]
            self.take(now, filters=due[0], maps=due[1])
        return any(due)

    def take(self, step: int, *, filters: bool, maps: bool) -> None:
        """Capture and hand over; what goes wrong is noted for `report` and never raised."""
        if not self._captures:
            return
        trainer = self._trainer
        error: Exception | None = None
        try:
            snapshot = capture(
                self._shown,
                self.probe,  # for filters, too: a layer may compute its weight anew in each forward
                filter_layers=self.watched.filter_layers if filters else (),
                map_layers=self.watched.map_layers if maps else (),
                step=step,
                epoch=step if self.unit == "epoch" else trainer.current_epoch,
                global_step=trainer.global_step,
                run=self._run,
                through=self._through,
                wait=False,
            )
        except Exception as raised:
            error = raised
        error = self._spread.agree(error)  # a step that one of them has no snapshot of is missing for all
        if error is not None:
            goes_on = "training goes on, and later ones are tried"
            self._problems.append(Problem("probe", f"no snapshot of step {step}", error, goes_on))
            return
        self._last_step = step
        if self._recorder is not None:
            self._recorder.record(snapshot)
            self.memory.step = step

    def report(self) -> None:
        """Warn of what went wrong since the last call, once per kind; or raise it, then on every rank alike."""
        problems, self._problems = self._problems, []
        if self._recorder is not None:
            problems += self._recorder.take_problems()
        self._alarm.handle(problems)

    def end(self, *, failed: bool = False) -> None:
        """Draw the evolution strips and wait until everything is written.

        Args:
            failed: this process is leaving the training, and the others are not waited for any more.
        """
        self._alarm.failed = failed
        if self._recorder is not None:
            self._recorder.finish()
        self.report()

    def close(self) -> None:
        """End the threads."""
        if self._recorder is not None:
            self._recorder.close()
        self.report()


def _is_rehearsal(trainer: L.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _dataset(trainer: L.Trainer) -> Any:
    """The validation data set, else the one for training, as the trainer has them loaded."""
    for loaded in (trainer.val_dataloaders, trainer.train_dataloader):
        loader = loaded
        while isinstance(loader, (Mapping, list, tuple)) and loader:
            loader = next(iter(loader.values() if isinstance(loader, Mapping) else loader))
        dataset = getattr(loader, "dataset", None)
        if dataset is not None:
            return dataset
    raise LookupError("The data loaders have no data set to take the first image of as the probe; pass a Probe.")


def _run_folder(trainer: L.Trainer) -> str | None:
    """Where the run's files go; `None` in fast_dev_run, which keeps nothing."""
    if _is_rehearsal(trainer):
        return None
    if not trainer.loggers:
        return _unnamed_run(trainer)
    logger = trainer.loggers[0]
    if getattr(logger, "log_dir", None) is None:  # a tracker's save_dir is common to its runs, so that these are added
        parts = (logger.save_dir or trainer.default_root_dir, logger.name, logger.version)
        save_dir, *named = (str(part) for part in parts if part is not None)
        return "/".join([save_dir, *(inside(part) for part in named), FOLDER])
    return f"{logger.log_dir}/{FOLDER}"  # not trainer.log_dir: that waits for the other ranks, and rank 0 alone is here


def _unnamed_run(trainer: L.Trainer) -> str:
    """The first free folder of a training without a logger."""
    root = f"{trainer.default_root_dir}/cnnlog_logs"
    number = 0
    while RunStore.exists(f"{root}/version_{number}/{FOLDER}"):
        number += 1
    return f"{root}/version_{number}/{FOLDER}"


def _taken(by: RunStore) -> ValueError:
    return ValueError(
        f"{by.folder} already holds a run of {len(by.steps)} snapshots, begun at {by.manifest.created}, and this one "
        "would mix with it: expected a new folder. Choose another logger name or version, delete the folder, or resume "
        "that run with trainer.fit(ckpt_path=...)."
    )


def _continue_manifest(new: Manifest, old: RunStore, *, carried: bool) -> Manifest:
    if not carried:
        return old.manifest
    return Manifest(**{**vars(new), "baseline_step": old.manifest.baseline_step, "carried_from": old.folder})


def _new_baseline(step: int) -> str:
    return f"drift and changes are relative to step {step}, the state at the resume"

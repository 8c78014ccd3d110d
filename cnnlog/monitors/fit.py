"""What the monitors of one `Trainer` share while it fits: what is Lightning's of a run under way."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from cnnlog.capture.capture import placed, survey
from cnnlog.capture.layer_table import LayerTable, layer_table
from cnnlog.capture.layers import LayerInfo, layer_names
from cnnlog.capture.measuring import weights_now
from cnnlog.capture.probe import Probe
from cnnlog.capture.sharding import is_sharded, plain_type, refuse_flattened
from cnnlog.capture.transfer import sent
from cnnlog.kinds import Unit
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.chosen_probe import Choice, FirstBatch
from cnnlog.monitors.live_run import LiveRun, RunPlace, Subject
from cnnlog.monitors.plan import Plan, choose
from cnnlog.monitors.ranks import Ranks
from cnnlog.monitors.run_folder import Memory, is_rehearsal, place_of
from cnnlog.runs.manifest import Manifest
from cnnlog.trackers import Tracker, takes_pictures, trackers_for
from cnnlog.trackers.loggers import handle_of, names_of, takes_only_numbers


class Session:
    """One fit, watched; each process of the training has one.

    Rank 0 alone has a recorder. It alone captures, too, unless the model is sharded over the processes: then all do,
    and what the others have captured is dropped.

    Args:
        trainer: about to train; the baseline is captured here and now.
        module: the module it trains, unwrapped.
        filters: what the `FilterMonitor` was asked for; None without one.
        maps: what the `FeatureMapMonitor` was asked for; None without one.
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
        self._through = next((plan.through for plan in plans if plan.through), None)
        self.unit: Unit = plans[0].unit
        self._last_global_step = trainer.global_step
        self._before: dict[str, torch.Tensor] = {}  # the weights before the last step, where a snapshot follows it
        self._before_at: tuple[int, int] | None = None
        self._first_batch: FirstBatch | None = None
        with self._ranks.together():
            refuse_flattened([*(module if trainer.model is None else trainer.model).modules()])
            together = self._ranks.several and is_sharded(shown.modules())
            self._sharded_over = Ranks(several=together)  # those that capture
            self._subject = self._look() if self._sharded_over.several or self._ranks.first else None
        self._live = LiveRun.open(
            self._subject,
            now=self._now(),
            place=self._place,
            trackers=self._trackers,
            ranks=self._ranks,
            sharded_over=self._sharded_over,
            says=self._alarm,
        )
        try:
            self._begin()
        except BaseException:
            self._live.close()  # nobody else has this session yet
            raise

    # ---- the start

    def _look(self) -> Subject:
        probe, infos = self._survey()
        with_table = probe is not None and self._trainer.loggers and not is_rehearsal(self._trainer)
        return Subject(
            model=self._shown,
            probe=probe,
            watched=choose(infos, filters=self._filters, maps=self._maps),
            filters=self._filters,
            maps=self._maps,
            architecture=plain_type(self._module).__name__,
            run=self._run,
            through=self._through,
            table=self._table if with_table else None,
        )

    def _survey(self) -> tuple[Probe | None, tuple[LayerInfo, ...]]:
        given = [plan.probe for plan in (self._maps, self._filters) if plan is not None and plan.probe is not None]
        choice = Choice(
            trainer=self._trainer,
            memory=self.memory,
            given=given[0] if given else None,
            needed=self._maps is not None,
            alarm=self._alarm,
            ranks=self._ranks,
            sharded_over=self._sharded_over,
        )
        return choice.look(self._look_over)

    def _look_over(self, probe: Probe | None) -> tuple[LayerInfo, ...]:
        return survey(self._shown, probe, run=self._run, through=self._through)

    def _run(self, module: torch.nn.Module, tensor: torch.Tensor) -> None:
        """Run the probe as the trainer runs a batch: on its device, in its precision.

        Args:
            module: the module that is looked at, or the part of it that the probe runs through.
            tensor: the probe `[N, C, H, W]` or `[N, C, T, H, W]`, on the CPU.
        """
        precision = self._trainer.precision_plugin
        with precision.forward_context():
            if self._shown is not self._module:  # it was copied before the trainer moved or converted the other
                module(placed(module, tensor))
                return
            module(precision.convert_input(sent(tensor, self._module.device)))

    def _begin(self) -> None:
        """Take the baseline, unless an earlier run goes on."""
        live, memory = self._live, self.memory
        if live.writes:
            store = live.recorder.store
            memory.folder, memory.run_id = ("", "") if store is None else (store.folder, store.manifest.run_id)
        fresh = live.last_step < 0
        if fresh:
            self._take(self._now(), filters=self._filters is not None, maps=self._maps is not None)
        if live.writes:
            live.recorder.drain()
        live.report()
        if live.writes and (live.recorder.step_bytes or fresh):
            rank_zero_info(self._announcement(memory.folder or None))

    def _place(self, manifest: Manifest) -> RunPlace:
        return place_of(self._trainer, manifest, memory=self.memory, now=self._now(), alarm=self._alarm)

    def _trackers(self, place: RunPlace, opened: ExitStack) -> list[Tracker]:
        """Those behind the trainer's loggers; rank 0 alone asks.

        Args:
            place: where the run is kept.
            opened: what is put on it is undone when the run is closed.
        """
        if is_rehearsal(self._trainer):
            return []
        assert place.store is not None, "only a rehearsal has no folder"
        folder, loggers = place.store.folder, self._trainer.loggers
        files = not loggers or any(takes_only_numbers(logger) for logger in loggers)
        handles = [(logger, handle_of(logger)) for logger in loggers if not takes_only_numbers(logger)]
        for logger, handle in handles:
            if not takes_pictures(handle):
                self._alarm.warn(
                    f"logger {type(logger).__name__}",
                    f"{type(logger).__name__} is given no pictures; every snapshot is in the store, {folder}",
                )
        return trackers_for([handle for _, handle in handles], folder=folder, unit=self.unit, files=files)

    def _table(self) -> LayerTable:
        assert self._subject is not None, "this process captures"
        assert self._subject.probe is not None, "a table is asked for with a probe only"
        precision, watched = self._trainer.precision_plugin, self._subject.watched
        with precision.forward_context():
            example = precision.convert_input(self._subject.probe.tensor.to(self._module.device))
            names = {layer.name for layer in watched.layers}
            return layer_table(self._module, example, watched=names, through=self._through)

    def _announcement(self, folder: str | None) -> str:
        assert self._subject is not None, "rank 0 captures"
        watched, probe, recorder = self._subject.watched, self._subject.probe, self._live.recorder
        names = ", ".join(layer.name for layer in watched.layers)
        what = " and ".join(
            ([f"the filters of {len(watched.filter_layers)}"] if watched.filter_layers else [])
            + ([f"the feature maps of {len(watched.map_layers)}"] if watched.map_layers else [])
        )
        plan = self._filters or self._maps
        assert plan is not None, "a session has a monitor"
        schedule = f"every {plan.every} {self.unit.short}"
        on = f" of {', '.join(probe.names)} {list(probe.tensor.shape)}" if probe and watched.map_layers else ""
        size = f"{recorder.step_bytes / 1e6:.2f} MB stored"
        if recorder.step_pictures_bytes:
            size += f" and {recorder.step_pictures_bytes / 1e6:.2f} MB of pictures"
        if self._shown is not self._module:
            on += " with averaged weights"
        view = ""
        logdir = next((lg.log_dir for lg in self._trainer.loggers if "TensorBoardLogger" in names_of(lg)), None)
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
        return self._trainer.current_epoch if self.unit is Unit.EPOCH else self._trainer.global_step

    def before_batch(self, batch: Any) -> None:
        """The training is about to take a batch: of the first one it is said if the probe is nothing like it.

        Args:
            batch: as the training step gets it.
        """
        if self._first_batch is None:
            # what goes into a part of the model is not in the batch
            compared = self._subject is not None and self._ranks.first and self._through is None
            self._first_batch = FirstBatch(self._subject.probe if compared and self._subject else None, self._alarm)
        self._first_batch.compare(batch)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser is about to step: keep its weights, if a snapshot is due afterwards.

        Args:
            optimizer: whose step it is.
        """
        if self._subject is None or self._shown is not self._module or self._sharded_over.several:
            return
        try:
            if not self._is_due_after_step():
                return
            known_at = (id(optimizer), self._trainer.global_step)
            if known_at == self._before_at:  # LBFGS comes here several times in one step
                return
            stepping = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            modules = {
                name: module
                for name, _, module in layer_names(self._module)
                if id(module._parameters.get("weight")) in stepping  # to ask for .weight may compute it, and draw
            }
            layers = [layer for layer in self._subject.watched.taken if layer.name in modules]
            self._before |= weights_now(modules, layers)
            self._before_at = known_at
        except Exception as error:  # a number less, and no word of it must reach the training
            self._alarm.warn("update", f"how large the last optimiser step was is not known ({error})")

    def _is_due_after_step(self) -> bool:
        trainer = self._trainer
        plans = [plan for plan in (self._filters, self._maps) if plan is not None]
        if self.unit is Unit.STEP:
            before, now = self._last_global_step, self._last_global_step + max(1, len(trainer.optimizers))
        else:
            before, now = trainer.current_epoch, trainer.current_epoch + 1
            if not trainer.is_last_batch and trainer.max_steps != trainer.global_step + 1:
                return False
        return any(now // plan.every > before // plan.every for plan in plans)

    def after_epoch(self) -> None:
        """An epoch is complete: capture what is due."""
        if self.unit is Unit.EPOCH:
            self._take_due(self._trainer.current_epoch, self._trainer.current_epoch + 1)
        self._live.report()

    def after_batch(self) -> None:
        """A batch is through: capture what is due, if it ended with optimiser steps."""
        before, now = self._last_global_step, self._trainer.global_step
        self._last_global_step = now
        if self.unit is Unit.STEP and now > before:
            due = self._take_due(before, now)
            self._before = {}
            if due or not self._ranks.several:  # telling the other processes costs more than a step may
                self._live.report()

    def _take_due(self, before: int, now: int) -> bool:
        due = [plan is not None and now // plan.every > before // plan.every for plan in (self._filters, self._maps)]
        if any(due) and now > self._live.last_step:
            if self._live.last_step < 0:  # the baseline failed; this one takes its place, so it must be whole
                due = [self._filters is not None, self._maps is not None]
            self._take(now, filters=due[0], maps=due[1])
        return any(due)

    def _take(self, step: int, *, filters: bool, maps: bool) -> None:
        epoch = step if self.unit is Unit.EPOCH else self._trainer.current_epoch
        count = self._trainer.global_step
        before, self._before, self._before_at = self._before, {}, None
        if self._live.take(step, epoch=epoch, global_step=count, filters=filters, maps=maps, before=before):
            self.memory.step = step

    def end(self, *, failed: bool = False) -> None:
        """Draw the strips and wait until everything is written.

        Args:
            failed: this process is leaving the training, and the others are not waited for any more.
        """
        self._alarm.failed |= failed
        self._live.finish()
        self._live.report()

    def close(self) -> None:
        """End the threads."""
        self._live.close()
        self._live.report()

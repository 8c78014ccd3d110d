"""What the monitors of one `Trainer` share while it fits: what is Lightning's of a run under way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from cnnlog.capture.capture import placed, survey
from cnnlog.capture.layer_table import LayerTable, layer_table
from cnnlog.capture.layers import LayerInfo
from cnnlog.capture.probe import Probe
from cnnlog.capture.sharding import is_sharded, plain_type, refuse_flattened
from cnnlog.capture.transfer import sent
from cnnlog.kinds import Kind, Unit
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.announcement import announcement
from cnnlog.monitors.chosen_probe import Choice, FirstBatch
from cnnlog.monitors.facts import hyper_parameters
from cnnlog.monitors.live_run import LiveRun, RunPlace, Subject
from cnnlog.monitors.plan import Plan, choose, unit_of
from cnnlog.monitors.ranks import Ranks
from cnnlog.monitors.run_folder import Memory, is_rehearsal, place_of
from cnnlog.monitors.taking import Taking
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
        before_us: the callbacks whose hooks come before ours.

    Attributes:
        memory: what outlives this fit.
        unit: what steps count.
        taking: takes the snapshots.

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
        before_us: Sequence[L.Callback] = (),
    ) -> None:
        both = {Kind.FILTERS: filters, Kind.FEATURE_MAPS: maps}
        self._plans = {kind: plan for kind, plan in both.items() if plan is not None}
        plans = [*self._plans.values()]
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
        self.unit: Unit = unit_of(*plans)
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
        self.taking = Taking(
            trainer,
            module,
            plans=self._plans,
            live=self._live,
            subject=self._subject,
            memory=memory,
            alarm=self._alarm,
            before_us=before_us,
            show=self._show,
            knows_updates=shown is module and not self._sharded_over.several,
            every_batch=not self._ranks.several,
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
            hyper_parameters=hyper_parameters(self._module, self._trainer.datamodule),  # type: ignore[attr-defined]
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
            self.taking.baseline()
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
        recorder = self._live.recorder
        size = f"{recorder.step_bytes / 1e6:.2f} MB stored"
        if recorder.step_pictures_bytes:
            size += f" and {recorder.step_pictures_bytes / 1e6:.2f} MB of pictures"
        logdir = next((lg.log_dir for lg in self._trainer.loggers if "TensorBoardLogger" in names_of(lg)), None)
        return announcement(
            self._subject.watched,
            self._subject.probe,
            schedules=[plan.schedule() for plan in self._plans.values()],
            averaged=self._shown is not self._module,
            size=size,
            folder=folder,
            logdir=None if logdir is None else str(logdir),
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

    def interrupted(self) -> None:
        """Ctrl-C: capture the state as it is, in one process; more would have to be interrupted at the same moment."""
        if not self._ranks.several:
            self._alarm.failed = True
            self.taking.interrupted()

    def _show(self, model: nn.Module) -> None:
        self._shown = model  # tells how the probe is placed

    # ---- the end

    def end(self, *, failed: bool = False) -> None:
        """Capture the last state if it is not yet, draw the strips and wait until everything is written.

        Args:
            failed: this process is leaving the training, and the others are not waited for any more.
        """
        self._alarm.failed |= failed
        if not failed:
            self.taking.take_last()
        self._live.finish(failed=failed)
        self._live.report()

    def close(self) -> None:
        """End the threads."""
        self._live.close()
        self._live.report()

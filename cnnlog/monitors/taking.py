"""What a fit captures, and when: what is due, and the last state whatever was due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import lightning as L
import torch
from torch import nn

from cnnlog.capture.layers import layer_names
from cnnlog.capture.measuring import weights_now
from cnnlog.kinds import Kind, Unit
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.averaging import may_swap_in_validation, swapped_copy, swaps_at_the_end
from cnnlog.monitors.clock import Clock, Here
from cnnlog.monitors.facts import metrics_of
from cnnlog.monitors.live_run import LiveRun, Subject
from cnnlog.monitors.plan import Plan, unit_of
from cnnlog.monitors.run_folder import Memory
from cnnlog.snapshot import Snapshot

Known = tuple[dict[str, float], Callable[[], None] | None]
"""Metrics, and what waits for those that are on a device."""


class Taking:
    """Takes the snapshots of one fit.

    Args:
        trainer: about to train.
        module: the module it trains, unwrapped.
        plans: what was asked for of each kind that is watched.
        live: the run.
        subject: what is looked at; None on a rank that does not capture.
        memory: is told the last complete step that was stored.
        alarm: warned of what goes wrong.
        before_us: the callbacks whose hooks come before ours.
        show: is told what is looked at, if that is another module than before.
        knows_updates: weights before a step can be told: they are those that are shown, and not sharded.
        every_batch: problems may be told after each batch, because no other process waits for that.

    Attributes:
        unit: what steps count.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        *,
        plans: Mapping[Kind, Plan],
        live: LiveRun,
        subject: Subject | None,
        memory: Memory,
        alarm: Alarm,
        before_us: Sequence[L.Callback],
        show: Callable[[nn.Module], None],
        knows_updates: bool,
        every_batch: bool,
    ) -> None:
        self.unit = unit_of(*plans.values())
        self._trainer, self._module, self._plans = trainer, module, dict(plans)
        self._live, self._subject, self._memory, self._alarm = live, subject, memory, alarm
        self._show, self._knows_updates, self._every_batch = show, knows_updates, every_batch
        self._clock = Clock(trainer, self.unit)
        self._before: dict[str, torch.Tensor] = {}  # the weights before the last step, where a snapshot follows it
        self._before_at: tuple[int, int] | None = None
        self._missing: frozenset[Kind] = frozenset()  # in the last snapshot
        self._taken_at = self._clock.here().mark  # a fit begins with a baseline, or with a stored state
        self._last: tuple[Snapshot, Here, frozenset[Kind]] | None = None  # the last epoch, if it was not due
        self._validates = False
        self._callbacks: list[L.Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]  # in a connector
        self._keeps_last = swaps_at_the_end(before_us)
        self._may_swap = may_swap_in_validation(self._callbacks)

    def baseline(self) -> None:
        """Capture everything, before the first optimiser step."""
        self._take(self._clock.here(), frozenset(self._plans), self._known())

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser is about to step: keep its weights, if a snapshot is due afterwards.

        Args:
            optimizer: whose step it is.
        """
        if self._subject is None or not self._knows_updates:
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
                if not isinstance(module, torch.jit.ScriptModule)
                and id(module._parameters.get("weight")) in stepping  # to ask for .weight may compute it, and draw
            }
            layers = [layer for layer in self._subject.watched.taken if layer.name in modules]
            self._before |= weights_now(modules, layers)
            self._before_at = known_at
        except Exception as error:  # a number less, and no word of it must reach the training
            self._alarm.warn("update", f"how large the last optimiser step was is not known ({error})")

    def _is_due_after_step(self) -> bool:
        trainer, before = self._trainer, self._clock.global_step
        if self._due(Unit.STEP, before, before + max(1, len(trainer.optimizers))):
            return True
        # the end of an epoch may be that of the training, whose last state is captured in any case
        return trainer.is_last_batch or trainer.max_steps == trainer.global_step + 1

    def _due(self, counted: Unit, before: int, now: int) -> frozenset[Kind]:
        """The kinds that are due between two counts.

        Args:
            counted: what is counted.
            before: how many were complete.
            now: how many are.
        """
        return frozenset(kind for kind, plan in self._plans.items() if plan.is_due(counted, before, now))

    def after_epoch(self) -> None:
        """An epoch is complete, or stopped: capture what is due."""
        epoch = self._trainer.current_epoch
        self._clock.epoch_ended()
        due = self._due(Unit.EPOCH, epoch, epoch + 1)
        if self.unit is Unit.EPOCH and self._live.provisional_step == epoch + 1:
            due = frozenset(self._plans)  # a training that goes on completes the epoch that the one before had not
        if due:
            self._take_due(due)
        if self._keeps_last:
            self._keep_last()
        self._live.report()

    def after_batch(self) -> None:
        """A batch is through: capture what is due, if it ended with optimiser steps."""
        before, now = self._clock.global_step, self._trainer.global_step
        self._clock.batch_ended()
        if now == before:
            return
        due = self._due(Unit.STEP, before, now)
        if due:
            self._take_due(due)
        if self.unit is Unit.STEP:
            if due or self._every_batch:  # telling the other processes costs more than a step may
                self._live.report()
            if not self._trainer.is_last_batch:  # what follows at the end of the epoch follows the same step
                self._before = {}

    def _take_due(self, due: frozenset[Kind]) -> None:
        here, known = self._clock.here(), self._known()
        if here.step > self._live.last_step:
            everything = self._live.last_step < 0  # the baseline failed; this one takes its place
            self._take(here, frozenset(self._plans) if everything else due, known)
        elif here.step == self._live.last_step and due & self._missing:
            self._take(here, due & self._missing, known)

    def _take(self, here: Here, kinds: frozenset[Kind], known: Known, *, model: nn.Module | None = None) -> None:
        snapshot = self._captured(here, kinds, known, model=model)
        if snapshot is not None:
            self._keep(snapshot, here, kinds)

    def _captured(
        self, here: Here, kinds: frozenset[Kind], known: Known, *, model: nn.Module | None = None
    ) -> Snapshot | None:
        before, self._before, self._before_at = self._before, {}, None
        snapshot = self._live.capture(
            here.step,
            epoch=here.epoch,
            global_step=here.global_step,
            filters=Kind.FILTERS in kinds,
            maps=Kind.FEATURE_MAPS in kinds,
            before=before,
            model=model,
        )
        if snapshot is None:
            return None
        metrics, fill = known
        ready = snapshot.ready
        if fill is not None:
            ready = _both(snapshot.ready, fill)
        return replace(snapshot, metrics=metrics, provisional=here.provisional, ready=ready)

    def _keep(self, snapshot: Snapshot, here: Here, kinds: frozenset[Kind]) -> None:
        is_same = here.step == self._live.last_step
        records = self._live.keep(snapshot)
        self._missing = (self._missing if is_same else frozenset(self._plans)) - kinds
        self._taken_at = here.mark
        if records and not here.provisional:
            self._memory.step = here.step

    def _known(self) -> Known:
        """Metrics and learning rates; every rank must ask, because a metric may wait for the others."""
        try:
            return metrics_of(self._trainer)
        except Exception as error:  # metrics are the user's own classes
            self._alarm.warn("metrics", f"the trainer's metrics are not known ({type(error).__name__}: {error})")
            return {}, None

    # ---- the last state

    def _lacks(self, here: Here) -> frozenset[Kind]:
        """The kinds that no snapshot of the state as it is has."""
        if here.mark == self._taken_at and here.step == self._live.last_step:
            return self._missing
        if here.mark == self._taken_at or here.step <= self._live.last_step:
            return frozenset()
        return frozenset(self._plans)

    def _keep_last(self) -> None:
        """Keep the end of an epoch in memory, because nobody may look at the module when the training has ended.

        Of the epochs that are not due only the last one is kept.
        """
        here, known = self._clock.here(), self._known()
        lacks, self._last = self._lacks(here), None
        if lacks:
            snapshot = self._captured(here, lacks, known)
            if snapshot is not None:
                self._last = (snapshot, here, lacks)

    def take_last(self) -> None:
        """The training ended by itself: its last state is kept, if it was not due."""
        if not self._keeps_last:
            here, known = self._clock.here(), self._known()
            lacks = self._lacks(here)
            if lacks:
                self._take(here, lacks, known)
        elif self._last is not None:
            self._keep(*self._last)
        self._last = None

    def interrupted(self) -> None:
        """Ctrl-C: capture the state as it is.

        A state within an epoch goes into the store alone: a training that goes on writes that step anew, and pictures
        that were sent cannot be.
        """
        try:
            here, known = self._clock.here(), self._known()
            lacks = self._lacks(here)
            model = self._swapped() if self._validates else None
            if lacks and (model is not None or not self._validates or not self._may_swap):
                snapshot = self._captured(here, lacks, known, model=model)
                if snapshot is not None:
                    self._keep(replace(snapshot, drawn=not here.provisional), here, lacks)
            elif lacks and self._last is not None:
                self._keep(*self._last)
        except Exception as error:  # the training is over, and its own end must not be hidden
            self._alarm.warn("last", f"the last state was not captured ({type(error).__name__}: {error})")

    def validates(self, yes: bool) -> None:
        """A validation begins or ends.

        Args:
            yes: it begins.
        """
        self._validates = yes

    def _swapped(self) -> nn.Module | None:
        """What holds, during a validation, what is shown at other times; None if nothing was exchanged."""
        copy = swapped_copy(self._callbacks, self._module)
        if copy is None:
            return None
        assert self._subject is not None, "one process, which captures"
        other = copy if self._subject.model is self._module else self._module
        self._show(other)
        return other


def _both(first: Callable[[], None] | None, then: Callable[[], None]) -> Callable[[], None]:
    def wait() -> None:
        if first is not None:
            first()
        then()

    return wait

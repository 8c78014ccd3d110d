"""A run under way: from the first look at a model to the last picture, whoever trains it.

`fit` (Lightning's Trainer), `loop` (a loop of your own) and `replay` (checkpoints of the past) decide when to capture,
and where the run goes. Everything between stands here once.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from cnnlog.capture.capture import Forward, capture
from cnnlog.capture.layer_table import LayerTable
from cnnlog.capture.probe import Probe
from cnnlog.monitors.plan import Plan, Watched, manifest_of, probe_files
from cnnlog.monitors.ranks import Ranks
from cnnlog.recording.problems import Problem
from cnnlog.recording.recorder import Recorder
from cnnlog.runs import writers
from cnnlog.runs.manifest import Manifest
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot
from cnnlog.trackers import Tracker


class Says(Protocol):
    """What takes the problems of a run: `Alarm` warns of them or raises them."""

    def handle(self, problems: Iterable[Problem]) -> None:
        """Take what went wrong since the last call.

        Args:
            problems: none, where all went well.
        """

    def warn(self, what: str, message: str) -> None:
        """Take one sentence; `what` is its kind.

        Args:
            what: the kind of the problem.
            message: one sentence, without the package's name.
        """


@dataclass(frozen=True)
class Subject:
    """What is looked at, and how.

    Attributes:
        model: runs the probe.
        probe: the fixed input; None where filters alone are watched, and none is needed to compute them.
        watched: the layers.
        filters: what was asked for filters, None for nothing.
        maps: what was asked for feature maps, None for nothing.
        architecture: the network's name.
        run: executes the forward pass; None calls the model.
        through: the sub-module that the probe runs through.
        table: makes the table of layers; None leaves it out.
        hyper_parameters: plain values, for the manifest.
    """

    model: nn.Module
    probe: Probe | None
    watched: Watched
    filters: Plan | None
    maps: Plan | None
    architecture: str
    run: Forward | None = None
    through: str | None = None
    table: Callable[[], LayerTable] | None = None
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunPlace:
    """Where a run is kept.

    Attributes:
        store: its folder; None keeps nothing.
        old: the stored run that it goes on from, which lies in the same folder or in another one; None begins anew.
    """

    store: RunStore | None
    old: RunStore | None = None

    @property
    def carried(self) -> bool:
        """Whether the baseline comes from another folder, and must be written into this one."""
        return self.old is not None and (self.store is None or self.old.folder != self.store.folder)


class LiveRun:
    """A run under way, in one process of a training. `LiveRun.open` makes one; `close` it at the end.

    Rank 0 alone records. The others capture, too, if the model is sharded over them; what they capture is dropped.

    A process that `os.fork` made of this one has no run: it has none of the threads, locks may be held for ever, and
    files and trackers are its parent's. There, all methods do nothing.

    Args:
        subject: what is looked at; None on a rank that does not capture.
        ranks: all processes of the training.
        sharded_over: those over which the model is sharded.
        says: takes what goes wrong.

    Attributes:
        last_step: the last step that was captured, -1 before the baseline; of a run that is gone on with, the last
            complete one.
        provisional_step: a stored step of a state within an epoch, which is to be written anew; None without one.
    """

    def __init__(self, subject: Subject | None, *, ranks: Ranks, sharded_over: Ranks, says: Says) -> None:
        self.last_step = -1
        self.provisional_step: int | None = None
        self._pid = os.getpid()
        self._ended_well = False
        self._subject = subject
        self._ranks, self._sharded_over = ranks, sharded_over
        self._says = says
        self._recorder: Recorder | None = None
        self._problems: list[Problem] = []
        self._opened = ExitStack()

    @classmethod
    def open(
        cls,
        subject: Subject | None,
        *,
        now: int,
        place: Callable[[Manifest], RunPlace],
        trackers: Callable[[RunPlace, ExitStack], Sequence[Tracker]],
        ranks: Ranks,
        sharded_over: Ranks,
        says: Says,
    ) -> LiveRun:
        """Begin a run, or go on with a stored one. Every rank must call this.

        Args:
            subject: what is looked at; None on a rank that does not capture.
            now: the step that the training is at.
            place: says where the run is kept, given the manifest of one that begins now. Rank 0 alone is asked; it
                claims the folder, so that nothing of another run is mixed with this one.
            trackers: makes the trackers, given the place. What it puts on the stack is undone when the run is closed.
            ranks: all processes of the training.
            sharded_over: those over which the model is sharded.
            says: takes what goes wrong.

        Raises:
            ValueError: the stored run cannot be gone on with.
        """
        live = cls(subject, ranks=ranks, sharded_over=sharded_over, says=says)
        texts = live._texts()
        try:
            with ranks.together():
                if ranks.first:
                    assert subject is not None, "rank 0 captures"
                    live._recorder = live._record(subject, now, place, trackers, texts)
            recorder = live._recorder
            known = (-1, None) if recorder is None else (recorder.last_step, recorder.provisional_step)
            live.last_step, live.provisional_step = ranks.share(known)
        except BaseException:
            live._opened.close()  # nobody else has this run yet
            raise
        return live

    @property
    def recorder(self) -> Recorder:
        """Rank 0's."""
        assert self._recorder is not None, "rank 0 alone has a recorder"
        return self._recorder

    @property
    def writes(self) -> bool:
        """Whether this process is the one that records."""
        return self._recorder is not None

    # ---- the start

    def _texts(self) -> dict[str, str]:
        """The table of layers, as the trackers get it."""
        if self._subject is None or self._subject.table is None:
            return {}
        try:
            return {"layers": self._subject.table().to_markdown()}
        except Exception as error:  # torchinfo knows fewer kinds of models than we watch
            self._says.warn("table", f"no table of layers: {error}")
            return {}

    def _record(
        self,
        subject: Subject,
        now: int,
        place: Callable[[Manifest], RunPlace],
        trackers: Callable[[RunPlace, ExitStack], Sequence[Tracker]],
        texts: dict[str, str],
    ) -> Recorder:
        manifest = manifest_of(
            subject.watched,
            filters=subject.filters,
            maps=subject.maps,
            probe=subject.probe,
            baseline_step=now,
            architecture=subject.architecture,
            hyper_parameters=subject.hyper_parameters,
        )
        there = place(manifest)
        if there.store is not None:
            writers.begins(there.store.manifest.run_id)
            self._opened.callback(self._let_go, there.store)
        recorder = Recorder(
            subject.watched.layers,
            measured=subject.watched.measured,
            filters=subject.filters.look if subject.filters else None,
            maps=subject.maps.look if subject.maps else None,
            store=there.store,
            trackers=trackers(there, self._opened),
            probe=probe_files(subject.probe, width=_width(subject)),
            texts=texts,
        )
        self._opened.callback(recorder.close)
        if there.old is not None:
            self._go_on(recorder, there.old, now, carried=there.carried)
        return recorder

    def _go_on(self, recorder: Recorder, old: RunStore, now: int, *, carried: bool) -> None:
        try:
            recorder.resume(old, now=now, carried=carried)
        except (OSError, ValueError, LookupError) as error:
            if not carried:
                raise ValueError(f"The run in {old.folder} cannot be continued: {error}") from error
            unread = f"the baseline in {old.folder} cannot be read ({error})"
            self._says.warn("baseline", f"{unread}; {new_baseline(now)}")

    def _let_go(self, store: RunStore) -> None:
        store.release(failed=not self._ended_well)
        writers.ends(store.manifest.run_id)

    # ---- every step

    def take(
        self,
        step: int,
        *,
        epoch: int,
        global_step: int,
        filters: bool = True,
        maps: bool = True,
        model: nn.Module | None = None,
        before: Mapping[str, torch.Tensor] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Capture the model, and `keep` what that gave.

        Args:
            step: the snapshot's number, above all earlier ones.
            epoch: how many epochs are complete.
            global_step: how many optimiser steps are complete.
            filters: capture them.
            maps: capture feature maps.
            model: capture this one, of the same layers; None captures the subject's.
            before: layer -> its weights before the last optimiser step; None where they are not known.
            metrics: what the loop knows at this moment: name -> value.

        Returns:
            Whether this process recorded a snapshot.
        """
        snapshot = self.capture(
            step, epoch=epoch, global_step=global_step, filters=filters, maps=maps, model=model, before=before
        )
        return snapshot is not None and self.keep(replace(snapshot, metrics=dict(metrics or {})))

    def capture(
        self,
        step: int,
        *,
        epoch: int,
        global_step: int,
        filters: bool = True,
        maps: bool = True,
        model: nn.Module | None = None,
        before: Mapping[str, torch.Tensor] | None = None,
    ) -> Snapshot | None:
        """Capture the model. What goes wrong is kept for `report`, and never raised.

        Args:
            step: the snapshot's number, above all earlier ones.
            epoch: how many epochs are complete.
            global_step: how many optimiser steps are complete.
            filters: capture them.
            maps: capture feature maps.
            model: capture this one, of the same layers; None captures the subject's.
            before: layer -> its weights before the last optimiser step; None where they are not known.

        Returns:
            The snapshot; None on a rank that does not capture, and if something went wrong.
        """
        if self._subject is None or self._is_forked():
            return None
        subject, error = self._subject, None
        try:
            snapshot = capture(
                subject.model if model is None else model,
                subject.probe,  # for filters, too: a layer may compute its weight anew in each forward
                filter_layers=subject.watched.filter_layers if filters else (),
                map_layers=subject.watched.map_layers if maps else (),
                measured=subject.watched.taken,
                channels_last=subject.watched.channels_last,
                before=before,
                step=step,
                epoch=epoch,
                global_step=global_step,
                run=subject.run,
                through=subject.through,
                wait=False,
            )
        except Exception as raised:
            # the frames of the pass that failed hold its activations, and the training needs their memory
            traceback.clear_frames(raised.__traceback__)
            error = raised
        error = self._sharded_over.agree(error)  # a step that one of them has no snapshot of is missing for all
        if error is not None:
            goes_on = "training goes on, and later ones are tried"
            self._problems.append(Problem("probe", f"no snapshot of step {step}", error, goes_on))
            return None
        return snapshot

    def keep(self, snapshot: Snapshot) -> bool:
        """Hand a snapshot to the recorder. The first one is waited for, so that its size is known.

        Args:
            snapshot: of a step above all earlier ones; or of the last one, with the kinds that it lacks.

        Returns:
            Whether this process records.
        """
        if self._is_forked():
            return False
        if self._recorder is not None:
            self._recorder.record(snapshot)  # Ctrl-C may end this, and the step is not there then
        first, self.last_step = self.last_step < 0, snapshot.step
        if self.provisional_step == snapshot.step:
            self.provisional_step = None
        if self._recorder is None:
            return False
        if first:
            self._recorder.drain()
        return True

    def report(self) -> None:
        """Say what went wrong since the last call. If problems are raised, every rank must call this."""
        if self._is_forked():
            return
        problems, self._problems = self._problems, []
        if self._recorder is not None:
            problems += self._recorder.take_problems()
        self._says.handle(problems)

    # ---- the end

    def finish(self, *, failed: bool = False) -> None:
        """Draw the strips and wait until everything is written.

        Args:
            failed: an exception ended the training.
        """
        if self._is_forked():
            return
        self._ended_well = not failed
        if self._recorder is not None:
            self._recorder.finish()

    def close(self) -> None:
        """End the threads and close what was opened. A second call does nothing."""
        if not self._is_forked():
            self._opened.close()

    def _is_forked(self) -> bool:
        """Whether `os.fork` made this process of the one whose run this is."""
        return os.getpid() != self._pid


def claim(folder: str, manifest: Manifest) -> RunStore:
    """Make a folder this run's, before anything of it is written there.

    A folder that cannot be written is claimed by nobody; the recorder tries again, and warns. What a run left there
    that failed or died with its baseline alone is deleted.

    Args:
        folder: of the run's files.
        manifest: what the run says of itself.

    Returns:
        The store in that folder.

    Raises:
        FileExistsError: another run is there.
    """
    if RunStore.exists(folder):  # looked for first, because a folder that cannot be written may hold a run, too
        old = RunStore.open(folder)
        if not old.is_abandoned():
            raise FileExistsError(folder)
        old.delete()
    store = RunStore(folder, manifest)
    try:
        store.create()
    except Exception as error:  # remote file systems raise errors of their own
        if isinstance(error, FileExistsError) and RunStore.exists(folder):
            raise
    return store


def taken(by: RunStore, instead: str) -> ValueError:
    """The refusal of a folder that holds another run.

    Args:
        by: that run.
        instead: what to do.
    """
    return ValueError(
        f"{by.folder} already holds a run of {len(by.steps)} snapshots, begun at {by.manifest.created}, and this one "
        f"would mix with it: expected a new folder. {instead}"
    )


def new_baseline(step: int) -> str:
    """What follows where the baseline of a resumed run is lost.

    Args:
        step: the step that the training is at.
    """
    return f"drift and changes are relative to step {step}, the state at the resume"


def _width(subject: Subject) -> int | None:
    """How wide the grids of a run are at most."""
    plan = subject.maps or subject.filters
    return None if plan is None else plan.look.width

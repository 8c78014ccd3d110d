"""From snapshots to files and pictures, in the background.

The training thread hands a `Snapshot` over. One background thread measures it, stores it and draws it, in this order.
Each tracker has a further thread, so that a slow one holds up neither the store nor the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cnnlog.kinds import Kind
from cnnlog.recording.drawer import Drawers, LoggedPicture, Look
from cnnlog.recording.mailbox import Mailbox
from cnnlog.recording.measured import broken_or_dead, scalars_by_tag
from cnnlog.recording.outbox import Outbox, Parcel
from cnnlog.recording.problems import Problem, Problems
from cnnlog.recording.store_writer import StoreWriter
from cnnlog.recording.yardstick import Latest, Yardstick, stored_weights
from cnnlog.rendering.grids import STRIP_STEPS
from cnnlog.runs.manifest import VERSION, MeasuredLayer, WatchedLayer
from cnnlog.runs.steps import strided
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import FloatArray, Record, Snapshot
from cnnlog.trackers import Tracker

JOBS_WAITING = 2
_SAME_IN_ALL_FORMATS = ("filter_norm", "map_mean", "map_max", "map_active")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """Work for the background thread.

    Attributes:
        what: what it is, in the words of a warning.
        work: does it.
    """

    what: str
    work: Callable[[], None]


class Recorder:
    """Takes snapshots, keeps every one in the store, and sends pictures and numbers to the trackers.

    Args:
        layers: the pictured layers, in the order of their tags.
        measured: the layers that numbers are kept of, in the order of their tags.
        filters: how filters are drawn; None if none are watched.
        maps: how feature maps are drawn; None if none are watched.
        store: where to keep the run; None keeps nothing (Lightning's `fast_dev_run`).
        trackers: those that get pictures and numbers.
        probe: the probe's tensor `[N, C, H, W]`, and its picture; None for a run without a probe.
        texts: tag -> Markdown, logged once with the first snapshot.

    Attributes:
        store: where the run is kept, or None.
        last_step: the step of the last snapshot that was handed over, or the last complete one that a resumed run
            holds; -1 without any.
        provisional_step: the step that a resumed run holds of a state within an epoch, which is to be written anew;
            None without one.
        step_pictures_bytes: the size of the pictures of the last step that was drawn.
    """

    def __init__(
        self,
        layers: Sequence[WatchedLayer],
        *,
        measured: Sequence[MeasuredLayer],
        filters: Look | None,
        maps: Look | None,
        store: RunStore | None,
        trackers: Sequence[Tracker],
        probe: tuple[FloatArray, LoggedPicture] | None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.store = store
        self.last_step = -1
        self.provisional_step: int | None = None
        self.step_pictures_bytes = 0
        self._layers, self._measured = tuple(layers), tuple(measured)
        self._texts = dict(texts or {})
        self._probe_picture = None if probe is None else probe[1]
        looks = {Kind.FILTERS: filters, Kind.FEATURE_MAPS: maps}
        self._drawers = Drawers(self._layers, {kind: look for kind, look in looks.items() if look is not None})
        self._yardstick = Yardstick(self._measured)
        self._problems = Problems()
        probe_files = None if probe is None else (probe[0], probe[1].png)
        self._store_writer = StoreWriter(store, probe=probe_files, problems=self._problems)
        self._outbox = Outbox(trackers, self._problems, kept_in=store.folder if store is not None else "")
        self._recorded = self._drawn = False
        self._drawn_step = -1
        self._kept: Record | None = None  # the last record, while a kind is missing in it
        self._stored = threading.Event()
        self._stored.set()
        self._jobs: Mailbox[Job] = Mailbox(
            lambda job: job.work(),
            lambda job, error: self._problems.add(Problem("recorder", f"{job.what} failed", error)),
            name="cnnlog",
            size=JOBS_WAITING,
        )

    @property
    def step_bytes(self) -> int:
        """The size of the last step file; 0 before there is one."""
        return self._store_writer.step_bytes

    # ---- the training thread's side

    def record(self, snapshot: Snapshot) -> None:
        """Hand a snapshot over; this waits until the one before is stored, so that a kill costs at most this one.

        A second snapshot of the last step adds the kinds that the first one lacks.

        Args:
            snapshot: what to keep and to draw.
        """
        self._stored.wait()
        self._stored.clear()
        try:
            self._jobs.put(Job(f"keeping the snapshot of step {snapshot.step}", lambda: self._process(snapshot)))
        except BaseException:  # Ctrl-C: nobody will store it, and the next one must not wait for that
            self._stored.set()
            raise
        self.last_step = snapshot.step
        self._recorded = True
        if snapshot.drawn:
            self._drawn, self._drawn_step = True, snapshot.step

    def drain(self, *, trackers: bool = False) -> None:
        """Wait until everything handed over is stored and drawn.

        Args:
            trackers: wait until the trackers have taken it, too.
        """
        self._jobs.drain()
        if trackers:
            self._outbox.drain()

    def finish(self) -> None:
        """Store what is stored at the end, draw the strips, if there was anything new, then drain."""
        store = self.store
        if self._recorded:
            self._jobs.put(Job("storing the last weights", lambda: self._store_writer.finish(self._yardstick.latest)))
        if store is not None and self._outbox.is_used and self._drawn:
            self._jobs.put(Job("drawing the evolution", lambda: self._draw_evolution(store)))
        self._recorded = self._drawn = False  # a second strip at the same step would hide the first
        self.drain()

    def close(self) -> None:
        """Drain and end the threads, with patience for the trackers."""
        self._jobs.close()
        self._outbox.close()

    def take_problems(self) -> list[Problem]:
        """What went wrong since the last call."""
        return self._problems.take()

    def resume(self, old: RunStore, *, now: int, carried: bool) -> None:
        """Go on from a stored run: its baseline, ranges, last weights and last step.

        Args:
            old: the stored run.
            now: the step that the resumed training is at.
            carried: whether it lies in another folder, so that its baseline must be written into this one's.

        Raises:
            OSError, ValueError: something of it cannot be read; nothing was taken over.
        """
        first, last = old.manifest.baseline_step, max(old.steps)
        baseline, latest = old.read_record(first), old.read_record(last)
        provisional = last if latest.provisional and last > first else None
        if provisional is not None:  # ranges and numbers go on from the step before, as if it had not been
            last = max(step for step in old.steps if step < last)
            latest = old.read_record(last)
        if old.manifest.version < VERSION:  # some numbers there have our names and another meaning
            kept = {name: by_layer for name, by_layer in baseline.numbers.items() if name in _SAME_IN_ALL_FORMATS}
            baseline = replace(baseline, numbers=kept)
        weights = _if_there(lambda: old.read_weights("baseline")[0]) or {}
        outputs = _if_there(lambda: old.read_outputs("baseline")[0]) if old.manifest.version > 1 else None
        before = _if_there(lambda: old.read_weights("latest"))
        self._drawers.restore(baseline, latest)
        # If the run went on past the checkpoint, or the file is older than the last step, no update leads to here.
        leads_here = before is not None and before[1] == last <= now
        self._yardstick.restore(
            first,
            weights=weights,
            outputs=outputs or {},
            latest=Latest(last, latest.global_step, before[0], {}) if leads_here and before is not None else None,
        )
        self.last_step = first if carried else last
        self.provisional_step = None if carried else provisional
        if carried:
            self._jobs.put(Job("carrying the baseline over", lambda: self._carry(baseline)))
        else:
            self._jobs.put(Job("drawing what a kill left out", lambda: self._draw_missing(old, baseline)))

    # ---- the background thread's side

    def _process(self, snapshot: Snapshot) -> None:
        """Measure, store, draw and send a snapshot."""
        is_baseline = not self._yardstick.is_set
        try:
            if snapshot.ready is not None:
                snapshot.ready()
            new = self._measure(snapshot)
            record = replace(self._whole(new), ranges=self._drawers.ranges())
            begins = self._yardstick if is_baseline else None
            weights = stored_weights(snapshot) if self._kept is None else {}  # of the missing kind alone: at the end
            self._store_writer.keep(record, weights, begins=begins)
            self._yardstick.move_on(snapshot)
            lacks = [kind for kind in Kind if self._drawers.draws(kind) and not kind.of(record)]
            adds, self._kept = self._kept is not None, record if lacks else None
        finally:
            self._stored.set()  # also when that failed: the training does not wait for what will not come
        for problem in broken_or_dead(snapshot, record.numbers):
            self._problems.add(problem)
        if self._outbox.is_used and snapshot.drawn:
            try:
                histograms = self._drawers.histograms(snapshot)
                if adds:
                    new = replace(new, numbers={})  # those of the layers are with the trackers
                parcel = self._parcel(new, is_baseline=is_baseline, histograms=histograms)
            except Exception as error:  # the snapshot is stored all the same
                message = f"the pictures of step {record.step} could not be drawn"
                self._problems.add(Problem("pictures", message, error))
            else:
                self._outbox.send(parcel)

    def _measure(self, snapshot: Snapshot) -> Record:
        """The record of a snapshot; the drawers have then taken it in, and know its ranges."""
        record = Record(
            step=snapshot.step,
            epoch=snapshot.epoch,
            global_step=snapshot.global_step,
            numbers=self._yardstick.measure(snapshot),
            filters=self._drawers.shown(snapshot, Kind.FILTERS),
            feature_maps=self._drawers.shown(snapshot, Kind.FEATURE_MAPS),
            metrics=dict(snapshot.metrics),
            provisional=snapshot.provisional,
        )
        self._drawers.see(record)
        return record

    def _whole(self, record: Record) -> Record:
        """A record with what the one of the same step has already; others are whole, and nothing is kept of before."""
        kept = self._kept
        if kept is None or kept.step != record.step:
            self._kept = None
            return record
        return replace(
            record,
            filters={**record.filters, **kept.filters},
            feature_maps={**record.feature_maps, **kept.feature_maps},
            numbers={**record.numbers, **kept.numbers},
        )

    def _parcel(
        self, record: Record, *, is_baseline: bool, histograms: Mapping[str, FloatArray] | None = None
    ) -> Parcel:
        """What the trackers get of the step that the drawers took in last."""
        pictures = self._drawers.pictures(record, self._yardstick.baseline_step)
        self.step_pictures_bytes = sum(len(picture.png) for picture in pictures)
        if is_baseline and self._probe_picture is not None:
            pictures.append(self._probe_picture)
        return Parcel(
            step=record.step,
            pictures=tuple(pictures),
            scalars=scalars_by_tag(record, self._measured),
            texts=self._texts if is_baseline else {},
            histograms=histograms or {},
        )

    def _carry(self, baseline: Record) -> None:
        """Begin this run's folder, and its pictures, with the baseline of the run that it resumes."""
        self._store_writer.carry(baseline, self._yardstick)
        if self._outbox.is_used:
            self._drawers.see(baseline)
            self._outbox.send(self._parcel(baseline, is_baseline=True))

    def _draw_missing(self, store: RunStore, baseline: Record) -> None:
        """Draw the stored steps that a kill kept from the trackers."""

        def parcel_of(step: int) -> Parcel:
            record = store.read_record(step)
            self._drawers.restore(baseline, record)
            self._drawers.see(record)
            return self._parcel(record, is_baseline=step == self._yardstick.baseline_step)

        self._outbox.catch_up([step for step in store.steps if step != self.provisional_step], parcel_of)

    def _draw_evolution(self, store: RunStore) -> None:
        """Draw a strip for each layer and kind, of steps at one distance from each other."""
        steps = [step for step in store.steps if step <= self._drawn_step]
        if not steps:
            return
        chosen = strided(steps, STRIP_STEPS)
        records = [store.read_record(step) for step in chosen.steps]
        self._outbox.send(Parcel(steps[-1], tuple(self._drawers.strips(records, chosen))))


def _if_there(read: Callable[[], _T]) -> _T | None:
    """What is read; None if there is no such file."""
    try:
        return read()
    except FileNotFoundError:
        return None

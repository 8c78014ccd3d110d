"""From snapshots to files and pictures, in the background.

The training thread hands a `Snapshot` over; one background thread measures it, stores it and draws it, in this order;
each tracker has a further thread, so that a slow one holds up neither the store nor the others.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind
from cnnlog.messages import some
from cnnlog.metrics import drift
from cnnlog.recording.drawer import STRIP_CHANNELS, Drawer, Look, Picture
from cnnlog.recording.mailbox import Mailbox
from cnnlog.rendering.png import encode_png
from cnnlog.rendering.views import cell_width, grid_columns, select_filters, select_maps
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import FloatArray, Record, Snapshot
from cnnlog.trackers import Tracker

Numbers = dict[str, dict[str, npt.NDArray[np.float64]]]

JOBS_WAITING = 2
TRACKER_BYTES_WAITING = 64_000_000  # 200 snapshots of AlexNet; each tracker has a queue, but the bytes are shared
TRACKER_PATIENCE = 30.0  # seconds that the end of a training waits for the trackers, all of them together
STRIP_STEPS = 8


@dataclass(frozen=True)
class Page:
    """Everything that the trackers get of one step."""

    step: int
    pictures: tuple[Picture, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    histograms: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes that it keeps in memory, about."""
        return sum(len(picture.png) for picture in self.pictures) + sum(a.nbytes for a in self.histograms.values())


@dataclass(frozen=True)
class Job:
    """Work for the background thread, and what it is, in the words of a warning."""

    what: str
    work: Callable[[], None]


@dataclass(frozen=True)
class Problem:
    """Something that went wrong here, to be warned of once per `what`.

    Attributes:
        what: the kind.
        message: what went wrong.
        error: why, where an exception tells.
        next: what follows if the training goes on all the same, which it does not where problems are raised.
    """

    what: str
    message: str
    error: Exception | None = None
    next: str = ""

    def text(self, *, goes_on: bool) -> str:
        """The message, what follows if the training goes on, and the error's."""
        said = f"{self.message}; {self.next}" if goes_on and self.next else self.message
        return said + (f" ({type(self.error).__name__}: {self.error})" if self.error is not None else "")


class Recorder:
    """Takes snapshots, keeps every one in the store, and sends pictures and numbers to the trackers.

    Args:
        layers: the watched layers, in the order of their tags.
        filters: how filters are drawn, `None` if none are watched; likewise `maps`.
        store: where to keep the run; `None` keeps nothing (Lightning's `fast_dev_run`).
        trackers: those that get pictures and numbers.
        probe: the probe's tensor `[N, C, H, W]`, and its picture.
        texts: tag -> Markdown, logged once with the first snapshot.
    """

    def __init__(
        self,
        layers: Sequence[WatchedLayer],
        *,
        filters: Look | None,
        maps: Look | None,
        store: RunStore | None,
        trackers: Sequence[Tracker],
        probe: tuple[FloatArray, Picture] | None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.store = store
        self.baseline_step = 0
        self.last_step = -1
        self.step_pictures_bytes = 0
        self.step_bytes = 0
        self._looks = {"filters": filters, "feature_maps": maps}
        self._probe = probe
        self._texts = dict(texts or {})
        self._drawers: dict[str, dict[str, Drawer]] = {"filters": {}, "feature_maps": {}}
        for layer in self.layers:
            if filters is not None and layer.weight_shape is not None:
                self._drawers["filters"][layer.name] = Drawer(layer, Kind.FILTERS, filters)
            if maps is not None and layer.output_shape is not None:
                self._drawers["feature_maps"][layer.name] = Drawer(layer, Kind.FEATURE_MAPS, maps)
        self._weights_baseline: dict[str, FloatArray] = {}
        self._weights_before: dict[str, FloatArray] = {}
        self._samples_baseline: dict[str, FloatArray] = {}
        self._unstored: list[Callable[[RunStore], None]] = []
        self._problems: list[Problem] = []
        self._lock = threading.Lock()
        self._recorded = False
        self._stored = threading.Event()
        self._stored.set()
        self._jobs: Mailbox[Job] = Mailbox(
            lambda job: job.work(),
            lambda job, error: self._note("recorder", f"{job.what} failed", error),
            name="cnnlog",
            size=JOBS_WAITING,
        )
        self._trackers = tuple(trackers)
        self._mailboxes = [(tracker.name, self._mailbox(tracker)) for tracker in trackers]

    def _mailbox(self, tracker: Tracker) -> Mailbox[Page]:
        def send(page: Page) -> None:
            for tag, markdown in page.texts.items():
                tracker.add_text(tag, markdown, page.step)
            for picture in page.pictures:
                tracker.add_image(picture.tag, picture.png, picture.size, page.step, description=picture.description)
            for tag, value in page.scalars.items():
                tracker.add_scalar(tag, value, page.step)
            for tag, values in page.histograms.items():
                tracker.add_histogram(tag, values, page.step)
            tracker.commit(page.step)

        def failed(page: Page, error: Exception) -> None:
            kept = f"; every snapshot is in {self.store.folder}" if self.store else ""
            self._note(
                tracker.name,
                f"{tracker.name} did not take the pictures of step {page.step}, and may miss more{kept}",
                error,
            )

        name = f"cnnlog to {tracker.name}"
        size = TRACKER_BYTES_WAITING
        return Mailbox(send, failed, name=name, size=size, weigh=lambda page: page.nbytes, drop_when_full=True)

    # ---- the training thread's side

    def record(self, snapshot: Snapshot) -> None:
        """Hand a snapshot over; waits until the one before is stored, so that a kill costs at most this one."""
        self._stored.wait()
        self._stored.clear()
        self.last_step = snapshot.step
        self._recorded = True
        self._jobs.put(Job(f"keeping the snapshot of step {snapshot.step}", lambda: self._process(snapshot)))

    def drain(self, *, trackers: bool = False) -> None:
        """Wait until everything handed over is stored and drawn; with `trackers`, until they have taken it, too."""
        self._jobs.drain()
        for _, mailbox in self._mailboxes if trackers else ():
            mailbox.drain()

    def finish(self) -> None:
        """Draw the evolution strips, if there was anything new, then drain."""
        if self.store is not None and self._mailboxes and self._recorded:
            self._recorded = False  # a second strip at the same step would hide the first
            self._jobs.put(Job("drawing the evolution", self._draw_evolution))
        self.drain()

    def close(self) -> None:
        """Drain and end the threads, with patience for the trackers; says how many steps' pictures one has missed."""
        self._jobs.close()
        deadline = time.monotonic() + TRACKER_PATIENCE
        for name, mailbox in self._mailboxes:
            done = mailbox.close(max(0, deadline - time.monotonic()))
            missed = f"the pictures of {mailbox.dropped} steps were left out"
            if not done:
                self._note(name, f"{name} still has work after {TRACKER_PATIENCE:.0f} s; {missed}")
            elif mailbox.dropped:
                self._note(f"{name} dropped", f"{name} was too slow; {missed}")

    def take_problems(self) -> list[Problem]:
        """What went wrong since the last call."""
        with self._lock:
            problems, self._problems = self._problems, []
        return problems

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
        weights = old.read_weights("baseline")[0] if self._drawers["filters"] else {}
        before, before_step = old.read_weights("latest") if self._drawers["filters"] else ({}, now)
        samples = old.read_sampled_maps() if self._drawers["feature_maps"] else {}
        self._restore(baseline, latest)
        self._weights_baseline, self._samples_baseline = weights, samples
        # Else the run went on past the checkpoint, or was killed between two files: no update leads from there to here.
        if before_step <= now and not (latest.filters and before_step < last):
            self._weights_before = before
        self.baseline_step = first
        self.last_step = first if carried else last
        if carried:
            self._jobs.put(Job("carrying the baseline over", lambda: self._carry(baseline)))
        else:
            self._jobs.put(Job("drawing what a kill left out", lambda: self._draw_missing(old, baseline)))

    # ---- the background thread's side

    def _process(self, snapshot: Snapshot) -> None:
        if snapshot.ready is not None:
            snapshot.ready()
        is_baseline = not self._samples_baseline and not self._weights_baseline
        try:
            record = self._measure_and_keep(snapshot, is_baseline=is_baseline)
        finally:
            self._stored.set()  # also when that failed: the training does not wait for what will not come
        self._check(record, snapshot)
        if self._mailboxes:
            try:
                page = self._page(record, histograms=self._histograms(snapshot), is_baseline=is_baseline)
            except Exception as error:  # the snapshot is stored all the same
                self._note("pictures", f"the pictures of step {record.step} could not be drawn", error)
            else:
                self._send(page)

    def _measure_and_keep(self, snapshot: Snapshot, *, is_baseline: bool) -> Record:
        samples = {name: _sample(maps) for name, maps in snapshot.feature_maps.items()}
        if is_baseline:
            self.baseline_step = snapshot.step
            if self.store is not None:  # later than planned, if the probe could not run at first
                self.store.begin_at(snapshot.step)
            self._weights_baseline, self._samples_baseline = dict(snapshot.filters), samples
        numbers = self._measure(snapshot, samples)
        shown = self._shown(snapshot)
        counts = (snapshot.step, snapshot.epoch, snapshot.global_step)
        record = Record(*counts, shown["filters"], shown["feature_maps"], numbers)
        self._see(record)
        self._keep(dataclasses.replace(record, ranges=self._ranges()), snapshot.filters, is_baseline=is_baseline)
        self._weights_before = {**self._weights_before, **snapshot.filters}
        return record

    def _ranges(self) -> dict[str, dict[str, dict[str, npt.NDArray[Any]]]]:
        """Picture kind -> layer -> the state of its range; of all layers, for a resume starts from the last step."""
        ranges: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
        for drawers in self._drawers.values():
            for name, drawer in drawers.items():
                for picture_kind, state in drawer.states().items():
                    ranges.setdefault(picture_kind, {})[name] = state
        return ranges

    def _shown(self, snapshot: Snapshot) -> dict[str, dict[str, FloatArray]]:
        shown: dict[str, dict[str, FloatArray]] = {"filters": {}, "feature_maps": {}}
        for name, weight in snapshot.filters.items():
            drawer = self._drawers["filters"][name]
            look, view = drawer.look, drawer.layer.view
            assert view is not None, "a layer whose filters are watched has a view"
            shown["filters"][name] = select_filters(weight, view=view, max_filters=look.shown, max_slices=look.slices)
        for name, maps in snapshot.feature_maps.items():
            look = self._drawers["feature_maps"][name].look
            count = min(maps.shape[1], look.shown)
            cell = cell_width(grid_columns(count), look.width)
            shown["feature_maps"][name] = select_maps(maps, max_maps=look.shown, cell=cell)
        return shown

    def _measure(self, snapshot: Snapshot, samples: Mapping[str, FloatArray]) -> Numbers:
        numbers: Numbers = {}

        def note(number: str, layer: str, value: npt.NDArray[np.float64] | float) -> None:
            numbers.setdefault(number, {})[layer] = np.atleast_1d(np.asarray(value, dtype=np.float64))

        for name, weight in snapshot.filters.items():
            baseline = self._weights_baseline[name]
            change = drift.change(baseline, weight)
            note("filter_norm", name, change.norm)
            note("filter_drift_cosine", name, change.cosine)
            note("filter_drift_l2", name, change.l2)
            if name in self._weights_before:
                note("filter_update_l2", name, drift.relative_l2(self._weights_before[name], weight))
        for name, maps in snapshot.feature_maps.items():
            with np.errstate(invalid="ignore", over="ignore"):
                note("map_mean", name, maps.mean(axis=(0, 2, 3)))
                note("map_max", name, maps.max(axis=(0, 2, 3)))
            active = drift.active_share(maps)
            note("map_active", name, active)
            note("dead_share", name, float(np.mean(active == 0)))
            note("cka", name, drift.linear_cka(self._samples_baseline[name], samples[name]))
        return numbers

    def _keep(self, record: Record, weights: Mapping[str, FloatArray], *, is_baseline: bool) -> None:
        """Store a record; what could not be stored of the run's start is tried again before it."""
        if self.store is None:
            return
        if is_baseline:
            self._unstored = [RunStore.create, *self._start_of(record)]
        try:
            self._store_start(self.store)
            if not is_baseline:
                self.step_bytes = self.store.write_record(record)
            if weights:
                self.store.write_weights("latest", weights, record.step)
        except Exception as error:  # fsspec's file systems raise errors of their own
            message = f"step {record.step} could not be stored in {self.store.folder}"
            self._note("store", message, error, next="training goes on, and later steps are tried again")

    def _start_of(self, baseline: Record) -> list[Callable[[RunStore], None]]:
        """The writes that begin a run, in order."""
        weights, samples, step, probe = self._weights_baseline, self._samples_baseline, baseline.step, self._probe
        writes: list[Callable[[RunStore], None]] = []
        if probe is not None:
            writes.append(lambda store: store.write_probe(probe[0], probe[1].png))
        if weights:
            writes.append(lambda store: store.write_weights("baseline", weights, step))
        if samples:
            writes.append(lambda store: store.write_sampled_maps(samples, step))

        def write_baseline(store: RunStore) -> None:
            self.step_bytes = store.write_record(baseline)

        return [*writes, write_baseline]

    def _store_start(self, store: RunStore) -> None:
        while self._unstored:
            self._unstored[0](store)
            del self._unstored[0]

    def _carry(self, baseline: Record) -> None:
        """Begin this run's folder, and its pictures, with the baseline of the run that it resumes."""
        if self.store is not None:
            self._unstored = [RunStore.create, *self._start_of(baseline)]
            try:
                self._store_start(self.store)
            except Exception as error:
                self._note("store", f"the baseline could not be stored in {self.store.folder}", error)
        if self._mailboxes:
            self._see(baseline)
            self._send(self._page(baseline, histograms={}, is_baseline=True))

    def _restore(self, baseline: Record, at: Record) -> None:
        for kind, shown in (("filters", baseline.filters), ("feature_maps", baseline.feature_maps)):
            for name, drawer in self._drawers[kind].items():
                drawer.restore(shown[name], at.ranges)

    def _draw_missing(self, store: RunStore, baseline: Record) -> None:
        """Send the trackers the stored steps that a kill kept them from, so that it leaves no gap."""
        lasts = [tracker.last_step() for tracker in self._trackers]
        for step in store.steps:
            behind = [i for i, last in enumerate(lasts) if last is not None and last < step]
            if not behind:
                continue
            record = store.read_record(step)
            self._restore(baseline, record)
            self._see(record)
            page = self._page(record, histograms={}, is_baseline=step == self.baseline_step)
            for i in behind:
                self._mailboxes[i][1].put(page)

    def _check(self, record: Record, snapshot: Snapshot) -> None:
        """Tell of values that are NaN or infinite, and of dead layers."""
        bad = {
            f"{name} ({what}, {count} of {array.size})": count
            for what, arrays in (("filters", snapshot.filters), ("feature maps", snapshot.feature_maps))
            for name, array in arrays.items()
            if (count := _not_finite(array))
        }
        if bad:
            self._note(
                "finite",
                f"values of {some(bad)} are NaN or infinite at step {record.step}; they are drawn in green",
            )
        dead = [
            name
            for name, share in record.numbers.get("dead_share", {}).items()
            if share[0] == 1 and not _not_finite(snapshot.feature_maps[name])
        ]
        if dead:
            self._note(
                "dead", f"no feature map of {some(dead)} is above 0 anywhere on the probe at step {record.step}: dead"
            )

    def _see(self, record: Record) -> None:
        for kind, shown in (("filters", record.filters), ("feature_maps", record.feature_maps)):
            for name, array in shown.items():
                self._drawers[kind][name].see(array)

    def _page(self, record: Record, *, histograms: Mapping[str, FloatArray], is_baseline: bool) -> Page:
        pictures: list[Picture] = []
        for kind, shown in (("filters", record.filters), ("feature_maps", record.feature_maps)):
            for name, array in shown.items():
                pictures += self._drawers[kind][name].pictures(array, record.step, self.baseline_step)
        self.step_pictures_bytes = sum(len(p.png) for p in pictures)
        if is_baseline:
            alone = [p for p in pictures if not p.tag.split("/")[0].endswith("_change")]
            pictures += [dataclasses.replace(p, tag=f"baseline/{p.tag}") for p in alone]
            if self._probe is not None:
                pictures.append(self._probe[1])
        texts = self._texts if is_baseline else {}
        return Page(record.step, tuple(pictures), self._scalars(record), texts, histograms)

    def _histograms(self, snapshot: Snapshot) -> dict[str, FloatArray]:
        histograms: dict[str, FloatArray] = {}
        for kind, arrays in (("filters", snapshot.filters), ("feature_maps", snapshot.feature_maps)):
            for name, array in arrays.items():
                drawer = self._drawers[kind][name]
                if drawer.look.histograms:
                    histograms[f"histograms_{kind}/{drawer.layer.tag}"] = array.reshape(-1)
        return histograms

    def _scalars(self, record: Record) -> dict[str, float]:
        tags = {
            "filter_drift_cosine": "drift_cosine",
            "filter_drift_l2": "drift_l2",
            "filter_update_l2": "update_l2",
            "dead_share": "dead_share",
            "cka": "cka",
        }
        by_name = {layer.name: layer.tag for layer in self.layers}
        return {
            f"{tag}/{by_name[name]}": drift.mean_of_finite(values)
            for number, tag in tags.items()
            for name, values in record.numbers.get(number, {}).items()
        }

    def _draw_evolution(self) -> None:
        """One strip a layer and kind: rows are its first channels, columns are steps spread over the training."""
        steps = self.store.steps if self.store is not None else []
        if not steps:
            return
        assert self.store is not None, "it has steps"
        chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, STRIP_STEPS).round().astype(int))]
        records = [self.store.read_record(step) for step in chosen]
        pictures = []
        for kind, drawers in self._drawers.items():
            for name, drawer in drawers.items():
                mine = [r for r in records if name in getattr(r, kind)]
                grid = drawer.strip([getattr(r, kind)[name] for r in mine])
                columns = ", ".join(str(r.step) for r in mine)
                description = (
                    f"{'Filters' if kind == 'filters' else 'Feature maps'} of `{name}` over the training. Rows: the "
                    f"first {STRIP_CHANNELS} channels at most. Columns: steps {columns}."
                )
                png = encode_png(grid, text={"cnnlog": json.dumps({"layer": name, "steps": [r.step for r in mine]})})
                pictures.append(Picture(f"evolution/{kind}/{drawer.layer.tag}", png, grid.size, description))
        self._send(Page(steps[-1], tuple(pictures)))

    def _send(self, page: Page) -> None:
        for _, mailbox in self._mailboxes:
            mailbox.put(page)

    def _note(self, what: str, message: str, error: Exception | None = None, *, next: str = "") -> None:
        with self._lock:
            self._problems.append(Problem(what, message, error, next))


def _sample(maps: FloatArray) -> FloatArray:
    """The activations `[positions, C]` at the sampled positions of maps `[N, C, H, W]`."""
    images, channels, height, width = maps.shape
    at = drift.sample_positions(images, height, width)
    return np.ascontiguousarray(maps.transpose(0, 2, 3, 1).reshape(-1, channels)[at])


def _not_finite(array: FloatArray) -> int:
    """How many values are NaN or infinite; a sum finds out whether any is, at a fraction of the cost."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return 0
    return int(np.count_nonzero(~np.isfinite(array)))

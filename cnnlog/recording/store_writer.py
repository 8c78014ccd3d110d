"""What goes into the store: the files that begin a run, and then a record a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cnnlog.recording.problems import Problem, Problems
from cnnlog.recording.yardstick import Latest, Yardstick
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import FloatArray, Record


class StoreWriter:
    """Writes a run. What could not be stored of its start is tried again before each later step.

    Args:
        store: where to; None keeps nothing.
        probe: the probe's tensor `[N, C, H, W]` and its PNG; None for a run without one.
        problems: where it is noted that something could not be stored.

    Attributes:
        step_bytes: the size of the last step file; 0 before there is one.
    """

    def __init__(self, store: RunStore | None, *, probe: tuple[FloatArray, bytes] | None, problems: Problems) -> None:
        self.step_bytes = 0
        self._store, self._probe, self._problems = store, probe, problems
        self._unstored: list[Callable[[RunStore], object]] = []
        self._weights_bytes = 0  # the size of the last file of weights
        self._bytes_since = 0  # the size of all step files since
        self._weights_step: int | None = None
        self._outputs_step: int | None = None
        self._kept_step: int | None = None

    def keep(self, record: Record, weights: Mapping[str, FloatArray], *, begins: Yardstick | None) -> None:
        """Store a record; a failure becomes a problem.

        The weights are written when the step files since their last writing outweigh them, so that a network with
        large layers does not write all of them at every step.

        Args:
            record: of a step, with its ranges.
            weights: layer -> what is stored of its weights at that step; if there are none, those stored stay.
            begins: what later snapshots are measured against, if this record is the baseline; else None.
        """
        if self._store is None:
            return
        if begins is not None:
            self._store.begin_at(record.step)  # later than planned, if the probe could not run at first
            self._unstored = self._start_of(record, begins)
        try:
            self._store_start(self._store)
            if begins is None:
                self.step_bytes = self._store.write_record(record)
            self._kept_step = record.step
            self._bytes_since += self.step_bytes
            if not weights:
                self._weights_step = None  # a kind was added, and `finish` writes what both have
            elif self._bytes_since >= self._weights_bytes:
                self._write_weights(self._store, weights, record.step)
        except Exception as error:  # fsspec's file systems raise errors of their own
            message = f"step {record.step} could not be stored in {self._store.folder}"
            goes_on = "training goes on, and later steps are tried again"
            self._problems.add(Problem("store", message, error, goes_on))

    def finish(self, latest: Latest | None) -> None:
        """Store the last snapshot's weights and outputs, unless they are; a failure becomes a problem.

        Args:
            latest: the snapshot that was kept last; None if there was none.
        """
        if self._store is None or latest is None or latest.step != self._kept_step:
            return  # without its step, nobody could tell what they are of
        try:
            if latest.weights and self._weights_step != latest.step:
                self._write_weights(self._store, latest.weights, latest.step)
            if latest.outputs and self._outputs_step != latest.step:
                self._store.write_outputs("latest", latest.outputs, latest.step)
                self._outputs_step = latest.step
        except Exception as error:  # fsspec's file systems raise errors of their own
            message = f"the last weights could not be stored in {self._store.folder}"
            self._problems.add(Problem("store", message, error))

    def _write_weights(self, store: RunStore, weights: Mapping[str, FloatArray], step: int) -> None:
        self._weights_bytes = store.write_weights("latest", weights, step)
        self._bytes_since, self._weights_step = 0, step

    def carry(self, baseline: Record, begins: Yardstick) -> None:
        """Begin this run's folder with the baseline of the run that it resumes; a failure becomes a problem.

        Args:
            baseline: the record of that run's first step.
            begins: what later snapshots are measured against.
        """
        if self._store is None:
            return
        self._unstored = self._start_of(baseline, begins)
        try:
            self._store_start(self._store)
        except Exception as error:  # fsspec's file systems raise errors of their own
            message = f"the baseline could not be stored in {self._store.folder}"
            self._problems.add(Problem("store", message, error))

    def _start_of(self, baseline: Record, begins: Yardstick) -> list[Callable[[RunStore], object]]:
        """The writes that begin a run, in order.

        Args:
            baseline: the record of the first step.
            begins: what the later steps are compared with.
        """
        weights, outputs, step, probe = begins.weights, begins.outputs, baseline.step, self._probe
        writes: list[Callable[[RunStore], object]] = [RunStore.create]
        if probe is not None:
            writes.append(lambda store: store.write_probe(*probe))
        if weights:
            writes.append(lambda store: store.write_weights("baseline", weights, step))
        if outputs:
            writes.append(lambda store: store.write_outputs("baseline", outputs, step))

        def write_baseline(store: RunStore) -> None:
            self.step_bytes = store.write_record(baseline)

        return [*writes, write_baseline]

    def _store_start(self, store: RunStore) -> None:
        while self._unstored:
            self._unstored[0](store)
            del self._unstored[0]

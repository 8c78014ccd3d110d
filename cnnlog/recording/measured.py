"""The numbers of a snapshot: what is measured of each layer, and what in it is broken or dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind
from cnnlog.messages import some
from cnnlog.metrics import drift
from cnnlog.recording.problems import Problem
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.snapshot import FloatArray, Record, Snapshot

Numbers = dict[str, dict[str, npt.NDArray[np.float64]]]
"""Name of a number -> layer -> one value for each channel, or one for the layer."""

# Number of a record -> the first part of the tag under which trackers get its mean over a layer's channels.
_SCALARS = {
    "filter_drift_cosine": "drift_cosine",
    "filter_drift_l2": "drift_l2",
    "filter_update_l2": "update_l2",
    "dead_share": "dead_share",
    "cka": "cka",
}


class Yardstick:
    """What every snapshot is measured against: the baseline, and the filters of the snapshot before.

    Attributes:
        baseline_step: the step of the baseline.
        weights: layer -> its filters `[O, I, kH, kW]` at the baseline.
        samples: layer -> its activations `[positions, C]` at the baseline.
    """

    def __init__(self) -> None:
        self.baseline_step = 0
        self.weights: Mapping[str, FloatArray] = {}
        self.samples: Mapping[str, FloatArray] = {}
        self._before: dict[str, FloatArray] = {}

    @property
    def is_set(self) -> bool:
        """Whether there is a baseline. Without one, the next snapshot becomes it."""
        return bool(self.weights or self.samples)

    def restore(
        self,
        baseline_step: int,
        *,
        weights: Mapping[str, FloatArray],
        samples: Mapping[str, FloatArray],
        before: Mapping[str, FloatArray],
    ) -> None:
        """Go on from a stored run.

        Args:
            baseline_step: the step of its baseline.
            weights: layer -> its filters at the baseline.
            samples: layer -> its activations at the baseline.
            before: layer -> the filters that the next update is measured from; without any, the next snapshot has no
                update.
        """
        self.baseline_step, self.weights, self.samples = baseline_step, weights, samples
        self._before = dict(before)

    def measure(self, snapshot: Snapshot) -> Numbers:
        """All numbers of a snapshot. The first snapshot is the baseline.

        Args:
            snapshot: what is measured.
        """
        samples = {name: _sample(maps) for name, maps in snapshot.feature_maps.items()}
        if not self.is_set:
            self.baseline_step, self.weights, self.samples = snapshot.step, dict(snapshot.filters), samples
        numbers: Numbers = {}

        def note(number: str, layer: str, value: npt.NDArray[np.float64] | float) -> None:
            numbers.setdefault(number, {})[layer] = np.atleast_1d(np.asarray(value, dtype=np.float64))

        for name, weight in snapshot.filters.items():
            change = drift.change(self.weights[name], weight)
            note("filter_norm", name, change.norm)
            note("filter_drift_cosine", name, change.cosine)
            note("filter_drift_l2", name, change.l2)
            if name in self._before:
                note("filter_update_l2", name, drift.relative_l2(self._before[name], weight))
        for name, maps in snapshot.feature_maps.items():
            with np.errstate(invalid="ignore", over="ignore"):
                note("map_mean", name, maps.mean(axis=(0, 2, 3)))
                note("map_max", name, maps.max(axis=(0, 2, 3)))
            active = drift.active_share(maps)
            note("map_active", name, active)
            note("dead_share", name, float(np.mean(active == 0)))
            note("cka", name, drift.linear_cka(self.samples[name], samples[name]))
        return numbers

    def move_on(self, snapshot: Snapshot) -> None:
        """Measure the next update from this snapshot on.

        Args:
            snapshot: the last one that was measured; it may hold some of the layers only.
        """
        self._before = {**self._before, **snapshot.filters}


def means_by_tag(record: Record, layers: Sequence[WatchedLayer]) -> dict[str, float]:
    """What trackers draw as curves: tag -> the mean of a number over a layer's channels.

    Args:
        record: whose numbers.
        layers: the watched layers, which know their tags.
    """
    by_name = {layer.name: layer.tag for layer in layers}
    return {
        f"{tag}/{by_name[name]}": drift.mean_of_finite(values)
        for number, tag in _SCALARS.items()
        for name, values in record.numbers.get(number, {}).items()
    }


def broken_or_dead(
    snapshot: Snapshot, numbers: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
) -> Iterator[Problem]:
    """A problem for all values that are NaN or infinite, and one for all layers that are dead.

    Args:
        snapshot: whose values.
        numbers: what was measured of it.
    """
    bad = {
        f"{name} ({kind.words}, {count} of {array.size})": count
        for kind in Kind
        for name, array in kind.of(snapshot).items()
        if (count := _not_finite(array))
    }
    if bad:
        yield Problem(
            "finite", f"values of {some(bad)} are NaN or infinite at step {snapshot.step}; they are drawn in green"
        )
    dead = [
        name
        for name, share in numbers.get("dead_share", {}).items()
        if share[0] == 1 and not _not_finite(snapshot.feature_maps[name])
    ]
    if dead:
        yield Problem(
            "dead", f"no feature map of {some(dead)} is above 0 anywhere on the probe at step {snapshot.step}: dead"
        )


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

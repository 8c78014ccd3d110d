"""What people are told of a snapshot's numbers: the scalars of trackers, and what is broken or dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Kind
from cnnlog.messages import some
from cnnlog.recording.problems import Problem
from cnnlog.runs.manifest import MeasuredLayer
from cnnlog.runs.numbers import SHOWN
from cnnlog.snapshot import FloatArray, Record, Snapshot


def scalars_by_tag(record: Record, layers: Sequence[MeasuredLayer]) -> dict[str, float]:
    """What trackers draw as curves: `numbers/NAME/LAYER` -> the number of a layer, or the median over its filters.

    Args:
        record: whose numbers.
        layers: those that numbers are kept of, which know their tags.
    """
    return {
        f"numbers/{number}/{layer.tag}": _median(record.numbers[number][layer.name])
        for number in SHOWN
        for layer in layers
        if layer.name in record.numbers.get(number, {})
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
    for name, norms in numbers.get("filter_norm", {}).items():
        if name not in snapshot.filters and (lost := int(np.count_nonzero(~np.isfinite(norms)))):
            bad[f"{name} ({lost} of {norms.size} filters)"] = lost
    if bad:
        yield Problem(
            "finite", f"values of {some(bad)} are NaN or infinite at step {snapshot.step}; they are drawn in green"
        )
    shares = numbers.get("dead_share", {})
    dead = [name for name, share in shares.items() if share[0] == 1 and name in snapshot.feature_maps]
    if dead:
        yield Problem(
            "dead",
            f"no channel of {some(dead)} is above 0 anywhere on the probe at step {snapshot.step}, after the "
            "activation: dead",
        )


def _median(values: npt.NDArray[np.float64]) -> float:
    if values.size == 1:
        return float(values[0])
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def _not_finite(array: FloatArray) -> int:
    """How many values are NaN or infinite; a sum finds out whether any is, at a fraction of the cost."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return 0
    return int(np.count_nonzero(~np.isfinite(array)))

"""The numbers of format 2 in plain NumPy, written into a stored run: a second computation beside the package's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnlog.runs.manifest import MeasuredLayer
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import FloatArray

Arrays = Mapping[str, FloatArray]
Numbers = dict[str, npt.NDArray[np.float64]]
OLD = ("filter_drift_cosine", "filter_drift_l2", "filter_update_l2", "cka")
OF_A_LAYER = ("weight_change", "function_change", "cka_positions", "dead_share", "update_ratio", "mean_update_ratio")
OF_FILTERS = ("filter_norm", "filter_angle", "filters_left_out", "channels_left_out")


def weight_numbers(first: FloatArray, now: FloatArray, before: FloatArray | None, steps: int, unit: bool) -> Numbers:
    """Of filters `[k, ...]`: against the baseline, and the snapshot before, `steps` optimiser steps ago."""
    w0, w = (array.reshape(len(array), -1).astype(np.float64) for array in (first, now))
    lengths = np.linalg.norm(w0, axis=1), np.linalg.norm(w, axis=1)
    finite = np.isfinite(lengths[0]) & np.isfinite(lengths[1])
    least = 0.01 * np.median(lengths[0][finite]) if finite.any() else 0
    kept = finite & (np.minimum(*lengths) >= max(least, 1e-30))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = (w0 * w).sum(1) / lengths[0] / lengths[1]
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    angle[(w0 == w).all(1)] = 0.0
    angle[~kept] = np.nan
    a, b = (w0[kept] / lengths[0][kept, None], w[kept] / lengths[1][kept, None]) if unit else (w0[finite], w[finite])
    found = {
        "filter_norm": lengths[1],
        "filter_angle": angle,
        "weight_change": np.array([_share(a, b)]),
        "filters_left_out": np.array([float(np.count_nonzero(~(kept if unit else finite)))]),
    }
    if before is not None:
        found["mean_update_ratio"] = np.array([_share(before.reshape(len(before), -1).astype(np.float64), w) / steps])
    return found


def output_numbers(first: FloatArray, now: FloatArray) -> Numbers:
    """Of outputs `[rows, C]`: against the baseline."""
    f0, f = (array.astype(np.float64) for array in (first, now))
    finite = np.isfinite(f0).all(0) & np.isfinite(f).all(0)
    found = {"function_change": np.array([_share(f0[:, finite], f[:, finite])])}
    found["cka_positions"] = np.array([debiased(f0[:, finite], f[:, finite])])
    found["channels_left_out"] = np.array([float(np.count_nonzero(~finite))])
    return found


def debiased(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Debiased linear CKA by the traces of Song et al. 2012, equation 4."""
    n = len(x)
    if n < 4:
        return float("nan")
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        ones = np.ones(n)
        whole = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return float(np.trace(a @ b) + whole - 2 * (ones @ a @ b @ ones) / (n - 2))

    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.clip(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), -1, 1))


def rows_of(maps: FloatArray) -> FloatArray:
    """`[N, C, H, W]` as `[rows, C]`, rounded as the monitors round."""
    with np.errstate(over="ignore"):
        rows = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float16)
    return rows.astype(np.float32)


def write_measured(
    folder: Path,
    at: Callable[[int], tuple[Arrays, Arrays]],
    steps: Sequence[int],
    *,
    also: Callable[[int], tuple[Arrays, Arrays]] | None = None,
    normalised: Collection[str] = (),
    only: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Make the run in `folder/cnnlog` one of format 2.

    Args:
        folder: the log folder.
        at: step -> filters and feature maps of the pictured layers.
        steps: its steps; the first is the baseline.
        also: step -> weights, and outputs `[rows, C]`, of layers that are only measured.
        normalised: layers that a normalisation follows.
        only: layer -> which of its filters are measured, as of very large layers.
    """
    chosen = only or {}
    store = RunStore.open(str(folder / "cnnlog"))

    def everything(step: int) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        filters, maps = at(step)
        weights, outputs = also(step) if also is not None else ({}, {})
        shown = store.read_record(step).feature_maps
        of_maps = {name: rows_of(array) for name, array in maps.items() if name in shown}
        return {**filters, **weights}, {**of_maps, **outputs}

    def some_of(name: str, array: FloatArray) -> FloatArray:
        return array[list(chosen[name])] if name in chosen else array

    first, first_outputs = everything(steps[0])
    before: Mapping[str, FloatArray] = {}
    outputs: Mapping[str, FloatArray] = {}
    with_outputs = steps[0]
    for number, step in enumerate(steps):
        weights, now = everything(step)
        record = store.read_record(step)
        numbers = {
            name: dict(by_layer)
            for name, by_layer in record.numbers.items()
            if name not in (*OLD, *OF_A_LAYER, *OF_FILTERS)
        }
        found: dict[str, Numbers] = {}
        for name, array in weights.items():
            since = record.global_step - 10 * steps[max(0, number - 1)]
            earlier = some_of(name, before[name]) if name in before else None
            old, new = some_of(name, first[name]), some_of(name, array)
            found[name] = weight_numbers(old, new, earlier, since, name in normalised)
        for name, array in now.items():
            found.setdefault(name, {}).update(output_numbers(first_outputs[name], array))
            found[name]["dead_share"] = np.array([float(((array > 0).sum(0) == 0).mean())])
        for name, of_layer in found.items():
            for key, value in of_layer.items():
                numbers.setdefault(key, {})[name] = value
        store.write_record(replace(record, numbers=numbers))
        before = weights
        if now:
            outputs, with_outputs = now, step
    measured = [
        MeasuredLayer(
            name,
            f"{position:02d}_{name}",
            "Conv2d" if array.ndim == 4 else "Linear",
            array.shape,
            filters=tuple(chosen[name]) if name in chosen else None,
            normalised=name in normalised,
            samples=len(first_outputs[name]) if name in first_outputs else 0,
        )
        for position, (name, array) in enumerate(first.items())
    ]
    RunStore(store.folder, replace(store.manifest, measured=tuple(measured))).create()
    pictured = [layer.name for layer in store.manifest.layers]
    for which, arrays, step in (("baseline", first, steps[0]), ("latest", before, steps[-1])):
        kept = {name: array if name in pictured else some_of(name, array) for name, array in arrays.items()}
        store.write_weights(which, kept, step)  # type: ignore[arg-type]
    if first_outputs:
        store.write_outputs("baseline", first_outputs, steps[0])
        store.write_outputs("latest", outputs, with_outputs)


def _share(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    before = float(np.sqrt((a**2).sum()))
    return float(np.sqrt(((b - a) ** 2).sum())) / before if before > 0 else float("nan")

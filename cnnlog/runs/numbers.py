"""What the numbers of a run are called, and what those of format 1 say in the words of today."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnlog.metrics.change import SHORT as TOO_SHORT

Values = npt.NDArray[np.float64]
ByLayer = Mapping[str, Values]

Number = Literal[
    "function_change",
    "weight_change",
    "filter_angle",
    "update_ratio",
    "mean_update_ratio",
    "cka_positions",
    "dead_share",
    "filter_norm",
    "map_active",
    "map_mean",
    "map_max",
    "norm",
    "active",
    "mean",
    "max",
]
"""What a number is called in `Run.numbers` and `Run.over_steps`; the last four are short for those before them."""

SHORT: Mapping[str, str] = {"norm": "filter_norm", "active": "map_active", "mean": "map_mean", "max": "map_max"}
"""Short names, and what they are short for."""

SHOWN: tuple[Number, ...] = (
    "function_change",
    "weight_change",
    "filter_angle",
    "update_ratio",
    "mean_update_ratio",
    "cka_positions",
    "dead_share",
)
"""The numbers that say how a layer does: what trackers and comparisons show, of those of each filter the median."""

OF_CHANNELS = frozenset({"filter_angle", "filter_norm", "map_active", "map_mean", "map_max"})
"""The numbers that each filter or channel has; the others are one for the layer."""

STORED_AS: Mapping[str, str] = {
    "cosine": "filter_drift_cosine",
    "l2": "filter_drift_l2",
    "update": "filter_update_l2",
    "cka": "cka",
}
"""What the old numbers are called in the files of format 1."""

INSTEAD: Mapping[str, str] = {
    "cosine": "'filter_angle', the angle in degrees",
    "l2": "'weight_change', |W - baseline| / |baseline| of the whole layer",
    "update": "'update_ratio' and 'mean_update_ratio', of one optimiser step",
    "cka": "'cka_positions', which is debiased: its values are lower",
}
"""What is to be used in the place of an old number."""


def in_depth_order(measured: Sequence[str], pictured: Sequence[str]) -> tuple[str, ...]:
    """All layers of a run. What is pictured and not measured, as an activation, stands behind the layer before it.

    Args:
        measured: the names of the layers that numbers are kept of, in order of depth.
        pictured: the names of the pictured layers, in order of depth.

    >>> in_depth_order(["conv1", "conv2", "fc"], ["conv1", "relu1", "conv2"])
    ('conv1', 'relu1', 'conv2', 'fc')
    """
    found = list(measured)
    before = -1
    for name in pictured:
        if name in found:
            before = found.index(name)
        else:
            before += 1
            found.insert(before, name)
    return tuple(found)


def warn_of_old(name: str, *, stacklevel: int) -> None:
    """Warn that a number has another name now.

    Args:
        name: the old one.
        stacklevel: how many calls above this function the reader's own line is.
    """
    text = f"{name!r} is replaced by {INSTEAD[name]}; it goes with the next release"
    warnings.warn(text, FutureWarning, stacklevel=stacklevel)


def of_today(numbers: Mapping[str, ByLayer], first_norms: ByLayer, *, version: int) -> dict[str, dict[str, Values]]:
    """The numbers of a step under the names of today, and only those.

    Format 1 has the angle of a filter as a cosine distance d: `angle = 2 asin(sqrt(d / 2))`. It has the change of each
    filter as a share of its length, and so the change of the layer's weights:
    `|W - W0|^2 = sum of (share_i |w0_i|)^2`. Whether a normalisation follows is not stored there, so all filters count
    at their length. Its `dead_share` is of the layer's own output, and its `cka` is biased: they have no name today.

    Args:
        numbers: as they are stored: name -> layer -> values.
        first_norms: layer -> the length of each filter at the baseline `[O]`; needed for format 1 alone.
        version: of the run's format.
    """
    found = {name: dict(by_layer) for name, by_layer in numbers.items() if name not in STORED_AS.values()}
    if version == 1:
        found.pop("dead_share", None)
    lengths = numbers.get("filter_norm", {})
    for layer, cosine in numbers.get(STORED_AS["cosine"], {}).items():
        if layer in found.get("filter_angle", {}):
            continue
        first, now = first_norms.get(layer), lengths.get(layer)
        angle = np.degrees(2 * np.arcsin(np.sqrt(np.clip(cosine, 0, 2) / 2)))
        if first is not None and now is not None:
            angle[_too_short(first, now)] = np.nan
            change = _weight_change(numbers.get(STORED_AS["l2"], {}).get(layer), first, now)
            if change is not None:
                found.setdefault("weight_change", {})[layer] = change
        found.setdefault("filter_angle", {})[layer] = angle
    return found


def old_number(name: str, numbers: Mapping[str, ByLayer], layer: str, first_norms: ByLayer) -> Values | None:
    """An old number of a layer's filters: as it is stored, or derived from those of today; None if it cannot be.

    Args:
        name: which one.
        numbers: of a step, as they are stored.
        layer: the layer.
        first_norms: layer -> the length of each filter at the baseline.
    """
    stored = numbers.get(STORED_AS[name], {}).get(layer)
    if stored is not None or name not in ("cosine", "l2"):
        return stored
    angle, now = numbers.get("filter_angle", {}).get(layer), numbers.get("filter_norm", {}).get(layer)
    if angle is None:
        return None
    cosine = 2 * np.sin(np.radians(angle) / 2) ** 2
    if name == "cosine":
        return np.asarray(cosine, np.float64)
    first = first_norms.get(layer)
    if first is None or now is None or len(first) != len(now):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt((now - first) ** 2 + 2 * first * now * cosine) / first, np.float64)


def _too_short(first: Values, now: Values) -> npt.NDArray[np.bool_]:
    """Filters without a direction: below 1 % of the layer's median length, then or now."""
    finite = np.isfinite(first) & np.isfinite(now)
    least = TOO_SHORT * float(np.median(first[finite])) if finite.any() else 0.0
    return np.asarray(~finite | (np.minimum(first, now) < max(least, np.finfo(np.float32).tiny)))


def _weight_change(shares: Values | None, first: Values, now: Values) -> Values | None:
    if shares is None:
        return None
    moved = np.where(first == 0, now, shares * first)  # a filter that was zero has moved by its whole length
    finite = np.isfinite(moved) & np.isfinite(first)
    before = float(np.square(first[finite]).sum())
    change = np.sqrt(float(np.square(moved[finite]).sum()) / before) if before > 0 else np.nan
    return np.array([change])

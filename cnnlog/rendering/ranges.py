"""What full colour stands for: ranges that are anchored at the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cnnlog.rendering.colours import TOP
from cnnlog.snapshot import FloatArray

RangeRule = Literal["channel", "layer", "step"]
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Limits:
    """What full colour stands for at one step, for each of n channels.

    Attributes:
        high: `[n]` float32, all above 0: the value drawn in the last colour.
        symmetric: the range is `-high` to `high`, else 0 to `high`.
        doubled: `[n]`, how often the channel's range doubled since its baseline.
    """

    high: FloatArray
    symmetric: bool
    doubled: npt.NDArray[np.int64]

    def only(self, channels: slice | Sequence[int]) -> Limits:
        """The ranges of some of the channels.

        Args:
            channels: their numbers, counted from 0, or a slice of them.
        """
        chosen = channels if isinstance(channels, slice) else list(channels)
        return Limits(self.high[chosen], self.symmetric, self.doubled[chosen])


def peak(values: npt.ArrayLike) -> float:
    """The largest finite magnitude in an array of any shape; 0 where nothing is finite."""
    array = np.asarray(values)
    if array.size and np.isfinite(low := array.min()) and np.isfinite(high := array.max()):
        return max(abs(float(low)), abs(float(high)))
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))


class AnchoredRange:
    """The range of one layer's pictures over the steps, anchored at the baseline.

    The first `update` is the baseline. A channel's range is its largest finite magnitude there; if values have no sign,
    its largest value. If a value exceeds its range, the range doubles, as often as needed. It never shrinks.

    A value that exceeds its range by less than a shade (1/62) takes the last colour instead: in fine-tuning, half of
    the filters exceed their baseline's peak by a thousandth, and would lose half of their contrast for it.

    A channel of zeros (or of nothing finite) at the baseline takes the median range of the layer's other channels. If
    all channels are like that, they are drawn with 1.0, and the first step where one is not becomes the baseline.

    Args:
        rule: `"channel"` for the above; `"layer"` gives all channels the largest of their ranges; `"step"` takes a new
            range for each channel at each step.
        signed: whether values have a sign. True draws -range to range. False draws 0 to range, and what is below 0 as
            0. None decides at the baseline: True if any value is below 0.
    """

    def __init__(self, rule: RangeRule = "channel", *, signed: bool | None = None) -> None:
        if rule not in get_args(RangeRule):
            raise ValueError(f"the range rule must be one of {', '.join(get_args(RangeRule))}; got {rule!r}")
        self.rule: RangeRule = rule
        self._signed = signed
        self._base = np.zeros(0, np.float32)  # zeros: no baseline yet
        self._doubled = np.zeros(0, np.int64)

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's values, and return the ranges to draw them with.

        Args:
            values: `[n, ...]`, finite or not.

        Raises:
            ValueError: there are more or fewer channels than at the baseline.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(len(values), -1)
        if not len(self._base):
            self._base, self._doubled = np.zeros(len(flat), np.float32), np.zeros(len(flat), np.int64)
        if len(flat) != len(self._base):
            raise ValueError(
                f"every step must bring the same channels; the baseline had {len(self._base)}, now {len(flat)} arrived"
            )
        low, high = _extremes(flat)
        signed = bool((low < 0).any()) if self._signed is None else self._signed
        peaks = np.maximum(high, -low) if signed else high
        if self.rule == "layer":
            peaks = np.full_like(peaks, peaks.max())
        if not self._base.any() or self.rule == "step":
            if not peaks.any():
                return Limits(np.ones(len(flat), np.float32), signed, self._doubled.copy())
            self._signed = signed
            self._base = np.where(peaks > 0, peaks, np.median(peaks[peaks > 0].astype(np.float64))).astype(np.float32)
        else:
            self._doubled = np.maximum(self._doubled, _doublings(peaks, self._base, beyond=1 / TOP))
        return Limits(_scaled(self._base, self._doubled), signed, self._doubled.copy())

    def limits(self) -> Limits | None:
        """What `update` returned last; None if only values tell: with the rule `"step"`, or before the baseline."""
        if self._signed is None or self.rule == "step" or not self._base.any():
            return None
        return Limits(_scaled(self._base, self._doubled), self._signed, self._doubled.copy())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The range as plain arrays, from which `from_state` goes on."""
        return {
            "rule": np.array([get_args(RangeRule).index(self.rule)], np.int64),
            "signed": np.array([-1 if self._signed is None else int(self._signed)], np.int64),
            "base": self._base.copy(),
            "doubled": self._doubled.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> AnchoredRange:
        """The range that a `state()` was taken of.

        Args:
            state: the arrays.
        """
        signed = int(state["signed"][0])
        restored = cls(get_args(RangeRule)[int(state["rule"][0])], signed=None if signed < 0 else bool(signed))
        restored._base = np.array(state["base"], np.float32)
        restored._doubled = np.array(state["doubled"], np.int64)
        return restored


class ChangeRange:
    """The range of one layer's differences to the baseline: one for all channels.

    It is the baseline's peak divided by a power of two, which is chosen at the first step with a difference so that the
    range just covers it. If a later difference exceeds the range, it doubles. It never shrinks. So two runs from the
    same baseline whose changes are alike get the very same range, and their colours can be compared.

    Args:
        baseline_peak: the largest finite magnitude among the layer's shown values at the baseline; 0, of a layer of
            zeros, is taken for 1.0.
    """

    def __init__(self, baseline_peak: float) -> None:
        if not (math.isfinite(baseline_peak) and baseline_peak >= 0):
            raise ValueError(f"baseline_peak must be a finite number, 0 or above; got {baseline_peak!r}")
        self._base = np.array([baseline_peak or 1.0], np.float32)
        self._first: int | None = None
        self._doubled = 0

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's differences, and return the range to draw them with.

        Args:
            values: `[n, ...]`, finite or not.
        """
        top = peak(values)
        if top > 0:
            needed = int(_doublings(np.array([top], np.float32), self._base, least=-126)[0])
            if self._first is None:
                self._first = needed
            self._doubled = max(self._doubled, needed - self._first)
        high = _scaled(self._base, np.array([(self._first or 0) + self._doubled]))
        return Limits(np.repeat(high, len(values)), True, np.full(len(values), self._doubled, np.int64))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The range as plain arrays, from which `from_state` goes on."""
        first = [] if self._first is None else [self._first]
        return {
            "base": self._base.copy(),
            "first": np.array(first, np.int64),
            "doubled": np.array([self._doubled], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> ChangeRange:
        """The range that a `state()` was taken of.

        Args:
            state: the arrays.
        """
        restored = cls(float(state["base"][0]))
        restored._first = int(state["first"][0]) if len(state["first"]) else None
        restored._doubled = int(state["doubled"][0])
        return restored


def _extremes(flat: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest finite value of each row, but at most and at least 0."""
    low, high = flat.min(axis=1, initial=0), flat.max(axis=1, initial=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(flat)
        low, high = flat.min(axis=1, initial=0, where=finite), flat.max(axis=1, initial=0, where=finite)
    return low, high


def _doublings(peaks: FloatArray, base: FloatArray, least: int = 0, beyond: float = 0.0) -> npt.NDArray[np.int64]:
    """The smallest k per channel, not below `least`, with `base * 2**k * (1 + beyond) >= peaks`."""
    # The quotient of two float32 is told from a power of 2 in float64, so no rounding can pick the wrong k.
    mantissa, exponent = np.frexp(peaks.astype(np.float64) / base / (1 + beyond))
    needed = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.where(peaks > 0, np.maximum(needed, least), least).astype(np.int64)


def _scaled(base: FloatArray, doublings: npt.NDArray[np.int64]) -> FloatArray:
    # The last doubling below float32's maximum may overshoot it; capped there the range still covers every value.
    scaled = np.ldexp(base.astype(np.float64), doublings)
    return np.clip(scaled, np.finfo(np.float32).smallest_subnormal, _FLOAT32_MAX).astype(np.float32)

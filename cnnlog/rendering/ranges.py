"""What the ends of the colours stand for: ranges that are anchored at the baseline, with room above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cnnlog.snapshot import FloatArray

RangeRule = Literal["channel", "layer", "step"]

ROOM = 1.5
"""How many times its baseline's peak a channel's range reaches."""

CHANGE_ROOM = 4
"""How many times the first change the range of changes reaches, at least."""

ONE_IN = 50
"""One value in so many may lie beyond a range, which is 2 %: a live range doubles only when more do."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Limits:
    """What the ends of the colours stand for at one step, for each of n channels.

    Attributes:
        high: `[n]` float32, all above 0: the value drawn in the last colour; what is beyond is drawn in a colour apart.
        symmetric: the range is `-high` to `high`, else 0 to `high`.
        doubled: `[n]`, how often the channel's range doubled since its baseline.
        switched: whether the range was from 0 at the baseline, and became symmetric when the layer turned negative.
    """

    high: FloatArray
    symmetric: bool
    doubled: npt.NDArray[np.int64]
    switched: bool = False

    @property
    def low(self) -> FloatArray:
        """`[n]` float32: the value drawn in the first colour."""
        return -self.high if self.symmetric else np.zeros_like(self.high)

    @property
    def notched(self) -> npt.NDArray[np.bool_]:
        """`[n]`: whether a channel's colours mean something else than at the baseline."""
        changed: npt.NDArray[np.bool_] = (np.asarray(self.doubled) > 0) | self.switched
        return changed

    def only(self, channels: slice | Sequence[int]) -> Limits:
        """The ranges of some of the channels.

        Args:
            channels: their numbers, counted from 0, or a slice of them.
        """
        chosen = channels if isinstance(channels, slice) else list(channels)
        return Limits(self.high[chosen], self.symmetric, self.doubled[chosen], self.switched)


def peak(values: npt.ArrayLike) -> float:
    """The largest finite magnitude in an array of any shape; 0 where nothing is finite."""
    array = np.asarray(values)
    if array.size and np.isfinite(low := array.min()) and np.isfinite(high := array.max()):
        return max(abs(float(low)), abs(float(high)))
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))


class AnchoredRange:
    """The range of one layer's pictures over the steps, anchored at the baseline.

    The first `update` is the baseline. A channel's range is 1.5 times its largest finite magnitude there; if values
    have no sign, its largest value. The room is there because a picture that was sent cannot be drawn anew: of maps,
    1.7 % outgrow it in seven epochs of fine-tuning, where half of them outgrow their peak.

    A range doubles when more than 2 % of the channel's finite values lie beyond it, as often as it takes until no more
    do. It never shrinks. So a few values that stand out do not halve the contrast of all others.

    A channel of zeros (or of nothing finite) at the baseline takes the median range of the layer's other channels. If
    all channels are like that, they are drawn with 1.0, and the first step where one is not becomes the baseline.

    Args:
        rule: `"channel"` for the above; `"layer"` gives all channels the largest of their ranges, which doubles when
            any channel outgrows it; `"step"` takes a new range for each channel at each step, without room.
        signed: whether values have a sign. True draws -range to range. False draws 0 to range. None decides at the
            baseline: True if any value is below 0. If it was not and one is later, the range becomes symmetric once.
    """

    def __init__(self, rule: RangeRule = "channel", *, signed: bool | None = None) -> None:
        if rule not in get_args(RangeRule):
            raise ValueError(f"the range rule must be one of {', '.join(get_args(RangeRule))}; got {rule!r}")
        self.rule: RangeRule = rule
        self._signed = signed
        self._may_switch = signed is None
        self._switched = False
        self._base = np.zeros(0, np.float32)  # zeros: no baseline yet
        self._doubled = np.zeros(0, np.int64)

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's values, and return the ranges to draw them with.

        Args:
            values: `[n, ...]`, finite or not.

        Raises:
            ValueError: there are more or fewer channels than at the baseline.
        """
        flat = _rows(values)
        if not len(self._base):
            self._base, self._doubled = np.zeros(len(flat), np.float32), np.zeros(len(flat), np.int64)
        if len(flat) != len(self._base):
            raise ValueError(
                f"every step must bring the same channels; the baseline had {len(self._base)}, now {len(flat)} arrived"
            )
        low, high = extremes_of(flat)
        negative = bool((low < 0).any())
        signed = negative if self._signed is None else self._signed
        if negative and not signed and self._may_switch:
            signed = self._signed = self._switched = True
        peaks = np.maximum(high, -low) if signed else high
        if not self._base.any() or self.rule == "step":
            if not peaks.any():
                return Limits(np.ones(len(flat), np.float32), signed, self._doubled.copy(), self._switched)
            self._signed = signed
            self._base = bases_of(peaks, self.rule, room=1 if self.rule == "step" else ROOM)
        else:
            needed = _outgrown(flat, peaks, self._base, self._doubled, signed=signed)
            self._doubled = np.full_like(needed, needed.max()) if self.rule == "layer" else needed
        return self._now(signed)

    def limits(self) -> Limits | None:
        """What `update` returned last; None if only values tell: with the rule `"step"`, or before the baseline."""
        if self._signed is None or self.rule == "step" or not self._base.any():
            return None
        return self._now(self._signed)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The range as plain arrays, from which `from_state` goes on."""
        return {
            "rule": np.array([get_args(RangeRule).index(self.rule)], np.int64),
            "signed": np.array([-1 if self._signed is None else int(self._signed)], np.int64),
            "base": self._base.copy(),
            "doubled": self._doubled.copy(),
            "switched": np.array([int(self._switched) if self._may_switch else -1], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> AnchoredRange:
        """The range that a `state()` was taken of.

        Args:
            state: the arrays. Those of a run of format 1 lack `switched`, and their `base` is the peak without room:
                the ranges that they were drawn with are kept, and from then on double by the rule of today.
        """
        signed = int(state["signed"][0])
        switched = int(state["switched"][0]) if "switched" in state else 0
        restored = cls(get_args(RangeRule)[int(state["rule"][0])], signed=None if signed < 0 else bool(signed))
        restored._may_switch, restored._switched = switched >= 0, switched > 0
        restored._base = np.array(state["base"], np.float32)
        restored._doubled = np.array(state["doubled"], np.int64)
        return restored

    def _now(self, signed: bool) -> Limits:
        return Limits(_scaled(self._base, self._doubled), signed, self._doubled.copy(), self._switched)


class ChangeRange:
    """The range of one layer's differences to the baseline: one for all channels, symmetric.

    It is the first power of two that is at least 4 times the largest finite difference of the first step that has one,
    and doubles when more than 2 % of any channel's finite values lie beyond it. It never shrinks. Because it is a power
    of two, runs whose first changes are about alike have the same range, and their colours can be compared. Before the
    first difference it is 1.0.
    """

    def __init__(self) -> None:
        self._base = np.ones(1, np.float32)
        self._first: int | None = None
        self._doubled = 0

    @property
    def is_set(self) -> bool:
        """Whether there was a difference yet."""
        return self._first is not None

    def update(self, values: npt.NDArray[Any]) -> Limits:
        """Take one step's differences, and return the range to draw them with.

        Args:
            values: `[n, ...]`, finite or not.
        """
        flat = _rows(values)
        low, high = extremes_of(flat)
        peaks = np.maximum(high, -low)
        n = len(peaks)
        if self._first is None and peaks.any():
            self._base, self._first = np.ones(1, np.float32), 0
            self._first = int(_doublings(np.array([peaks.max()]), self._base / np.float32(CHANGE_ROOM), least=-149)[0])
        elif self._first is not None:
            so_far = np.full(n, self._first + self._doubled, np.int64)
            grown = _outgrown(flat, peaks, np.repeat(self._base, n), so_far, signed=True)
            self._doubled = int(grown.max()) - self._first
        high_now = _scaled(self._base, np.array([(self._first or 0) + self._doubled]))
        return Limits(np.repeat(high_now, n), True, np.full(n, self._doubled, np.int64))

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
            state: the arrays. In a run of format 1 `base` is the baseline's peak, not 1: the range that changes were
                drawn with is kept.
        """
        restored = cls()
        restored._base = np.array(state["base"], np.float32)
        restored._first = int(state["first"][0]) if len(state["first"]) else None
        restored._doubled = int(state["doubled"][0])
        return restored


def _rows(values: npt.NDArray[Any]) -> FloatArray:
    """Values `[n, ...]` as float32 `[n, m]`."""
    return np.ascontiguousarray(values, dtype=np.float32).reshape(len(values), -1)


def extremes_of(values: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """The smallest and the largest finite value of each channel, but at most and at least 0: `[n]` each.

    Args:
        values: `[n, ...]`, finite or not.
    """
    flat = _rows(values)
    low, high = flat.min(axis=1, initial=0), flat.max(axis=1, initial=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(flat)
        low, high = flat.min(axis=1, initial=0, where=finite), flat.max(axis=1, initial=0, where=finite)
    return low, high


def bases_of(peaks: FloatArray, rule: RangeRule, *, room: float = 1) -> FloatArray:
    """The ranges of channels with these peaks; 1.0 for all where all are 0.

    Args:
        peaks: `[n]`, 0 or more.
        rule: `"channel"` and `"step"` give each channel its own, and one whose peak is 0 the median of the others;
            `"layer"` gives all channels the largest of them.
        room: how many times its peak a range reaches.
    """
    wide = peaks.astype(np.float64) * room
    if not wide.any():
        return np.ones(len(wide), np.float32)
    if rule == "layer":
        wide = np.full_like(wide, wide.max())
    return _in_float32(np.where(wide > 0, wide, np.median(wide[wide > 0])))


def _outgrown(
    flat: FloatArray, peaks: FloatArray, base: FloatArray, doubled: npt.NDArray[np.int64], *, signed: bool
) -> npt.NDArray[np.int64]:
    """How often each channel's range has doubled once it has taken values in: `doubled`, or more.

    Args:
        flat: the values `[n, m]`, finite or not.
        peaks: the largest finite magnitude of each channel, or its largest value where nothing has a sign.
        base: the ranges `[n]` before they doubled.
        doubled: how often they have doubled so far, `[n]`.
        signed: whether the ranges are symmetric.
    """
    after = np.array(doubled, np.int64)
    high = _scaled(base, doubled)
    for channel in np.flatnonzero(peaks > high).tolist():  # counted only where the peak says that there is something
        row = flat[channel]
        magnitudes = (np.abs(row) if signed else row)[np.isfinite(row)]
        allowed = len(magnitudes) // ONE_IN
        if np.count_nonzero(magnitudes > high[channel]) > allowed:
            largest_held = np.partition(magnitudes, -1 - allowed)[-1 - allowed]
            (needed,) = _doublings(np.array([largest_held]), base[channel : channel + 1], least=-149).tolist()
            after[channel] = max(int(doubled[channel]), needed)
    return after


def _doublings(peaks: FloatArray, base: FloatArray, *, least: int) -> npt.NDArray[np.int64]:
    """The smallest k per channel, not below `least`, with `base * 2**k >= peaks`."""
    # The quotient of two float32 is told from a power of 2 in float64, so no rounding can pick the wrong k.
    mantissa, exponent = np.frexp(peaks.astype(np.float64) / base)
    needed = np.where(mantissa == 0.5, exponent - 1, exponent)
    doublings = np.where(peaks > 0, np.maximum(needed, least), least)
    return np.asarray(doublings, dtype=np.int64)


def _scaled(base: FloatArray, doublings: npt.NDArray[np.int64]) -> FloatArray:
    return _in_float32(np.ldexp(base.astype(np.float64), doublings))


def _in_float32(ranges: npt.NDArray[np.float64]) -> FloatArray:
    # What overshoots float32's maximum is capped there, which still covers every value.
    return np.clip(ranges, np.finfo(np.float32).smallest_subnormal, _FLOAT32_MAX).astype(np.float32)

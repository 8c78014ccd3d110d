"""Ranges of what is drawn afterwards, when all steps and sides are known: one range a channel, one for differences.

Live pictures cannot be redrawn, so their ranges guess. Here nothing is guessed: all values are seen first, a step at a
time, and then drawn in the range that covers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.rendering.ranges import ONE_IN, Limits, RangeRule, bases_of, extremes_of

GAINS: tuple[int, ...] = (1, 4, 16, 64)
"""By what a difference may be enlarged: its range is the layer's largest, divided by one of these."""

_MAGNITUDES = 1 << 15  # of a float32's upper 16 bits, without the sign


class Extremes:
    """The smallest and the largest finite value of each channel, over all steps that were seen.

    Attributes:
        low: `[n]` float32, the smallest value, at most 0.
        high: `[n]` float32, the largest value, at least 0.
    """

    def __init__(self) -> None:
        self.low = np.zeros(0, np.float32)
        self.high = np.zeros(0, np.float32)

    def see(self, values: npt.NDArray[Any]) -> None:
        """Take one step's values in.

        Args:
            values: `[n, ...]`, finite or not; the same channels at every step.

        Raises:
            ValueError: there are more or fewer channels than before.
        """
        low, high = extremes_of(values)
        if not len(self.low):
            self.low, self.high = low, high
        elif len(low) != len(self.low):
            raise ValueError(
                f"every step must bring the same channels; there were {len(self.low)}, now {len(low)} arrived"
            )
        else:
            np.minimum(self.low, low, out=self.low)
            np.maximum(self.high, high, out=self.high)

    @classmethod
    def of_all(cls, several: Sequence[Extremes]) -> Extremes:
        """What covers all of several, such as the sides of a comparison.

        Args:
            several: of the same channels, at least one.
        """
        found = cls()
        found.low = np.min([one.low for one in several], axis=0)
        found.high = np.max([one.high for one in several], axis=0)
        return found


def shared_limits(extremes: Extremes, *, signed: bool | None = None, rule: RangeRule = "channel") -> Limits:
    """The ranges that cover all values that were seen.

    A channel's range ends at its largest magnitude; if values have no sign, at its largest value. A channel that is 0
    everywhere takes the median range of the layer's other channels. If all are, they are drawn with 1.0.

    Args:
        extremes: of each channel.
        signed: whether values have a sign. True draws -range to range, False 0 to range. None decides by the values:
            True if any is below 0.
        rule: `"layer"` gives all channels the largest of their ranges. `"channel"` and `"step"` give each channel its
            own.
    """
    symmetric = bool((extremes.low < 0).any()) if signed is None else signed
    peaks = np.maximum(extremes.high, -extremes.low) if symmetric else extremes.high
    return Limits(bases_of(peaks, rule), symmetric, np.zeros(len(peaks), np.int64))


def tight_limits(values: npt.NDArray[Any], *, signed: bool | None = None, rule: RangeRule = "channel") -> Limits:
    """The ranges that just hold what is there, for pictures that no other step belongs to: `shared_limits` of one step.

    Args:
        values: `[n, ...]`, finite or not.
        signed: as in `shared_limits`.
        rule: as in `shared_limits`.

    Example:
        >>> tight_limits(np.array([[1.0, -4.0], [0.5, 0.0]], np.float32)).high.tolist()
        [4.0, 0.5]
    """
    extremes = Extremes()
    extremes.see(values)
    return shared_limits(extremes, signed=signed, rule=rule)


class Magnitudes:
    """How large differences are, counted over all steps and sides, in constant memory.

    Each value falls into one of 32,768 bins, 1/256 to 1/128 of its magnitude wide: the upper half of its float32.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_MAGNITUDES, np.int64)

    def see(self, differences: npt.NDArray[Any]) -> None:
        """Take differences in. What is exactly 0, and what is not finite, is not counted.

        Args:
            differences: an array of any shape.
        """
        flat = np.ascontiguousarray(differences, dtype=np.float32).reshape(-1)
        flat = flat[np.isfinite(flat) & (flat != 0)]
        self._counts += np.bincount((flat.view(np.uint32) >> 16) & (_MAGNITUDES - 1), minlength=_MAGNITUDES)

    def gain(self, largest: float) -> int:
        """The largest gain with which less than 2 % of the values that differ lie beyond the end of the scale.

        What is alike on both sides is no part of the 2 %: a filter that alone has moved, among a hundred that have
        not, would be drawn in full colours otherwise, however little it moved. Values in the bin in which the scale
        ends count as beyond it, so that what this promises holds exactly.

        Args:
            largest: what the scale's end is divided from: the largest range of the layer.

        Returns:
            One of `GAINS`; the largest if nothing differs.
        """
        total = int(self._counts.sum())
        for gain in reversed(GAINS[1:]):
            end = int(np.array([largest / gain], np.float32).view(np.uint32)[0]) >> 16
            if total == 0 or int(self._counts[end:].sum()) * ONE_IN < total:
                return gain
        return GAINS[0]


def change_limits(largest: float, gain: int, channels: int) -> Limits:
    """The range of differences: one for all channels of a layer.

    Args:
        largest: the largest range of the layer.
        gain: what it is divided by.
        channels: how many channels there are.
    """
    high = np.maximum(np.float32(largest / gain), np.finfo(np.float32).smallest_subnormal)
    return Limits(np.full(channels, high, np.float32), True, np.zeros(channels, np.int64))


def as_text(value: float) -> str:
    """A number of a scale: three digits, with a real minus sign."""
    return f"{value:.3g}".replace("-", "−")


def ends(limits: Limits) -> tuple[str, str]:
    """The two ends of a scale, in numbers: of one range, or from the smallest to the largest of the channels'.

    Args:
        limits: the ranges of the channels that are drawn.

    Example:
        >>> ends(Limits(np.array([0.5, 0.25], np.float32), True, np.zeros(2, np.int64)))
        ('−0.25 to −0.5', '0.25 to 0.5')
    """
    least, most = as_text(float(limits.high.min())), as_text(float(limits.high.max()))
    low, high = (f"−{least}", least) if least == most else (f"−{least} to −{most}", f"{least} to {most}")
    return (low, high) if limits.symmetric else ("0", high)


def in_words(limits: Limits) -> str:
    """The ranges in a few words: `±0.5`, `±0.25 to ±0.5`, `0 to 2`, `0 to 1.5 ... 2`.

    Args:
        limits: the ranges of the channels that are drawn.
    """
    least, most = as_text(float(limits.high.min())), as_text(float(limits.high.max()))
    if limits.symmetric:
        return f"±{least}" if least == most else f"±{least} to ±{most}"
    return f"0 to {least}" if least == most else f"0 to {least} … {most}"

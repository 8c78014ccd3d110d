"""How far a layer still had to go at a step: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def to_go(at: Array, first: Array, last: Array) -> float:
    """The distance to the last step, relative to the whole way: `|X_t - X_T| / |X_0 - X_T|` (Frobenius norms).

    Which layer settles first is asked by Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks",
    ECCV 2014, section 4.1 (feature evolution), and by Raghu, Gilmer, Yosinski and Sohl-Dickstein, "SVCCA", NIPS 2017,
    section 4.1 (learning dynamics).

    X is whatever is stored of a layer at every step: its shown feature maps on the probe, else its shown filters. So it
    speaks of the shown channels alone, and of maps that are averaged by area where they are large. It says how near a
    layer is to where it ended, not whether it would have stayed there: with n steps of pure noise it falls as
    `sqrt(1 - t / n)` and is still at 0.7 half way through. Compare it between layers of one run, not with a number.

    Args:
        at: of any shape, at the step.
        first: of the same shape, at the baseline.
        last: of the same shape, at the last step.

    Returns:
        1 at the baseline, 0 at the last step, above 1 where the layer is farther from its end than at the baseline. NaN
        where it did not move. Values that are NaN or infinite at one of the steps are left out.

    Raises:
        ValueError: the shapes differ.

    >>> to_go(np.array([3.0, 1.0]), np.array([0.0, 0.0]), np.array([3.0, 4.0]))
    0.6
    """
    if not at.shape == first.shape == last.shape:
        raise ValueError(
            f"the steps must have one shape; got {list(at.shape)}, {list(first.shape)}, {list(last.shape)}"
        )
    x, start, end = (np.asarray(array, np.float64).reshape(-1) for array in (at, first, last))
    finite = np.isfinite(x) & np.isfinite(start) & np.isfinite(end)
    way = float(np.square(start[finite] - end[finite]).sum())
    return float(np.sqrt(np.square(x[finite] - end[finite]).sum() / way)) if way > 0 else float("nan")


def half_way(steps: Sequence[int], values: Sequence[float]) -> int | None:
    """The first step from which on at most half of the way is to go; the lower, the earlier a layer settled.

    Args:
        steps: rising.
        values: `to_go` at each of them.

    Returns:
        None where the layer did not move, or where nothing is known of it.

    >>> half_way([0, 1, 2, 3], [1.0, 0.4, 0.6, 0.0]), half_way([0, 1], [float("nan"), float("nan")])
    (3, None)
    """
    found = None
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if not value <= 0.5:
            break
        found = step
    return found

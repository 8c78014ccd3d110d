"""Whether two layers started from the same weights, so that filter i of one has to do with filter i of the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.metrics.change import SHORT

_COMPARED = 256
_CHANCE = 5.0  # standard deviations of what a random order of the filters gives
_LEAST_MARGIN = 0.4
_BY_LENGTH = 4.0
_ALIKE = 0.9


def same_start(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two layers' filters began as the same ones.

    Equal bytes are the same start. Otherwise each filter of `a` is compared with each filter of `b`, by the cosine
    `c_ij` between them, and what counts is the margin

        m = mean of c_ii  -  mean of c_ij with i != j,

    in two ways. `z` is m in standard deviations of what a random order of the n filters would give (the permutation
    variance of Hoeffding 1951, A combinatorial central limit theorem). It is 5 or more for the same start. Because it
    cannot exceed n - 1, layers with few filters count as of one start, too, if m is at least 0.4 and at least
    `4 / sqrt(n d)`, d weights a filter; or if each filter is most like its own with a mean cosine of 0.9 or more.

    Measured with normal weights, 400 draws (40 with n = 256), the worst of d = 9, 16, 27, 147 and 576: what 99.9 % of
    those draws stay below that should be low, and 99 % reach that should be high.

    | filters n | independent: m, z | permuted: m, z | cosine 0.99: m, z | cosine 0.5: m, z |
    |--:|--:|--:|--:|--:|
    | 4 | <= 0.56, 2.5 | 1 where the order is kept by chance | >= 0.66, 2.3 | >= 0.20, 1.4 |
    | 8 | <= 0.33, 3.1 | <= 0.67, 4.1 | >= 0.80, 4.7 | >= 0.38, 2.9 |
    | 16 | <= 0.27, 3.8 | <= 0.36, 4.0 | >= 0.91, 8.6 | >= 0.43, 5.0 |
    | 64 | <= 0.13, 3.3 | <= 0.13, 4.1 | >= 0.97, 21 | >= 0.48, 11 |
    | 256 | <= 0.04, 2.7 | <= 0.04, 2.8 | >= 0.98, 46 | >= 0.50, 24 |

    Trained networks (the demo's, 36 filters of 363 weights and 48 of 324): against their own start, after 12 epochs
    from scratch or after a second training on top, the mean cosine was 0.14 to 0.68 and z 15 to 40; against networks
    of another start, trained or not, z was -1.3 to 0.1. A threshold on m alone would have to lie below 0.14, and
    permuted copies of small layers reach that.

    So in layers of fewer than 12 filters a copy that was trained far away (cosine 0.5) can be taken for another start,
    and of 100 permuted copies one or two for the same. Filters of a single weight have a sign and no direction: if all
    are positive, they always count as of one start.

    Args:
        a: filters `[O, ...]`, all of a layer. The first 256 are compared.
        b: filters `[O, ...]` to compare them with.

    Returns:
        Whether they are of one start. False where the shapes differ, and where no filter can tell: those that are not
        finite, or shorter than 1 % of the layer's median length, are left out.

    Example:
        >>> start = np.random.default_rng(0).standard_normal((16, 3, 3, 3))
        >>> same_start(start, start + 0.1 * start[::-1]), same_start(start, start[::-1])
        (True, False)
    """
    if a.shape != b.shape:
        return False
    if a.tobytes() == b.tobytes():
        return True
    cosines = _cosines(a[:_COMPARED], b[:_COMPARED])
    n, weights = len(cosines), a[:1].size
    if n == 0:
        return False
    own = float(np.trace(cosines)) / n
    others = (float(cosines.sum()) - n * own) / (n * (n - 1)) if n > 1 else 0.0
    nearest = np.maximum(cosines.max(axis=0), cosines.max(axis=1)) <= np.diagonal(cosines)
    return bool(
        _beyond_chance(cosines) >= _CHANCE
        or own - others >= max(_LEAST_MARGIN, _BY_LENGTH / np.sqrt(n * weights))
        or (own >= _ALIKE and nearest.all())
    )


def _cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The cosine `[n, n]` of each filter of `a` with each of `b`, of those filters that have a direction in both.

    BLAS may share the product out among the cores: it is asked for after the trainings, when runs are compared.
    """
    flat = [np.asarray(array, np.float64).reshape(len(array), -1) for array in (a, b)]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = [np.linalg.norm(array, axis=1) for array in flat]
    finite = np.isfinite(lengths[0]) & np.isfinite(lengths[1])
    kept = finite.copy()
    for length in lengths:
        kept &= finite & (length > SHORT * np.median(length[finite])) if finite.any() else False
    one, other = (array[kept] / length[kept, None] for array, length in zip(flat, lengths, strict=True))
    return np.asarray(one @ other.T, np.float64)


def _beyond_chance(cosines: npt.NDArray[np.float64]) -> float:
    """How many standard deviations the diagonal's sum lies above that of a random order; 0 where that is unknown."""
    n = len(cosines)
    if n < 2:
        return 0.0
    centred = cosines - cosines.mean(axis=0) - cosines.mean(axis=1, keepdims=True) + cosines.mean()
    deviation = float(np.sqrt(np.square(centred).sum() / (n - 1)))
    return 0.0 if deviation < 1e-9 else (float(np.trace(cosines)) - n * float(cosines.mean())) / deviation

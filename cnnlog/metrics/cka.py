"""Debiased linear CKA: how alike two layers, or one layer at two steps, see the same inputs. Pure functions of arrays.

Sums run in float64. What is undefined is NaN, never an exception and never a warning.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cnnlog.metrics.products import gram

Array = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.float64]

LEAST_ROWS = 4
"""With fewer rows the debiased estimate does not exist: its denominator is `n (n - 3)`."""

# Of what is left after centring, below this share of what it is computed from, nothing but rounding is there.
_ROUNDING = 1e-12
# Noise is drawn at most this large, and its band is scaled to larger shapes.
_NOISE_ROWS, _NOISE_CHANNELS, _NOISE_DRAWS = 48, 48, 400


def debiased_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment with the unbiased estimator of HSIC.

    With `K = X X^T`, `L = Y Y^T`, and `K'`, `L'` these with their diagonals at 0, Song, Smola, Gretton, Bedo and
    Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012, equation 4, estimate

        `HSIC_1(K, L) = (tr(K' L') + (1^T K' 1)(1^T L' 1) / ((n - 1)(n - 2)) - 2 (1^T K' L' 1) / (n - 2)) / (n (n - 3))`

    and Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, section 3, put it
    into the CKA of Kornblith, Norouzi, Lee and Hinton, ICML 2019:

        `CKA = HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))`.

    Features that have nothing to do with each other give 0 on average, whatever their number, where the biased
    estimator gives up to 0.98. Rows must be independent for that: positions of one image are not, and unlike maps of
    one image may give more than `noise_band`. Turning, mirroring, shifting and scaling all features alike, and
    reordering channels, leave it as it is. It is ruled by the directions that vary most, and a few far-off rows may
    move it much while the network does the same (Davari, Horoi, Natik, Lajoie, Wolf and Belilovsky, "Reliability of CKA
    as a Similarity Measure in Deep Learning", 2022), so read it beside other numbers.

    Args:
        x: `[n, c1]`, one image, or one position of one image, a row; one channel a column.
        y: `[n, c2]`, the same rows in the same order.

    Returns:
        About 0 (nothing in common; below 0 by chance) to 1 (alike). NaN where it is undefined: fewer than 4 rows,
        features that are the same in all rows or in all but one, NaN or infinity.

    Raises:
        ValueError: the shapes are not those above.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0], [0.0, 4.0]])
    >>> round(debiased_cka(x, 10 * x[:, ::-1] + 3), 6)
    1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"x and y must be [n, c1] and [n, c2] with the same n; got {list(x.shape)} and {list(y.shape)}"
        )
    return alignment(centred_gram(x), centred_gram(y))


def centred_gram(x: Array) -> Numbers:
    """One side's half of `debiased_cka`, which can be kept: the U-centred Gram matrix.

    With `K = X X^T` (of features scaled alike, so that nothing overflows) it is, off the diagonal,

        `K_ij - sum_l K_il / (n - 2) - sum_k K_kj / (n - 2) + sum_kl K_kl / ((n - 1)(n - 2))`

    with all sums leaving out the diagonal, and 0 on the diagonal (Szekely and Rizzo, "Partial Distance Correlation with
    Methods for Dissimilarities", 2014, definition 2). The sum of products of two of them is `n (n - 3)` times `HSIC_1`.

    Args:
        x: `[n, c]`, one row an image or a position, one channel a column.

    Returns:
        Float64 `[n, n]`, symmetric, each row's sum 0; all NaN where it is undefined (`debiased_cka` says where).

    >>> centred_gram(np.eye(3)).shape, bool(np.isnan(centred_gram(np.eye(3))).all())
    ((3, 3), True)
    """
    n = len(x)
    nothing = np.full((n, n), np.nan)
    centred = _centred(x) if n >= LEAST_ROWS else None
    if centred is None:
        return nothing
    result = gram(centred)
    result.flat[:: n + 1] = 0.0  # the diagonal
    largest = _largest(result)
    sums = result.sum(axis=0)
    total, means = sums.sum(), sums / (n - 2)
    result -= means
    result -= means[:, None]
    result += total / ((n - 1) * (n - 2))
    result.flat[:: n + 1] = 0.0
    return result if _largest(result) > _ROUNDING * largest else nothing


def alignment(gram_x: Numbers, gram_y: Numbers) -> float:
    """The debiased CKA of two sides from their halves.

    Args:
        gram_x: `[n, n]`, what `centred_gram` gave for one side.
        gram_y: `[n, n]`, for the other side, of the same rows in the same order.

    Returns:
        -1 to 1, exactly 1 for a half with itself; NaN where one of them is.

    Raises:
        ValueError: the shapes differ.

    >>> half = centred_gram(np.arange(12.0).reshape(6, 2) ** 2)
    >>> alignment(half, half)
    1.0
    """
    if gram_x.shape != gram_y.shape:
        raise ValueError(f"both sides must have the same rows; got {list(gram_x.shape)} and {list(gram_y.shape)}")
    pairs = ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))
    shared, own_x, own_y = (float(np.einsum("ij,ij->", a, b)) for a, b in pairs)
    scale = float(np.sqrt(own_x) * np.sqrt(own_y))
    if not (np.isfinite(shared) and scale > 0):
        return float("nan")
    if shared == own_x == own_y:
        return 1.0  # two roots may leave 1 by an ulp, and a frozen layer gives exactly 1
    return min(max(shared / scale, -1.0), 1.0)


def noise_band(rows: int, channels: int) -> float:
    """What `debiased_cka` gives for independent noise: 95 of 100 draws lie between minus and plus this.

    For independent rows its mean is 0 and its standard deviation exactly `sqrt(2 / (n (n - 3)))`, whatever the channels
    are: the U-centred matrices are one irreducible space of dimension `n (n - 3) / 2` under reordering of the rows. How
    many standard deviations hold 95 % is found by drawing Gaussian noise, seeded, of at most 48 rows and channels.

    Args:
        rows: n, from 4 on.
        channels: of both sides.

    Returns:
        0 to 1; NaN below 4 rows or without channels.

    >>> noise_band(2000, 64) < noise_band(50, 64) < 0.1
    True
    """
    if rows < LEAST_ROWS or channels < 1:
        return float("nan")
    drawn = min(rows, _NOISE_ROWS)
    return min(_noise_deviations(drawn, min(channels, _NOISE_CHANNELS)) * _deviation(rows), 1.0)


@lru_cache(maxsize=256)
def _noise_deviations(rows: int, channels: int) -> float:
    rng = np.random.default_rng(20120501)
    values = [debiased_cka(*rng.standard_normal((2, rows, channels))) for _ in range(_NOISE_DRAWS)]
    return float(np.quantile(np.abs(values), 0.95)) / _deviation(rows)


def _deviation(rows: int) -> float:
    return float(np.sqrt(2 / (rows * (rows - 3))))


def _centred(x: Array) -> Numbers | None:
    """Float64, each column's mean at 0, the largest magnitude at 1; None where nothing but rounding is left."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        before = _largest(wide)
        wide -= wide.mean(axis=0)
        largest = _largest(wide)
        if not (np.isfinite(largest) and largest > _ROUNDING * before):
            return None
        wide /= largest
        return wide


def _largest(values: Numbers) -> float:
    """The largest magnitude; NaN if there is one, 0 without values."""
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))

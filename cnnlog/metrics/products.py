"""Products of matrices that stay in the calling thread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# OpenBLAS, which NumPy comes with, stays in one thread up to a product of 64 x 64 by 64 x 64.
_TILE = 64


def product(a: Numbers, b: Numbers) -> Numbers:
    """`a.T @ b`, in tiles that BLAS multiplies in the calling thread.

    Larger ones (and dot products of long vectors) it shares out among all cores, whose threads then spin for longer
    than the product took: beside a training that is most of the cost.

    Args:
        a: `[p, m]`.
        b: `[p, n]`.

    Returns:
        `[m, n]`.
    """
    result = np.zeros((a.shape[1], b.shape[1]))
    for start in range(0, len(a), _TILE):
        rows_a, rows_b = np.ascontiguousarray(a[start : start + _TILE].T), b[start : start + _TILE]
        for i in range(0, len(result), _TILE):
            for j in range(0, result.shape[1], _TILE):
                result[i : i + _TILE, j : j + _TILE] += rows_a[i : i + _TILE] @ rows_b[:, j : j + _TILE]
    return result


def gram(x: Numbers) -> Numbers:
    """`x @ x.T` in the calling thread, exactly symmetric: half of the tiles are computed, the others are copied.

    Args:
        x: `[n, c]`.

    Returns:
        `[n, n]`.
    """
    result = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], _TILE):
        part = x[:, start : start + _TILE]
        for i in range(0, len(x), _TILE):
            rows = part[i : i + _TILE]
            result[i : i + _TILE, i : i + _TILE] += rows @ rows.T  # BLAS knows that this is symmetric
            for j in range(i + _TILE, len(x), _TILE):
                result[i : i + _TILE, j : j + _TILE] += rows @ part[j : j + _TILE].T
    if len(x) <= _TILE:
        return result
    upper = np.triu(result)
    return np.asarray(upper + np.triu(upper, 1).T, dtype=np.float64)

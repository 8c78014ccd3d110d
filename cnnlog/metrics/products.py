"""Products of matrices that stay in the calling thread, for what is measured beside a training.

Whether two runs are of one start (`starts.py`) is asked when runs are compared, and there BLAS may take all cores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# OpenBLAS, which NumPy comes with, stays in one thread up to a product of 64 x 64 by 64 x 64.
_TILE = 64


def gram(x: Numbers) -> Numbers:
    """`x @ x.T` in the calling thread, exactly symmetric: half of the tiles are computed, the others are copied.

    Larger products (and dot products of long vectors) BLAS shares out among all cores, whose threads then spin for
    longer than the product took: beside a training that is most of the cost.

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

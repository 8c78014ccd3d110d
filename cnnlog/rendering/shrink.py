"""Feature maps averaged by area, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.snapshot import FloatArray


def shrink(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Average by area, exactly, also where the ratio is not a whole number.

    Output pixel `(i, j)` is the mean of the input over the rectangle that it covers: rows `i*H/h` to `(i+1)*H/h`,
    columns `j*W/w` to `(j+1)*W/w`, pixels that are covered in part counting in part. The mean of the map is kept.

    Args:
        maps: `[..., H, W]`.
        size: `(h, w)` with 1 <= h <= H and 1 <= w <= W.

    Returns:
        `[..., h, w]`. An output pixel whose rectangle touches NaN or infinity is NaN; no other is.
    """
    height, width = maps.shape[-2:]
    h, w = size
    if not (1 <= h <= height and 1 <= w <= width):
        raise ValueError(f"size must be from (1, 1) to the map's own {(height, width)}; got {size}")
    if size == (height, width):
        return np.array(maps, dtype=np.float32, order="C")
    finite = np.isfinite(maps)
    if finite.all():
        return _average(maps, size).astype(np.float32, order="C")
    averaged = _average(np.where(finite, maps, np.float32(0)), size).astype(np.float32, order="C")
    averaged[_average((~finite).astype(np.float32), size) > 0] = np.nan
    return averaged


def _average(maps: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = maps.shape[-2:]
    # The axis to add up comes first, so that each addition runs through all maps at once, in memory order. In float64,
    # so that the largest float32 values do not overflow.
    by_row = np.array(maps.reshape(-1, height, width).swapaxes(0, 1), dtype=np.float64, order="C")
    by_column = np.ascontiguousarray(_span_means(by_row, size[0]).transpose(2, 0, 1))
    averaged: npt.NDArray[np.float64] = _span_means(by_column, size[1]).transpose(2, 1, 0)
    return averaged.reshape(*maps.shape[:-2], *size)


def _span_means(rows: npt.NDArray[np.float64], n_out: int) -> npt.NDArray[np.float64]:
    """Means over `n_out` equal spans of the rows of `[H, ...]`: differences of the running sum at their edges."""
    n_in = len(rows)
    if n_out == n_in:
        return rows
    # Edges in whole numbers of 1/n_out of a row, so that a row which is only touched by an edge weighs exactly 0.
    edges, parts = np.divmod(np.arange(n_out + 1) * n_in, n_out)
    at_edges = np.zeros((n_out + 1, *rows.shape[1:]))
    total, added = rows[0].copy(), 1
    for sums, edge, part in zip(at_edges[1:], edges[1:].tolist(), parts[1:].tolist(), strict=True):
        for row in rows[added:edge]:
            total += row
        added = edge
        if part > 0:
            np.add(total, rows[edge] * (part / n_out), out=sums)
        else:
            sums[...] = total
    means: npt.NDArray[np.float64] = np.diff(at_edges, axis=0)
    means *= n_out / n_in
    return means


def fit_width(maps: FloatArray, cell: int | None) -> FloatArray:
    """The maps `[..., H, W]` averaged to `cell` columns and rows in proportion; as they are if not wider than that."""
    height, width = maps.shape[-2:]
    if cell is None or width <= cell:
        return maps
    return shrink(maps, (max(1, (2 * height * cell + width) // (2 * width)), cell))

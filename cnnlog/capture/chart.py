"""A test chart to look at a network with: a zone plate, gratings, edges and colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SUPERSAMPLING = 4
CHART_LIMIT = 2048  # 1.6 GB are drawn for it


def test_chart(size: int) -> npt.NDArray[np.float32]:
    """The chart, `[size, size, 3]` with values from 0 to 1.

    Its four quarters are drawn larger and averaged down, so that no edge is jagged.

    Args:
        size: height and width in pixels.
    """
    half = (size + 1) // 2
    fine = half * _SUPERSAMPLING
    top = np.concatenate([_zone_plate(fine), _edges(fine)], axis=1)
    bottom = np.concatenate([_gratings(fine, half), _colours(fine)], axis=1)
    chart = np.concatenate([top, bottom], axis=0)
    blocks = chart.reshape(2 * half, _SUPERSAMPLING, 2 * half, _SUPERSAMPLING, 3)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3))[:size, :size], dtype=np.float32)


def _axes(n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x to the right and y down, both from -1 to 1."""
    line = (np.arange(n) + 0.5) / n * 2 - 1
    return np.meshgrid(line, line)


def _gray(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.repeat(values[..., None], 3, axis=2)


def _zone_plate(n: int) -> npt.NDArray[np.float64]:
    """Rings whose frequency grows outward, to half a cycle a pixel of the chart at the edge of the quarter."""
    x, y = _axes(n)
    pixels = n / _SUPERSAMPLING
    return _gray(0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) * pixels / 4 * 0.9))


def _gratings(n: int, pixels: int) -> npt.NDArray[np.float64]:
    """Six angles across, four frequencies down: periods of 3 to 14 pixels of the chart."""
    rows, columns = 4, 6
    y, x = np.mgrid[0:n, 0:n]
    row, column = y * rows // n, x * columns // n
    period = np.array([3.0, 5.0, 8.0, 14.0])[row] * min(1.0, pixels / 56)
    angle = column * np.pi / columns
    phase = (x * np.cos(angle) + y * np.sin(angle)) / _SUPERSAMPLING
    return _gray(0.5 + 0.5 * np.sin(2 * np.pi * phase / period))


def _edges(n: int) -> npt.NDArray[np.float64]:
    """A star of straight edges at all angles around a disc, on gray; one blurred edge, thin lines, corners."""
    x, y = _axes(n)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    field = np.full((n, n), 0.5)
    star = radius < 0.62
    field[star] = (np.floor(angle[star] / (2 * np.pi) * 24) % 2) * 1.0
    field[radius < 0.2] = 0.0
    field[radius < 0.1] = 1.0
    field[(abs(x + 0.78) < 0.16) & (abs(y + 0.78) < 0.16)] = 0.0
    field[(abs(x + 0.78) < 0.07) & (abs(y + 0.78) < 0.07)] = 1.0
    field[(abs(x - 0.78) < 0.16) & (abs(y + 0.78) < 0.16)] = 1.0
    triangle = (abs(x + 0.78) < (y - 0.6) / 2) & (y < 0.94)
    field[triangle] = 1.0
    ramp = (abs(x - 0.78) < 0.16) & (abs(y - 0.78) < 0.16)
    field[ramp] = ((x - 0.62) / 0.32)[ramp]
    for k, width in enumerate((0.008, 0.016, 0.032)):
        field[abs(y - (-0.9 + 0.1 * k)) < np.where(abs(x) < 0.45, width, 0)] = k % 2 * 1.0
    return _gray(field)


def _colours(n: int) -> npt.NDArray[np.float64]:
    """Patches of twelve hues at two strengths, opponent-colour edges and gratings, a ramp of grays."""
    rows, columns = 6, 6
    y, x = np.mgrid[0:n, 0:n]
    row, column = y * rows // n, x * columns // n
    hue = (column + columns * (row % 2)) / (2 * columns)
    wheel = np.clip(abs((hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    field: npt.NDArray[np.float64] = np.where((row < 2)[..., None], wheel, 0.35 + 0.45 * wheel)
    wave = (0.5 + 0.5 * np.sin(2 * np.pi * x / _SUPERSAMPLING / 8))[..., None]
    red_green, blue_yellow = (1 - wave) * [1, 0, 0] + wave * [0, 0.7, 0], (1 - wave) * [0, 0, 1] + wave * [1, 1, 0]
    field = np.where((row == 4)[..., None], np.where((column < 3)[..., None], red_green, blue_yellow), field)
    ramp = np.floor(x / n * 12) / 11
    return np.where((row == 5)[..., None], _gray(ramp), field)

"""The demo's images, drawn from nothing: gratings, and weaves of coloured threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.snapshot import FloatArray

IntArray = npt.NDArray[np.int64]
SIZE = 40
GRATING_CLASSES = 30
WEAVE_CLASSES = 12
_GREY = (1.0, 1.0, 1.0)
_RED_GREEN = (1.0, -1.0, -0.1)
_BLUE_YELLOW = (-0.55, -0.45, 1.0)
_HUES = ((1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))


def gratings(n: int, *, seed: int) -> tuple[FloatArray, IntArray]:
    """Draw patches of stripes, and coloured spots, at random places, on noise.

    Classes 0-15: grey stripes at 8 angles, narrow (0-7) and wide (8-15); 16-19: red-green stripes at 4 angles;
    20-23: blue-yellow ones; 24-29: spots of 6 colours. Phase, place, size and contrast say nothing of the class.

    Args:
        n: how many images.
        seed: of everything that is drawn.

    Returns:
        Images `[n, 3, 40, 40]`, 0 is mid-grey, about -1 to 1; labels `[n]`.

    Example:
        >>> images, labels = gratings(2, seed=0)
        >>> images.shape, labels.shape
        ((2, 3, 40, 40), (2,))
    """
    draw = _Draw(n, seed)
    labels = draw.rng.integers(0, GRATING_CLASSES, n)
    grey, spots = labels < 16, labels >= 24
    turn = np.where(grey, labels % 8 / 8, labels % 4 / 4) + draw.rng.uniform(-0.05, 0.05, n)
    angle = draw.each(turn * np.pi)
    shortest = np.where(grey & (labels >= 8), 8.0, 5.0)
    longest = np.where(grey & (labels < 8), 6.7, 11.0)
    wavelength = draw.each(np.exp(draw.rng.uniform(np.log(shortest), np.log(longest))))
    stripes = np.zeros((n, SIZE, SIZE), np.float32)
    for _ in range(5):
        dx, dy, size = draw.x - draw.between(-13, 13), draw.y - draw.between(-13, 13), draw.between(2.5, 4)
        wave = np.cos(2 * np.pi * (dx * np.cos(angle) + dy * np.sin(angle)) / wavelength + draw.between(0, 2 * np.pi))
        stripes += np.exp(-(dx**2 + dy**2) / (2 * size**2)) * wave
    stripes = np.tanh(2 * stripes)
    spot, size = np.zeros_like(stripes), draw.between(2, 5)
    for _ in range(4):
        dx, dy = draw.x - draw.between(-13, 13), draw.y - draw.between(-13, 13)
        spot = np.maximum(spot, np.exp(-(dx**2 + dy**2) / (2 * size**2)))
    palette = np.array([_GREY] * 16 + [_RED_GREEN] * 4 + [_BLUE_YELLOW] * 4 + list(_HUES), np.float32)
    ink = np.where(draw.each(spots), spot, stripes) * draw.between(0.5, 1)
    return draw.on_noise(ink[:, None] * palette[labels][:, :, None, None]), labels


def weaves(n: int, *, seed: int) -> tuple[FloatArray, IntArray]:
    """Draw round pieces of cloth: grey threads under coloured ones that cross them, on noise.

    The class is the pair of angles (6 pairs of 4 angles) times the coloured threads' palette (red or green: 0-5,
    blue or yellow: 6-11). Which of the two angles is on top, and which of its two colours it has, says nothing.

    Args:
        n: how many images.
        seed: of everything that is drawn.

    Returns:
        Images `[n, 3, 40, 40]`, 0 is mid-grey, about -1 to 1; labels `[n]`.

    Example:
        >>> images, labels = weaves(2, seed=0)
        >>> images.shape, labels.shape
        ((2, 3, 40, 40), (2,))
    """
    draw = _Draw(n, seed)
    labels = draw.rng.integers(0, WEAVE_CLASSES, n)
    pair = np.stack(np.triu_indices(4, 1))[:, labels % 6]
    pair = np.where(draw.rng.random(n) < 0.5, pair, pair[::-1])
    turn = pair / 4 + draw.rng.uniform(-0.06, 0.06, (2, n))

    def threads(turn: npt.NDArray[np.float64]) -> FloatArray:
        angle, wavelength = draw.each(turn * np.pi), draw.between(6, 10)
        phase = 2 * np.pi * (draw.x * np.cos(angle) + draw.y * np.sin(angle)) / wavelength + draw.between(0, 2 * np.pi)
        shade: FloatArray = 0.5 + 0.5 * np.tanh(3 * (np.cos(phase) - 0.3))
        return shade

    under, over = threads(turn[0])[:, None], threads(turn[1])[:, None]
    sign = np.where(draw.rng.random((2, n)) < 0.5, -1, 1).astype(np.float32)[:, :, None, None, None]
    palette = np.array([_RED_GREEN, _BLUE_YELLOW], np.float32)[labels // 6][:, :, None, None]
    cloth = sign[0] * under * (1 - over) + sign[1] * over * palette
    distance = np.hypot(draw.x - draw.between(-5, 5), draw.y - draw.between(-5, 5)) - draw.between(11, 18)
    return draw.on_noise(cloth * (draw.between(0.4, 0.9) / (1 + np.exp(distance)))[:, None]), labels


class _Draw:
    """Coordinates and random numbers for `n` images at once.

    Args:
        n: how many images.
        seed: of the random numbers.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._n = n
        axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
        self.y, self.x = axis[:, None], axis[None, :]

    def each(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value an image `[n]` -> `[n, 1, 1]`.

        Args:
            values: one for each image.
        """
        values = values[:, None, None]
        return values if values.dtype == bool else values.astype(np.float32)

    def between(self, low: float, high: float) -> FloatArray:
        """A random number for each image `[n, 1, 1]`.

        Args:
            low: the smallest number.
            high: the number that is not reached.
        """
        values: FloatArray = self.rng.uniform(low, high, (self._n, 1, 1)).astype(np.float32)
        return values

    def on_noise(self, images: npt.NDArray[Any]) -> FloatArray:
        noise = self.rng.standard_normal(images.shape, np.float32)
        noisy: FloatArray = np.clip(images + 0.2 * noise, -1.5, 1.5).astype(np.float32)
        return noisy

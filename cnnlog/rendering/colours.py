"""Values as colours: palettes of 63 levels, with a colour for gaps and one for NaN and infinity.

Palette indices: 0 to 62 are values (0 to the range's end, or with a sign: -end to end with 0 at 31), 63 is the gap
between cells, 64 is NaN or infinity. 63 levels look even, and cost 70 % of the bytes of 251.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from cnnlog.messages import near

Pixels = npt.NDArray[np.uint8]
TOP = 62
ZERO = 31
GAP = 63
NOT_FINITE = 64


# In rgb grids values take 4 to 252 in each component, so a colour with a 0 or a 255 in it is no value.
RGB_ZERO = 128
RGB_STEP = 4
RGB_GAP = (0, 0, 0)
RGB_NOT_FINITE = ((0, 200, 0), (255, 0, 255))
_GAP_COLOURS = ((96, 96, 96), (20, 50, 120), (0, 0, 0), (255, 255, 255), (150, 100, 40))
_NOT_FINITE_COLOURS = ((0, 200, 0), (255, 0, 255), (0, 255, 255), (255, 220, 0), (140, 70, 0))


@functools.lru_cache(maxsize=64)
def palette(cmap: str, symmetric: bool) -> bytes:
    """The colours of indices 0 to `NOT_FINITE`: values, gap, not finite; 3 bytes each.

    Gaps, and what is not finite, take the first of a few colours that no value of this colour map comes near.

    Args:
        cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
        symmetric: whether the range is -end to end. Then `"auto"` is RdBu_r with 0 in pure white, else magma.

    Raises:
        ValueError: matplotlib has no such colour map.
    """
    colours = _sample(("RdBu_r" if symmetric else "magma") if cmap == "auto" else cmap)
    if cmap == "auto" and symmetric:
        colours = np.minimum(colours / colours[ZERO], 1.0)
    table = np.zeros((NOT_FINITE + 1, 3), np.uint8)
    table[: TOP + 1] = np.rint(colours * 255)
    table[GAP] = _far_from(table[: TOP + 1], _GAP_COLOURS)
    table[NOT_FINITE] = _far_from(table[: TOP + 1], _NOT_FINITE_COLOURS)
    return table.tobytes()


def _sample(name: str) -> npt.NDArray[np.float64]:
    import matplotlib

    if name not in matplotlib.colormaps:
        alike = near(name, list(matplotlib.colormaps))
        hint = f"did you mean {' or '.join(alike)}?" if alike else "use auto, gray or viridis, for example"
        raise ValueError(f"cmap must be auto, gray or the name of a matplotlib colour map; got {name!r}: {hint}")
    colours = matplotlib.colormaps[name](np.linspace(0, 1, TOP + 1))
    return np.asarray(colours, np.float64)[:, :3]


def _far_from(table: Pixels, candidates: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    distances = [np.linalg.norm(table.astype(np.float64) - c, axis=1).min() for c in candidates]
    clear = [c for c, distance in zip(candidates, distances, strict=True) if distance >= 64]
    return clear[0] if clear else candidates[int(np.argmax(distances))]

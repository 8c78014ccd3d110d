"""Values as colours: palettes of 63 levels, with colours for gaps, for NaN and infinity, and for what is beyond.

Palette indices: 0 to 62 are values (0 to the range's end, or with a sign: -end to end with 0 at 31), 63 is the gap
between cells, 64 is NaN or infinity, 65 and 66 are below and above the range, 67 is the notch of a cell whose range has
changed. 63 levels look even, and cost 70 % of the bytes of 251.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from cnnlog.messages import near

Pixels = npt.NDArray[np.uint8]
_Colours = npt.NDArray[np.float64]
TOP = 62
ZERO = 31
GAP = 63
NOT_FINITE = 64
BELOW = 65
ABOVE = 66
NOTCH = 67


# In rgb grids values take 4 to 252 in each component, so a colour with a 0 or a 255 in it is no value.
RGB_ZERO = 128
RGB_STEP = 4
RGB_GAP = (0, 0, 0)
RGB_NOTCH = (255, 255, 255)
RGB_NOT_FINITE = ((0, 200, 0), (255, 0, 255))
_GAP_COLOURS = ((96, 96, 96), (20, 50, 120), (0, 0, 0), (255, 255, 255), (150, 100, 40))
_NOT_FINITE_COLOURS = ((0, 200, 0), (255, 0, 255), (0, 255, 255), (255, 220, 0), (140, 70, 0))
_NOTCH_COLOURS = ((0, 255, 255), (255, 190, 0), (255, 0, 255), (255, 255, 255), (0, 0, 0), (190, 120, 255))

# An end colour is looked for among these. Nearer than this to another colour, a single pixel is no longer told apart.
_LATTICE = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)
_APART = 48
_INWARD = 6  # shades from the end, over which the way that a colour map goes there is taken


@functools.lru_cache(maxsize=64)
def palette(cmap: str, symmetric: bool) -> bytes:
    """The colours of indices 0 to `NOTCH`: values, gap, not finite, below, above, notch; 3 bytes each.

    Gaps, notches and what is not finite take the first of a few colours that no value of this colour map comes near.
    What is below or above the range takes a colour that goes on where the colour map ends, clearly apart from all.

    Args:
        cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
        symmetric: whether the range is -end to end. Then `"auto"` is RdBu_r with 0 in pure white, else magma.

    Raises:
        ValueError: matplotlib has no such colour map.
    """
    colours = _sample(("RdBu_r" if symmetric else "magma") if cmap == "auto" else cmap)
    if cmap == "auto" and symmetric:
        colours = np.minimum(colours / colours[ZERO], 1.0)
    values = np.rint(colours * 255)
    taken = [*values, _far_from(values, _GAP_COLOURS)]
    not_finite = _far_from(values, _NOT_FINITE_COLOURS)
    notch = _far_from(np.array([*taken, not_finite]), _NOTCH_COLOURS)
    # Of colours as good as one another, the cold one is below and the warm one above.
    below = _beyond(values[0], values[_INWARD], [*taken, not_finite, notch], _LATTICE)
    above = _beyond(values[TOP], values[TOP - _INWARD], [*taken, not_finite, notch, below], _LATTICE[::-1])
    return np.array([*taken, not_finite, below, above, notch]).astype(np.uint8).tobytes()


def ends_in_words(cmap: str, symmetric: bool) -> tuple[str, str]:
    """What is seen at 0 and at the ends of a range, and beyond them.

    Args:
        cmap: the colour map.
        symmetric: whether the range is -end to end.

    Example:
        >>> ends_in_words("auto", False)
        ('black is 0 and pale yellow the end', 'white is beyond it')
    """
    if cmap == "auto" and symmetric:
        return "white is 0, blue the end below and red the end above", "nearly black blue and red are beyond them"
    if cmap == "auto":
        return "black is 0 and pale yellow the end", "white is beyond it"
    if cmap == "gray":
        first, last, beyond = (
            "black",
            "white",
            "navy and yellow are beyond them" if symmetric else "yellow is beyond it",
        )
    else:
        first, last = f"the first colour of {cmap}", "the last one"
        beyond = "colours apart from all of it are beyond"
    if symmetric:
        return f"{first} is the end below and {last} the end above", beyond
    return f"{first} is 0 and {last} the end", beyond


def _sample(name: str) -> npt.NDArray[np.float64]:
    import matplotlib

    if name not in matplotlib.colormaps:
        alike = near(name, list(matplotlib.colormaps))
        hint = f"did you mean {' or '.join(alike)}?" if alike else "use auto, gray or viridis, for example"
        raise ValueError(f"cmap must be auto, gray or the name of a matplotlib colour map; got {name!r}: {hint}")
    colours = matplotlib.colormaps[name](np.linspace(0, 1, TOP + 1))
    return np.asarray(colours, np.float64)[:, :3]


def _far_from(taken: _Colours, candidates: tuple[tuple[int, int, int], ...]) -> _Colours:
    """The first of the candidates that is far from all colours that are taken; the farthest if none is."""
    distances = _distances(np.array(candidates, np.float64), taken)
    clear = np.flatnonzero(distances >= 64)
    return np.array(candidates[int(clear[0] if len(clear) else np.argmax(distances))], np.float64)


def _beyond(end: _Colours, inward: _Colours, taken: list[_Colours], choice: _Colours) -> _Colours:
    """One of the choice that is clearly apart from all that are taken, near to where the colour map would go on."""
    distances = _distances(choice, np.array(taken))
    clear = np.flatnonzero(distances >= _APART)
    aim = np.clip(end + (end - inward), 0, 255)
    away = np.linalg.norm(choice[clear] - aim, axis=1) + np.linalg.norm(choice[clear] - end, axis=1)
    chosen: _Colours = choice[clear[int(np.argmin(away))] if len(clear) else int(np.argmax(distances))]
    return chosen


def _distances(colours: _Colours, taken: _Colours) -> _Colours:
    """How far each colour `[m, 3]` is from the nearest of those that are taken `[n, 3]`."""
    apart: _Colours = np.linalg.norm(colours[:, None] - taken[None], axis=2).min(axis=1)
    return apart

"""A comparison in words: the text for a terminal, and plain values for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from cnnlog.comparison.curves import Curves
from cnnlog.comparison.old_names import Renamed, old_curves, old_row
from cnnlog.comparison.rows import Row, letter, plain
from cnnlog.comparison.side_by_side import SideBySide

_ABOUT = (
    "output: change of the layer's output on the probe, weights: change of its weights, turned: median angle of its "
    "filters, CKA: debiased, of its output at the positions of the probe, with (noise) where noise of that shape gives "
    "as much; each from the side's own baseline, or (A-B) from the first side; shown: of the shown filters and maps "
    "alone. dead: channels never above 0 behind the next activation."
)


def legend(of: SideBySide) -> list[str]:
    """The letter, the label and the last shown step of each side.

    Args:
        of: the sides.
    """
    return [f"{letter(side)}: {of.described(side)}" for side in range(len(of.sides))]


def text_of(of: SideBySide, table: str, notes: Sequence[str], verdict: str) -> str:
    """All of the comparison as text, for a terminal.

    Args:
        of: the sides.
        table: the numbers, as text.
        notes: sentences on what a reader should know.
        verdict: the sentence on what moved.
    """
    said = [f"Note: {note}." for note in notes]
    return "\n".join([*legend(of), "", table, "", *textwrap.wrap(_ABOUT, 100), *said, "", verdict])


def values_of(
    of: SideBySide, rows: Sequence[Row], curves: Curves, *, notes: Sequence[str], verdict: str
) -> dict[str, Any]:
    """All of the comparison as plain values, for JSON. What does not exist or is not finite is None.

    Args:
        of: the sides.
        rows: the rows of their last step.
        curves: the numbers over the steps.
        notes: sentences on what a reader should know.
        verdict: the sentence on what moved.
    """
    last = of.steps[-1]
    return {
        "format": "cnnlog-comparison",
        "version": 2,
        "sides": [
            {"label": side.label, "source": side.source, "step": of.step_of(index, last)}
            for index, side in enumerate(of.sides)
        ],
        "steps": list(of.steps),
        "layers": [
            Renamed({**plain(row), "names": list(layer.names)}, old_row(of, layer, last, plain))
            for layer, row in zip(of.layers, rows, strict=True)
        ],
        "curves": Renamed(plain(curves), old_curves(of)),
        "notes": list(notes),
        "verdict": verdict,
    }

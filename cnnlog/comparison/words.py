"""A comparison in words: the sentence on what moved, the text for a terminal, and plain values for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cnnlog.comparison.curves import Curves
from cnnlog.comparison.rows import Row, letter, mean, plain
from cnnlog.comparison.side_by_side import SideBySide

_ABOUT = (
    "Means over a layer's channels. drift: cosine distance from the side's own baseline; A to B: the same "
    "between the sides; dead: share of channels never above 0 on the probe; CKA A: of the feature maps with "
    "those of its own baseline; CKA A-B: between the sides, of the shown feature maps."
)


def verdict_of(of: SideBySide, rows: Sequence[Row]) -> str:
    """One sentence that names the layers that moved most and least.

    Args:
        of: the sides.
        rows: the rows of their last step.
    """
    first, last = of.sides[0], of.steps[-1]
    same = [side.run is not None and first.run is not None and side.run.path == first.run.path for side in of.sides]
    own = [
        side.run is not None
        and of.step_of(index, last) != side.run.manifest.baseline_step
        and not (same[index] and index > 0)
        for index, side in enumerate(of.sides)
    ]
    verbs = ["moved" if alike else "differs" for alike in same[1:]]
    return verdict_sentence(rows, [side.label for side in of.sides], own=own, verbs=verbs)


def verdict_sentence(rows: Sequence[Row], labels: Sequence[str], *, own: Sequence[bool], verbs: Sequence[str]) -> str:
    """One sentence that names the layers that moved most and least.

    Args:
        rows: the rows of the step to speak of.
        labels: the labels of the sides.
        own: for each side, whether to say how far it moved from a baseline of its own.
        verbs: for each side but the first, the verb for its distance from the first: `moved` or `differs`.
    """
    parts = [
        part
        for side, label in enumerate(labels)
        if own[side]
        and (part := _extremes({row.layer: mean(row.drift_cosine[side]) for row in rows}, f"in {label}", "moved"))
    ]
    for side, label in enumerate(labels[1:], start=1):
        pair = f"between {labels[0]} and {label}"
        verb = verbs[side - 1]
        part = _extremes({row.layer: mean(row.distance_cosine[side - 1]) for row in rows}, pair, verb)
        if not part:
            unlike = {row.layer: _unlike(row.cka_between[side - 1]) for row in rows}
            part = _extremes(unlike, pair, verb, what="1 - CKA of the feature maps")
        parts.append(part or f"{pair}, no number says how far the layers are apart")
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


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
        "version": 1,
        "sides": [
            {"label": side.label, "source": side.source, "step": of.step_of(index, last)}
            for index, side in enumerate(of.sides)
        ],
        "steps": list(of.steps),
        "layers": [{**plain(row), "names": list(layer.names)} for layer, row in zip(of.layers, rows, strict=True)],
        "curves": plain(curves),
        "notes": list(notes),
        "verdict": verdict,
    }


def _extremes(values: Mapping[str, float | None], where: str, verb: str, *, what: str = "cosine distance") -> str:
    known = {layer: value for layer, value in values.items() if value is not None}
    if not known:
        return ""
    most, least = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    if known[most] == 0:
        return f"{where}, no layer {verb}"
    if len(known) == 1:
        return f"{where}, {most} {verb} by {known[most]:.3g} ({what})"
    return f"{where}, {most} {verb} most ({what} {known[most]:.3g}) and {least} least ({known[least]:.3g})"


def _unlike(cka: float | None) -> float | None:
    return None if cka is None or math.isnan(cka) else 1 - cka

"""What a page tells about its sides: names, units, probes and the settings that made them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from cnnlog.comparison.comparison import Comparison, Side
from cnnlog.comparison.rows import letter


def sides(comparison: Comparison, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The sides as the page names them: with a letter, a colour, a label, and what each one is.

    Args:
        comparison: the comparison.
        steps: the steps of the page's slider.
    """
    return [
        {
            "index": index,
            "colour": index % 5,
            "letter": letter(index),
            "label": side.label,
            "about": _about_side(side),
            "last": comparison.step_of(index, steps[-1]),
            "pinned": side.step is not None,
        }
        for index, side in enumerate(comparison.sides)
    ]


def _about_side(side: Side) -> str:
    if side.run is None:
        return f"weights, {side.source}" if side.source else "weights"
    steps = f"{len(side.run.steps)} steps" if side.step is None else f"step {side.step}, pinned"
    return f"{side.run.manifest.architecture}, {steps}, {side.run.manifest.created[:10]}"


def unit(comparison: Comparison) -> str:
    """What one step is: epoch or step; step if the runs do not agree.

    Args:
        comparison: what the page shows.
    """
    units = {side.run.manifest.unit for side in comparison.sides if side.run is not None}
    return units.pop() if len(units) == 1 else "step"


def image_names(comparison: Comparison, images: int) -> list[str]:
    """The names of the probe images that are shown.

    Args:
        comparison: the comparison.
        images: how many are shown.
    """
    for side in comparison.sides:
        if side.run is not None and side.run.manifest.probe:
            names = [str(name) for name in side.run.manifest.probe.get("names", ())]
            return [names[i] if i < len(names) else f"image {i + 1}" for i in range(images)]
    return [f"image {i + 1}" for i in range(images)]


def probes(comparison: Comparison, sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each probe once, with the sides whose feature maps are of it.

    Args:
        comparison: the comparison.
        sides: the sides as the page names them.
    """
    found: dict[str, dict[str, Any]] = {}
    for side, chosen in zip(sides, comparison.sides, strict=True):
        if chosen.run is None:
            continue
        probe = chosen.run.manifest.probe
        fingerprint = str(probe.get("fingerprint", chosen.run.path))
        if fingerprint in found:
            found[fingerprint]["sides"].append(side)
            continue
        try:
            pixels = chosen.run.probe_picture()
        except (OSError, ValueError):
            continue
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        names = [str(name) for name in probe.get("names", ())] or ["probe"]
        shape = " × ".join(str(size) for size in probe.get("shape", ()))
        found[fingerprint] = {
            "sides": [side],
            "names": names,
            "about": f"{shape}, sha256 {fingerprint[:12]}",
            "png": buffer.getvalue(),
            "size": (pixels.shape[1], pixels.shape[0]),
            "alt": f"What the network saw at every step: {', '.join(names)}",
        }
    return list(found.values())


def settings(comparison: Comparison) -> list[dict[str, Any]]:
    """What made each side: one row for each setting.

    Args:
        comparison: what the page shows.
    """
    columns: list[dict[str, str]] = []
    for index, side in enumerate(comparison.sides):
        column = {"label": side.label, "source": side.source}
        if side.run is not None:
            manifest = side.run.manifest
            own = comparison.step_of(index, comparison.steps[-1])
            column |= {
                "architecture": manifest.architecture,
                "created": manifest.created,
                "run": manifest.run_id,
                "steps": f"{len(side.run.steps)}, from {side.run.steps[0]} to {side.run.steps[-1]}; shown last: {own}",
                "unit of a step": manifest.unit,
                "baseline": str(manifest.baseline_step),
            }
            column |= {f"version of {name}": str(version) for name, version in manifest.versions.items()}
            column |= dict(_flat("probe", manifest.probe))
            column |= dict(_flat("", manifest.settings))
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column if name != "label")
    return [{"name": name, "values": [column.get(name, "–") for column in columns]} for name in names]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{prefix}, {key}" if prefix else str(key).replace("_", " "), part)
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(str(part) for part in value)
    else:
        yield prefix, str(value)

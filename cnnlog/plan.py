"""What is watched, and how: from what was asked for to the layers, the manifest and the files of the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from cnnlog import render
from cnnlog.layers import LayerInfo, LayerSpec, select
from cnnlog.probe import Probe
from cnnlog.recorder import Look, Picture
from cnnlog.snapshot import FloatArray
from cnnlog.store import Manifest, WatchedLayer

Unit = Literal["epoch", "step"]
OnError = Literal["warn", "raise"]


@dataclass(frozen=True)
class Plan:
    """What one monitor was asked for."""

    layers: LayerSpec
    look: Look
    unit: Unit
    every: int
    on_error: OnError
    probe: Probe | None
    through: str | None

    def settings(self) -> dict[str, Any]:
        """The arguments as plain values, for the manifest."""
        named: list[Any] = [self.layers] if isinstance(self.layers, (str, type)) else list(self.layers)
        names = [item if isinstance(item, str) else item.__qualname__ for item in named]
        return {"layers": names, "every": self.every, "unit": self.unit, **vars(self.look)}


@dataclass(frozen=True)
class Watched:
    """What is watched of one model: the names, and all of it in the order of the tags."""

    filter_layers: tuple[str, ...]
    map_layers: tuple[str, ...]
    layers: tuple[WatchedLayer, ...]


def watch(infos: Sequence[LayerInfo], *, filters: Plan | None, maps: Plan | None) -> Watched:
    """Choose the layers.

    Args:
        infos: what `capture.survey` found.
        filters: what is wanted of filters, None for nothing; likewise `maps`.
        maps: of feature maps.

    Raises:
        ValueError: no such layer, or one whose filters cannot be shown as asked for.
    """
    filter_layers = select(infos, filters.layers, what="filters") if filters else ()
    map_layers = select(infos, maps.layers, what="feature maps") if maps else ()
    view = filters.look.view if filters else "auto"
    return Watched(filter_layers, map_layers, _watched(infos, filter_layers, map_layers, view))


def manifest_of(
    watched: Watched,
    *,
    filters: Plan | None,
    maps: Plan | None,
    probe: Probe | None,
    baseline_step: int,
    architecture: str,
) -> Manifest:
    """The manifest of a run that begins now."""
    plan = filters or maps
    assert plan is not None, "something is watched"
    return Manifest(
        layers=watched.layers,
        unit=plan.unit,
        baseline_step=baseline_step,
        settings={
            **({"filters": filters.settings()} if filters else {}),
            **({"feature_maps": maps.settings()} if maps else {}),
        },
        probe=_facts(probe),
        versions={name: version(name) for name in ("cnnlog", "torch", "lightning")},
        architecture=architecture,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def probe_files(probe: Probe | None) -> tuple[FloatArray, Picture] | None:
    """The probe as the recorder wants it: its tensor, and its pictures side by side."""
    if probe is None:
        return None
    gap = np.full((probe.pictures[0].shape[0], 1, 3), 255, np.uint8)
    row = [part for picture in probe.pictures for part in (gap, picture)][1:]
    grid = render.Grid(np.concatenate(row, axis=1), None)
    png = render.png(grid, text={"cnnlog-probe": "1"}, level=6)
    return probe.tensor.numpy(), Picture("probe", png, grid.size, f"The probe: {', '.join(probe.names)}.")


def _watched(
    infos: Sequence[LayerInfo], filters: Sequence[str], maps: Sequence[str], view: render.View
) -> tuple[WatchedLayer, ...]:
    layers = [info for info in infos if info.name in filters or info.name in maps]
    watched = []
    for position, info in enumerate(layers):
        weight = info.weight_shape if info.name in filters else None
        resolved = None
        if weight is not None:
            try:
                resolved = render.resolve_view(weight, view)
            except ValueError as error:
                raise ValueError(f"Layer {info.name!r}: {error}") from error
        watched.append(
            WatchedLayer(
                name=info.name,
                tag=f"{position:02d}_{info.name}",
                kind=info.kind,
                weight_shape=weight,
                output_shape=info.output_shape if info.name in maps else None,
                view=resolved,
            )
        )
    return tuple(watched)


def _facts(probe: Probe | None) -> dict[str, Any]:
    if probe is None:
        return {}
    return {"fingerprint": probe.fingerprint, "names": list(probe.names), "shape": list(probe.tensor.shape)}

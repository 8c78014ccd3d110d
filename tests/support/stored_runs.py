"""Stored runs as the monitors write them, made without training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from support.measuring import Arrays, write_measured

from cnnlog.kinds import Unit
from cnnlog.recording.drawer import LoggedPicture, Look
from cnnlog.recording.recorder import Recorder
from cnnlog.runs.manifest import Manifest, WatchedLayer
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot

FILTERS = {"conv1": (4, 3, 5, 5), "conv2": (6, 4, 3, 3)}
__all__ = ["FILTERS", "MAPS", "Arrays", "moving", "write_run"]

MAPS = {"conv1": (1, 4, 8, 8), "conv2": (1, 6, 4, 4)}


def moving(seed: int, amount: float, prefix: str = "", scale: float = 1.0) -> Callable[[int], tuple[Arrays, Arrays]]:
    """Filters and feature maps that move by `amount` a step; all seeds begin alike."""
    start, way = np.random.default_rng(0), np.random.default_rng(seed + 1)

    def some(generator: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        return {prefix + name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    filters, maps = some(start, FILTERS), some(start, MAPS)
    filters_way, maps_way = some(way, FILTERS), some(way, MAPS)

    def at(step: int) -> tuple[Arrays, Arrays]:
        return (
            {name: (scale * (f + amount * step * filters_way[name])).astype(np.float32) for name, f in filters.items()},
            {name: np.maximum(maps[name] + amount * step * maps_way[name], 0) for name in maps},
        )

    return at


def write_run(
    folder: Path,
    arrays: Callable[[int], tuple[Arrays, Arrays]] | None = None,
    *,
    steps: Sequence[int] = (0, 1, 2, 3),
    maps_every: int = 1,
    probe: str = "a probe",
    max_filters: int = 64,
    also: Callable[[int], tuple[Arrays, Arrays]] | None = None,
    normalised: Collection[str] = (),
    only: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Store a run in `folder/cnnlog`.

    Args:
        folder: the log folder.
        arrays: step -> filters and feature maps by layer.
        steps: the first is the baseline.
        maps_every: store feature maps at every n-th step.
        probe: its fingerprint.
        max_filters: filters and slices that are shown.
        also: step -> weights, and outputs `[rows, C]`, of layers that are only measured.
        normalised: layers that a normalisation follows.
        only: layer -> which of its filters are measured, as of very large layers.
    """
    at = arrays or moving(0, 0.1)
    filters, maps = at(steps[0])
    layers = [
        WatchedLayer(
            name,
            f"{position:02d}_{name}",
            "Conv2d",
            filters[name].shape if name in filters else None,
            maps[name].shape if name in maps else None,
            None if name not in filters else "rgb" if filters[name].shape[1] == 3 else "slices",
        )
        for position, name in enumerate(dict.fromkeys([*filters, *maps]))
    ]
    look = Look(shown=max_filters, slices=min(16, max_filters))
    manifest = Manifest(
        layers=tuple(layers),
        unit=Unit.EPOCH,
        baseline_step=steps[0],
        settings={"filters": asdict(look), "feature_maps": asdict(look)},
        probe={"fingerprint": probe, "names": ["noise"], "shape": [1, 3, 16, 16]},
        versions={"cnnlog": "0.1.0", "torch": "2", "lightning": "2"},
        architecture="Net",
        created="2026-01-01T00:00:00+00:00",
    )
    tensor = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    pixels = _png()
    recorder = Recorder(
        layers,
        measured=(),  # `write_measured` writes the numbers, by a computation of its own
        filters=look,
        maps=look,
        store=RunStore(str(folder / "cnnlog"), manifest),
        trackers=(),
        probe=(tensor, LoggedPicture("probe", pixels, (16, 16), "The probe.")),
    )
    for step in steps:
        filters, maps = at(step)
        recorder.record(Snapshot(step, step, 10 * step, filters, maps if step % maps_every == 0 else {}))
    recorder.finish()
    recorder.close()
    problems = recorder.take_problems()
    assert not [p for p in problems if p.what not in ("finite", "dead")], problems
    write_measured(folder, at, steps, also=also, normalised=normalised, only=only)
    return folder


def _png() -> bytes:
    from cnnlog.rendering.png import Grid, encode_png

    return encode_png(Grid(np.full((16, 16, 3), 90, np.uint8), None), text={"cnnlog-probe": "1"})

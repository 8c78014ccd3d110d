"""A manifest, records and a whole run with layer names that file systems and formats find awkward."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from cnnlog.runs.manifest import Manifest, WatchedLayer
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Record

LAYERS = ("conv", "a/b/c", "möbel.été.層", "with space.0")


def manifest(**more: Any) -> Manifest:
    layers = tuple(WatchedLayer(name, f"{i:02d}_{name}", "Conv2d", (4, 3, 3, 3)) for i, name in enumerate(LAYERS))
    facts: dict[str, Any] = {
        "layers": layers, "unit": "epoch", "baseline_step": 0, "settings": {"filters": {"shown": 64}},
        "probe": {"names": ["é"]}, "versions": {"torch": "2"}, "architecture": "Net", "created": "2026-01-01T00:00:00",
    }  # fmt: skip
    return Manifest(**{**facts, **more})


def record(step: int = 0) -> Record:
    generator = np.random.default_rng(step)

    def some(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    return Record(
        step=step,
        epoch=step,
        global_step=4 * step,
        filters={name: some(4, 3, 3, 3) for name in LAYERS},
        feature_maps={name: some(1, 4, 5, 6) for name in LAYERS},
        numbers={"filter_norm": {name: some(4).astype(np.float64) for name in LAYERS}},
        ranges={"filters": {name: {"base": some(4), "doubled": np.arange(4)} for name in LAYERS}},
    )


def png(text: str | None = "1") -> bytes:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("cnnlog-probe", text)
    data = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def whole_run(folder: str) -> RunStore:
    store = RunStore(folder, manifest())
    store.create()
    store.write_probe(np.full((1, 3, 8, 8), 0.5, np.float32), png())
    store.write_weights("baseline", record().filters, 0)
    store.write_weights("latest", record(1).filters, 1)
    store.write_outputs("baseline", {name: np.ones((7, 4), np.float32) for name in LAYERS}, 0)
    for step in (0, 1):
        store.write_record(record(step))
    return store

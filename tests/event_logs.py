"""Event files as a run writes them, made without training."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

TAGS = ("filters/00_conv1", "filters/01_conv2", "feature_maps/00_conv1")
SCALAR = "drift_cosine/00_conv1"


def write_run(folder: Path, *, steps: int = 31, tags: Iterable[str] = TAGS, seed: int = 0) -> Path:
    """One event file with a picture per tag and step, and one scalar per step, written after the pictures."""
    generator = np.random.default_rng(seed)
    writer = EventFileWriter(str(folder))
    for step in range(steps):
        pictures = [(tag, generator.integers(0, 255, (32, 32), dtype=np.uint8)) for tag in tags]
        values = [Summary.Value(tag=tag, image=_summary_image(pixels)) for tag, pixels in pictures]
        values.append(Summary.Value(tag=SCALAR, simple_value=step / 100))
        writer.add_event(Event(wall_time=1e9 + step, step=step, summary=Summary(value=values)))
    writer.close()
    return folder


def _summary_image(pixels: np.ndarray) -> Summary.Image:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    height, width = pixels.shape
    return Summary.Image(height=height, width=width, colorspace=1, encoded_image_string=encoded.getvalue())

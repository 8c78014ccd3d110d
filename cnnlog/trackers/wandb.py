"""Weights & Biases, through its run."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import wandb
from PIL import Image

from cnnlog.kinds import Unit
from cnnlog.runs.places import shortened


class WandbTracker:
    """Writes to a W&B run.

    Everything of a step is one row of the run's history, with the step on an axis of its own, `cnnlog/epoch` or
    `cnnlog/step`: W&B's own step counts the calls of `log`, and Lightning's counts batches.

    Args:
        run: a W&B run that has not finished.
        unit: what steps count; it names the axis.
    """

    def __init__(self, run: Any, *, unit: Unit) -> None:
        self.name = "W&B"
        self._run = run
        self._axis = f"cnnlog/{unit}"
        self._row: dict[str, Any] = {}
        self._step = -1
        self._on_axis: set[str] = set()

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Add a picture, with the description as its caption.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """
        self._add(tag, wandb.Image(Image.open(io.BytesIO(png)), caption=description), step)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._add(tag, value, step)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text; W&B renders no Markdown in a history, but shows a page.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        text = markdown.replace("&", "&amp;").replace("<", "&lt;")
        self._add(tag, wandb.Html(f"<pre>{text}</pre>", inject=False), step)

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Add a histogram of 64 bins over the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        self._add(tag, wandb.Histogram(np_histogram=np.histogram(values[np.isfinite(values)], bins=64)), step)

    def commit(self, step: int) -> None:
        """Log the row.

        Args:
            step: the step that is complete.
        """
        row, self._row = (self._row if step == self._step else {}), {}
        for key in row.keys() - self._on_axis:  # by name: those with globs yield to the `*` of Lightning's logger
            self._run.define_metric(key, step_metric=self._axis)
            self._on_axis.add(key)
        self._run.log({**row, self._axis: step})

    def last_step(self) -> int | None:
        """Unknown: reading a run back needs W&B's server."""
        return None

    def _add(self, tag: str, value: Any, step: int) -> None:
        if step != self._step:  # what an earlier one left behind when it failed is let go
            self._step, self._row = step, {}
        self._row[shortened(tag, 150)] = value

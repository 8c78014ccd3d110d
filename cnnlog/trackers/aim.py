"""Aim, through its run."""

from __future__ import annotations

import io
from typing import Any

import aim
import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlog.kinds import Unit


class AimTracker:
    """Writes to an `aim.Run`.

    Args:
        run: an `aim.Run` that is open.
        unit: what steps count; completed epochs are also given to Aim as such.
    """

    def __init__(self, run: Any, *, unit: Unit) -> None:
        self.name = "Aim"
        self._run = run
        self._counts_epochs = unit is Unit.EPOCH

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Track a picture, with the description as its caption.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """
        self._track(tag, aim.Image(Image.open(io.BytesIO(png)), caption=description, format="png"), step)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Track a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._track(tag, value, step)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Track a text.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._track(tag, aim.Text(markdown), step)

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Track the distribution of the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        self._track(tag, aim.Distribution(values[np.isfinite(values)]), step)

    def commit(self, step: int) -> None:
        """Do nothing: Aim writes at once.

        Args:
            step: not used.
        """

    def last_step(self) -> int | None:
        """Unknown: a run that is open for writing is not read."""
        return None

    def _track(self, tag: str, value: Any, step: int) -> None:
        self._run.track(value, name=tag, step=step, epoch=step if self._counts_epochs else None)

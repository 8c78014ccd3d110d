"""Comet, through its experiment."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlog.kinds import Unit


class CometTracker:
    """Writes to a Comet experiment, online or offline.

    Args:
        experiment: a Comet experiment that has not ended.
        unit: what steps count; completed epochs are also given to Comet as such.
    """

    def __init__(self, experiment: Any, *, unit: Unit) -> None:
        self.name = "Comet"
        # A copy shares the connection but has a current step of its own: Comet writes each picture with the step that
        # the experiment was last set to, by whichever thread, and would give ours to numbers logged without one.
        self._experiment = copy.copy(experiment)
        self._counts_epochs = unit is Unit.EPOCH

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log a picture, its bytes as they are; Comet takes what is behind the last point for the format.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """
        metadata = {"description": description}
        self._experiment.log_image(io.BytesIO(png), name=f"{tag}.png", image_format="png", step=step, metadata=metadata)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._experiment.log_metric(tag, value, step=step, epoch=step if self._counts_epochs else None)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._experiment.log_text(markdown, step=step, metadata={"tag": tag})

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Log a histogram of the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        self._experiment.log_histogram_3d(values[np.isfinite(values)], name=tag, step=step)

    def commit(self, step: int) -> None:
        """Do nothing: Comet sends on its own.

        Args:
            step: not used.
        """

    def last_step(self) -> int | None:
        """Unknown: reading an experiment back needs Comet's server."""
        return None

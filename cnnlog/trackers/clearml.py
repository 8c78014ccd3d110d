"""ClearML, through its task."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt


class ClearMLTracker:
    """Reports to a ClearML task; the part of a tag before the first slash is its title there, the rest its series.

    Args:
        task: a ClearML task that is under way.
    """

    def __init__(self, task: Any) -> None:
        self.name = "ClearML"
        self._reports = task.get_logger()

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Report a picture as it is, one a step; `report_image` makes a JPEG of it and keeps 5.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows; left out, because ClearML has no field for it.
        """
        self._media(tag, png, step, "png")

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Report a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._reports.report_scalar(*_names(tag), value=value, iteration=step)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Report a text as a file beside the pictures.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._media(tag, markdown.encode(), step, "md")

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Report a histogram of 64 bins over the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        counts, edges = np.histogram(values[np.isfinite(values)], bins=64)
        labels = [f"{edge:.3g}" for edge in edges[:-1]]
        self._reports.report_histogram(*_names(tag), values=counts, iteration=step, xlabels=labels)

    def commit(self, step: int) -> None:
        """Do nothing: ClearML sends on its own.

        Args:
            step: not used.
        """

    def last_step(self) -> int | None:
        """Unknown: reading a task back needs ClearML's server."""
        return None

    def _media(self, tag: str, data: bytes, step: int, ending: str) -> None:
        stream = io.BytesIO(data)
        self._reports.report_media(*_names(tag), iteration=step, stream=stream, file_extension=ending, max_history=-1)


def _names(tag: str) -> tuple[str, str]:
    title, _, series = tag.partition("/")
    return title, series or title

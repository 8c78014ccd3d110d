"""Trackio, through its run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import trackio


class TrackioTracker:
    """Writes to a Trackio run; everything of a step is one entry of its log.

    Args:
        run: a Trackio run that has not finished.
    """

    def __init__(self, run: Any) -> None:
        self.name = "Trackio"
        self._run = run
        self._pictures: dict[str, tuple[bytes, str]] = {}
        self._row: dict[str, Any] = {}
        self._step = -1

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Add a picture, with the description as its caption.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """
        self._begin(step)
        self._pictures[tag] = (png, description)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._begin(step)
        self._row[tag] = value

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text, which Trackio renders as Markdown.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._begin(step)
        self._row[tag] = trackio.Markdown(markdown)

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Add a histogram of 64 bins over the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        self._begin(step)
        self._row[tag] = trackio.Histogram(np_histogram=np.histogram(values[np.isfinite(values)], bins=64))

    def commit(self, step: int) -> None:
        """Log the entry. Pictures are files until then, because Trackio copies a file, but encodes an image anew.

        Args:
            step: the step that is complete.
        """
        self._begin(step)
        row, pictures = self._row, self._pictures
        self._row, self._pictures = {}, {}
        with tempfile.TemporaryDirectory(prefix="cnnlog-") as folder:
            for number, (tag, (png, description)) in enumerate(pictures.items()):
                path = Path(folder) / f"{number}.png"
                path.write_bytes(png)
                row[tag] = trackio.Image(path, caption=description)
            type(self._run).log(_Aside(self._run), row, step=step)

    def last_step(self) -> int | None:
        """Unknown: a run that is open for writing is not read."""
        return None

    def _begin(self, step: int) -> None:
        if step != self._step:  # what an earlier one left behind when it failed is let go
            self._step, self._row, self._pictures = step, {}, {}


class _Aside:
    """A run whose count of steps does not move: numbers logged without a step would else go on from ours.

    Args:
        run: the Trackio run.
    """

    def __init__(self, run: Any) -> None:
        self.__dict__["_run"] = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_next_step":
            setattr(self._run, name, value)

"""MLflow, through a client."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.entities import Metric
from PIL import Image

from cnnlog.runs.places import shortened

KEY_BYTES = 150  # MLflow takes 250 for a metric, but adds about 90 to an image's, which becomes the name of a file


class MLflowTracker:
    """Writes to a run by its id; pictures show in its image grid, with a slider over the steps.

    MLflow takes no histograms; those are left out.

    Args:
        client: an `MlflowClient`.
        run_id: the id of the run, as the client's server knows it.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self.name = "MLflow"
        self._client = client
        self._run_id = run_id
        self._metrics: list[Metric] = []
        self._step = -1

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log a picture.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows; left out, because MLflow has no field for it.
        """
        self._client.log_image(self._run_id, Image.open(io.BytesIO(png)), key=self._key(tag), step=step)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        if step != self._step:  # what an earlier one left behind when it failed is let go
            self._step, self._metrics = step, []
        self._metrics.append(Metric(self._key(tag), value, int(1000 * time.time()), step))

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text as an artifact, `cnnlog/<tag>.md`.

        Args:
            tag: the text's name.
            markdown: the text.
            step: not kept: a later text of this name replaces this one.
        """
        self._client.log_text(self._run_id, markdown, f"cnnlog/{self._key(tag)}.md")

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Leave it out.

        Args:
            tag: not used.
            values: not used.
            step: not used.
        """

    def commit(self, step: int) -> None:
        """Send the numbers in one call.

        Args:
            step: the step that is complete.
        """
        metrics, self._metrics = (self._metrics if step == self._step else []), []
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def last_step(self) -> int | None:
        """Unknown: MLflow lists images by their files only, which may be on a server."""
        return None

    def _key(self, tag: str) -> str:
        legal = key(tag)
        short = shortened(legal, KEY_BYTES)
        if short != legal:
            self._client.set_tag(self._run_id, f"cnnlog.{short[-12:]}", tag)  # so that the name can still be had
        return short


def key(tag: str) -> str:
    """The tag in the characters that MLflow takes.

    Anything but `A-Z a-z 0-9 _ - . /` becomes its code point in hexadecimal between spaces, and so do points and
    slashes that would make a path of another name: `conv[0]` is `conv 5b 0 5d `.

    Args:
        tag: the name of a picture, number or text.

    >>> key("filters/00_conv[0]")
    'filters/00_conv 5b 0 5d '
    """
    return re.sub(r"[^A-Za-z0-9_\-./]|(?<=[./])[./]|^[./]|[./]$", lambda found: f" {ord(found[0]):x} ", tag)


def tag_of(key: str) -> str:
    """What `key` was made of.

    Args:
        key: a name as MLflow has it.

    >>> tag_of("filters/00_conv 5b 0 5d ")
    'filters/00_conv[0]'
    """
    return re.sub(" ([0-9a-f]+) ", lambda found: chr(int(found[1], 16)), key)

"""TensorBoard, through the logger's own event file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from cnnlog.runs.places import locate


class TensorBoardTracker:
    """Writes to the event file of a Lightning `TensorBoardLogger`.

    All pictures and numbers of a step go out as one event: a kill leaves the whole step or nothing of it, and the
    event writer's queue, which the training thread shares, takes one place instead of dozens.
    """

    def __init__(self, logger: Any) -> None:
        self.name = "TensorBoard"
        self._logger = logger
        self._summary = Summary()
        self._step = -1
        self._described: set[str] = set()

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Add a picture; TensorBoard shows the description behind the tag's info sign."""
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        value = self._of(step).value.add(tag=tag, image=image)
        if tag not in self._described:  # TensorBoard reads a tag's first metadata only
            value.metadata.plugin_data.plugin_name = "images"
            value.metadata.summary_description = description

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number."""
        self._of(step).value.add(tag=tag, simple_value=value)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text, which TensorBoard renders as Markdown."""
        self._of(step).value.extend(text_pb(tag, markdown).value)

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Add a histogram of 30 buckets over the finite values."""
        finite = values[np.isfinite(values)]
        self._of(step).value.extend(histogram_pb(tag, finite).value)

    def commit(self, step: int) -> None:
        """Write everything added for this step as one event, and see it through to the file."""
        summary, self._summary = self._of(step), Summary()
        writer = self._writer()
        try:
            writer.add_summary(summary, step)
            writer.flush()  # a failed write shows at this step; with TensorFlow installed, nothing else would for 120 s
        except Exception:  # remote file systems raise errors of their own
            self._let_go()
            raise
        self._described.update(value.tag for value in summary.value)

    def last_step(self) -> int | None:
        """Read the log folder's event files for it: a kill may have kept the last pictures from them."""
        fs, folder = locate(self._writer().get_logdir())
        last = -1
        for path in fs.ls(folder, detail=False):  # a glob would take the brackets of `lr=[0.1]` for its own
            if "tfevents" not in str(path).rsplit("/", 1)[-1]:
                continue
            with fs.open(path, "rb") as file:
                for event in _events(file):
                    if any(value.tag.startswith(("filters/", "feature_maps/")) for value in event.summary.value):
                        last = max(last, event.step)
        return last

    def _writer(self) -> Any:
        # `SummaryWriter.file_writer` is None after a `close()` of the writer; this getter opens the next event file.
        return self._logger.experiment._get_file_writer()

    def _let_go(self) -> None:
        """Have the logger open its next event file.

        TensorBoard's writer never recovers from a failed write, and raises it again at every later call: at the
        logger's own numbers, and at the end of the training.
        """
        experiment = self._logger.experiment
        experiment.file_writer = experiment.all_writers = None

    def _of(self, step: int) -> Summary:
        """What is gathered for `step`; what an earlier one left behind when it failed is let go."""
        if step != self._step:
            self._step, self._summary = step, Summary()
        return self._summary


def _events(file: BinaryIO) -> Iterator[Event]:
    """The events of a file, up to where a kill cut it off.

    TensorBoard's own readers check sums in Python, at 150 s a GB; here nothing is shown, so that framing is enough: a
    length (8 bytes), its sum (4), the event, its sum (4).
    """
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        body = file.read(length + 4)
        if len(body) < length + 4:
            return
        yield Event.FromString(body[:length])

"""TensorBoard, through an event file: our own, or that of a `SummaryWriter`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from cnnlog.runs.places import locate
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.summary_writer import TensorboardXEvents, TorchEvents


class Events(Protocol):
    """Where the events of one folder go: `EventFile`, or what `summary_writer` has."""

    @property
    def folder(self) -> str:
        """Where the event files lie."""

    def write(self, summary: Summary, step: int) -> None:
        """Write what belongs to `step` as one event.

        Args:
            summary: the pictures, numbers, texts and histograms of the step.
            step: the event's step.
        """

    def let_go(self) -> None:
        """Have the next write open another file, for one has failed."""


def events_of(writer: Any) -> Events:
    """Where the events of an `EventFile`, or of a `SummaryWriter` of torch or tensorboardX, go.

    Args:
        writer: an `EventFile` or a `SummaryWriter`.
    """
    if isinstance(writer, EventFile):
        return writer
    of_x = any(cls.__module__.partition(".")[0] == "tensorboardX" for cls in type(writer).__mro__)
    return TensorboardXEvents(writer) if of_x else TorchEvents(writer)


class TensorBoardTracker:
    """Writes to an event file.

    All pictures and numbers of a step go out as one event: a kill leaves the whole step or nothing of it, and the
    event writer's queue, which the training thread may share, takes one place instead of dozens.

    Args:
        events: where the events go; `events_of` makes it of a writer.
    """

    def __init__(self, events: Events) -> None:
        self.name = "TensorBoard"
        self._events = events
        self._summary = Summary()
        self._step = -1
        self._described: set[str] = set()

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Add a picture; TensorBoard shows the description behind the tag's info sign.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels.
            step: the step that it belongs to.
            description: a sentence on what the picture shows.
        """
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        value = self._of(step).value.add(tag=tag, image=image)
        if tag not in self._described:  # TensorBoard reads a tag's first metadata only
            value.metadata.plugin_data.plugin_name = "images"
            value.metadata.summary_description = description

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._of(step).value.add(tag=tag, simple_value=value)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text, which TensorBoard renders as Markdown.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._of(step).value.extend(text_pb(tag, markdown).value)

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Add a histogram of 30 buckets over the finite values.

        Args:
            tag: the histogram's name.
            values: the values, of any shape.
            step: the step that they belong to.
        """
        finite = values[np.isfinite(values)]
        self._of(step).value.extend(histogram_pb(tag, finite).value)

    def commit(self, step: int) -> None:
        """Write everything added for this step as one event.

        Args:
            step: the step that is complete.
        """
        summary, self._summary = self._of(step), Summary()
        try:
            self._events.write(summary, step)
        except Exception:  # remote file systems raise errors of their own
            self._events.let_go()
            raise
        self._described.update(value.tag for value in summary.value)

    def last_step(self) -> int | None:
        """Read the folder's event files for it: a kill may have kept the last pictures from them."""
        fs, folder = locate(self._events.folder)
        last = -1
        for path in fs.ls(folder, detail=False) if fs.exists(folder) else ():  # a glob would read `lr=[0.1]` as its own
            if "tfevents" not in str(path).rsplit("/", 1)[-1]:
                continue
            with fs.open(path, "rb") as file:
                for event in _events(file):
                    if any(value.tag.startswith(("filters/", "feature_maps/")) for value in event.summary.value):
                        last = max(last, event.step)
        return last

    def _of(self, step: int) -> Summary:
        """What is gathered for `step`; what an earlier one left behind when it failed is let go.

        Args:
            step: the step that something is added for.
        """
        if step != self._step:
            self._step, self._summary = step, Summary()
        return self._summary


def _events(file: BinaryIO) -> Iterator[Event]:
    """The events of a file, up to where a kill cut it off.

    TensorBoard's own readers check sums in Python, at 150 s a GB; here nothing is shown, so that framing is enough: a
    length (8 bytes), its sum (4), the event, its sum (4).

    Args:
        file: an event file, opened to read bytes.
    """
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        body = file.read(length + 4)
        if len(body) < length + 4:
            return
        yield Event.FromString(body[:length])

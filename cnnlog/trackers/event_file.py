"""An event file of our own, which TensorBoard reads; torch is not needed for it."""

from __future__ import annotations

import time
from functools import cached_property

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from cnnlog.trackers.fast_records import quicken


class EventFile:
    """One event file in a folder. Nothing is made there before the first write.

    Args:
        folder: where the file goes; a path, or a URL that TensorBoard can write to.
        suffix: what the file's name ends with.
        live: make each step readable at once. Without it, writing overlaps with what comes next, and only `close` says
            that something could not be written.
    """

    def __init__(self, folder: str, *, suffix: str = "", live: bool = True) -> None:
        self.folder = folder
        self._suffix = suffix
        self._live = live

    def write(self, summary: Summary, step: int) -> None:
        """Write what belongs to `step` as one event.

        Args:
            summary: the pictures, numbers, texts and histograms of the step.
            step: the event's step.
        """
        self._file.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        if self._live:
            self._file.flush()  # a failed write shows at this step; with TensorFlow installed, nothing else would soon

    def let_go(self) -> None:
        """Have the next write open another file: after a failed one, TensorBoard's writer raises for ever."""
        self.__dict__.pop("_file", None)

    def close(self) -> None:
        """Close the file, if there is one.

        Raises:
            OSError: what was written last did not arrive.
        """
        if "_file" in self.__dict__:
            file = self._file
            self.let_go()
            try:
                file.flush()  # raises what the writing thread ran into
            finally:
                file.close()

    @cached_property
    def _file(self) -> EventFileWriter:
        writer = EventFileWriter(self.folder, filename_suffix=self._suffix)
        quicken(writer)
        return writer

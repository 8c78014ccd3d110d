"""The event file of a `SummaryWriter`, of torch or of tensorboardX, which belongs to the user or to Lightning."""

from __future__ import annotations

import time
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from cnnlog.trackers.fast_records import quicken


class TorchEvents:
    """What `torch.utils.tensorboard.SummaryWriter` writes to.

    Args:
        writer: the `SummaryWriter`. One that was closed opens its next event file when it is written to.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @property
    def folder(self) -> str:
        """Where the event files lie."""
        return str(self._writer.log_dir)

    def write(self, summary: Summary, step: int) -> None:
        """Write what belongs to `step` as one event, and see it through to the file.

        Args:
            summary: the pictures, numbers, texts and histograms of the step.
            step: the event's step.
        """
        # `SummaryWriter.file_writer` is None after a `close()` of the writer; this getter opens the next event file.
        file = self._writer._get_file_writer()
        quicken(getattr(file, "event_writer", None))
        file.add_summary(summary, step)
        file.flush()  # a failed write shows at this step; with TensorFlow installed, nothing else would for 120 s

    def let_go(self) -> None:
        """Have the writer open its next event file.

        TensorBoard's writer never recovers from a failed write, and raises it again at every later call: at the user's
        own numbers, and at the end of the training.
        """
        self._writer.file_writer = self._writer.all_writers = None


class TensorboardXEvents:
    """What `tensorboardX.SummaryWriter` writes to.

    Its queue is passed by: a thread of its own empties that, dies silently of the first failed write, and then lets
    the queue's next user wait for ever. What both write is kept apart by the lock of the file.

    Args:
        writer: the `SummaryWriter`. One that was closed opens its next event file when it is written to.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @property
    def folder(self) -> str:
        """Where the event files lie."""
        return str(self._writer.logdir)

    def write(self, summary: Summary, step: int) -> None:
        """Write what belongs to `step` as one event, and see it through to the file.

        Args:
            summary: the pictures, numbers, texts and histograms of the step.
            step: the event's step.
        """
        from tensorboardX.proto.event_pb2 import Event  # its own protocol buffers take no others

        event = Event(wall_time=time.time(), step=step)
        event.summary.ParseFromString(summary.SerializeToString())
        file = self._writer._get_file_writer().event_writer._ev_writer
        file.write_event(event)
        file.flush()

    def let_go(self) -> None:
        """Have the writer open its next event file: a failed write may have left half an event in this one."""
        time.sleep(1 - time.time() % 1)  # its name tells the second, and another of that name would replace this one
        broken = self._writer.file_writer
        self._writer.file_writer = self._writer.all_writers = None
        if broken is not None:
            broken.event_writer._closed = True  # else it raises when Python exits

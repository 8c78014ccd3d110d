"""What goes to the trackers: a parcel a step, through a queue and a thread of each tracker's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cnnlog.recording.drawer import LoggedPicture
from cnnlog.recording.mailbox import Mailbox
from cnnlog.recording.problems import Problem, Problems
from cnnlog.snapshot import FloatArray
from cnnlog.trackers import Tracker

TRACKER_BYTES_WAITING = 64_000_000  # 200 snapshots of AlexNet; each tracker has a queue, but the bytes are shared
TRACKER_PATIENCE = 30.0  # seconds that the end of a training waits for the trackers, all of them together


@dataclass(frozen=True)
class Parcel:
    """Everything that the trackers get of one step.

    Attributes:
        step: the step that they log it under.
        pictures: the drawn pictures.
        scalars: tag -> a number.
        texts: tag -> Markdown.
        histograms: tag -> the values whose distribution is logged.
    """

    step: int
    pictures: tuple[LoggedPicture, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    histograms: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes that it keeps in memory, about."""
        return sum(len(picture.png) for picture in self.pictures) + sum(a.nbytes for a in self.histograms.values())


class Outbox:
    """Sends parcels to the trackers. A slow tracker holds up nobody: it misses steps, and you are told how many.

    Args:
        trackers: who gets the parcels.
        problems: where it is noted that a tracker failed or was too slow.
        kept_in: the folder that keeps every snapshot, which a warning names; empty where there is none.
    """

    def __init__(self, trackers: Sequence[Tracker], problems: Problems, *, kept_in: str) -> None:
        self._problems = problems
        self._kept_in = kept_in
        self._lines = [(tracker, self._mailbox(tracker)) for tracker in trackers]
        self._lasts: list[int | None] = [None for _ in trackers]  # what each had when a stored run was gone on with

    @property
    def is_used(self) -> bool:
        """Whether there is a tracker; without one, nothing need be drawn."""
        return bool(self._lines)

    def send(self, parcel: Parcel) -> None:
        """Queue a parcel for every tracker.

        A tracker that had this step before the run was gone on with gets nothing: the steps of a tag only rise.

        Args:
            parcel: what they get.
        """
        for last, (_, mailbox) in zip(self._lasts, self._lines, strict=True):
            if last is None or last < parcel.step:
                mailbox.put(parcel)

    def catch_up(self, steps: Iterable[int], parcel_of: Callable[[int], Parcel]) -> None:
        """Queue what a kill kept from the trackers, so that it leaves no gap.

        Args:
            steps: the stored steps, rising.
            parcel_of: makes the parcel of a step; called only for steps that a tracker lacks.
        """
        lasts = self._lasts = [tracker.last_step() for tracker, _ in self._lines]
        for step in steps:
            behind = [
                mailbox
                for last, (_, mailbox) in zip(lasts, self._lines, strict=True)
                if last is not None and last < step
            ]
            if behind:
                parcel = parcel_of(step)
                for mailbox in behind:
                    mailbox.put(parcel)

    def drain(self) -> None:
        """Wait until every tracker has taken what was queued for it."""
        for _, mailbox in self._lines:
            mailbox.drain()

    def close(self) -> None:
        """Drain with patience and end the threads; a problem tells how many steps' pictures a tracker has missed."""
        deadline = time.monotonic() + TRACKER_PATIENCE
        for tracker, mailbox in self._lines:
            name, done = tracker.name, mailbox.close(max(0, deadline - time.monotonic()))
            missed = f"the pictures of {mailbox.dropped} steps were left out"
            if not done:
                self._problems.add(Problem(name, f"{name} still has work after {TRACKER_PATIENCE:.0f} s; {missed}"))
            elif mailbox.dropped:
                self._problems.add(Problem(f"{name} dropped", f"{name} was too slow; {missed}"))

    def _mailbox(self, tracker: Tracker) -> Mailbox[Parcel]:
        def failed(parcel: Parcel, error: Exception) -> None:
            kept = f"; every snapshot is in {self._kept_in}" if self._kept_in else ""
            message = f"{tracker.name} did not take the pictures of step {parcel.step}, and may miss more{kept}"
            self._problems.add(Problem(tracker.name, message, error))

        return Mailbox(
            lambda parcel: _deliver(parcel, tracker),
            failed,
            name=f"cnnlog to {tracker.name}",
            size=TRACKER_BYTES_WAITING,
            weigh=lambda parcel: parcel.nbytes,
            drop_when_full=True,
        )


def _deliver(parcel: Parcel, tracker: Tracker) -> None:
    for tag, markdown in parcel.texts.items():
        tracker.add_text(tag, markdown, parcel.step)
    for picture in parcel.pictures:
        tracker.add_image(picture.tag, picture.png, picture.size, parcel.step, description=picture.description)
    for tag, value in parcel.scalars.items():
        tracker.add_scalar(tag, value, parcel.step)
    for tag, values in parcel.histograms.items():
        tracker.add_histogram(tag, values, parcel.step)
    tracker.commit(parcel.step)

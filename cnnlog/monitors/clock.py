"""Where a fit is: which step its state belongs to, and whether it has trained since."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L

from cnnlog.kinds import Unit


@dataclass(frozen=True)
class Here:
    """The step of a state.

    Attributes:
        step: its number.
        epoch: how many epochs are complete; one that is under way counts as the next.
        global_step: how many optimiser steps are complete.
        provisional: the epoch is under way; `step` is the number that it has when it is complete.
        mark: the same in two states if there was no training between them.
    """

    step: int
    epoch: int
    global_step: int
    provisional: bool
    mark: tuple[int, int]


class Clock:
    """Follows a fit. Lightning counts an epoch that was stopped in its midst as complete, and this does not.

    Args:
        trainer: about to train.
        unit: what steps count.

    Attributes:
        global_step: how many optimiser steps were complete at the end of the last batch.
    """

    def __init__(self, trainer: L.Trainer, unit: Unit) -> None:
        self.global_step = trainer.global_step
        self._trainer, self._unit = trainer, unit
        self._batches = 0
        self._epoch: int | None = None  # how many were complete before that of the last batch; None before one
        self._whole = True  # whether that batch was its last

    def batch_ended(self) -> None:
        """A batch is through."""
        self._batches += 1
        self._moved()

    def epoch_ended(self) -> None:
        """An epoch ends, complete or not; Lightning has not counted it yet."""
        self._moved()

    def _moved(self) -> None:
        self.global_step = self._trainer.global_step
        self._epoch, self._whole = self._trainer.current_epoch, self._trainer.is_last_batch

    def here(self) -> Here:
        """The step of the state as it is."""
        trainer = self._trainer
        within = trainer.global_step > self.global_step  # the optimiser has stepped, and the batch is not through
        if within:
            epoch, provisional = trainer.current_epoch + 1, True
        elif self._epoch is None:
            epoch, provisional = trainer.current_epoch, False
        else:
            epoch, provisional = self._epoch + 1, not self._whole
        count, mark = trainer.global_step, (trainer.global_step, self._batches)
        if self._unit is Unit.STEP:
            return Here(count, trainer.current_epoch, count, False, mark)
        return Here(epoch, epoch, count, provisional, mark)

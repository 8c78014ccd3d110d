"""TensorBoard's event file for a run that no logger writes one for."""

from __future__ import annotations

from functools import cached_property

from torch.utils.tensorboard import SummaryWriter


class EventFile:
    """What `TensorBoardTracker` needs of a Lightning logger.

    Args:
        folder: where the event file goes; it is made when it is first written to.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @cached_property
    def experiment(self) -> SummaryWriter:
        """The writer."""
        return SummaryWriter(self._folder)

    def close(self) -> None:
        """Close the file, if there is one."""
        if "experiment" in self.__dict__:
            self.experiment.close()

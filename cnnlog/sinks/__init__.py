"""Where pictures and numbers go: one small module a tracker, all behind `Sink`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Sink(Protocol):
    """A tracker, as the recorder sees it. Called from one background thread, with rising steps on every tag."""

    name: str

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log one picture: PNG bytes of `size` (width, height), with a sentence on what it shows."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log one number."""

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Log one text."""

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Log the distribution of `values`."""

    def commit(self, step: int) -> None:
        """Send what was added for `step`."""

    def last_step(self) -> int | None:
        """The last step whose filters or feature maps the tracker has, -1 without any; None if it cannot tell."""


def sink_for(logger: Any) -> Sink | None:
    """The sink for a Lightning logger, or `None` if it takes no pictures.

    Loggers are told by the name of their classes, so that those of `lightning` and of `pytorch_lightning` are alike
    and no tracker's package is imported before it is used.
    """
    kinds = {cls.__name__ for cls in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        from cnnlog.sinks.tensorboard import TensorBoardSink

        return TensorBoardSink(logger)
    return None

"""A probe that cannot go through a network as it is may be read in another way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

from cnnlog.capture.probe import Probe

_T = TypeVar("_T")


def run_as_fed(
    probe: Probe, run: Callable[[Probe], _T], *, scaled: Callable[[str], object] | None = None
) -> tuple[Probe, _T]:
    """Run a probe, and if it cannot go through the network, run it as what it may be besides.

    Args:
        probe: the fixed input.
        run: runs it and raises ValueError if that cannot be.
        scaled: allows that uint8 is divided by 255 where the network takes floating point only, and is told so in one
            sentence. None does not allow it.

    Returns:
        The probe that went through, and what `run` returned.

    Raises:
        ValueError: it cannot go through; of what `run` raised, the first.
    """
    try:
        return probe, run(probe)
    except ValueError as error:
        signals = probe.as_signals()
        if signals is not None:
            with suppress(ValueError):
                return signals, run(signals)
        if scaled is not None and probe.tensor.dtype == torch.uint8:
            floats = Probe(probe.tensor.float() / 255, names=probe.names)
            with suppress(ValueError):
                ran = run(floats)
                scaled(
                    "the data are uint8, and the network's forward takes floating point only: the probe is divided by "
                    "255; pass a Probe if your training step scales or normalises otherwise"
                )
                return floats, ran
        if _type_matters(probe, run):
            kind = str(probe.tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{error} The probe is {kind}, and goes to the network as it is: if the network takes floating point, "
                "scale it as in training, e.g. Probe.from_tensor(images.float() / 255)."
            ) from error
        raise


def _type_matters(probe: Probe, run: Callable[[Probe], object]) -> bool:
    """Whether whole numbers cannot go through, and the same as floating point can."""
    if probe.tensor.is_floating_point():
        return False
    try:
        run(Probe(probe.tensor.float() / 255, names=probe.names))
    except Exception:  # something else is the matter, which the first error tells
        return False
    return True

"""Which probe a fit has, and whether it is like what the network is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch

from cnnlog.capture.fed import fed_image
from cnnlog.capture.first_sample import NotRead
from cnnlog.capture.probe import Probe
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.default_probe import default_probe
from cnnlog.monitors.ranks import Ranks
from cnnlog.monitors.run_as_fed import run_as_fed
from cnnlog.monitors.run_folder import Memory, kept_probe

_T = TypeVar("_T")
PEAKS_APART, SIDES_APART = 8.0, 2.0


@dataclass(frozen=True)
class Choice:
    """How a fit comes to its probe: the one that was given, that of the run which goes on, or the default.

    Attributes:
        trainer: about to train.
        memory: of an earlier fit or a checkpoint.
        given: to the monitors; None if none was.
        needed: feature maps are watched; filters need no probe.
        alarm: told what the user should know.
        ranks: all processes of the training.
        sharded_over: those that look at the model.
    """

    trainer: L.Trainer
    memory: Memory
    given: Probe | None
    needed: bool
    alarm: Alarm
    ranks: Ranks
    sharded_over: Ranks

    def look(self, over: Callable[[Probe | None], _T]) -> tuple[Probe | None, _T]:
        """Choose a probe, and look the model over with it.

        Args:
            over: looks the model over with a probe, or without one; ValueError if the probe cannot go through.

        Returns:
            The probe, None if filters are watched and there is none; and what `over` returned.

        Raises:
            ValueError: a probe is needed, and there is none, or it cannot go through the model.
        """
        if self.given is not None:
            return run_as_fed(self.given, over)
        goes_on, kept = self._kept()
        if kept is not None:
            return run_as_fed(kept, over)
        if goes_on and not self.needed:
            return None, over(None)  # the run has none, and its numbers go on
        warn = partial(self.alarm.warn, "default probe")
        try:
            with self.sharded_over.together():
                probe = default_probe(self.trainer, say=warn)
            probe = self.sharded_over.share(probe)  # a data set that augments gives every process another image
            return run_as_fed(probe, over, scaled=warn)
        except Exception as error:  # loaders, data sets, hooks and models are somebody's code
            if self.needed:
                raise
            if isinstance(error, NotRead) or not isinstance(error, (TypeError, ValueError, LookupError)):
                warn(f"no probe, so that filters are shown as they are stored: {error}")
            return None, over(None)  # only "auto" then knows no resolutions

    def _kept(self) -> tuple[bool, Probe | None]:
        with self.sharded_over.together():
            kept = kept_probe(self.trainer, self.memory) if self.ranks.first else (False, None)
        return self.sharded_over.share(kept)


class FirstBatch:
    """Compares the probe with the first batch of a training, once.

    Args:
        probe: the fixed input; None compares nothing.
        alarm: told in what they differ.
    """

    def __init__(self, probe: Probe | None, alarm: Alarm) -> None:
        self._probe, self._alarm = probe, alarm

    def compare(self, batch: Any) -> None:
        """Compare, if this is the first batch.

        Args:
            batch: as the training step gets it.
        """
        probe, self._probe = self._probe, None
        if probe is None:
            return
        try:
            differs = apart(probe, batch)
        except Exception:  # it is somebody's batch: what cannot be compared is let be
            return
        if differs is not None:
            self._alarm.warn("probe and batch", differs)


def apart(probe: Probe, batch: Any) -> str | None:
    """In what a probe and a batch of the training are not alike, in one sentence; None if they are.

    Told are only: another kind of type, other channels, peaks more than 8 times apart, sides more than twice.

    Args:
        probe: what the network is watched on.
        batch: of the training, as the training step gets it.
    """
    fed = fed_image(batch)
    if fed is None:
        return None
    ours, theirs = probe.tensor, fed.tensor.detach()
    if theirs.dim() == 3 and ours.dim() == 4:
        theirs = theirs[None] if fed.listed else theirs[:, None]  # the network adds the axis of the channel
    if ours.dim() != theirs.dim():
        return None  # latents beside images, clips beside frames
    if theirs.dtype == torch.uint8 and _is_of_bytes(ours):
        theirs = theirs.float() / 255  # as the training step does before forward
    differs = []
    if ours.is_floating_point() != theirs.is_floating_point():
        differs.append("another kind of numbers")
    if ours.dim() > 3 and ours.shape[1] != theirs.shape[1]:
        differs.append("other channels")
    ends = _ends(ours), _ends(theirs)
    peaks = [max(abs(low), abs(high)) for low, high in ends]
    if min(peaks) * PEAKS_APART < max(peaks):
        differs.append("peaks more than 8 times apart")
    sides = zip(ours.shape[2:], theirs.shape[2:], strict=True)
    if any(min(pair) * SIDES_APART < max(pair) for pair in sides):
        differs.append("sides more than twice apart")
    if not differs:
        return None
    return (
        f"the probe is not what the network is trained on ({', '.join(differs)}): the probe is "
        f"{_told(ours, ends[0])}, the first training batch {_told(theirs, ends[1])}; pass a Probe "
        "made as your batches are"
    )


def _is_of_bytes(tensor: torch.Tensor) -> bool:
    """Whether values are bytes that were divided by 255."""
    if not tensor.is_floating_point():
        return False
    bytes_of_it = tensor * 255
    low, high = _ends(bytes_of_it)
    return low >= 0 and high <= 256 and bool((bytes_of_it - bytes_of_it.round()).abs().max() < 1e-3)


def _ends(tensor: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest value, without a copy of the tensor where torch can do that."""
    plain = tensor.as_subclass(torch.Tensor)
    try:
        low, high = torch.aminmax(plain)
    except RuntimeError:  # uint16, float8
        low, high = torch.aminmax(plain.float())
    return float(low), float(high)


def _told(tensor: torch.Tensor, ends: tuple[float, float]) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)} from {ends[0]:.3g} to {ends[1]:.3g}"

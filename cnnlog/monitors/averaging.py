"""Callbacks that average weights, and when the module holds the averages instead of the weights being trained."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel

_OF_LIGHTNING = {"WeightAveraging", "StochasticWeightAveraging"}


def swaps_at_the_end(callbacks: Sequence[L.Callback]) -> bool:
    """Whether one of some callbacks may have put other weights into the module when its `on_train_end` is through.

    Lightning's own that do so are known; of others, each that has such a hook might.

    Args:
        callbacks: those that come before the monitors.
    """
    return any(
        type(callback).on_train_end is not L.Callback.on_train_end
        and (_averages(callback) or not type(callback).__module__.startswith(("lightning.", "pytorch_lightning.")))
        for callback in callbacks
    )


def swapped_copy(callbacks: Sequence[L.Callback], module: L.LightningModule) -> nn.Module | None:
    """Where the weights being trained are during a validation: Lightning's averaging exchanges the two.

    Args:
        callbacks: of the trainer.
        module: that it trains.

    Returns:
        The copy that has them now; None if nothing was exchanged.
    """
    for callback in callbacks:
        if "WeightAveraging" in _names(callback):
            copy = getattr(callback, "_average_model", None)
            if isinstance(copy, AveragedModel) and isinstance(copy.module, type(module)):
                return copy.module
    return None


def may_swap_in_validation(callbacks: Sequence[L.Callback]) -> bool:
    """Whether a callback that is not Lightning's might put other weights into the module for a validation.

    Args:
        callbacks: of the trainer.
    """
    begins = ("on_validation_start", "on_validation_epoch_start")
    ends = ("on_validation_end", "on_validation_epoch_end")

    def has(callback: L.Callback, hooks: tuple[str, ...]) -> bool:
        return any(getattr(type(callback), hook) is not getattr(L.Callback, hook) for hook in hooks)

    return any(
        has(callback, begins) and has(callback, ends)
        for callback in callbacks
        if not type(callback).__module__.startswith(("lightning.", "pytorch_lightning.", "cnnlog."))
        and "WeightAveraging" not in _names(callback)
    )


def _averages(callback: L.Callback) -> bool:
    return bool(_names(callback) & _OF_LIGHTNING)


def _names(callback: L.Callback) -> set[str]:
    return {cls.__name__ for cls in type(callback).__mro__}

"""What a training knows of itself, as plain values: metrics, learning rates, hyper-parameters."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cnnlog.capture.transfer import departures, to_host
from cnnlog.messages import some

if TYPE_CHECKING:
    import lightning as L

MOST_METRICS = 500
LONGEST_NAME = 200
MOST_ITEMS = 100  # of one list or mapping of hyper-parameters
MOST_VALUES = 2_000  # of all hyper-parameters together
LONGEST_TEXT = 500
DEEPEST = 4


def metrics_of(trainer: L.Trainer) -> tuple[dict[str, float], Callable[[], None] | None]:
    """The trainer's metrics and learning rates at this moment.

    Values on a device are not waited for: they are 0 until the function that is returned has been called.

    Every process must ask at the same moment, because a metric that is synchronised may wait for the others.

    Args:
        trainer: under way.

    Returns:
        Name -> value; and what waits for those on a device and fills them in, None if there are none.
    """
    known: dict[str, Any] = {**trainer.callback_metrics, **learning_rates(trainer.optimizers)}
    found: dict[str, float] = {}
    on_device: dict[str, torch.Tensor] = {}
    for name, value in known.items():
        if len(found) == MOST_METRICS or not isinstance(name, str) or len(name) > LONGEST_NAME:
            continue
        if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_cuda:
            on_device[name], found[name] = value.detach().float().reshape(()), 0.0
        elif (number := _number(value)) is not None:
            found[name] = number
    if not on_device:
        return found, None
    with departures() as leaving:
        arriving = to_host(torch.stack([*on_device.values()]), fresh=True)
        wait = leaving()

    def fill() -> None:
        if wait is not None:
            wait()
        found.update(zip(on_device, arriving.tolist(), strict=True))

    return found, fill


def plain_numbers(metrics: Any) -> tuple[dict[str, float], str]:
    """Metrics that a loop gives, as plain numbers.

    Args:
        metrics: name -> a number, or a tensor or array with one.

    Returns:
        Name -> value; and what is no number or has no name, in words, empty if all is well.
    """
    if not isinstance(metrics, Mapping):
        return {}, repr(metrics)[:LONGEST_NAME]
    found = {name: _number(value) for name, value in metrics.items()}
    fit = {n: v for n, v in found.items() if isinstance(n, str) and len(n) <= LONGEST_NAME and v is not None}
    wrong = [repr(name)[:LONGEST_NAME] for name in found if name not in fit]
    return fit, some(wrong) if wrong else ""


def learning_rates(optimizers: Iterable[Any]) -> dict[str, float]:
    """The learning rate of each group of parameters, called as Lightning's `LearningRateMonitor` calls them.

    Args:
        optimizers: of torch, or like these; `lr-SGD`, `lr-SGD-1` for a second one of its class, and `lr-SGD/pg1` for
            the first of several groups, or the group's `"name"`.
    """
    rates: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for given in optimizers:
        optimizer = getattr(given, "optimizer", given)  # of what Fabric and Lightning wrap
        kind = type(optimizer).__name__
        name = f"lr-{kind}" + (f"-{seen[kind]}" if seen[kind] else "")
        seen[kind] += 1
        groups = getattr(optimizer, "param_groups", ())
        for position, group in enumerate(groups, start=1):
            rate = group.get("lr")
            part = group.get("name") or (f"pg{position}" if len(groups) > 1 else "")
            if rate is not None:
                rates[f"{name}/{part}" if part else name] = rate
    return rates


def hyper_parameters(*sources: Any) -> dict[str, Any]:
    """The hyper-parameters that JSON can hold, of a module and its data module. Others are left out.

    Args:
        sources: what may have `hparams`; of one name in two of them, the first counts.
    """
    found: dict[str, Any] = {}
    left = [MOST_VALUES]
    for source in sources:
        for name, value in _given(source):
            plain = _plain(value, DEEPEST, left)
            if name not in found and isinstance(name, str) and len(name) <= LONGEST_NAME and plain is not _NOT_PLAIN:
                found[name] = plain
    return found


def _given(source: Any) -> list[tuple[Any, Any]]:
    """What a module has among its hyper-parameters; nothing where their class cannot say it."""
    try:
        given = getattr(source, "hparams", None)
        return [*(given if isinstance(given, Mapping) else getattr(given, "__dict__", {})).items()]
    except Exception:  # a value that is still missing, or refers to one
        return []


_NOT_PLAIN = object()


def _plain(value: Any, deep: int, left: list[int]) -> Any:
    """A value as JSON has it; `_NOT_PLAIN` if it has no such form, or its class cannot say it."""
    try:
        return _plainly(value, deep, left)
    except Exception:
        return _NOT_PLAIN


def _plainly(value: Any, deep: int, left: list[int]) -> Any:
    """A value as JSON has it; `_NOT_PLAIN` if it has no such form.

    Args:
        value: anything.
        deep: how many levels of lists and mappings may follow.
        left: how many values may still be kept.
    """
    left[0] -= 1
    if left[0] < 0:
        return _NOT_PLAIN
    if value is None or isinstance(value, (bool, str, numbers.Real)):
        return _plain_scalar(value)
    plain: Any = _NOT_PLAIN
    if deep and isinstance(value, Mapping):
        items = [(name, _plain(item, deep - 1, left)) for name, item in [*value.items()][:MOST_ITEMS]]
        plain = {str(name)[:LONGEST_NAME]: item for name, item in items if item is not _NOT_PLAIN}
    elif deep and isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        parts = [_plain(item, deep - 1, left) for item in value[:MOST_ITEMS]]
        plain = [part for part in parts if part is not _NOT_PLAIN]
    return plain


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, str):
        return str(value) if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}..."
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value) if abs(int(value)) < 2**53 else str(int(value))[:LONGEST_TEXT]
    return float(value) if math.isfinite(value) else str(float(value))  # JSON knows no NaN


def _number(value: Any) -> float | None:
    """A number, or the one of a tensor or array; None for anything else."""
    try:
        return float(value) if not isinstance(value, (str, bytes)) else None
    except Exception:  # of whatever class it is
        return None

"""Mean and standard deviation of an image's channels: applied, found, and undone for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]
NUMBER_LIMIT = 1e18  # its square is a float32, too


def limits_of(value_range: Any) -> tuple[float, float] | None:
    """What was given for the values that become black and white.

    Args:
        value_range: two numbers, the lower one first; None for none.

    Raises:
        ValueError: these are not two rising, finite numbers.
        TypeError: these are no numbers.
    """
    if value_range is None:
        return None
    low, high = values if (values := _finite("value_range", value_range).ravel()).size == 2 else (0.0, 0.0)
    if not low < high:
        raise ValueError(
            f"value_range is the values that become black and white, e.g. (0, 4095), the lower one first, but it is "
            f"{value_range!r}."
        )
    return float(low), float(high)


def normalised(unit: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """An image with a mean subtracted and divided by a standard deviation.

    Args:
        unit: `[C, H, W]`.
        mean: one number a channel, or one for all; None subtracts nothing.
        std: one number a channel, or one for all; None divides by nothing.

    Raises:
        ValueError: one is given without the other, does not fit the channels, or has an impossible value.
        TypeError: one is of a wrong type.
    """
    if mean is None and std is None:
        return unit
    shift, scale = _per_channel(mean, std, len(unit))
    return (unit - torch.from_numpy(shift)) / torch.from_numpy(scale)


def normalisation_of(
    tensor: torch.Tensor, made_by: Sequence[object]
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and standard deviation that these have normalised an image with, if undoing that gives about 0 to 1.

    Args:
        tensor: `[N, C, ...]`; whole numbers were not normalised.
        made_by: data sets and functions in which a `Normalize` may be.
    """
    if not tensor.is_floating_point() or tensor.dim() < 4:
        return None, None
    image = tensor[0]
    for maker in made_by:
        mean, std = normalisation(maker)
        if mean is None or std is None or len(mean) not in (1, len(image)) or min(std) <= 0:
            continue
        shift, scale = (torch.tensor(values).reshape(-1, *[1] * (image.dim() - 1)) for values in (mean, std))
        undone = image * scale + shift
        if undone.min() > -0.25 and undone.max() < 1.25:
            return mean, std
    return None, None


def normalisation(thing: Any, depth: int = 4) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and standard deviation of the `Normalize` in a transform, or in the transform of a dataset.

    Args:
        thing: a transform, or what holds one.
        depth: how many levels below it to look.
    """
    mean, std = getattr(thing, "mean", None), getattr(thing, "std", None)
    if _numbers(mean) and _numbers(std):
        return tuple(float(m) for m in mean), tuple(float(s) for s in std)  # type: ignore[union-attr]
    if depth == 0 or thing is None or isinstance(thing, (str, torch.Tensor, np.ndarray)):
        return None, None
    parts: Iterable[Any] = [getattr(thing, key, None) for key in ("transform", "transforms", "dataset", "datasets")]
    if isinstance(thing, (list, tuple)):
        parts = thing[:64]
    elif isinstance(thing, torch.nn.Module):
        parts = [*parts, *thing.children()]
    for part in parts:
        found = normalisation(part, depth - 1)
        if found[0] is not None:
            return found
    return None, None


def picture_of(image: npt.NDArray[Any], mean: Sequence[float] | None, std: Sequence[float] | None) -> Pixels:
    """`[C, H, W]`, `[C, T, H, W]`, `[C, L]` or `[D]`, as the network takes it -> uint8 `[H, W, 3]` for people.

    Args:
        image: one image; uint8 is shown as it is.
        mean: what was subtracted from each channel; None if that is not known.
        std: what each channel was divided by.

    Raises:
        ValueError: mean or standard deviation does not fit.
        TypeError: one is of a wrong type.
    """
    as_it_is = image.dtype == np.uint8
    values = image.astype(np.float32) / (255 if as_it_is else 1)
    if values.ndim < 3:
        values = values.reshape(1, -1, values.shape[-1])
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    if mean is not None or std is not None:
        shift, scale = _per_channel(mean, std, len(values))
        values = values * scale + shift
    elif values.min() < 0 or values.max() > 1:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colour = values if len(values) == 3 else np.broadcast_to(values.mean(axis=0), (3, *values.shape[1:]))
    picture: Pixels = np.ascontiguousarray(np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    return picture


def _per_channel(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    shift, scale = (
        _finite(what, given)
        for what, given in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std))
    )
    for what, values in (("mean", shift), ("std", scale)):
        if len(values) not in (1, channels):
            raise ValueError(f"{what} has one value a channel, but {len(values)} came for {channels} channels.")
    if not (scale > 0).all():
        raise ValueError(f"std is above 0 in every channel, but it is {scale.ravel().tolist()}.")
    if (mean is None) != (std is None):
        given, other, none = ("mean", "std", "1.0") if std is None else ("std", "mean", "0.0")
        raise ValueError(f"{given} is given without {other}: give both; {other}={none} changes nothing.")
    return shift, scale


def _finite(what: str, given: Any) -> npt.NDArray[np.float32]:
    """The given numbers as `[C, 1, 1]` or `[1, 1, 1]`."""
    try:
        values = np.asarray(given, dtype=np.float64).reshape(-1, 1, 1)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{what} has one number a channel, e.g. (0.485, 0.456, 0.406), not {given!r}.") from error
    if isinstance(given, (str, bytes)) or not (abs(values) < NUMBER_LIMIT).all():
        raise ValueError(f"{what} has one finite number a channel, but it is {given!r}.")
    return values.astype(np.float32)


def _numbers(values: Any) -> bool:
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return values.ndim == 1
    return isinstance(values, (list, tuple)) and all(isinstance(v, (int, float)) for v in values) and len(values) > 0

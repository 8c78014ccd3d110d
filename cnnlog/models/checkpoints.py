"""Files of weights in the order of the training that wrote them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cnnlog.kinds import Unit
from cnnlog.messages import some
from cnnlog.models.files import SUFFIXES, read_checkpoint, read_state_dict
from cnnlog.runs.store import FOLDER


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights and its place in the training.

    Attributes:
        path: of the file.
        step: the step that it is recorded as.
        epoch: completed epochs.
        global_step: completed optimiser steps; 0 where the file does not say.
    """

    path: Path
    step: int
    epoch: int
    global_step: int


@dataclass(frozen=True)
class Ordered:
    """Checkpoints in the order of the training.

    Attributes:
        checkpoints: in this order.
        notes: sentences on how it was found.
    """

    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[str, ...]


def find(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files of weights that some paths name.

    Args:
        paths: files, or folders. Of a folder the files of weights in it are taken; if there are none, those in the one
            folder below it that has some.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: there is no file of weights, or there are some in several folders.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no checkpoint and no folder at {str(path)!r}.")
        found += _in_folder(path) if path.is_dir() else [path]
    if not found:
        where = ", ".join(repr(str(path)) for path in paths)
        raise ValueError(f"Expected checkpoints ({', '.join(SUFFIXES)}) in {where}, but there are none.")
    return tuple(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[Path]:
    def files(folder: Path) -> list[Path]:
        return [path for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES]

    here = files(folder)
    if here:
        return here
    below = {path: found for path in sorted(folder.rglob("*")) if path.is_dir() and (found := files(path))}
    below = {path: found for path, found in below.items() if path.name != FOLDER}  # a run's own files
    if len(below) > 1:
        raise ValueError(
            f"{str(folder)!r} has checkpoints in {len(below)} folders, which may be of several trainings: "
            f"give one of {', '.join(repr(str(path)) for path in below)}."
        )
    return next(iter(below.values()), [])


def order(paths: Sequence[Path], *, unit: Unit = Unit.EPOCH) -> Ordered:
    """Put checkpoints in the order of the training.

    A Lightning checkpoint tells how many epochs were complete when it was saved, and another one may hold `epoch`. If
    one of them does not, all are sorted by name, numbers by their value. The number that their names differ in is then
    the step (`net_5.pt`, `net_10.pt`). Names that differ in more are numbered from 1 on.

    Args:
        paths: files of weights.
        unit: what the steps count: completed epochs, or optimiser steps (`global_step`).

    Raises:
        ValueError: a file cannot be read; two are of the same step and differ; one was saved within an epoch, and
            epochs are counted.
    """
    saved = {path: _when(read_checkpoint(path)) for path in paths}
    if all(unit.of(when) is not None for when in saved.values()):
        return _by_counts(saved, unit)
    if unit is Unit.STEP:
        without = [str(path) for path, when in saved.items() if when.global_step is None]
        raise ValueError(f"{some(without)} holds no global_step to count: leave --unit step out.")
    names = sorted(saved, key=lambda path: _counting(path.name))
    numbers = _numbers_in([path.stem for path in names])
    steps = numbers or list(range(1, len(names) + 1))
    how = "the numbers in their names" if numbers else "their places, sorted by name"
    checkpoints = [Checkpoint(path, step, step, 0) for path, step in zip(names, steps, strict=True)]
    return Ordered(tuple(checkpoints), (f"the checkpoints hold no epochs; steps are {how}",))


@dataclass(frozen=True)
class _When:
    """When in its training a checkpoint was saved, as far as it tells."""

    epoch: int | None
    global_step: int | None
    between_epochs: bool = True


def _when(content: Mapping[str, Any]) -> _When:
    epoch, global_step = (_whole_number(content.get(key)) for key in ("epoch", "global_step"))
    try:
        loop = content["loops"]["fit_loop"]
        done = loop["epoch_progress"]["current"]
        last_batch = bool(loop["epoch_loop.batch_progress"]["is_last_batch"])
        processed, started = int(done["processed"]), int(done["started"])
    except (KeyError, TypeError, ValueError):
        return _When(epoch, global_step)
    # Saved in the epoch's validation, its batches are all through but it does not yet count as processed.
    within = started > processed
    return _When(processed + (within and last_batch), global_step, between_epochs=not within or last_batch)


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _by_counts(saved: Mapping[Path, _When], unit: Unit) -> Ordered:
    checkpoints: list[Checkpoint] = []
    notes: list[str] = []
    for path, when in saved.items():
        if not when.between_epochs and unit is Unit.EPOCH and when.global_step != 0:
            raise ValueError(
                f"{path} was saved within an epoch, after {when.epoch} whole ones: count optimiser steps "
                "(--unit step), or leave it out."
            )
        step = unit.of(when)
        assert step is not None, "the caller looked"
        checkpoints.append(Checkpoint(path, step, when.epoch or 0, when.global_step or 0))
    checkpoints.sort(key=lambda checkpoint: (checkpoint.step, _counting(checkpoint.path.name)))
    kept = checkpoints[:1]
    for one in checkpoints[1:]:
        if one.step != kept[-1].step:
            kept.append(one)
        elif _same_weights(kept[-1].path, one.path):
            notes.append(f"{one.path.name} holds the weights of {kept[-1].path.name} and is left out")
        else:
            raise ValueError(
                f"{kept[-1].path} and {one.path} are both of step {one.step}, with other weights: give one of them, "
                "or count optimiser steps (--unit step)."
            )
    return Ordered(tuple(kept), tuple(notes))


def _same_weights(one: Path, other: Path) -> bool:
    a, b = read_state_dict(one), read_state_dict(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _counting(name: str) -> list[tuple[int, int | str]]:
    """The parts of a name, to sort 2 before 10.

    Args:
        name: of a file.
    """
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in parts]


def _numbers_in(stems: Sequence[str]) -> list[int] | None:
    """The numbers that names differ in, if they rise from name to name and nothing else differs.

    Args:
        stems: the names, without what follows their last point, in their order.
    """
    split = [re.split(r"(\d+)", stem) for stem in stems]
    if len({tuple(parts[::2]) for parts in split}) != 1:
        return None
    for field in range(1, len(split[0]), 2):
        numbers = [int(parts[field]) for parts in split]
        if len(numbers) > 1 and all(a < b for a, b in pairwise(numbers)):
            return numbers
    return None

"""The line that says, at the start of a training, what is watched."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cnnlog.capture.probe import Probe
from cnnlog.messages import some
from cnnlog.monitors.plan import Watched

LONGEST = 300


def announcement(
    watched: Watched,
    probe: Probe | None,
    *,
    schedules: Sequence[str],
    averaged: bool,
    size: str,
    folder: str | None,
    logdir: str | None,
) -> str:
    """What is watched, when, of which probe, and where it is kept, in at most 300 characters.

    Where the line would be longer, it names TensorBoard's folder alone, which has the run's in it; then it does not say
    how large a snapshot is, before it names only a part of a folder.

    Args:
        watched: the layers.
        probe: the fixed input; None without one.
        schedules: when snapshots are due, in words, of each monitor.
        averaged: whether averaged weights are shown.
        size: how large a snapshot is, in words.
        folder: where the run is kept; None in `fast_dev_run`.
        logdir: what TensorBoard may be given; None without TensorBoard.
    """
    what = " and ".join(
        ([f"filters of {_layers(watched.filter_layers)}"] if watched.filter_layers else [])
        + ([f"feature maps of {_layers(watched.map_layers)}"] if watched.map_layers else [])
    )
    if watched.filter_layers == watched.map_layers:
        what = f"filters and feature maps of {_layers(watched.filter_layers)}"
    when = " and ".join(dict.fromkeys(schedules))
    on = f"; probe {_probe(probe)}" if probe is not None else ""
    kept = "nothing is kept in fast_dev_run" if folder is None else f"{size} a snapshot"
    where = f" in {folder}" if folder is not None else ""
    view = f"; view: tensorboard --logdir {shlex.quote(logdir)}" if folder is not None and logdir is not None else ""
    average = " with averaged weights" if averaged else ""
    start = f"cnnlog watches {_short(what, 110)}{average}, {_short(when, 60)}"
    for line in (
        f"{start}{on}: {kept}{where}{view}",
        *(f"{start}{on}{size_of_it}{end}" for end in (view, where) if end for size_of_it in (f": {kept}", "")),
    ):
        if len(line) <= LONGEST:
            return line
    full = f"{start}{on}: {kept}"
    return _short(f"{full} in {_short(folder or '', max(20, LONGEST - 4 - len(full)))}", LONGEST)


def _layers(names: Sequence[str]) -> str:
    """How many layers there are, and which.

    >>> _layers(["conv1"]), _layers(["conv1", "layer1.0.conv1", "layer4.2.conv3"])
    ('1 layer, conv1', '3 layers, conv1 ... layer4.2.conv3')
    """
    count = f"{len(names)} layer{'' if len(names) == 1 else 's'}, "
    return count + (" and ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]}")


def _probe(probe: Probe) -> str:
    key = getattr(probe, "key", None)
    named = f"{_short(str(key), 30)!r} " if key is not None else ""
    values = probe.tensor.numpy()  # torch knows no smallest value of whole numbers without a sign
    low, high = float(values.min()), float(values.max())
    names = _short(some(probe.names, 1), 40)
    return f"{named}{names} {list(probe.tensor.shape)} from {low:.3g} to {high:.3g}"


def _short(text: str, longest: int) -> str:
    """A text without its middle, if it is too long."""
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]}...{text[len(text) - (longest - 3 - half) :]}"

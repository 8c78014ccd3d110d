"""`cnnlog replay`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cnnlog.cli.options import ChannelsLast, Shown, View
from cnnlog.cli.progress import is_watched
from cnnlog.kinds import Unit


def replay(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINTS...", help="Files, or a folder of them.")],
    *,
    arch: Annotated[
        str | None, typer.Option(help="torchvision's name of the network; by default the one that fits.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="Or its class, package.module:Class; arguments come from the checkpoint.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="The probe: an image, or several.")] = None,
    chart: Annotated[bool, typer.Option("--chart", help="The probe: a test chart.")] = False,
    probe_of: Annotated[str | None, typer.Option(help="The probe: that of a stored run.")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="Height and width of the probe.")] = None,
    mean: Annotated[str | None, typer.Option(help="The normalisation's mean, as in 0.485,0.456,0.406.")] = None,
    std: Annotated[
        str | None, typer.Option(help="The normalisation's standard deviation, as in 0.229,0.224,0.225.")
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="Weights that training began with: a file, DEFAULT, or none (the first checkpoint).")
    ] = "none",
    unit: Annotated[Unit, typer.Option(help="Count completed epochs, or optimiser steps.")] = Unit.EPOCH,
    layers: Annotated[str, typer.Option(help="auto, or names and globs: conv1,layer*.conv2")] = "auto",
    view: View = "auto",
    shown: Shown = 64,
    through: Annotated[
        str | None, typer.Option(help="The part that the probe goes through, where the class has no forward.")
    ] = None,
    channels_last: ChannelsLast = None,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's events, too.")] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder, which must be new.")] = Path(
        "cnnlog-replay"
    ),
) -> None:
    """Make the stored run, and TensorBoard's pictures, that the monitors would have made of a past training."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    from cnnlog.monitors import replay as replaying
    from cnnlog.recording.drawer import Look
    from cnnlog.runs.finding import open_run

    if str(Path.cwd()) not in sys.path:  # where a person's own classes are
        sys.path.insert(0, str(Path.cwd()))
    made = replaying.replay(
        checkpoints,
        output,
        arch=arch,
        module=module,
        source=replaying.ProbeSource(
            tuple(image or ()), chart, open_run(probe_of) if probe_of else None, size, _floats(mean), _floats(std)
        ),
        baseline=None if baseline.lower() == "none" else baseline,
        unit=unit,
        layers=layers if layers == "auto" else layers.split(","),
        look=Look(shown=shown, view=view),
        through=through,
        channels_last=channels_last,
        tensorboard=tensorboard,
        progress=lambda steps: track(steps, "replaying", transient=True, console=console, disable=not is_watched()),
    )
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{made.folder}: steps {_listed(made.steps)}; drift and changes are relative to {made.relative_to}")
    if tensorboard:
        typer.echo(f"View: cnnlog tensorboard {shlex.quote(str(made.folder))}")


def _floats(text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.5` as numbers.

    Args:
        text: what was given; None if the option was not.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--mean and --std take numbers, as in 0.485,0.456,0.406; got {text!r}") from None


def _listed(steps: Sequence[int]) -> str:
    return (
        ", ".join(map(str, steps)) if len(steps) <= 12 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]} ({len(steps)})"
    )

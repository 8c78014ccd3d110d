"""`cnnlog export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlog.kinds import Kind


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A stored run: its folder, or a parent with no other.")],
    *,
    strip: Annotated[bool, typer.Option("--strip", help="Rows: channels; columns: steps.")] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="All layers at one step.")] = False,
    gif: Annotated[bool, typer.Option("--gif", help="A layer through time.")] = False,
    apng: Annotated[
        bool, typer.Option("--apng", help="A layer through time, as an animated PNG in exact colours.")
    ] = False,
    figure: Annotated[bool, typer.Option("--figure", help="A layer at one step, with title and colour bar.")] = False,
    layer: Annotated[str | None, typer.Option(help="The layer; by default the first.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="By default filters; a sheet shows both.")] = None,
    step: Annotated[int | None, typer.Option(help="Of a sheet or figure; by default the last.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Of a strip (by default 8) or animation (by default all): 1,2,5,10,20,30,40,64.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="The rows of a strip, by default the 8 that changed most: 0,3,5.")
    ] = None,
    image: Annotated[int, typer.Option(min=0, help="Which of the probe's images feature maps are of.")] = 0,
    cmap: Annotated[
        str | None, typer.Option(help="auto, gray, or any matplotlib colour map; the run's by default.")
    ] = None,
    width: Annotated[int, typer.Option(min=16, help="Widest grid, in pixels.")] = 700,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file, or a folder for files with names of their own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Make strips, contact sheets, animations and figures of a stored run."""
    from cnnlog.reports import export as exporting
    from cnnlog.reports.part import Wanted
    from cnnlog.runs.finding import open_run

    asked = {"strip": strip, "sheet": sheet, "gif": gif, "apng": apng, "figure": figure}
    wanted = Wanted(layer, kind, step, _numbers(steps), _numbers(channels), image, cmap, width)
    made = exporting.export(
        open_run(run), [form for form in exporting.SUFFIXES if asked[form]], wanted, output, force=force
    )
    for one in made:
        typer.echo("\n".join([*(f"note: {note}" for note in one.notes), str(one.path)]))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """`1,2,5` as numbers.

    Args:
        text: what was given; None if the option was not.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--steps and --channels take whole numbers, as in 1,2,5; got {text!r}")
    return tuple(int(part) for part in parts)

"""A stored run as files to show: strips, contact sheets, animations, figures.

Everything is drawn in one range a channel over all steps of the run, so a colour means the same in every file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cnnlog.rendering import figures
from cnnlog.rendering.colours import palette
from cnnlog.reports.animation import Animation
from cnnlog.reports.part import Wanted, cmap_of, layer_of, step_of
from cnnlog.reports.sheet import sheet
from cnnlog.reports.strip import strip
from cnnlog.runs import places, whole_files
from cnnlog.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Literal["strip", "sheet", "gif", "apng", "figure"]


SUFFIXES: Mapping[Form, tuple[str, ...]] = {
    "strip": (".png",),
    "sheet": (".png",),
    "gif": (".gif",),
    "apng": (".png", ".apng"),
    "figure": figures.SUFFIXES,
}


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        notes: sentences on what you should know when you look at it.
    """

    path: Path
    notes: tuple[str, ...] = ()


def export(
    run: Run, forms: Sequence[Form], wanted: Wanted, output: Path | None = None, *, force: bool = False
) -> tuple[Exported, ...]:
    """Draw a stored run into files. Each is written completely, or not at all.

    Args:
        run: from `open_run`.
        forms: `strip` (rows: the channels that changed most, columns: steps), `sheet` (all layers at one step), `gif`
            and `apng` (one layer through time), `figure` (one layer at one step, with a colour bar).
        wanted: which part of the run.
        output: the file, if there is one form; or a folder, where files are named after what they show
            (`2_finetuned-conv1-filters.gif`). None takes the current folder.
        force: whether to replace files that are there.

    Raises:
        ValueError: there is no such layer, kind, step or channel, or a file's name does not fit; nothing was written.
        FileExistsError: a file is there; nothing was written.
        OSError: a file cannot be written.
    """
    _refuse(forms, wanted, output)
    paths = {form: _free(_target(run, form, wanted, output), form, force=force) for form in forms}
    drawn = {form: _drawn(run, form, wanted) for form in forms}
    for form, save in drawn.items():
        with whole_files.whole(paths[form], force=force) as temporary:
            save(temporary)
    return tuple(Exported(path, (*run.skipped, *_rounded(run, form, wanted))) for form, path in paths.items())


def _refuse(forms: Sequence[Form], wanted: Wanted, output: Path | None) -> None:
    """What was asked for must be one thing, and must have an effect.

    Args:
        forms: what is to be made.
        wanted: what was asked for.
        output: a file, a folder for files with names of their own, or None for the current folder.
    """
    if not forms:
        raise ValueError(f"say what to make of the run: {', '.join(f'--{form}' for form in SUFFIXES)}")
    if len(forms) > 1 and output is not None and not output.is_dir():
        raise ValueError(f"{len(forms)} files are to be made, so --output must be a folder; got {str(output)!r}")
    for option, given, users in (
        ("--steps", wanted.steps is not None, ("strip", "gif", "apng")),
        ("--channels", wanted.channels is not None, ("strip",)),
        ("--step", wanted.step is not None, ("sheet", "figure")),
        ("--layer", wanted.layer is not None, ("strip", "gif", "apng", "figure")),
    ):
        if given and not set(users) & set(forms):
            raise ValueError(f"{option} is for {', '.join(f'--{form}' for form in users)}; leave it out")
    if wanted.cmap is not None:
        palette(wanted.cmap, True)  # refuses an unknown colour map


def _free(path: Path, form: Form, *, force: bool) -> Path:
    """The path, if a file of this form can be made there.

    Args:
        path: of the file.
        form: what is made.
        force: a file that is there may be replaced.
    """
    if path.suffix.lower() not in SUFFIXES[form]:
        raise ValueError(f"a {form} is written as {' or '.join(SUFFIXES[form])}; got {str(path)!r}")
    whole_files.refuse_target(path, force=force)
    return path


def _drawn(run: Run, form: Form, wanted: Wanted) -> Callable[[Path], None]:
    """What writes the drawing to a file.

    Args:
        run: a stored run.
        form: what is made.
        wanted: what was asked for.
    """
    if form == "figure":
        made = figure(run, wanted)
        return lambda path: figures.save(made, path)
    if form in ("gif", "apng"):
        animation = Animation(run, wanted)
        return animation.save_gif if form == "gif" else animation.save_apng
    picture = strip(run, wanted) if form == "strip" else sheet(run, wanted)
    return lambda path: picture.save(path, format="PNG")


def figure(run: Run, wanted: Wanted) -> Figure:
    """One layer at one step as a matplotlib figure, with a title, channel numbers and a colour bar.

    Args:
        run: from `open_run`.
        wanted: which layer, kind and step.

    Raises:
        ValueError: the run does not have them.
    """
    layer, kind = layer_of(run, wanted)
    step = step_of(run, wanted, layer, kind)
    return run.figure(layer.name, step, kind, image=wanted.image, cmap=cmap_of(run, wanted, kind))


def _rounded(run: Run, form: Form, wanted: Wanted) -> tuple[str, ...]:
    if form != "gif":
        return ()
    layer, kind = layer_of(run, wanted)
    if not kind.per_image and layer.view == "rgb":
        return ("a GIF has 256 colours, so those of these filters are rounded; --apng keeps them",)
    return ()


def _target(run: Run, form: Form, wanted: Wanted, output: Path | None) -> Path:
    """The file to write; named after what is in it, where only a folder is given.

    Args:
        run: a stored run.
        form: what is made.
        wanted: what was asked for.
        output: a file, a folder for files with names of their own, or None for the current folder.
    """
    if output is not None and not output.is_dir():
        return output
    parts = [run.name]
    if form == "sheet":
        parts += [*([wanted.kind.words] if wanted.kind else []), "sheet"]
        parts.append(f"step{run.step('last' if wanted.step is None else wanted.step)}")
    else:
        layer, kind = layer_of(run, wanted)
        parts += [layer.name, kind.words]
        last = f"step{step_of(run, wanted, layer, kind)}" if form == "figure" else ""
        parts += [part for part in ({"strip": "strip", "apng": "animated"}.get(form, last),) if part]
    name = "-".join(places.shortened(places.spelled(re.sub(r"[^\w.=+-]+", "_", part)), 80) for part in parts)
    return (output or Path()) / (name + SUFFIXES[form][0])

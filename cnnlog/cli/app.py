"""The command `cnnlog`. Wiring only; everything heavy is imported where it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cnnlog.rendering.png import Grid
    from cnnlog.snapshot import FloatArray

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Watch a CNN's filters and feature maps change while it is fine-tuned.",
)
show = typer.Typer(no_args_is_help=True, help="Draw filters or feature maps of a network, without training.")
app.add_typer(show, name="show")

Arch = Annotated[
    str,
    typer.Argument(metavar="ARCH|FILE", help="A torchvision classifier (alexnet), or a file with the weights of one."),
]
Weights = Annotated[str, typer.Option(help="DEFAULT (downloads), none, or a .pt, .ckpt or .safetensors file.")]
Of = Annotated[
    str | None, typer.Option("--arch", help="The architecture, where a file is given that does not tell it.")
]
Layer = Annotated[str, typer.Option(help="The layer's name, as `cnnlog layers` lists it.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write: .png; with --figure also .pdf and .svg.")]
RangeRule = Annotated[
    Literal["channel", "layer"], typer.Option("--range", help="One range for each channel, or one for the layer.")
]
View = Annotated[
    Literal["auto", "rgb", "gray", "slices", "mean"],
    typer.Option(
        help="rgb, gray (1 input channel), slices (rows: filters, columns: input channels), mean over inputs."
    ),
]
Cmap = Annotated[str, typer.Option(help="auto (by sign), gray, or any matplotlib colour map.")]
Shown = Annotated[int, typer.Option("--max", min=1, help="Channels to draw at most.")]
Width = Annotated[int, typer.Option(min=16, help="Widest grid, in pixels.")]
AsFigure = Annotated[bool, typer.Option("--figure", help="A figure with title, channel numbers and colour bar.")]
Size = Annotated[int, typer.Option(min=16, help="Height and width of the input.")]


def main() -> None:
    """Run the command; what is wrong with its arguments is said in one sentence, with exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"cnnlog: {error}", err=True)
        sys.exit(2)


def _say_version(wanted: bool) -> None:
    if wanted:
        from cnnlog import __version__

        typer.echo(f"cnnlog {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def layers(
    model: Arch,
    *,
    weights: Weights = "none",
    arch: Of = None,
    size: Size = 224,
) -> None:
    """List a network's layers, and mark those that the monitors would watch."""
    from cnnlog.capture.capture import survey
    from cnnlog.capture.layer_table import layer_table
    from cnnlog.capture.layers import select
    from cnnlog.capture.probe import Probe
    from cnnlog.models.torchvision import load_classifier

    network = load_classifier(model, weights, arch=arch).model
    probe = Probe.chart(size)
    watched = select(survey(network, probe), "auto", what="filters")
    typer.echo(layer_table(network, probe.tensor, watched=watched).to_text())


@show.command("filters")
def show_filters(
    model: Arch,
    *,
    weights: Weights = "DEFAULT",
    layer: Layer,
    output: Output,
    arch: Of = None,
    view: View = "auto",
    value_range: RangeRule = "channel",
    cmap: Cmap = "gray",
    shown: Shown = 64,
    width: Width = 350,
    figure: AsFigure = False,
) -> None:
    """Draw the filters of one layer."""
    from cnnlog.capture.capture import capture
    from cnnlog.models.torchvision import load_classifier
    from cnnlog.rendering.grids import filters_grid
    from cnnlog.rendering.ranges import AnchoredRange
    from cnnlog.rendering.views import resolve_view, select_filters

    found = load_classifier(model, weights, arch=arch)
    weight = _captured(capture, found.model, None, layer, what="filters")
    drawn = select_filters(weight, view=view, max_filters=shown)
    resolved = resolve_view(weight.shape, view)
    limits = AnchoredRange(value_range, signed=True).update(drawn)
    title = f"Filters of {layer} in {found.name} ({_by(weight.shape)})"
    if figure:
        from cnnlog.rendering import figures

        made = figures.filters_figure(drawn, limits, view=resolved, cmap=cmap, title=title)
        figures.save(made, _writable(output))
    else:
        _save(filters_grid(drawn, limits, view=resolved, cmap=cmap, width=width), output)
    typer.echo(f"{title}: {len(drawn)} as {resolved}, in {output}")


@show.command("maps")
def show_maps(
    model: Arch,
    *,
    weights: Weights = "DEFAULT",
    image: Annotated[Path, typer.Option(help="The image that the network sees.")],
    layer: Layer,
    output: Output,
    arch: Of = None,
    value_range: RangeRule = "channel",
    cmap: Cmap = "auto",
    shown: Shown = 64,
    width: Width = 350,
    figure: AsFigure = False,
) -> None:
    """Draw the feature maps that one layer makes of an image: its own output, before any layer that follows."""
    from cnnlog.capture.capture import capture
    from cnnlog.capture.probe import Probe
    from cnnlog.models.torchvision import load_classifier
    from cnnlog.rendering.grids import maps_grid
    from cnnlog.rendering.ranges import AnchoredRange
    from cnnlog.rendering.views import cell_width, grid_columns, select_maps

    found = load_classifier(model, weights, arch=arch)
    probe = Probe.from_images(image, transform=found.transform)
    maps = _captured(capture, found.model, probe, layer, what="feature maps")
    cell = None if figure else cell_width(grid_columns(min(shown, maps.shape[1])), width)
    drawn = select_maps(maps, max_maps=shown, cell=cell)
    limits = AnchoredRange(value_range).update(drawn.swapaxes(0, 1))
    title = f"Feature maps of {layer} in {found.name} ({_by(maps.shape[1:])}), {image.name}"
    if figure:
        from cnnlog.rendering import figures

        figures.save(figures.maps_figure(drawn[0], limits, cmap=cmap, title=title), _writable(output))
    else:
        _save(maps_grid(drawn[0], limits, cmap=cmap, width=width), output)
    typer.echo(f"{title}: {drawn.shape[1]} of {maps.shape[1]}, in {output}")


@app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="SIDE",
            help="RUN (its folder, or one above it), RUN@STEP, RUN@baseline, RUN@last, a file of weights, or "
            "torchvision:alexnet:DEFAULT. One run alone is compared with its baseline.",
        ),
    ],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page to write, .html.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The numbers, for programs.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="The table, for programs.")] = None,
    board: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="DIR", help="The grids of all steps, for TensorBoard.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="What weights make feature maps of.")] = None,
    arch: Of = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Compare stored runs, or weights: what moved, where, and how far the sides are apart."""
    import json

    from cnnlog.comparison.comparison import compare as compared
    from cnnlog.runs import whole_files

    targets = [target for target in (output, json_file, csv_file) if target is not None]
    for target in targets:
        whole_files.refuse_target(target, force=force)
    if len({target.absolute() for target in targets}) < len(targets):
        raise ValueError("--output, --json and --csv were given the same file; give each a name of its own")
    if board is not None:
        from cnnlog.reports import tensorboard_run as boards  # imports much of TensorBoard

        boards.refuse_folder(board, force=force)
    with _progress() as progress:
        comparison = compared(*sides, image=image, arch=arch, progress=progress)
        comparison.measure(progress)
        text = comparison.to_text()
        if json_file is not None:
            with whole_files.whole(json_file, force=force) as temporary:
                temporary.write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
        if csv_file is not None:
            with whole_files.whole(csv_file, force=force) as temporary:
                temporary.write_text(comparison.to_csv(), encoding="utf-8")
        if board is not None:
            boards.write_board(comparison, board, force=force, progress=progress)
        if output is not None:
            from cnnlog.reports.page.page import write_report

            write_report(comparison, output, force=force, progress=progress)
    typer.echo(text)
    written = [str(target) for target in (output, json_file, csv_file, board) if target is not None]
    if written:
        typer.echo(f"\nWritten: {', '.join(written)}")


@app.command()
def tensorboard(
    logdirs: Annotated[list[Path], typer.Argument(metavar="LOGDIR...", help="Folders with runs; several show as one.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on; a free one by default.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to pin; by default the first that the runs share.")
    ] = None,
) -> None:
    """Start TensorBoard with every step kept, and print a link that pins a layer of all runs side by side."""
    from cnnlog.tensorboard.serve import serve

    serve(logdirs, host=host, port=port, layer=layer, echo=typer.echo)


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A stored run: its folder, or a parent with no other.")],
    *,
    strip: Annotated[bool, typer.Option("--strip", help="Rows: channels; columns: steps.")] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="All layers at one step.")] = False,
    gif: Annotated[bool, typer.Option("--gif", help="A layer through time.")] = False,
    apng: Annotated[bool, typer.Option("--apng", help="The same as an animated PNG, in exact colours.")] = False,
    figure: Annotated[bool, typer.Option("--figure", help="A layer at one step, with title and colour bar.")] = False,
    layer: Annotated[str | None, typer.Option(help="The layer; by default the first.")] = None,
    kind: Annotated[
        Literal["filters", "feature_maps"] | None, typer.Option(help="By default filters; a sheet shows both.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Of a sheet or figure; by default the last.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Of a strip (by default 8) or animation (by default all): 1,2,5,10,20,30,40,64.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="The rows of a strip, by default the first 8: 0,3,5.")] = None,
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
    from cnnlog.runs.run import open_run

    asked = {"strip": strip, "sheet": sheet, "gif": gif, "apng": apng, "figure": figure}
    wanted = exporting.Wanted(layer, kind, step, _numbers(steps), _numbers(channels), image, cmap, width)
    made = exporting.export(
        open_run(run), [form for form in exporting.SUFFIXES if asked[form]], wanted, output, force=force
    )
    for one in made:
        typer.echo("\n".join([*(f"note: {note}" for note in one.notes), str(one.path)]))


@app.command()
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
    std: Annotated[str | None, typer.Option(help="Its standard deviation, likewise.")] = None,
    baseline: Annotated[
        str, typer.Option(help="Weights that training began with: a file, DEFAULT, or none (the first checkpoint).")
    ] = "none",
    unit: Annotated[
        Literal["epoch", "step"], typer.Option(help="Count completed epochs, or optimiser steps.")
    ] = "epoch",
    layers: Annotated[str, typer.Option(help="auto, or names and globs: conv1,layer*.conv2")] = "auto",
    view: View = "auto",
    shown: Shown = 64,
    through: Annotated[
        str | None, typer.Option(help="The part that the probe goes through, where the class has no forward.")
    ] = None,
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
    from cnnlog.runs.run import open_run

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
        tensorboard=tensorboard,
        progress=lambda steps: track(
            steps, "replaying", transient=True, console=console, disable=not console.is_terminal
        ),
    )
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{made.folder}: steps {_listed(made.steps)}; drift and changes are relative to {made.relative_to}")
    if tensorboard:
        typer.echo(f"View: cnnlog tensorboard {made.folder}")


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the three runs; the next free one if it is taken.")] = Path(
        "cnnlog-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of images, weights and order.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="Open TensorBoard on the runs at the end.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two short epochs each, to see that it works.")] = False,
) -> None:
    """Train a small CNN, fine-tune it, and train it from scratch, watched; about a minute."""
    from cnnlog.demo.runs import run_demo, summary

    result = run_demo(out, seed=seed, quick=quick, echo=typer.echo)
    typer.echo(summary(result))
    if serve:
        from cnnlog.tensorboard.serve import serve as serve_runs

        serve_runs([result.folder], echo=typer.echo)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """`1,2,5` as numbers."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--steps and --channels take whole numbers, as in 1,2,5; got {text!r}")
    return tuple(int(part) for part in parts)


def _floats(text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.5` as numbers."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--mean and --std take numbers, as in 0.485,0.456,0.406; got {text!r}") from None


def _listed(steps: Sequence[int]) -> str:
    return (
        ", ".join(map(str, steps)) if len(steps) <= 12 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]} ({len(steps)})"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the terminal for each kind of work, gone when all is done."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    if not console.is_terminal:  # Rich below 14 would print an empty line
        yield lambda what, done, total: None
        return
    with Progress(console=console, transient=True) as bar:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield advance


def _captured(
    capture: Any, model: Any, probe: Any, layer: str, *, what: Literal["filters", "feature maps"]
) -> FloatArray:
    """The filters `[O, I, kH, kW]` or maps `[N, C, H, W]` of one layer, which must exist."""
    from cnnlog.capture.capture import survey
    from cnnlog.capture.layers import select

    names = select(survey(model, probe), [layer], what=what)
    wanted: dict[str, Sequence[str]] = {
        "filter_layers": names if what == "filters" else (),
        "map_layers": names if what == "feature maps" else (),
    }
    if len(names) != 1:
        raise ValueError(f"--layer takes one layer, but {layer!r} matches {len(names)}: {', '.join(names)}")
    snapshot = capture(model, probe, **wanted, step=0, epoch=0, global_step=0)
    arrays: dict[str, FloatArray] = snapshot.filters if what == "filters" else snapshot.feature_maps
    return arrays[names[0]]


def _save(grid: Grid, output: Path) -> None:
    from cnnlog.rendering.png import encode_png

    if output.suffix.lower() != ".png":
        raise ValueError(f"a grid is written as .png, got {str(output)!r}; .pdf and .svg need --figure")
    _writable(output).write_bytes(encode_png(grid, level=6))


def _writable(output: Path) -> Path:
    if not output.parent.is_dir():
        raise ValueError(f"the folder of {str(output)!r} does not exist: make it, or give another --output")
    return output


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)

"""`cnnlog layers` and `cnnlog show`: a network without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cnnlog.rendering.png import Grid
    from cnnlog.snapshot import FloatArray
from cnnlog.cli.options import Arch, AsFigure, Cmap, Layer, Of, Output, RangeRule, Shown, Size, View, Weights, Width
from cnnlog.messages import by

show = typer.Typer(no_args_is_help=True, help="Draw filters or feature maps of a network, without training.")


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
    from cnnlog.kinds import Kind
    from cnnlog.models.torchvision import load_classifier

    network = load_classifier(model, weights, arch=arch).model
    probe = Probe.chart(size)
    watched = select(survey(network, probe), "auto", kind=Kind.FILTERS)
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
    title = f"Filters of {layer} in {found.name} ({by(weight.shape)})"
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
    title = f"Feature maps of {layer} in {found.name} ({by(maps.shape[1:])}), {image.name}"
    if figure:
        from cnnlog.rendering import figures

        figures.save(figures.maps_figure(drawn[0], limits, cmap=cmap, title=title), _writable(output))
    else:
        _save(maps_grid(drawn[0], limits, cmap=cmap, width=width), output)
    typer.echo(f"{title}: {drawn.shape[1]} of {maps.shape[1]}, in {output}")


def _captured(
    capture: Any, model: Any, probe: Any, layer: str, *, what: Literal["filters", "feature maps"]
) -> FloatArray:
    """The filters `[O, I, kH, kW]` or maps `[N, C, H, W]` of one layer, which must exist."""
    from cnnlog.capture.capture import survey
    from cnnlog.capture.layers import select
    from cnnlog.kinds import Kind

    names = select(survey(model, probe), [layer], kind=Kind.FILTERS if what == "filters" else Kind.FEATURE_MAPS)
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

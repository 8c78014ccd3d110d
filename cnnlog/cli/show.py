"""`cnnlog layers` and `cnnlog show`: a network without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlog.cli.options import (
    Arch,
    AsFigure,
    ChannelsLast,
    Cmap,
    Layer,
    Normalize,
    Of,
    Output,
    RangeRule,
    Resize,
    Shown,
    Size,
    View,
    Weights,
    Width,
)
from cnnlog.messages import by

if TYPE_CHECKING:
    from torch import nn

    from cnnlog.capture.probe import Probe
    from cnnlog.kinds import Kind
    from cnnlog.rendering.picture import Picture
    from cnnlog.snapshot import FloatArray

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
    from cnnlog.kinds import Kind
    from cnnlog.models.torchvision import load_classifier
    from cnnlog.rendering.picture import Picture
    from cnnlog.rendering.shared_ranges import tight_limits
    from cnnlog.rendering.views import resolve_view, select_filters

    found = load_classifier(model, weights, arch=arch)
    weight = _captured(found.model, None, layer, Kind.FILTERS)
    drawn = select_filters(weight, view=view, max_filters=shown)
    resolved = resolve_view(weight.shape, view)
    limits = tight_limits(drawn, rule=value_range, signed=Kind.FILTERS.signed)
    title = f"Filters of {layer} in {found.name} ({by(weight.shape)})"
    picture = Picture.of(Kind.FILTERS, drawn, limits, view=resolved, cmap=cmap)
    _save(picture, output, title=title if figure else None, width=width)
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
    resize: Resize = None,
    normalize: Normalize = True,
    value_range: RangeRule = "channel",
    cmap: Cmap = "auto",
    shown: Shown = 64,
    width: Width = 350,
    figure: AsFigure = False,
    channels_last: ChannelsLast = None,
) -> None:
    """Draw the feature maps that one layer makes of an image: its own output, before any layer that follows.

    The image is scaled, cut and normalised as the network's weights want it, unless you say otherwise.
    """
    from cnnlog.capture.probe import Probe
    from cnnlog.kinds import Kind
    from cnnlog.models.torchvision import load_classifier
    from cnnlog.models.tutorials import place_among_tutorials, prepared
    from cnnlog.rendering.picture import Picture
    from cnnlog.rendering.shared_ranges import tight_limits
    from cnnlog.rendering.views import cell_width, map_columns, select_maps

    found = load_classifier(model, weights, arch=arch)
    size = None if resize is None else _height_and_width(resize)
    probe = Probe.from_images(image, transform=prepared(found.transform, size=size, normalize=normalize))
    maps = _captured(found.model, probe, layer, Kind.FEATURE_MAPS, channels_last=channels_last)
    columns = map_columns(min(shown, maps.shape[1]), (maps.shape[2], maps.shape[3]))
    cell = None if figure else cell_width(columns, width)
    drawn = select_maps(maps, max_maps=shown, cell=cell)
    limits = tight_limits(Kind.FEATURE_MAPS.by_channel(drawn), rule=value_range)
    title = f"Feature maps of {layer} in {found.name} ({by(maps.shape[1:])}), {image.name}"
    picture = Picture.of(Kind.FEATURE_MAPS, drawn, limits, cmap=cmap)
    _save(picture, output, title=title if figure else None, width=width)
    typer.echo(f"{title}: {drawn.shape[1]} of {maps.shape[1]}, in {output}")
    typer.echo(place_among_tutorials(found.model, layer))


def _height_and_width(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 1 for side in sides):
        raise ValueError(f"--resize takes a size in pixels, such as 512 or 480x640 (height x width); got {text!r}")
    return int(sides[0]), int(sides[-1])


def _captured(
    model: nn.Module, probe: Probe | None, layer: str, kind: Kind, *, channels_last: bool | None = None
) -> FloatArray:
    """The filters `[O, I, kH, kW]` or maps `[N, C, H, W]` of one layer, which must exist.

    Args:
        model: the network.
        probe: what is run through it; None for filters, which need none.
        layer: its name, or a glob that only it matches.
        kind: filters or feature maps.
        channels_last: where the channels are in an output of which that cannot be known.
    """
    from cnnlog.capture.capture import capture, survey
    from cnnlog.capture.layers import read_as, select

    infos = read_as(survey(model, probe), channels_last=channels_last)
    names = select(infos, [layer], kind=kind)
    if len(names) != 1:
        raise ValueError(f"--layer takes one layer, but {layer!r} matches {len(names)}: {', '.join(names)}")
    filters, maps = ((), names) if kind.per_image else (names, ())
    last = [info.name for info in infos if info.channels_last]
    snapshot = capture(
        model, probe, filter_layers=filters, map_layers=maps, channels_last=last, step=0, epoch=0, global_step=0
    )
    return kind.of(snapshot)[names[0]]


def _save(picture: Picture, output: Path, *, title: str | None, width: int) -> None:
    """Write a picture: as a figure where it has a title, else as a grid.

    Args:
        picture: what to draw.
        output: the file; its ending tells the format.
        title: of the figure; None draws a grid.
        width: of a grid, in pixels.
    """
    import json

    from cnnlog.rendering import figures
    from cnnlog.rendering.png import encode_png

    if title is not None:
        figures.save(picture.figure(title), _writable(output))
    elif output.suffix.lower() != ".png":
        raise ValueError(f"a grid is written as .png, got {str(output)!r}; .pdf and .svg need --figure")
    else:
        grid = picture.grid(width)
        text = {"cnnlog": json.dumps({"kind": str(picture.kind), **picture.facts(grid)})}
        _writable(output).write_bytes(encode_png(grid, text=text, level=6))


def _writable(output: Path) -> Path:
    if not output.parent.is_dir():
        raise ValueError(f"the folder of {str(output)!r} does not exist: make it, or give another --output")
    return output

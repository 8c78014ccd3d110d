"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
ChannelsLast = Annotated[
    bool | None,
    typer.Option("--channels-last/--channels-second", help="Where the channels of an output are, if nothing tells."),
]
Shown = Annotated[int, typer.Option("--max", min=1, help="Channels to draw at most.")]
Width = Annotated[int, typer.Option(min=16, help="Widest grid, in pixels.")]
AsFigure = Annotated[bool, typer.Option("--figure", help="A figure with title, channel numbers and colour bar.")]
Size = Annotated[int, typer.Option(min=16, help="Height and width of the input.")]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE|HxW", help="Scale the image to this size and cut nothing off, as tutorials do (512, 480x640)."
    ),
]
Normalize = Annotated[
    bool, typer.Option("--normalize/--no-normalize", help="Whether to subtract the mean and divide by the deviation.")
]

"""One layer's evolution as a picture: rows are channels, columns are steps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cnnlog.rendering.grids import STRIP_CHANNELS, STRIP_STEPS, strip_grid
from cnnlog.rendering.views import cell_width, most_changed, thickened
from cnnlog.reports.canvas import INK, MARGIN, PALE, SMALL, SPACE, Canvas, font_of, width_of
from cnnlog.reports.part import Part, Wanted, pixels_of
from cnnlog.runs.run import Run
from cnnlog.runs.steps import strided


def strip(run: Run, wanted: Wanted) -> Image.Image:
    """One layer's evolution, labelled: rows are channels, columns are steps.

    Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, show a training like this in figure 4.
    The columns there are the epochs 1, 2, 5, 10, 20, 30, 40 and 64. Here they are at even strides, so that as much
    training lies between any two, and the rows are the channels that changed most between them. All steps are drawn in
    one range. If filters are shown as slices, a row is a filter's first input channel.

    Args:
        run: from `open_run`.
        wanted: which layer, steps and channels.

    Raises:
        ValueError: the run does not have them.
    """
    part = Part.of(run, wanted)
    uneven = ""
    if wanted.steps is None:
        chosen = strided(part.steps, STRIP_STEPS)
        part = part.only(chosen.steps)
        uneven = "" if chosen.is_even else f"columns: of every {chosen.stride} steps the nearest that is stored"
    cells = np.stack([picture.values for picture in part.pictures])
    if part.view not in (None, "rgb"):
        cells = cells[:, :, 0]
    channels = most_changed(cells, STRIP_CHANNELS) if wanted.channels is None else list(wanted.channels)
    part.refuse_channels(channels)
    columns = [str(step) for step in part.steps]
    font = font_of(SMALL)
    widest = max(width_of(font, text) for text in columns) + SPACE
    limits = part.limits.only(channels)
    width = max(wanted.width, len(columns) * widest)
    drawn = thickened(cells[:, channels], cell_width(len(columns), width)) if part.view is None else cells[:, channels]
    grid = pixels_of(strip_grid(drawn, limits, cmap=part.cmap, width=width))
    labels = [f"{part.kind.one} {channel}" for channel in channels]
    left = max(width_of(font, label) for label in [*labels, "step"]) + SPACE
    slices = ", first input channel" if part.view == "slices" else ""
    rows = "" if wanted.channels is not None else f"; rows: the {len(channels)} of {part.channels} that changed most"
    lines = [f"{part.title}{slices}{rows}", *([uneven] if uneven else []), part.legend(limits)]
    canvas = Canvas(left + grid.width, run.name, *lines)
    top = canvas.height + SMALL + SPACE
    canvas.extend(SMALL + SPACE + grid.height)
    canvas.image.paste(grid, (MARGIN + left, top))
    canvas.write((MARGIN, top - SPACE // 2), "step", SMALL, PALE, anchor="ls")
    for number, text in enumerate(columns):
        x = MARGIN + left + round((number + 0.5) * (grid.width + 1) / len(columns))
        canvas.write((x, top - SPACE // 2), text, SMALL, INK, anchor="ms")
    for number, text in enumerate(labels):
        y = top + round((number + 0.5) * (grid.height + 1) / len(labels))
        canvas.write((MARGIN + left - SPACE, y), text, SMALL, INK, anchor="rm")
    return canvas.image

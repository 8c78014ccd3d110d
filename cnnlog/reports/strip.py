"""One layer's evolution as a picture: rows are channels, columns are steps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cnnlog.rendering.grids import STRIP_CHANNELS, STRIP_STEPS, strip_grid
from cnnlog.reports.canvas import INK, MARGIN, PALE, SMALL, SPACE, Page, font_of, width_of
from cnnlog.reports.part import Part, Wanted, pixels_of
from cnnlog.runs.run import Run


def strip(run: Run, wanted: Wanted) -> Image.Image:
    """One layer's evolution, labelled: rows are channels, columns are steps.

    Cf. Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, figure 4, where columns are the
    epochs 1, 2, 5, 10, 20, 30, 40 and 64. All steps are drawn in the range of the last one. Of filters shown as slices,
    a row is a filter's first input channel.
    """
    part = Part.of(run, wanted)
    if wanted.steps is None:
        part = part.thinned(STRIP_STEPS)
    cells = np.stack([picture.values for picture in part.pictures])
    if part.view not in (None, "rgb"):
        cells = cells[:, :, 0]
    channels = tuple(range(min(STRIP_CHANNELS, part.channels))) if wanted.channels is None else wanted.channels
    part.refuse_channels(channels)
    columns = [str(step) for step in part.steps]
    font = font_of(SMALL)
    widest = max(width_of(font, text) for text in columns) + SPACE
    limits = part.limits().only(channels)
    width = max(wanted.width, len(columns) * widest)
    grid = pixels_of(strip_grid(cells[:, list(channels)], limits, cmap=part.cmap, width=width))
    labels = [f"{part.kind.one} {channel}" for channel in channels]
    left = max(width_of(font, label) for label in [*labels, "step"]) + SPACE
    slices = ", first input channel" if part.view == "slices" else ""
    page = Page(left + grid.width, run.name, f"{part.title}{slices}", part.legend(limits))
    top = page.height + SMALL + SPACE
    page.extend(SMALL + SPACE + grid.height)
    page.image.paste(grid, (MARGIN + left, top))
    page.write((MARGIN, top - SPACE // 2), "step", SMALL, PALE, anchor="ls")
    for number, text in enumerate(columns):
        x = MARGIN + left + round((number + 0.5) * (grid.width + 1) / len(columns))
        page.write((x, top - SPACE // 2), text, SMALL, INK, anchor="ms")
    for number, text in enumerate(labels):
        y = top + round((number + 0.5) * (grid.height + 1) / len(labels))
        page.write((MARGIN + left - SPACE, y), text, SMALL, INK, anchor="rm")
    return page.image

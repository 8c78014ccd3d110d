"""All layers of a run at one step, in one image: a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cnnlog.kinds import Kind
from cnnlog.rendering.shared_ranges import in_words
from cnnlog.reports.canvas import INK, MARGIN, PALE, SMALL, SPACE, Canvas, font_of, shortened
from cnnlog.reports.part import Wanted, number_of, picture_of, pixels_of
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.run import Run
from cnnlog.snapshot import Record


def sheet(run: Run, wanted: Wanted) -> Image.Image:
    """All layers at one step, labelled. Each is drawn in its range over all steps of the run, told in numbers.

    Args:
        run: from `open_run`.
        wanted: which step, and which kind if not both.

    Raises:
        ValueError: the run has nothing of this kind at this step.
    """
    step = run.step("last" if wanted.step is None else wanted.step)
    record = run.record(step)
    kinds: list[Kind] = [wanted.kind] if wanted.kind else list(Kind)
    blocks = [_block(run, wanted, layer, kinds, record) for layer in run.manifest.layers]
    blocks = [block for block in blocks if block]
    if not blocks:
        words = " and no ".join(kind.words for kind in kinds)
        raise ValueError(f"{run.name} holds no {words} at step {step}: give another --step or --kind")
    cell = max(picture.width for block in blocks for _, picture in block)
    wide = len(max(blocks, key=len)) * (cell + 2 * SPACE)
    heights = [max(picture.height for _, picture in block) + 2 * SMALL + 3 * SPACE for block in blocks]

    def rows(columns: int) -> list[int]:
        return [max(heights[start : start + columns]) for start in range(0, len(blocks), columns)]

    # The number of columns whose canvas comes nearest to 4:3
    columns = min(range(1, len(blocks) + 1), key=lambda n: abs(math.log(n * wide / sum(rows(n)) / (4 / 3))))
    when = f"all layers at step {step} ({run.manifest.unit.words})"
    canvas = Canvas(columns * wide - 2 * SPACE, run.name, when, "each channel in one range over all steps of the run")
    tops = np.cumsum([canvas.height, *rows(columns)])
    canvas.extend(int(tops[-1] - tops[0]))
    for position, block in enumerate(blocks):
        row, column = divmod(position, columns)
        for number, (label, picture) in enumerate(block):
            x, y = MARGIN + column * wide + number * (cell + 2 * SPACE), int(tops[row])
            for line, (text, ink) in enumerate(zip(label, (INK, PALE), strict=True)):
                fitted = shortened(text, font_of(SMALL), cell)
                canvas.write((x, y + (line + 1) * (SMALL + 3)), fitted, SMALL, ink, anchor="ls")
            canvas.image.paste(picture, (x, y + 2 * (SMALL + 3) + SPACE))
    return canvas.image


def _block(
    run: Run, wanted: Wanted, layer: WatchedLayer, kinds: Sequence[Kind], record: Record
) -> list[tuple[tuple[str, str], Image.Image]]:
    """A layer's pictures on the sheet, each with the two lines of text that stand over it.

    Args:
        run: a stored run.
        wanted: what was asked for.
        layer: one of its watched layers.
        kinds: filters, feature maps, or both, in this order.
        record: the step.
    """
    pictures = []
    for kind in kinds:
        picture = picture_of(run, wanted, layer, kind, record)
        if picture is None:
            continue
        shape = (kind.shape(layer) or ())[1 if kind.per_image else 0 :]
        number = number_of(record, kind, layer.name)
        facts = "  ".join(part for part in [" × ".join(map(str, shape)), in_words(picture.limits), number] if part)
        pictures.append(((f"{layer.name} {kind.words}", facts), pixels_of(picture.grid(wanted.width // 2))))
    return pictures

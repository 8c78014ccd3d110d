"""Reads a comparison's TensorBoard run back to values, and compares it with what the oracle saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from support import formulas, oracle
from support.oracle_between import curves_of
from support.oracle_checks import Place, Tally, as_cells, within_shades
from support.oracle_exports import Export
from support.oracle_pages import Side
from support.oracle_ranges import with_median
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Array = npt.NDArray[Any]


class Board:
    """A comparison's TensorBoard run, as it lies on the disk.

    Args:
        folder: that holds its event file.
    """

    def __init__(self, folder: Path) -> None:
        sizes = {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}
        events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
        tags: Any = events.Tags()
        pictures = [(tag, one) for tag in tags["images"] for one in events.Images(tag)]
        self.images = {(tag, one.step): one.encoded_image_string for tag, one in pictures}
        self.scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags["scalars"]}


@dataclass(frozen=True)
class Shown:
    """A picture of a board: the manifest's facts on the layer, the kind, A, B or B-A, the image and the step."""

    layer: Mapping[str, Any]
    kind: str
    whose: str
    image: int
    step: int

    @property
    def change(self) -> bool:
        return self.whose == "B-A"


def check_board(board: Board, sides: Sequence[Side], tally: Tally) -> None:
    """Every picture of both sides and every difference, by its own text, and every number between the sides."""
    tags = {layer["name"]: layer["tag"] for layer in sides[0].run.manifest["measured"]}
    expected = {}
    for layer in sides[0].run.manifest["layers"]:
        for kind in Export(sides[0]).kinds(layer):
            many = sides[0].run.manifest["probe"]["shape"][0] if kind == "feature_maps" else 1
            for whose in ("A", "B", "B-A"):
                for image in range(many):
                    tag = f"compare_{kind}/{tags[layer['name']]}/{whose}" + (f"/image{image}" if many > 1 else "")
                    for state in sides[1].states:
                        expected[tag, state.step] = Shown(layer, kind, whose, image, state.step)
    for tag, step in sorted({*expected} ^ {*board.images}):
        tally.fault("board tag", f"{tag} at step {step}", "it is there or not, unlike the others")
    for tag, step in sorted({*expected} & {*board.images}):
        of = expected[tag, step]
        place = Place("board", of.layer["kind"], f"{tag} at step {step}")
        try:
            decoded = oracle.decode(board.images[tag, step])
        except AssertionError as error:
            tally.fault("board", place.where, str(error))
            continue
        _check_picture(decoded, of, sides, place, tally)
        _check_range(decoded.facts, of, sides, place, tally)
    _check_numbers(board, tags, sides, tally)


def _check_picture(decoded: oracle.Decoded, of: Shown, sides: Sequence[Side], place: Place, tally: Tally) -> None:
    facts, name = decoded.facts, of.layer["name"]
    if (facts["layer"], facts["kind"], facts["step"], facts["side"]) != (name, of.kind, of.step, of.whose):
        tally.fault("board", place.where, f"its text says {facts['side']} of {facts['layer']}, step {facts['step']}")
    shown = [side.shown(name, of.kind, of.step) for side in sides]
    with np.errstate(invalid="ignore"):
        values = shown[1] - shown[0] if of.change else shown[of.whose == "B"]
    cells = as_cells(values[of.image], None) if of.kind == "feature_maps" else as_cells(values, of.layer["view"])
    if cells.shape[-2:] != tuple(facts["cell"]):
        cells = formulas.area_means(cells, tuple(facts["cell"]))
    within_shades(decoded.cells, cells, place, tally)


def _check_range(facts: Mapping[str, Any], of: Shown, sides: Sequence[Side], place: Place, tally: Tally) -> None:
    """A channel has one range over all steps, images and sides; differences have the largest, over a gain."""
    shown = [side.shown(of.layer["name"], of.kind, state.step) for side in sides for state in side.states]
    channels = np.stack([one if of.kind == "filters" else np.swapaxes(one, 0, 1) for one in shown], axis=1)
    flat = np.where(np.isfinite(channels), channels, 0).reshape(len(channels), -1)
    signed = of.kind == "filters" or bool((flat < 0).any())
    high = with_median(np.abs(flat).max(axis=1) if signed else flat.max(axis=1))
    if of.change:
        if facts["gain"] not in (1, 4, 16, 64):
            tally.fault("board range", place.where, f"its text says a gain of {facts['gain']}")
            return
        high = np.full(len(high), high.max() / facts["gain"])
    tally.alike(high, facts["high"], Place("board range", place.kind, place.where), rel=1e-5, least=1e-30)


def _check_numbers(board: Board, tags: Mapping[str, str], sides: Sequence[Side], tally: Tally) -> None:
    expected = {
        f"compare_numbers/{measure}/{tag}/B-A": (curve, sides[0].facts(name)["kind"])
        for name, tag in tags.items()
        for measure, curve in curves_of(name, sides, 1).items()
        if measure != "to_go"
    }
    for tag in sorted({*expected} ^ {*board.scalars}):
        tally.fault("board number", tag, "it is there or not, unlike the others")
    for tag in sorted({*expected} & {*board.scalars}):
        (curve, kind), found = expected[tag], board.scalars[tag]
        if [step for step, _ in found] != [step for step, _ in curve]:
            tally.fault("board number", tag, f"steps {[step for step, _ in found]}, not {[step for step, _ in curve]}")
            continue
        values, own = [value for _, value in found], [value for _, value in curve]
        tally.alike(own, values, Place("board number", kind, tag), rel=2e-5, least=1e-3)

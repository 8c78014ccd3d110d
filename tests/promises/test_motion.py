"""What moves in exported animations and in the TensorBoard run of a comparison moved in the network, by as much."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.motion import STEADY_STEPS, grown, steady, unsteadiness
from support.stored_runs import moving, write_run
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from cnnlog.comparison.comparison import compare
from cnnlog.rendering.colours import GAP, TOP, palette
from cnnlog.reports.animation import Animation
from cnnlog.reports.part import Wanted
from cnnlog.reports.tensorboard_run import write_board
from cnnlog.runs.finding import open_run

SHAPES = {"conv1": (16, 3, 7, 7), "conv2": (16, 16, 3, 3)}


@pytest.fixture(scope="module")
def steady_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steady") / "run"
    return write_run(folder, steady(SHAPES), steps=range(STEADY_STEPS + 1))


def decoded(path: Path) -> list[np.ndarray]:
    """The frames of a GIF or an animated PNG."""
    frames = []
    with Image.open(path) as held:
        for number in range(getattr(held, "n_frames")):  # noqa: B009  # only animated formats have it
            held.seek(number)
            frames.append(np.asarray(held.convert("RGB")))
    return frames


Written = tuple[dict[str, dict[int, tuple[np.ndarray, dict[str, Any], bytes | None]]], dict[str, str]]


def board(folder: Path) -> Written:
    """Tag -> step -> pixels, what the PNG's text says, and its palette; tag -> description."""
    images: dict[str, dict[int, tuple[np.ndarray, dict[str, Any], bytes | None]]] = defaultdict(dict)
    described = {}
    (file,) = folder.iterdir()
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if not value.HasField("image"):
                continue
            with Image.open(io.BytesIO(value.image.encoded_image_string)) as picture:
                pixels, table = np.asarray(picture)[1:-1, 1:-1], picture.palette  # without the frame
                text = json.loads(picture.info["cnnlog"])
            images[value.tag][event.step] = pixels, text, None if table is None else table.tobytes()
            if value.metadata.summary_description:
                described[value.tag] = value.metadata.summary_description
    return images, described


def in_colours(pixels: np.ndarray, table: bytes | None) -> np.ndarray:
    return pixels if table is None else np.frombuffer(table, np.uint8).reshape(-1, 3)[pixels]


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("form", ["gif", "apng"])
def test_steady_motion_is_steady_in_an_animation(steady_run: Path, tmp_path: Path, form: str, layer: str) -> None:
    path = tmp_path / f"animation.{form}"
    getattr(Animation(open_run(steady_run), Wanted(layer=layer)), f"save_{form}")(path)
    frames = decoded(path)
    assert len(frames) == STEADY_STEPS + 1
    grids = [frame[130:] for frame in frames]  # below the heading, where the step's number changes
    assert unsteadiness(grids) <= 1.5


def test_steady_motion_is_steady_in_the_tensorboard_run(steady_run: Path, tmp_path: Path) -> None:
    write_board(compare(steady_run), tmp_path / "board")
    images, _ = board(tmp_path / "board")
    found = {
        tag: [in_colours(pixels, table) for pixels, _, table in by_step.values()] for tag, by_step in images.items()
    }
    moving_tags = [f"compare_filters/{position:02d}_{layer}/B" for position, layer in enumerate(SHAPES)]
    assert {tag: unsteadiness(found[tag]) for tag in moving_tags if unsteadiness(found[tag]) > 1.5} == {}
    assert len(found[moving_tags[0]]) == STEADY_STEPS + 1


def test_the_measure_of_steadiness_can_fail() -> None:
    frames = [np.full((4, 4), value, np.uint8) for value in (0, 1, 2, 3, 7)]
    assert unsteadiness(frames[:4]) == 1
    assert unsteadiness(frames) == 4


def test_what_is_the_same_is_drawn_the_same(tmp_path: Path) -> None:
    """Two runs of one baseline, and one filter of the second grown by 5 %."""
    shapes = {"conv": (16, 1, 5, 5)}
    still = write_run(tmp_path / "still", grown(0, "conv", 6, shapes), steps=(0, 1))
    other = write_run(tmp_path / "other", grown(0.05, "conv", 6, shapes), steps=(0, 1))
    write_board(compare(still, other), tmp_path / "board")
    images, _ = board(tmp_path / "board")
    a, b, difference = (images[f"compare_filters/00_conv/{side}"][1] for side in ("A", "B", "B-A"))
    first, second = (grown(amount, "conv", 6, shapes)(1)[0]["conv"] for amount in (0, 0.05))
    side = (350 - 2) // 5 * 5  # one column of 16 cells
    for channel in range(16):
        top = channel * (side + 1)
        one, two, change = (part[0][top : top + side].astype(float) for part in (a, b, difference))
        if channel != 6:
            assert np.array_equal(one, two)
            assert (change == 31).all()
            continue
        true = np.abs(second[6] - first[6]).mean()
        assert true / 2 <= np.abs(change - 31).mean() / 31 * difference[1]["high"][6] <= true * 2
        assert true / 2 <= np.abs(two - one).mean() / 31 * a[1]["high"][6] <= true * 2


def test_a_picture_can_be_read_without_the_runs(tmp_path: Path) -> None:
    """Values that are decoded from a PNG alone are within half a level of those that were stored."""
    runs = [write_run(tmp_path / name, moving(seed, 0.1)) for seed, name in enumerate(("slow", "other"))]
    write_board(compare(*runs), tmp_path / "board")
    images, described = board(tmp_path / "board")
    at = [moving(seed, 0.1)(3)[0]["conv2"] for seed in (0, 1)]
    comparison = compare(*runs)
    gain = comparison.gain(comparison.layer("conv2"), "filters")
    wanted = {"A": at[0], "B": at[1], "B-A": at[1] - at[0]}
    for side, values in wanted.items():
        pixels, text, table = images[f"compare_filters/01_conv2/{side}"][3]
        assert (text["layer"], text["kind"], text["step"], text["side"]) == ("conv2", "filters", 3, side)
        assert text["channels"] == list(range(6))
        assert text["symmetric"]
        assert table == palette("auto", True)
        assert text["gain"] == (gain if side == "B-A" else None)
        rows, columns = np.flatnonzero((pixels == GAP).all(axis=1)), np.flatnonzero((pixels == GAP).all(axis=0))
        cells = [np.split(row, columns, axis=1) for row in np.split(pixels, rows, axis=0)]
        factor = cells[0][0].shape[0] // 3
        for row, (low, high) in enumerate(zip(text["low"], text["high"], strict=True)):
            assert low == -high
            for column in range(4):
                inner = cells[row][column][1 if row else 0 :, 1 if column else 0 :][::factor, ::factor]
                read = low + (high - low) * inner / TOP
                np.testing.assert_allclose(read, np.clip(values[row, column], low, high), atol=0.51 * high / 31)
    assert "×" in described["compare_filters/01_conv2/B-A"]
    highs = images["compare_filters/01_conv2/A"][0][1]["high"]
    assert f"±{min(highs):.3g} to ±{max(highs):.3g}" in described["compare_filters/01_conv2/A"]
    assert "all steps and sides" in described["compare_filters/01_conv2/B"]

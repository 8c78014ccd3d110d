"""Strips, sheets, animations and figures of a stored run: what is in them, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support.measured import measured_layers, snapshot_of
from support.stored_runs import write_run
from typer.testing import CliRunner, Result

from cnnlog.cli.app import app
from cnnlog.kinds import Kind, Unit
from cnnlog.recording.drawer import Drawers, Look
from cnnlog.recording.recorder import Recorder
from cnnlog.rendering.grids import STRIP_STEPS, filters_grid, maps_grid
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import RangeRule
from cnnlog.reports import export as exporting
from cnnlog.reports.animation import AT_THE_ENDS, FRAME, Animation, save_apng
from cnnlog.reports.canvas import Canvas
from cnnlog.reports.part import Wanted
from cnnlog.reports.sheet import sheet
from cnnlog.reports.strip import strip
from cnnlog.runs.finding import open_run
from cnnlog.runs.manifest import Manifest, WatchedLayer
from cnnlog.runs.run import Run
from cnnlog.runs.steps import strided
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot

STEPS = 12
MARGIN = 14
LAYERS = (
    WatchedLayer("stem", "00_stem", "Conv2d", (10, 3, 5, 5), (2, 10, 8, 8), "rgb"),
    WatchedLayer("blocks.1/conv", "01_blocks.1/conv", "Conv2d", (9, 10, 3, 3), (2, 9, 6, 6), "slices"),
)


def snapshot(step: int, *, maps: bool = True) -> Snapshot:
    """Values that grow from step to step, so that ranges double, several times."""
    rng = np.random.default_rng(step // 4)
    filters = {layer.name: rng.normal(size=layer.weight_shape or ()).astype(np.float32) for layer in LAYERS}
    feature_maps = {layer.name: rng.normal(size=layer.output_shape or ()).astype(np.float32) for layer in LAYERS}
    grown = np.float32(1 + step)
    return snapshot_of(
        step,
        {name: grown * array for name, array in filters.items()},
        {name: grown * array for name, array in feature_maps.items()} if maps else {},
    )


def write(folder: Path, *, rule: RangeRule = "channel") -> Path:
    looks = {kind: Look(value_range=rule) for kind in ("filters", "feature_maps")}
    settings = {kind: vars(look) for kind, look in looks.items()}
    manifest = Manifest(LAYERS, Unit.EPOCH, 0, settings, {}, {}, "Net", "2026-01-01T00:00:00+00:00")
    manifest = replace(manifest, measured=measured_layers(LAYERS))
    store = RunStore(str(folder / "cnnlog"), manifest)
    recorder = Recorder(
        LAYERS,
        measured=manifest.measured,
        filters=looks["filters"],
        maps=looks["feature_maps"],
        store=store,
        trackers=[],
        probe=None,
    )
    for step in range(STEPS):
        recorder.record(snapshot(step, maps=step % 2 == 0))
    recorder.close()
    assert not recorder.take_problems()
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "tuned")


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def decoded(path: Path) -> tuple[list[npt.NDArray[np.uint8]], list[int]]:
    frames, durations = [], []
    with Image.open(path) as held:
        for number in range(getattr(held, "n_frames")):  # noqa: B009  # only animated formats have it
            held.seek(number)
            frames.append(np.asarray(held.convert("RGB")))
            durations.append(round(held.info["duration"]))
    return frames, durations


def holds(picture: Image.Image, grid: Grid) -> bool:
    """Whether a grid stands somewhere in a picture, pixel for pixel."""
    part = grid.pixels
    if grid.palette is not None:
        part = np.frombuffer(grid.palette, np.uint8).reshape(-1, 3)[part]
    whole = np.asarray(picture)
    height, width = part.shape[:2]
    top_left = np.lib.stride_tricks.sliding_window_view(whole, (4, 4, 3))[:, :, 0]
    for y, x in zip(*np.nonzero((top_left == part[:4, :4]).all(axis=(2, 3, 4))), strict=True):
        if np.array_equal(whole[y : y + height, x : x + width], part):
            return True
    return False


def peaks(run: Run, layer: str, kind: str = "filters") -> npt.NDArray[np.float32]:
    """The largest magnitude of each channel over all steps that hold it."""
    steps = run.steps if kind == "filters" else run.steps[::2]
    shown = [getattr(run, kind)(layer, step) for step in steps]
    found = [
        np.abs(one if kind == "filters" else one.swapaxes(0, 1)).reshape(one.shape[kind != "filters"], -1)
        for one in shown
    ]
    return np.max([one.max(axis=1) for one in found], axis=0)


def rgb_of(values: npt.NDArray[np.float32], high: float) -> list[int]:
    return [128 + 4 * int(np.rint(np.clip(value / high, -1, 1) * 31)) for value in values]


def test_a_strip_shows_the_chosen_filters_at_the_chosen_steps_in_one_range(stored: Path) -> None:
    run = open_run(stored)
    picture = strip(run, Wanted(steps=(1, 2, 5, 10), channels=(0, 3, 7)))
    high = peaks(run, "stem")
    assert high[7] > run.limits("stem", "filters", 1).high[7], "its range must have grown for this test to tell"
    side = 5 * (((700 - 5) // 4) // 5)
    right, bottom = picture.width - MARGIN - 2, picture.height - MARGIN - 2
    for row, channel in enumerate((0, 3, 7)):
        for column, step in enumerate((1, 2, 5, 10)):
            at = (right - (3 - column) * (side + 1), bottom - (2 - row) * (side + 1))
            corner = run.filters("stem", step)[channel, :, -1, -1]
            assert picture.getpixel(at) == tuple(rgb_of(corner, float(high[channel]))), (channel, step)


def test_a_strip_takes_steps_at_even_strides(stored: Path) -> None:
    picture = strip(open_run(stored), Wanted())  # steps 0 to 11: 0, 2, 4, 6, 8, 10
    side = 5 * (((700 - 7) // 6) // 5)
    shown = np.asarray(picture)[MARGIN:-MARGIN, -MARGIN - 6 * side - 7 : -MARGIN]
    gaps = np.flatnonzero((shown[-8 * side - 9 :] == 0).all(axis=(0, 2)))
    assert gaps.tolist() == [number * (side + 1) for number in range(7)]
    run = open_run(stored)
    given = strip(run, Wanted(steps=(0, 2, 4, 6, 8, 10)))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(given))


@pytest.mark.parametrize(
    ("stored_steps", "columns", "note"),
    [
        (range(32), (0, 5, 10, 15, 20, 25, 30), ""),
        ((0, 1, 2, 5, 10, 20), (0, 5, 10, 20), "columns: of every 4 steps the nearest that is stored"),
    ],
)
def test_a_strip_has_the_columns_of_the_live_strip_and_says_where_they_are_uneven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_steps: Sequence[int], columns: tuple[int, ...], note: str
) -> None:
    lines: list[str] = []

    def canvas(width: int, *texts: str) -> Canvas:
        lines.extend(texts)
        return Canvas(width, *texts)

    monkeypatch.setattr("cnnlog.reports.strip.Canvas", canvas)
    run = open_run(write_run(tmp_path / "run", steps=stored_steps))
    picture = np.asarray(strip(run, Wanted()))
    assert [line for line in lines if line.startswith("columns")] == ([note] if note else [])
    given = np.asarray(strip(run, Wanted(steps=columns)))
    rows = slice(-8 * 30, None)
    np.testing.assert_array_equal(picture[rows], given[rows])
    assert strided(run.steps, STRIP_STEPS).steps == columns


def test_a_strip_shows_the_channels_that_changed_most(tmp_path: Path) -> None:
    start = (np.random.default_rng(0).integers(-8, 9, (12, 3, 3, 3)) / 8).astype(np.float32)
    way = np.zeros_like(start)
    start[[2, 4, 7, 11]] = start[0]  # of one length, so that what they changed by orders them
    for channel, amount in ((11, 3), (2, 2), (7, 1), (4, 1)):
        way[channel] = amount * np.eye(3)
    folder = write_run(tmp_path / "run", lambda step: ({"conv": start + np.float32(0.125 * step) * way}, {}))
    run = open_run(folder)
    picture = strip(run, Wanted())
    given = strip(run, Wanted(channels=(11, 2, 4, 7, 0, 1, 3, 5)))
    height = 8 * 3 * (((700 - 5) // 4) // 3)
    np.testing.assert_array_equal(np.asarray(picture)[-height:], np.asarray(given)[-height:])


@pytest.mark.parametrize("kind", list(Kind))
def test_an_exported_strip_shows_the_channels_of_the_live_strip(tmp_path: Path, kind: Kind) -> None:
    """Channel 0 is long and moves furthest, channel 5 is short and changes most, and channel 9 becomes NaN."""
    generator = np.random.default_rng(0)
    filters, maps = (generator.normal(size=shape).astype(np.float32) for shape in ((12, 2, 3, 3), (2, 12, 4, 4)))
    for start in (filters, maps.swapaxes(0, 1)):
        start[0] *= 50
        start[5] *= 0.3

    def at(step: int) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.float32]]]:
        moved = filters.copy(), maps.copy()
        for channels in (moved[0], moved[1].swapaxes(0, 1)):
            for channel in range(12):
                channels[channel] += np.float32(step * {0: 2.0, 5: 1.5}.get(channel, 0.01 * channel))
            channels[9, 0, 0, 0] = np.nan if step else 1.0
        return {"conv": moved[0]}, {"conv": moved[1]}

    run = open_run(write_run(tmp_path / "run", at))
    (live,) = (
        json.loads(Image.open(io.BytesIO(drawn.png)).text["cnnlog"])["channels"]  # type: ignore[attr-defined]
        for drawn in Drawers(run.manifest.layers, {kind: Look()}).strips(
            [run.record(step) for step in run.steps], strided(run.steps, STRIP_STEPS)
        )
    )
    assert live[0] == 5
    assert 9 not in live
    rows = slice(-8 * 30, None)  # the labels say which channels they are
    exported = np.asarray(strip(run, Wanted(kind=kind)))[rows]
    np.testing.assert_array_equal(exported, np.asarray(strip(run, Wanted(kind=kind, channels=tuple(live))))[rows])
    others = np.asarray(strip(run, Wanted(kind=kind, channels=tuple(reversed(live)))))[rows]
    assert not np.array_equal(exported, others)


def test_every_step_is_labelled_even_where_there_are_many(stored: Path) -> None:
    wide = strip(open_run(stored), Wanted(steps=tuple(range(12)), channels=(0,), width=64))
    assert wide.width > 64 + 12 * 12


def test_a_sheet_shows_every_layer_at_that_step_in_its_range_over_all_steps(stored: Path) -> None:
    run = open_run(stored)
    picture = sheet(run, Wanted(step=4))
    other = sheet(run, Wanted(step=6))
    for layer in LAYERS:
        assert layer.view is not None
        limits = run.limits_over_steps(layer.name, "filters")
        np.testing.assert_array_equal(limits.high, peaks(run, layer.name))
        filters = filters_grid(run.filters(layer.name, 4), limits, view=layer.view, width=350)
        maps_limits = run.limits_over_steps(layer.name, "feature_maps")
        np.testing.assert_array_equal(maps_limits.high, peaks(run, layer.name, "feature_maps"))
        maps = maps_grid(run.feature_maps(layer.name, 4)[0], maps_limits, width=350)
        assert holds(picture, filters)
        assert holds(picture, maps)
        assert not holds(other, filters)


def test_a_sheet_of_a_step_without_feature_maps_shows_the_filters(stored: Path) -> None:
    run = open_run(stored)
    assert sheet(run, Wanted(step=5)).width < sheet(run, Wanted(step=4)).width * 1.01
    with pytest.raises(ValueError, match="no feature maps at step 5"):
        sheet(run, Wanted(step=5, kind=Kind.FEATURE_MAPS))


def test_in_an_animation_a_colour_means_the_same_in_every_frame(stored: Path, tmp_path: Path) -> None:
    run = open_run(stored)
    path = tmp_path / "stem.png"
    Animation(run, Wanted()).save_apng(path)
    frames, durations = decoded(path)
    assert len(frames) == STEPS
    assert durations[0] == durations[-1] == AT_THE_ENDS
    assert set(durations[1:-1]) == {FRAME[1]}
    high = float(peaks(run, "stem")[0])
    top = frames[0].shape[0] - MARGIN - (3 * (5 * (((700 - 5) // 4) // 5)) + 3)
    for step, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, np.asarray(Animation(run, Wanted()).frame(step)))
        assert frame[top, MARGIN + 1].tolist() == rgb_of(run.filters("stem", step)[0, :, 0, 0], high)


def test_an_animated_png_of_equal_frames_keeps_each(tmp_path: Path) -> None:
    one, other = (Image.new("RGB", (20, 10), colour) for colour in ("white", "white"))
    other.putpixel((7, 3), (1, 2, 3))
    save_apng([one, one, other, one], [100, 200, 300, 400], tmp_path / "a.png")
    frames, durations = decoded(tmp_path / "a.png")
    assert durations == [100, 200, 300, 400]
    for frame, expected in zip(frames, (one, one, other, one), strict=True):
        np.testing.assert_array_equal(frame, np.asarray(expected))


def test_the_step_is_drawn_into_each_frame(stored: Path) -> None:
    animation = Animation(open_run(stored), Wanted())
    headers = [np.asarray(animation.frame(number))[:104, :300] for number in range(STEPS)]
    assert all((one != other).any() for one, other in pairwise(headers))
    assert all((header < 60).any() for header in headers)


@pytest.mark.parametrize("wanted", [Wanted(kind=Kind.FEATURE_MAPS), Wanted(layer="blocks.1/conv")])
def test_a_gif_of_one_channel_pictures_has_the_very_colours(wanted: Wanted, stored: Path, tmp_path: Path) -> None:
    animation = Animation(open_run(stored), wanted)
    path = tmp_path / "animation.gif"
    animation.save_gif(path)
    frames, durations = decoded(path)
    assert len(frames) == len(animation.steps)
    assert durations[0] == durations[-1] == AT_THE_ENDS
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, np.asarray(animation.frame(number)))


def test_a_gif_of_coloured_filters_keeps_page_letters_and_gaps(stored: Path, tmp_path: Path) -> None:
    animation = Animation(open_run(stored), Wanted())
    path = tmp_path / "animation.gif"
    animation.save_gif(path)
    frames, _ = decoded(path)
    for number, frame in enumerate(frames):
        exact = np.asarray(animation.frame(number))
        gray = (exact == exact[..., :1]).all(axis=-1)
        np.testing.assert_array_equal(frame[gray], exact[gray])
        assert np.abs(frame.astype(int) - exact).mean() < 8


def test_a_range_fresh_at_each_step_becomes_one_for_all_frames(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "fresh", rule="step"))
    frame = Animation(run, Wanted()).frame(0)
    top = frame.height - MARGIN - (3 * (5 * (((700 - 5) // 4) // 5)) + 3)
    corner = run.filters("stem", 0)[0, :, 0, 0]
    assert frame.getpixel((MARGIN + 1, top)) == tuple(rgb_of(corner, float(peaks(run, "stem")[0])))


def test_a_figure_names_what_it_shows(stored: Path) -> None:
    figure = exporting.figure(open_run(stored), Wanted(kind=Kind.FEATURE_MAPS, layer="stem"))
    (title, *_) = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "stem" in title
    assert "step 10" in title  # the last that holds feature maps


def test_all_forms_by_the_names_of_what_they_show(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forms = ("--strip", "--sheet", "--gif", "--apng", "--figure")
    lines = command(stored, *forms).output.splitlines()
    names = [
        "tuned-stem-filters-strip.png",
        "tuned-sheet-step11.png",
        "tuned-stem-filters.gif",
        "tuned-stem-filters-animated.png",
        "tuned-stem-filters-step11.png",
    ]
    assert [line for line in lines if not line.startswith("note: ")] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert "256 colours" in note
    command(stored, "--gif", "--layer", "blocks.1/conv", "--kind", "feature_maps", "--steps", "0,4,8")
    frames, _ = decoded(tmp_path / "tuned-blocks.1_conv-feature_maps.gif")
    assert len(frames) == 3


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_figures_for_papers(suffix: str, stored: Path, tmp_path: Path) -> None:
    path = tmp_path / f"figure{suffix}"
    command(stored, "--figure", "--step", 3, "-o", path)
    assert path.read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix])


def test_nothing_is_overwritten_unless_told(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists; give another name, or --force to replace it"):
        command(stored, "--strip", "-o", path)
    assert path.read_bytes() == b"mine"
    command(stored, "--strip", "-o", path, "--force")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_written_leaves_nothing(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left on device"):
        command(stored, "--strip", "-o", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_damaged_step_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    broken = folder / "cnnlog" / "step-00000003.safetensors"
    broken.write_bytes(broken.read_bytes()[:200])
    text = command(folder, "--apng", "--strip", "-o", tmp_path).output
    assert "step-00000003.safetensors is truncated" in text
    frames, _ = decoded(tmp_path / "run-stem-filters-animated.png")
    assert len(frames) == STEPS - 1
    with pytest.raises(ValueError, match="is truncated"):
        command(folder, "--figure", "--step", 3, "-o", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to make of the run: --strip, --sheet"),
        (("--strip", "--steps", "1,2,20"), "no step 20; the nearest is 11"),
        (("--strip", "--kind", "feature_maps", "--steps", "0,5"), "step 5 .* no feature maps of stem; .* is 4"),
        (("--figure", "--kind", "feature_maps", "--step", "5"), "step 5 .* no feature maps of stem; .* is 4"),
        (("--sheet", "--step", "20"), "no step 20; the nearest is 11"),
        (("--strip", "--steps", "1,x"), "whole numbers, as in 1,2,5; got '1,x'"),
        (("--strip", "--channels", "0,10"), "the filters 0 to 9; got --channels 0,10"),
        (("--gif", "--layer", "stme"), "no layer 'stme'; there is stem"),
        (("--gif", "--kind", "feature_maps", "--image", "2"), "the probe's images are 0 to 1; got --image 2"),
        (("--gif", "--cmap", "grey_"), "cmap must be auto"),
        (("--gif", "--channels", "1"), "--channels is for --strip; leave it out"),
        (("--sheet", "--layer", "stem"), "--layer is for --strip"),
        (("--gif", "-o", "a.png"), "a gif is written as .gif; got 'a.png'"),
        (("--strip", "-o", "no/a.png"), "the folder of 'no/a.png' does not exist"),
        (("--strip", "--gif", "-o", "a.png"), "2 files are to be made, so --output must be a folder"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        command(stored, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_and_one_with_several(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no cnnlog run"):
        command(tmp_path, "--gif")
    for name in ("a", "b"):
        write(tmp_path / name)
    with pytest.raises(ValueError, match="holds 2 runs, and one is needed"):
        command(tmp_path, "--gif")


def test_a_run_with_feature_maps_only_shows_those(stored: Path) -> None:
    run = open_run(stored)
    manifest = run.manifest
    layers = tuple(WatchedLayer(la.name, la.tag, la.kind, None, la.output_shape, None) for la in manifest.layers)
    only = Run(RunStore(run.path, Manifest(**{**vars(manifest), "layers": layers})), run.name)
    assert Animation(only, Wanted()).steps == tuple(range(0, STEPS, 2))
    with pytest.raises(ValueError, match="no filters; layers that do: none"):
        strip(only, Wanted(kind=Kind.FILTERS))

"""The pictures that trackers get can be read without the store, and show what moved by as much as it moved."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from support.training import events
from torch import nn

import cnnlog
from cnnlog import Probe
from cnnlog.kinds import Kind
from cnnlog.recording.drawer import Drawers, LoggedPicture, Look
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.steps import strided
from cnnlog.snapshot import FloatArray, Record, Snapshot

RGB = WatchedLayer("stem", "00_stem", "Conv2d", (6, 3, 5, 5), (2, 6, 12, 12), "rgb")
SLICES = WatchedLayer("body", "01_body", "Conv2d", (5, 4, 3, 3), (2, 5, 70, 90), "slices")
MEAN = WatchedLayer("mean", "02_mean", "Conv2d", (7, 4, 1, 1), (2, 7, 1, 9), "mean")
DEPTHWISE = WatchedLayer("depth", "03_depth", "Conv2d", (9, 1, 7, 7), (2, 9, 27, 27), "gray")
LAYERS = (RGB, SLICES, MEAN, DEPTHWISE)


# --- a decoder of its own: NumPy, PIL and what stands in the file


@dataclass
class Decoded:
    """What a PNG says: values `[channels, cells, h, w]`, or `[channels, 3, h, w]` of colours, and where they are none.

    `shade` is the size of a shade of each channel; `above` and `below` tell what is beyond the range; `notched` which
    channels have a notch.
    """

    facts: dict[str, Any]
    values: npt.NDArray[np.float64]
    shade: npt.NDArray[np.float64]
    below: npt.NDArray[np.bool_]
    above: npt.NDArray[np.bool_]
    notched: npt.NDArray[np.bool_]


def decode(png: bytes) -> Decoded:
    with Image.open(io.BytesIO(png)) as picture:
        facts = json.loads(picture.text["cnnlog"])
        pixels = np.asarray(picture).astype(int)
        in_colour = picture.mode == "RGB"
    h, w = facts["cell"]
    factor, columns, cells = facts["factor"], facts["columns"], facts["cells"]
    count = len(facts["channels"]) * cells
    rows = -(-count // columns)
    assert pixels.shape[:2] == (rows * (h * factor + 1) + 1, columns * (w * factor + 1) + 1)
    shades, notches = [], []
    for cell in range(count):
        top, left = cell // columns * (h * factor + 1), cell % columns * (w * factor + 1)
        block = pixels[top + 1 : top + 1 + h * factor, left + 1 : left + 1 + w * factor]
        small = block[::factor, ::factor]
        repeated = small.repeat(factor, axis=0).repeat(factor, axis=1)
        chequer = in_colour and (repeated != block).any()
        assert chequer or (repeated == block).all(), "each value is a square of one colour"
        shades.append(small)
        above_it = pixels[top, left + 1 : left + 1 + w * factor]
        notches.append((above_it == 255).all(axis=-1).any() if in_colour else (above_it == facts["notch"]).any())
    stacked = np.array(shades).reshape(len(facts["channels"]), cells, h, w, *([3] if in_colour else []))
    if in_colour:
        stacked = np.moveaxis(stacked[:, 0], -1, 1)
    low, high = (np.array(facts[end], np.float64).reshape(-1, 1, 1, 1) for end in ("low", "high"))
    shade = (high - low) / (facts["last"] - facts["first"])
    values = low + (stacked - facts["first"]) * shade
    if in_colour:  # a colour with a 0 or a 255 in it is no value; the whole pixel is then none
        lost = ((stacked == 0) | (stacked == 255)).any(axis=1, keepdims=True).repeat(3, axis=1)
        below, above = stacked == facts["first"], stacked == facts["last"]
        shade = shade * 4  # components go in steps of 4
    else:
        lost, below, above = (stacked == facts[name] for name in ("not_finite", "below", "above"))
    values[lost] = np.nan
    notched = np.array(notches).reshape(len(facts["channels"]), cells)
    assert (notched == notched[:, :1]).all(), "all cells of a channel have its notch"
    return Decoded(facts, values, shade, below & ~lost, above & ~lost, notched[:, 0])


def check(found: Decoded, values: FloatArray) -> None:
    """That a decoded picture shows these values `[channels, cells or 3, h, w]`."""
    in_colour = "notch" not in found.facts
    low, high = (np.array(found.facts[end], np.float32).reshape(-1, 1, 1, 1) for end in ("low", "high"))
    finite = np.isfinite(values)
    lost = (~finite).any(axis=1, keepdims=True).repeat(values.shape[1], axis=1) if in_colour else ~finite
    np.testing.assert_array_equal(np.isnan(found.values), lost)
    told = ~lost
    if in_colour:
        values = np.clip(values, low, high)
    else:
        np.testing.assert_array_equal(found.above, finite & (values > high))
        np.testing.assert_array_equal(found.below, finite & (values < low))
        told &= ~found.above & ~found.below
    off = np.abs(found.values - values, where=told, out=np.zeros(values.shape))
    assert (off <= np.broadcast_to(found.shade, off.shape) * 0.5001).all(), "within half a shade"
    np.testing.assert_array_equal(
        found.notched,
        [str(c) in found.facts["doubled"] or found.facts["switched"] for c in found.facts["channels"]],
    )


# --- what is drawn


def snapshots(seed: int = 0) -> Iterator[Snapshot]:
    """Seven steps: filters and maps that grow, with NaN, infinity, a few giants, and a layer that turns negative."""
    rng = np.random.default_rng(seed)
    base = {
        kind: {layer.name: rng.standard_normal(kind.shape(layer)).astype(np.float32) for layer in LAYERS}
        for kind in Kind
    }
    base[Kind.FEATURE_MAPS]["stem"] = np.abs(base[Kind.FEATURE_MAPS]["stem"])
    move = {kind: {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in base[kind].items()} for kind in Kind}
    for step in range(7):
        now = {kind: {n: a + 0.3 * step * move[kind][n] for n, a in base[kind].items()} for kind in Kind}
        if step < 3:
            now[Kind.FEATURE_MAPS]["stem"] = np.abs(now[Kind.FEATURE_MAPS]["stem"])
        if step > 1:
            now[Kind.FILTERS]["depth"][0, 0, 2, 3] = 1e4
            now[Kind.FILTERS]["stem"][1, 2, 0, 0] = np.nan
            now[Kind.FILTERS]["body"][2, 1, 0, 0] = np.inf
            now[Kind.FEATURE_MAPS]["depth"][1, 3, 4:9] = np.nan
            now[Kind.FEATURE_MAPS]["depth"][0, 4, 0, 0] = -np.inf
        yield Snapshot(
            step=step, epoch=step, global_step=4 * step, filters=now[Kind.FILTERS], feature_maps=now[Kind.FEATURE_MAPS]
        )


def recorded(drawers: Drawers) -> Iterator[Record]:
    for whole in snapshots():
        yield Record(
            step=whole.step,
            epoch=whole.epoch,
            global_step=whole.global_step,
            numbers={},
            filters=drawers.shown(whole, Kind.FILTERS),
            feature_maps=drawers.shown(whole, Kind.FEATURE_MAPS),
        )


def drawn(look: Look) -> Iterator[tuple[Record, dict[str, LoggedPicture]]]:
    drawers = Drawers(LAYERS, dict.fromkeys(Kind, look))
    for record in recorded(drawers):
        drawers.see(record)
        yield record, {picture.tag: picture for picture in drawers.pictures(record, 0)}


@pytest.mark.parametrize(
    "look",
    [Look(), Look(value_range="layer", cmap="gray"), Look(value_range="step", width=None), Look(width=100, shown=4)],
    ids=["as it is", "layer", "step", "small"],
)
def test_every_picture_can_be_read_without_the_store(look: Look) -> None:
    baseline = None
    seen = dict.fromkeys(("above", "below", "notched", "lost", "switched", "doubled"), 0)
    for record, by_tag in drawn(look):
        baseline = baseline or record
        expected: dict[str, FloatArray] = {}
        for layer in LAYERS:
            for suffix, since in (("", None), ("_change", baseline)):
                if suffix and record is baseline:
                    continue
                filters, maps = record.filters[layer.name], record.feature_maps[layer.name]
                if since is not None:
                    with np.errstate(invalid="ignore"):
                        filters, maps = filters - since.filters[layer.name], maps - since.feature_maps[layer.name]
                expected[f"filters{suffix}/{layer.tag}"] = filters
                for image in range(2):
                    expected[f"feature_maps{suffix}/{layer.tag}/image{image}"] = maps[image][:, None]
        assert by_tag.keys() == expected.keys()
        for tag, values in expected.items():
            found = decode(by_tag[tag].png)
            check(found, values)
            assert (found.facts["kind"], found.facts["step"]) == (tag.split("/")[0], record.step)
            assert found.facts["layer"] == next(layer.name for layer in LAYERS if layer.tag in tag)
            assert by_tag[tag].size[0] <= (look.width or 10**6)
            counts = {
                "above": found.above.any() and "notch" in found.facts,
                "below": found.below.any() and "notch" in found.facts,
                "notched": found.notched.any(),
                "lost": np.isnan(found.values).any(),
                "switched": found.facts["switched"],
                "doubled": bool(found.facts["doubled"]),
            }
            seen = {what: seen[what] + int(count) for what, count in counts.items()}
    if look.value_range != "step":
        assert all(seen.values()), f"the case must have some of each: {seen}"


def test_the_decoder_notices_a_value_that_is_a_shade_off() -> None:
    record, by_tag = next(drawn(Look()))
    values = record.filters["depth"].copy()
    found = decode(by_tag["filters/03_depth"].png)
    check(found, values)
    values[4, 0, 3, 3] += 1.02 * float(found.shade[4, 0, 0, 0])
    with pytest.raises(AssertionError, match="within half a shade"):
        check(found, values)


def test_a_strip_can_be_read_too_and_shows_the_channels_that_changed_most() -> None:
    drawers = Drawers(LAYERS, dict.fromkeys(Kind, Look()))
    stored = list(recorded(drawers))
    for record in stored:
        record.filters["stem"][3] += record.step  # moves by far the most
    strips = {strip.tag: strip for strip in drawers.strips(stored, strided(range(7)))}
    assert list(strips) == [f"{kind}_strip/{layer.tag}" for kind in Kind for layer in LAYERS]
    for kind in Kind:
        for layer in LAYERS:
            found = decode(strips[f"{kind}_strip/{layer.tag}"].png)
            assert found.facts["steps"] == [0, 1, 2, 3, 4, 5, 6]
            rows = found.facts["channels"]
            of_steps = np.stack([kind.of(record)[layer.name] for record in stored])
            if kind is Kind.FILTERS and layer is RGB:
                assert rows[0] == 3
                continue  # seven cells of three colours a channel: the grid's test has them
            cells = (of_steps[:, 0] if kind is Kind.FEATURE_MAPS else of_steps[:, :, 0])[:, rows].swapaxes(0, 1)
            if kind is Kind.FEATURE_MAPS and layer is SLICES:
                assert found.facts["cell"] == [37, 48], "averaged to the width of its column"
                continue
            check(found, cells)
            assert not found.notched.any()
            assert not found.above.any()
            assert not found.below.any()
            finite = np.where(np.isfinite(cells), np.abs(cells), 0)
            np.testing.assert_array_equal(np.array(found.facts["high"], np.float32), finite.max(axis=(1, 2, 3)))


def test_descriptions_say_what_colours_mean_with_numbers() -> None:
    steps = list(drawn(Look()))
    first, second = steps[0][1], steps[1][1]
    high = np.array(decode(first["filters/03_depth"].png).facts["high"])
    text = first["filters/03_depth"].description
    assert f"from {high.min():.3g} to {high.max():.3g}" in text
    assert "White is 0, blue the end below and red the end above" in text
    assert "1.5 times its peak at step 0" in text
    assert "more than 2 % of a channel" in text
    assert "Black is 0 and pale yellow the end; white is beyond it." in first["feature_maps/00_stem/image0"].description
    assert "Mid gray is 0 and full colour the end" in first["filters/00_stem"].description
    (end,) = set(decode(second["filters_change/03_depth"].png).facts["high"])
    assert f"The ends are −{end:.3g} and {end:.3g} for all channels" in second["filters_change/03_depth"].description


# --- what moved


class Small(nn.Sequential):
    """Convolutions of all kinds: in colour, of many inputs, depthwise, 1 x 1."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 7), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 5, groups=16), nn.Conv2d(16, 8, 1)
        )


@pytest.mark.parametrize("seed", [2, 5])
@pytest.mark.parametrize("view", ["auto", "mean"])
def test_weights_that_move_by_a_hundredth_a_step_are_drawn_so(seed: int, view: Any, tmp_path: Path) -> None:
    """From one picture to the next the pixels may move by at most 1.5 times what they move by in the median.

    That is the promise while nothing outgrows its range. Of a few values the rounding to 63 shades alone breaks it.
    """
    torch.manual_seed(seed)
    net = Small()
    convolutions = [module for module in net if isinstance(module, nn.Conv2d)]
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(module.weight.shape, generator=generator) for module in convolutions]
    with cnnlog.watch(net, Probe.chart(48), tmp_path, view=view) as watcher:
        for step in range(21):
            watcher.snapshot(step)
            with torch.no_grad():
                for module, direction in zip(convolutions, directions, strict=True):
                    module.weight += 0.01 * module.weight.norm() * direction / direction.norm()
    log = events(tmp_path)
    tags = [tag for tag in log.Tags()["images"] if tag.startswith(("filters/", "feature_maps/"))]
    assert len(tags) == 8
    checked = []
    for tag in tags:
        pngs = [event.encoded_image_string for event in log.Images(tag)]
        assert len(pngs) == 21
        last = decode(pngs[-1])
        if last.values.size < 300 or last.notched.any():
            continue
        checked.append(tag)
        drawings = [picture(png) for png in pngs]
        moves = [float(np.abs(after - before).mean()) for before, after in pairwise(drawings)]
        assert max(moves) <= 1.5 * float(np.median(moves)), f"{tag}: {np.round(moves, 2)}"
    assert len(checked) >= 5, "the case must stay within its ranges to tell"


def picture(png: bytes) -> npt.NDArray[np.float64]:
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB")).astype(np.float64)

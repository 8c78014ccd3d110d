"""Pictures before they are drawn: which there are of a layer, and what a part of one is."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlog.kinds import Kind
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.picture import Picture
from cnnlog.rendering.ranges import AnchoredRange, Limits
from cnnlog.snapshot import FloatArray


def values(*shape: int) -> FloatArray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def ranges(shown: FloatArray, kind: Kind) -> Limits:
    return AnchoredRange(signed=True).update(kind.by_channel(shown))


def test_filters_make_one_picture_and_maps_one_for_each_probe_image() -> None:
    filters, maps = values(5, 3, 4, 4), values(2, 6, 8, 9)
    (one,) = Picture.several(Kind.FILTERS, filters, ranges(filters, Kind.FILTERS))
    assert (one.kind, one.view, one.values.shape) == (Kind.FILTERS, "rgb", (5, 3, 4, 4))
    several = Picture.several(Kind.FEATURE_MAPS, maps, ranges(maps, Kind.FEATURE_MAPS))
    assert [(each.kind, each.view) for each in several] == [(Kind.FEATURE_MAPS, None)] * 2
    for each, image in zip(several, maps, strict=True):
        np.testing.assert_array_equal(each.values, image)


@pytest.mark.parametrize(("view", "columns"), [("slices", 4), ("mean", 3), (None, 4)])
def test_a_picture_of_filters_is_drawn_in_its_view(view: str | None, columns: int) -> None:
    filters = values(5, 1 if view == "mean" else 4, 3, 3)
    limits = ranges(filters, Kind.FILTERS)
    picture = Picture.of(Kind.FILTERS, filters, limits, view=view, cmap="gray")  # type: ignore[arg-type]
    assert picture.columns == columns
    drawn = filters_grid(filters, limits, view=view or "auto", cmap="gray", width=100)  # type: ignore[arg-type]
    np.testing.assert_array_equal(picture.grid(100).pixels, drawn.pixels)


def test_a_probe_image_is_chosen_by_its_number_and_filters_have_none() -> None:
    maps, filters = values(3, 2, 5, 5), values(2, 1, 3, 3)
    limits = ranges(maps, Kind.FEATURE_MAPS)
    chosen = Picture.of(Kind.FEATURE_MAPS, maps, limits, image=2)
    np.testing.assert_array_equal(chosen.grid(40).pixels, maps_grid(maps[2], limits, width=40).pixels)
    assert Picture.of(Kind.FILTERS, filters, ranges(filters, Kind.FILTERS), image=7).view == "gray"
    for image in (-1, 3):
        with pytest.raises(ValueError, match=f"image must be from 0 to 2, the probe's images; got {image}"):
            Picture.of(Kind.FEATURE_MAPS, maps, limits, image=image)


def test_the_first_channels_keep_their_ranges() -> None:
    maps = values(1, 5, 4, 4) * np.arange(1, 6, dtype=np.float32)[None, :, None, None]
    limits = ranges(maps, Kind.FEATURE_MAPS)
    first = Picture.of(Kind.FEATURE_MAPS, maps, limits).first(2)
    np.testing.assert_array_equal(first.values, maps[0, :2])
    np.testing.assert_array_equal(first.limits.high, limits.high[:2])
    assert len(first.first(9).values) == 2
    np.testing.assert_array_equal(limits.only([3, 0]).high, limits.high[[3, 0]])


def test_a_figure_is_titled_and_numbers_the_channels() -> None:
    maps = values(1, 3, 4, 4)
    figure = Picture.of(Kind.FEATURE_MAPS, maps, ranges(maps, Kind.FEATURE_MAPS)).figure("What it shows")
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"What it shows", "0", "1", "2"} <= words


def test_whoever_changes_the_facts_of_a_grid_changes_no_other_facts() -> None:
    maps = values(1, 5, 4, 4)
    picture = Picture.of(Kind.FEATURE_MAPS, maps, ranges(maps, Kind.FEATURE_MAPS))
    grid = picture.grid(100)
    facts = picture.facts(grid)
    high = list(facts["high"])
    facts["high"].clear()
    facts["low"].append(1.0)
    assert picture.facts(grid)["high"] == high
    assert picture.facts(grid)["low"] == [-end for end in high]

"""The pictures of a comparison: which there are, in which order, and what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.stored_runs import Arrays, moving, write_run

from cnnlog.comparison.comparison import Comparison, compare
from cnnlog.comparison.pictures import Key, pictures
from cnnlog.kinds import Kind


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("pictures")
    one = write_run(folder / "one", moving(0, 0.1))
    return compare(one, write_run(folder / "other", moving(1, 0.3)))


def test_every_side_and_every_difference_has_a_picture_of_each_kind(comparison: Comparison) -> None:
    keys = [key for key, _ in pictures(comparison, 2)]
    assert keys == [
        Key(layer, kind, side, image=0, change=change)
        for layer in range(len(comparison.layers))
        for kind in Kind
        for side, change in ((0, False), (1, False), (1, True))
    ]
    assert len(set(keys)) == len(keys)
    assert keys[2].name == "0-filters-d1"


def test_a_picture_shows_what_the_comparison_gives(comparison: Comparison) -> None:
    for key, picture in pictures(comparison, 3):
        layer = comparison.layers[key.layer]
        if key.change:
            values = comparison.difference(layer, key.kind, 3, key.side)
            limits = comparison.difference_limits(layer, key.kind, 3, key.side)
        else:
            values = comparison.shown(key.side, layer, key.kind, 3)
            limits = comparison.limits(key.side, layer, key.kind, 3)
        assert values is not None
        assert limits is not None
        np.testing.assert_array_equal(picture.values, values[key.image] if key.kind.per_image else values)
        np.testing.assert_array_equal(picture.limits.high, limits.high)
        assert picture.view == (None if key.kind.per_image else comparison.view_of(key.side, layer))


def test_feature_maps_have_a_picture_for_each_probe_image(tmp_path: Path) -> None:
    filters, maps = moving(0, 0.1)(0)
    two = {name: np.concatenate([shown, shown + 1]) for name, shown in maps.items()}
    run = write_run(tmp_path / "two", lambda step: (filters, two))
    keys = [key for key, _ in pictures(compare(run), 0) if key.kind is Kind.FEATURE_MAPS]
    assert keys[:2] == [replace(keys[0], image=0), replace(keys[0], image=1)]
    assert {key.image for key in keys} == {0, 1}


def test_what_a_side_lacks_has_no_picture(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", moving(0, 0.1))

    def without_maps(step: int) -> tuple[Arrays, Arrays]:
        return moving(1, 0.3)(step)[0], {}

    comparison = compare(one, write_run(tmp_path / "other", without_maps))
    found = {(key.kind, key.side, key.change) for key, _ in pictures(comparison, 1)}
    assert (Kind.FEATURE_MAPS, 0, False) in found
    assert not found & {(Kind.FEATURE_MAPS, 1, False), (Kind.FEATURE_MAPS, 1, True)}
    assert {(Kind.FILTERS, 1, False), (Kind.FILTERS, 1, True)} <= found


def test_a_kind_is_given_by_its_name_and_a_wrong_one_is_refused(comparison: Comparison) -> None:
    layer = comparison.layers[0]
    by_name = comparison.shown(0, layer, "filters", 1)
    np.testing.assert_array_equal(by_name, comparison.shown(0, layer, Kind.FILTERS, 1))
    wrong = "kind must be one of filters, feature_maps; got 'weights'"
    with pytest.raises(ValueError, match=wrong):
        comparison.shown(0, layer, "weights", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=wrong):
        comparison.figure(layer.name, "weights")  # type: ignore[arg-type]


def test_curves_are_computed_once_and_may_be_changed(comparison: Comparison) -> None:
    curves = comparison.curves()
    assert comparison._curves is comparison._curves
    curves["filter_angle"].clear()
    assert comparison.curves()["filter_angle"]

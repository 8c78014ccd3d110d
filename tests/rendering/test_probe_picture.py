"""The probe's own picture: no wider than a grid, and every row of a strip can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlog.rendering.probe_picture import probe_picture


def rows_of(height: int, width: int) -> np.ndarray:
    """Each row has a colour of its own."""
    shades = np.arange(height) * 255 // max(1, height - 1)
    return np.broadcast_to(shades[:, None, None], (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("limit", [350, 100])
@pytest.mark.parametrize(
    ("height", "width"), [(22, 500), (8, 4000), (1, 512), (64, 2000), (100, 351), (2, 100000), (3, 400)]
)
def test_every_row_of_a_wide_strip_is_seen(height: int, width: int, limit: int) -> None:
    picture = probe_picture([rows_of(height, width)], width=limit, photos=False)
    assert picture.shape[1] == min(width, limit)
    assert picture.shape[0] % height == 0
    each = picture.shape[0] // height
    np.testing.assert_array_equal(picture[::each, 0], rows_of(height, 1)[:, 0])
    np.testing.assert_array_equal(picture, np.repeat(picture[::each], each, axis=0))


def test_a_photograph_keeps_its_sides() -> None:
    assert probe_picture([rows_of(800, 1000)], width=350, photos=True).shape == (280, 350, 3)
    assert probe_picture([rows_of(224, 224)], width=350, photos=True).shape == (224, 224, 3)
    assert probe_picture([rows_of(4000, 8)], width=350, photos=False).shape == (4000, 8, 3)


def test_scaling_keeps_the_mean() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    scaled = probe_picture([noise], width=350, photos=True)
    np.testing.assert_allclose(scaled, noise.reshape(300, 2, 350, 2, 3).mean((1, 3)), atol=1.01)  # rounded twice


def test_several_images_stand_in_rows() -> None:
    images = [np.full((40, 100, 3), number, np.uint8) for number in range(5)]
    picture = probe_picture(images, width=350, photos=True)
    assert picture.shape == (81, 302, 3)
    assert [picture[0, left, 0] for left in (0, 101, 202)] == [0, 1, 2]
    assert [picture[41, left, 0] for left in (0, 101)] == [3, 4]
    assert (picture[40] == 255).all()
    assert (picture[41:, 202:] == 255).all()

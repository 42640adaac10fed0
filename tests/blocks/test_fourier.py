import math

import pytest
import torch

from mapformers.blocks.fourier import FourierGrid, fourier_features, fourier_width, grid
from mapformers.core.errors import MapformersError
from tests.tolerances import assert_close


def test_a_grid_by_hand() -> None:
    expected = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert grid([2, 3]).tolist() == expected


def test_features_by_hand() -> None:
    """Two axes of 4 and 8 places, two bands: frequencies 1 and 2, and 1 and 4."""
    p = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    angles = [0.5, 0.5 * 2, -0.25, -0.25 * 4]
    expected = [
        0.5,
        -0.25,
        *(math.sin(math.pi * a) for a in angles),
        *(math.cos(math.pi * a) for a in angles),
    ]
    assert_close(fourier_features(p, 2, [4, 8])[0], torch.tensor(expected, dtype=torch.float64), "parity")


def test_the_highest_band_is_that_of_nyquist() -> None:
    """On a grid of r places, one period of r / 2 x 2 / (r - 1) of a step: neighbours all but alternate."""
    size = 65
    cosine = fourier_features(grid([size]), 3, [size])[:, -1]
    assert int((cosine.sign().diff() != 0).sum()) >= size - 2


def test_the_width_of_imagenet() -> None:
    assert fourier_width(2, 64) == 258
    assert fourier_features(grid([3, 3]), 64, [3, 3]).shape == (9, 258)


def test_places_of_a_grid_differ() -> None:
    rows = FourierGrid([7, 5], 3)(torch.zeros((), dtype=torch.float64))
    assert rows.shape == (35, 14)
    assert len({tuple(row) for row in rows.tolist()}) == 35


def test_bad_sizes_are_named() -> None:
    for call in (
        lambda: grid([]),
        lambda: FourierGrid([3], 0),
        lambda: fourier_features(grid([3]), 2, [1, 2]),
    ):
        with pytest.raises(MapformersError, match="fourier"):
            call()

"""Losses and targets."""

import pytest
import torch

from pisasr.errors import ModelError
from pisasr.training.losses import build_perceptual, pixel_l2, sharpen


def test_l2_is_the_mean_of_squares_in_float32():
    a, b = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), torch.full((1, 3, 2, 2), 0.5)
    assert pixel_l2(a, b).item() == 0.25 and pixel_l2(a, b).dtype == torch.float32


def test_sharpening_leaves_flat_areas_and_steepens_edges():
    x = torch.full((1, 3, 24, 24), -0.3)
    x[..., 12:] = 0.3
    sharp = sharpen(x, amount=1.0)
    torch.testing.assert_close(sharp[..., 0], x[..., 0])
    assert sharp[0, 0, 5, 11] < -0.4 and sharp[0, 0, 5, 12] > 0.4
    torch.testing.assert_close(sharp.mean(), x.mean(), atol=1e-5, rtol=0)
    assert torch.equal(sharpen(x, amount=0.0), x)


def test_a_missing_backbone_file_is_named():
    pytest.importorskip("lpips")
    with pytest.raises(ModelError, match="perceptual.weights is nowhere.h5"):
        build_perceptual("hed", "nowhere.h5")

"""Losses and targets."""

import pytest
import torch

from pisasr.training.losses import GREY_LEVEL, lattice, pixel_l2, sharpen
from pisasr.training.stages import Batch


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
    narrow = sharpen(x, amount=1.0, sigma=1.0)
    assert (
        narrow[0, 0, 5, 11] < -0.4
        and (narrow[..., 8] - x[..., 8]).abs().max() < 0.01 < (sharp - x)[0, 0, 5, 8].abs()
    )


def test_the_lattice_loss_is_the_share_that_repeats_in_every_cell():
    x_H = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    cell = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    cell -= cell.mean((1, 2), keepdim=True)
    cell *= GREY_LEVEL / cell.square().mean((1, 2), keepdim=True).sqrt()
    tiled = cell.repeat(1, 16, 16)
    torch.testing.assert_close(
        lattice(x_H + tiled, x_H, cell_px=4), torch.tensor(0.5), atol=1e-4, rtol=0
    )
    noise = torch.randn(x_H.shape, generator=torch.Generator().manual_seed(2))
    assert lattice(x_H + noise, x_H, cell_px=4) == pytest.approx(
        1 / 64, rel=0.2
    )  # averaged over 8 * 8 cells
    assert (
        lattice(x_H + tiled + 20 * GREY_LEVEL * noise, x_H, cell_px=4) < 0.025
    )  # a busy window hides it
    assert lattice(x_H + 0.2, x_H, cell_px=4) < 1e-6  # a wrong brightness is no lattice


def test_a_window_moves_each_sample_by_its_own_corner():
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    seen = Batch(x_L=x, x_H=x, shift=2, corners=[(0, 2), (1, 0)]).window(x)
    assert torch.equal(seen[0], x[0, :, 0:4, 2:6]) and torch.equal(seen[1], x[1, :, 1:5, 0:4])
    assert Batch(x_L=x, x_H=x).window(x) is x

"""The formula, and its corners."""

import pytest
import torch

from pisasr.method.residual import mix_residuals, needed, remove_residual, restore_latent

EPS_PIX, EPS_PISA = torch.tensor([1.0, -2.0, 0.25]), torch.tensor([4.0, 0.5, 0.25])


def test_the_corners_are_the_predictions_themselves():
    assert torch.equal(mix_residuals(EPS_PIX, EPS_PISA, 1, 0), EPS_PIX)
    assert torch.equal(mix_residuals(EPS_PIX, EPS_PISA, 1, 1), EPS_PISA)
    assert torch.equal(mix_residuals(EPS_PIX, EPS_PISA, 0, 0), torch.zeros(3))
    assert torch.equal(mix_residuals(EPS_PIX, EPS_PISA, 0, 1), EPS_PISA - EPS_PIX)


def test_a_hand_computed_mix():
    mixed = mix_residuals(EPS_PIX, EPS_PISA, 0.5, 1.5)
    assert torch.equal(mixed, torch.tensor([0.5 + 4.5, -1 + 3.75, 0.125]))


def test_it_is_linear_in_each_strength():
    low, high = (mix_residuals(EPS_PIX, EPS_PISA, lp, 0.5) for lp in (0.25, 1.25))
    torch.testing.assert_close(mix_residuals(EPS_PIX, EPS_PISA, 0.75, 0.5), (low + high) / 2)


def test_removal_is_plain_subtraction():
    assert torch.equal(remove_residual(EPS_PISA, EPS_PIX), EPS_PISA - EPS_PIX)


@pytest.mark.parametrize(
    "strengths", [(0, 0), (1, 1), (0.7, 0.7), (1, 0), (-2, 0), (0, 1), (0.5, 1.5)]
)
def test_what_is_not_needed_changes_nothing_by_its_absence(strengths):
    z_L = torch.tensor([3.0, 1.0, 2.0])
    given = [
        eps if need else None
        for eps, need in zip((EPS_PIX, EPS_PISA), needed(*strengths), strict=True)
    ]
    wanted = z_L - mix_residuals(EPS_PIX, EPS_PISA, *strengths)
    torch.testing.assert_close(restore_latent(z_L, *given, *strengths), wanted)

"""What each blur kernel promises; formulas against basicsr are in test_degradation.py."""

import math

import pytest
import torch

from pisasr.data import kernels

SIZES = (7, 13, 21)
SHAPES = {
    "iso": lambda size: kernels.gaussian(size, 1.7, 1.7, 0.0),
    "aniso": lambda size: kernels.gaussian(size, 2.5, 0.8, 0.6),
    "generalized_iso": lambda size: kernels.gaussian(size, 1.7, 1.7, 0.0, beta=2.5),
    "generalized_aniso": lambda size: kernels.gaussian(size, 2.5, 0.8, 0.6, beta=0.6),
    "plateau_iso": lambda size: kernels.plateau(size, 1.7, 1.7, 0.0, beta=1.5),
    "plateau_aniso": lambda size: kernels.plateau(size, 2.5, 0.8, 0.6, beta=1.5),
    "sinc": lambda size: kernels.sinc(size, 1.9),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_to_one_and_is_the_same_upside_down(shape, size):
    kernel = SHAPES[shape](size)
    assert kernel.shape == (size, size) and kernel.dtype == torch.float64
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(kernel, kernel.flip(0, 1), rtol=0, atol=1e-15)
    assert kernel.argmax() == size * size // 2


@pytest.mark.parametrize("shape", ["iso", "generalized_iso", "plateau_iso", "sinc"])
def test_round_kernels_are_the_same_turned_and_mirrored(shape):
    kernel = SHAPES[shape](13)
    for other in (kernel.T, kernel.flip(0), kernel.rot90()):
        torch.testing.assert_close(other, kernel, rtol=0, atol=1e-15)


def test_stretched_kernels_lie_along_their_angle():
    """sigma_x = 3 at an angle of 45 degrees: long from the upper left to the lower right, as y
    grows downward.
    """
    kernel = kernels.gaussian(21, 3.0, 1.0, math.pi / 4)
    assert kernel[5, 5] > 100 * kernel[5, 15]
    torch.testing.assert_close(
        kernels.gaussian(21, 3.0, 1.0, 0.0).T, kernels.gaussian(21, 3.0, 1.0, math.pi / 2)
    )


def test_gaussian_has_the_variance_asked_for():
    x, y = kernels.centered_grid(21)
    kernel = kernels.gaussian(21, 2.0, 1.0, 0.0)
    assert (kernel * x**2).sum().item() == pytest.approx(4.0, rel=1e-3)
    assert (kernel * y**2).sum().item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2, 0.8 * math.pi])
def test_sinc_passes_below_its_cutoff_and_stops_above(cutoff):
    """Half of the strength is left at the cutoff, nearly all and nearly nothing well below and
    above it.
    """
    kernel = kernels.sinc(21, cutoff)
    x, _ = kernels.centered_grid(21)

    def response(frequency):
        return (kernel * torch.cos(frequency * x)).sum().item()

    assert response(0) == pytest.approx(1)
    assert response(cutoff) == pytest.approx(0.5, abs=0.1)
    assert response(0.5 * cutoff) == pytest.approx(1, abs=0.15)
    assert response(min(1.5 * cutoff, math.pi)) == pytest.approx(0, abs=0.15)
    assert kernel.min() < 0  # what rings


def test_stored_values():
    """Our own, once checked against basicsr: so the formulas are held where basicsr is absent."""
    got = torch.stack([SHAPES[shape](7)[1, 1:4] for shape in SHAPES])
    torch.testing.assert_close(got, torch.tensor(STORED, dtype=torch.float64), rtol=1e-9, atol=0)


STORED = [
    [0.0148697537274, 0.0249871162116, 0.0297066438997],
    [0.0385099036027, 0.0259053772656, 0.00949569993636],
    [0.000161394385431, 0.0132247486836, 0.0306853048829],
    [0.031290448743, 0.0261656507753, 0.0180809207105],
    [0.0125345054727, 0.0214502092166, 0.0267331764564],
    [0.0321089500388, 0.0208187418977, 0.00967633594357],
    [-0.0487723261511, -0.0276622828447, 0.00255714140362],
]

"""What Stable Diffusion 2.1's size costs, counted without data: gates that are the same on every
machine.

Slow: up to 4096 px, in a few minutes and no memory.
"""

from itertools import pairwise

import pytest
import torch

from pisasr.benchmark.counting import count
from pisasr.benchmark.report import exponent
from pisasr.benchmark.subjects import FULL, without_data
from pisasr.method.model import PiSASR, Plan, Predictors, predict, restore
from pisasr.options import Options

GIB = 2**30
WEIGHTS = 2 * (
    2 * 865.9e6 + 83.7e6 + 340.4e6
)  # bytes in half precision: two UNets, VAE, text encoder
DEFAULT, ADJUSTED, NOTHING = (1.0, 1.0), (0.7, 1.2), (0.0, 0.0)


def plan_of(lean=False):
    """The default of Stable Diffusion: four levels, eightfold."""
    tile, overlap = Options().tile_plan(8)
    return Plan(tile, overlap, 4, 1, 512, lean)


@pytest.fixture(scope="module")
def costs():
    """What a picture of px * px costs at these strengths, with all done that is done once for a
    weight set.
    """
    unet, vae = without_data(FULL, torch.bfloat16)
    words, model = torch.empty(1, 77, 1024, device="meta", dtype=torch.bfloat16), PiSASR(unet, vae)
    predictors = Predictors(*[lambda z: predict(unet, z, words)] * 2)

    @torch.no_grad()
    def counted(px, pair, lean=False):
        x_L = torch.empty(1, 3, px, px, device="meta")
        return count(
            lambda: list(restore(model, x_L, predictors, [pair], plan_of(lean))), unets=(unet,)
        )

    counted(64, DEFAULT)
    return counted


def test_one_pass_and_two_at_512_px(costs):
    one, two = costs(512, DEFAULT), costs(512, ADJUSTED)
    assert (one.unet_calls, two.unet_calls) == (1, 2)
    assert one.flops / 1e12 == pytest.approx(
        4.01, abs=0.02
    )  # 4.43 with upsamplers as diffusers has them
    assert two.flops / one.flops < 1.2
    assert one.operations < 2100 and two.operations - one.operations < 1760
    assert two.peak_bytes < 0.5 * GIB


@pytest.mark.slow
def test_the_vae_is_linear_and_bounded_at_1024_px(costs):
    small, large, lean = costs(512, NOTHING), costs(1024, NOTHING), costs(1024, NOTHING, lean=True)
    assert (
        exponent([512**2, 1024**2], [small.flops, large.flops]) < 1.06
    )  # its attention is still whole
    assert (
        large.peak_bytes < 1.5 * GIB
        and lean.peak_bytes < 1.25 * GIB
        and lean.flops < 1.4 * large.flops
    )


@pytest.mark.slow
def test_from_512_to_4096_px(costs):
    sizes = [512, 1024, 2048, 4096]
    found = [costs(px, ADJUSTED) for px in sizes]
    assert exponent([px**2 for px in sizes], [one.flops for one in found]) < 1.05
    for (_, small), (_, large) in pairwise(zip(sizes, found, strict=True)):
        assert large.flops < 4.5 * small.flops
    assert WEIGHTS + found[-1].peak_bytes < 18 * GIB
    assert WEIGHTS + costs(4096, NOTHING, lean=True).peak_bytes < 12 * GIB

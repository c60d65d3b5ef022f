"""Promises of pisasr.method.consistent: reduced, a picture is x_L again, and what x_L's noise hides
is left alone.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from pisasr.method import consistent

SMALL = {"upscale": 2, "process_size": 16}


def smooth(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A picture [1, 3, H, W] of soft blobs in [0.1, 0.9], which no noise meter answers to."""
    seeds = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return consistent.resize(0.2 + 0.6 * seeds, (height, width)).clamp(0.1, 0.9)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agree(x: torch.Tensor, x_L: torch.Tensor, rows: int = 1000) -> torch.Tensor:
    size = (x.shape[-2], x.shape[-1])
    return torch.cat(list(consistent.agree(lambda: x.split(rows, dim=-2), x_L, size)), dim=-2)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * float((a - b).square().mean().log10())


def test_reducing_is_pillows():
    x = torch.rand(1, 3, 61, 47, generator=torch.Generator().manual_seed(3))
    for size in ((20, 13), (61, 9), (90, 100)):
        channel = Image.fromarray(x[0, 1].numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(consistent.resize(x, size)[0, 1], np.asarray(channel), atol=1e-5)


@pytest.mark.parametrize(
    ("low", "high"), [((24, 30), (96, 120)), ((25, 31), (67, 83)), ((3, 40), (6, 80))]
)
def test_a_picture_that_strayed_comes_back_to_a_clean_input(low, high):
    x_L = smooth(*low)
    strayed = 0.85 * consistent.resize(x_L, high) + 0.05 + 0.02 * noise(1, 3, *high)
    before, after = (consistent.resize(x, low) for x in (strayed, agree(strayed, x_L)))
    assert psnr(before, x_L) < 31 and psnr(after, x_L) > 50


def test_its_detail_stays():
    """What reducing doesn't see is not touched: a lattice of the finest kind."""
    x_L = smooth(20, 20)
    lattice = 0.05 * (1 - 2 * (torch.arange(80) % 2)).float().expand(1, 3, 80, 80)
    plain, drawn = (
        agree(consistent.resize(x_L, (80, 80)) + 0.03 + extra, x_L) for extra in (0, lattice)
    )
    assert (drawn - plain - lattice)[..., 8:-8, 8:-8].abs().max() < 0.003


def test_the_inputs_noise_does_not_come_back():
    """A result that is the clean picture stays so, within the noise, for an input that is not
    clean.
    """
    clean, sigma = smooth(60, 60), 0.03
    x_L = (clean + sigma * noise(1, 3, 60, 60)).clamp(0, 1)
    made = consistent.resize(clean, (240, 240))
    result = consistent.resize(agree(made, x_L), (60, 60))
    assert psnr(result, clean) > psnr(x_L, clean) + 6
    assert (result - x_L).abs().max() <= 1.05 * consistent.SPREAD * consistent.noise_level(
        x_L
    ).max()


def test_noise_is_measured_for_each_picture_and_detail_hardly_counts():
    sigmas = torch.tensor([0.0, 0.02, 0.08])[:, None, None, None]
    pictures = smooth(90, 90).expand(3, 3, 90, 90) + sigmas * noise(3, 3, 90, 90)
    assert torch.allclose(consistent.noise_level(pictures), sigmas, atol=0.003)
    pictures[..., :30] += torch.rand(3, 3, 90, 1).round() * torch.rand(30).round()
    assert (consistent.noise_level(pictures) < 1.7 * sigmas + 0.003).all()
    assert consistent.noise_level(torch.rand(2, 3, 2, 9)).flatten().tolist() == [0, 0]


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_bands_are_the_whole_picture(rows):
    x, x_L = torch.rand(2, 3, 40, 30), torch.rand(2, 3, 13, 10)
    assert torch.allclose(agree(x, x_L, rows), agree(x, x_L), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 5)])
def test_any_size_stays_finite_and_in_range(size):
    x_L = torch.rand(1, 3, *size)
    result = agree(torch.rand(1, 3, 4 * size[0], 4 * size[1]), x_L)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


# --- in the pipeline ------------------------------------------------------------------------------


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    levels = (smooth(height, width)[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels).convert(mode)


def from_the_input(result: np.ndarray, given: np.ndarray) -> float:
    """PSNR of the reduced result to the input, both floats [H, W, C] in [0, 1]."""
    x, x_L = (torch.from_numpy(np.float32(one)).movedim(-1, 0)[None] for one in (result, given))
    return psnr(consistent.resize(x, x_L.shape[-2:]), x_L)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA"])
@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {"upscale": 3, "process_size": 100},
        {"upscale": 2.5, "process_size": 8, "working_size": 8e-4},
    ],
)
def test_results_of_every_frame_and_mode_agree_with_their_input(pipe, mode, options):
    """As large as the model's picture, reduced from one, and enlarged from one that was smaller
    than the input.
    """
    given = photo(22, 17, mode)
    levels = np.atleast_3d(np.asarray(given)) / 255
    colours = slice(0, 3 if "RGB" in mode else 1)
    plain, agreed = (
        pipe(given, **options, output_type="np", consistent=c).images[0] for c in (False, True)
    )
    assert plain.shape == agreed.shape and agreed.dtype == np.float32
    assert from_the_input(plain[..., colours], levels[..., colours]) < 35
    assert from_the_input(agreed[..., colours], levels[..., colours]) > 42
    if "A" in mode:
        assert np.array_equal(plain[..., -1], agreed[..., -1])


def test_sixteen_bits_agree_and_are_not_rounded_to_eight(pipe):
    given = smooth(17, 22)[0].permute(1, 2, 0).numpy()
    (result,) = pipe(given, **SMALL, output_type="uint16", consistent=True).images
    assert result.dtype == np.uint16 and (result % 257 != 0).any()
    assert from_the_input(result / 65_535, given) > 42


def test_looked_pictures_agree_when_they_are_mixed_and_batches_as_single_ones(pipe):
    given = [photo(12, 9), photo(12, 9).rotate(180)]
    singly = [pipe(one, **SMALL, consistent=True, output_type="np").images[0] for one in given]
    together = pipe(given, **SMALL, consistent=True, output_type="np", batch_size=2).images
    np.testing.assert_allclose(together, singly, atol=1e-5)
    told = pipe.look(given[0], **SMALL, consistent=True)
    plain = pipe.look(given[0], **SMALL)
    assert np.array_equal(pipe.mix(told, output_type="np"), singly[0])
    assert np.array_equal(pipe.mix(plain, output_type="np", consistent=True), singly[0])
    assert np.array_equal(pipe.mix(told, consistent=False), pipe.mix(plain))


def test_a_result_of_the_inputs_size_is_refused(pipe):
    with pytest.raises(ValueError, match="leave `consistent` out"):
        pipe(photo(12, 9), upscale=1, process_size=8, consistent=True)
    with pytest.raises(ValueError, match="leave `consistent` out"):
        pipe.mix(pipe.look(photo(12, 9), upscale=1, process_size=8), consistent=True)

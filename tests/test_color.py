"""Promises of pisasr.method.color: the published colour fixes, on any size down to one pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from pisasr.method import color
from pisasr.pictures.images import to_image, to_tensor


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_adain_takes_over_mean_and_spread():
    target, source = 0.4 + 0.2 * noise(2, 3, 40, 30), 0.3 + 0.3 * noise(2, 3, 40, 30, seed=1)
    result = color.adain(target, source)
    assert torch.allclose(result.mean((2, 3)), source.mean((2, 3)), atol=1e-5)
    assert torch.allclose(result.std((2, 3)), source.std((2, 3)), rtol=1e-2)


def test_wavelet_takes_broad_tones_from_the_source_and_detail_from_the_target():
    target, source = noise(1, 3, 48, 64), torch.full((1, 3, 48, 64), 0.25)
    shift = color.wavelet(target * 0.2 + 0.5, source) - (target * 0.2 + 0.5)
    assert torch.allclose(shift, (0.25 - color.low_frequencies(target * 0.2 + 0.5)), atol=1e-6)


@pytest.mark.parametrize("fix", [color.adain, color.wavelet])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (9, 2), (33, 40)])
def test_any_size_stays_finite_and_in_range(fix, size):
    for target in (noise(1, 3, *size), torch.zeros(1, 3, *size)):
        result = fix(target, noise(1, 3, *size, seed=1))
        assert result.shape == target.shape and result.isfinite().all()
        assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("fix", [color.adain, color.wavelet])
def test_a_picture_fixed_with_itself_is_unchanged(fix):
    picture = noise(1, 3, 20, 24)
    assert torch.allclose(fix(picture, picture), picture, atol=1e-5)


@pytest.mark.parametrize("name", ["noise", "pictures", "thin", "flat_target", "flat_source"])
@pytest.mark.parametrize("fix", ["adain", "wavelet"])
def test_matches_the_published_pictures(parity, name, fix):
    """They are truncated to 8 bits, ours are rounded: compared before rounding, each value is in
    [published, + 1).
    """
    target, source = (
        to_tensor(Image.open(parity / "colour" / f"{name}_{part}.png"))
        for part in ("target", "source")
    )
    result = getattr(color, fix)(target, source)
    expected = to_tensor(Image.open(parity / "colour" / f"{name}_{fix}.png"))
    above = (result - expected) * 255
    assert above.min() > -0.01 and above.max() < 1.01
    difference = np.abs(np.asarray(to_image(result), float) - np.asarray(to_image(expected), float))
    assert difference.max() <= 1 and difference.mean() < 0.7


def test_wavelet_split_matches_the_published_tensors(parity):
    from safetensors.torch import load_file

    split = load_file(parity / "tensors" / "wavelet_split.safetensors")
    low = color.low_frequencies(split["input"])
    assert (low - split["low"]).abs().max() < 1e-6
    assert (split["input"] - low - split["high"]).abs().max() < 1e-6

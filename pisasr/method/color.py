"""Infer, behind x_H: it gets x_L's colours back. A one-step model drifts in tone, the low-quality picture knows better.

Both functions take two float tensors [B, 3, H, W] in [0, 1] of the same size, the restored picture (`target`) and the
prepared input (`source`), and return a tensor like `target`, clamped to [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5


def adain(target: Tensor, source: Tensor) -> Tensor:
    """Give every channel of `target` the mean and the spread of the same channel in `source`.

        out = (target - mean_t) / std_t * std_s + mean_s,    std = sqrt(unbiased variance + 1e-5)

    Per picture, over all its pixels (PiSA-SR's published colour fix). A flat target is all noise to this formula: it is
    stretched by up to std_s / sqrt(1e-5).
    """
    mean_t, std_t = _statistics(target)
    mean_s, std_s = _statistics(source)
    return ((target - mean_t) / std_t * std_s + mean_s).clamp(0, 1)


def wavelet(target: Tensor, source: Tensor) -> Tensor:
    """Keep the fine detail of `target`, take the broad tones of `source`.

        out = high(target) + low(source),    high(x) = x - low(x)

    `low` is five [1 2 1] blurs in a row, their taps 1, 2, 4, 8, 16 pixels apart (the colour fix of StableSR,
    arXiv:2305.07015).
    """
    return (target - low_frequencies(target) + low_frequencies(source)).clamp(0, 1)


def low_frequencies(x: Tensor) -> Tensor:
    """What is left of [B, C, H, W] after five blurs of doubling reach; edges are repeated."""
    for level in range(WAVELET_LEVELS):
        x = _blur(x, 2**level)
    return x


def _blur(x: Tensor, reach: int) -> Tensor:
    height, width = x.shape[-2:]
    rows = F.pad(x, (0, 0, reach, reach), mode="replicate")
    x = (rows[..., :height, :] + 2 * rows[..., reach : reach + height, :] + rows[..., 2 * reach :, :]) / 4
    columns = F.pad(x, (reach, reach, 0, 0), mode="replicate")
    return (columns[..., :width] + 2 * columns[..., reach : reach + width] + columns[..., 2 * reach :]) / 4


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    # A picture of one pixel has no unbiased variance (0 / 0): it is flat.
    pixels = x.shape[-2] * x.shape[-1]
    mean = x.mean(dim=(-2, -1), keepdim=True)
    variance = (x - mean).square().sum(dim=(-2, -1), keepdim=True) / max(pixels - 1, 1)
    return mean, torch.sqrt(variance + 1e-5)

"""Give a restored picture the colors of its input: a one-step model drifts in tone.

Both fixes take two float tensors [B, 3, H, W] in [0, 1] of the same size, the restored picture
(`target`) and the prepared input (`source`), and return a tensor like `target`, clamped to [0, 1].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5
BAND = 256  # rows at once; five copies of these are held, not of the picture


def adain(target: Tensor, source: Tensor) -> Tensor:
    """Give every channel of `target` the mean and the spread of the same channel in `source`.

        out = (target - mean_t) / std_t * std_s + mean_s,    std = sqrt(unbiased variance + 1e-5)

    Per picture, over all its pixels (PiSA-SR's published color fix). A flat target is all noise to
    this formula: it is stretched by up to std_s / sqrt(1e-5).
    """
    (std_t, mean_t), (std_s, mean_s) = (_statistics(x) for x in (target, source))
    return (target - mean_t).mul_(std_s / std_t).add_(mean_s).clamp_(0, 1)


def wavelet(target: Tensor, source: Tensor) -> Tensor:
    """Keep the fine detail of `target`, take the broad tones of `source`.

        out = high(target) + low(source),    high(x) = x - low(x)

    `low` is five [1 2 1] blurs in a row, their taps 1, 2, 4, 8, 16 pixels apart (the color fix of
    StableSR, arXiv:2305.07015).
    """
    if torch.compiler.is_compiling():  # torch.export would take the number of bands for a constant
        return _wavelet(target, source)
    made, height, reach = torch.empty_like(target), target.shape[-2], 2**WAVELET_LEVELS
    for top in range(0, height, BAND):
        start, stop = max(top - reach, 0), min(top + BAND, height)
        band = _wavelet(*(x[..., start : stop + reach, :] for x in (target, source)))
        made[..., top:stop, :] = band[..., top - start : stop - start, :]
    return made


def _wavelet(target: Tensor, source: Tensor) -> Tensor:
    return (target - low_frequencies(target)).add_(low_frequencies(source)).clamp_(0, 1)


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "adain": adain,
    "wavelet": wavelet,
    "none": None,
}


def low_frequencies(x: Tensor) -> Tensor:
    """What is left of [B, C, H, W] after five blurs of doubling reach; edges are repeated."""
    for level in range(WAVELET_LEVELS):
        x = _blur(x, 2**level)
    return x


def _blur(x: Tensor, reach: int) -> Tensor:
    height, width = x.shape[-2:]
    rows = F.pad(x, (0, 0, reach, reach), mode="replicate")
    x = _mean_121(
        rows[..., :height, :], rows[..., reach : reach + height, :], rows[..., 2 * reach :, :]
    )
    columns = F.pad(x, (reach, reach, 0, 0), mode="replicate")
    return _mean_121(
        columns[..., :width], columns[..., reach : reach + width], columns[..., 2 * reach :]
    )


def _mean_121(before: Tensor, middle: Tensor, after: Tensor) -> Tensor:
    """(before + 2 middle + after) / 4, in one new tensor."""
    return torch.add(before, middle, alpha=2).add_(after).div_(4)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(std, mean) of each channel, [B, C, 1, 1]."""
    # A picture of one pixel has no unbiased variance (0 / 0): it is flat.
    correction = min(1, x.shape[-2] * x.shape[-1] - 1)
    variance, mean = torch.var_mean(x, dim=(-2, -1), keepdim=True, correction=correction)
    return torch.sqrt(variance + 1e-5), mean

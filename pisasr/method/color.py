"""Infer, behind x_H: it gets x_L's colours back. A one-step model drifts in tone, the low-quality
picture knows better.

Both ways take two float tensors [B, 3, H, W] in [0, 1] of the same size, the restored picture
(`target`) and the prepared input (`source`), and return a tensor like `target`, clamped to [0, 1].
`in_bands` does the same to pictures that are never whole as floats.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import starmap
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5
BAND_PIXELS = 2**21  # of a picture that `in_bands` makes into floats at once: where it measures,
BLUR_PIXELS = 2**20  # where it blurs, and sees margins twice,
PIECE_PIXELS = 2**18  # and where it changes each pixel by itself


def adain(target: Tensor, source: Tensor) -> Tensor:
    """Give every channel of `target` the mean and the spread of the same channel in `source`.

        out = (target - mean_t) / std_t * std_s + mean_s,    std = sqrt(unbiased variance + 1e-5)

    Per picture, over all its pixels (PiSA-SR's published colour fix). A flat target is all noise to
    this formula: it is stretched by up to std_s / sqrt(1e-5).
    """
    return _adain(target, source, _statistics(lambda: [target]), _statistics(lambda: [source]))


def wavelet(target: Tensor, source: Tensor) -> Tensor:
    """Keep the fine detail of `target`, take the broad tones of `source`.

        out = high(target) + low(source),    high(x) = x - low(x)

    `low` is five [1 2 1] blurs in a row, their taps 1, 2, 4, 8, 16 pixels apart (the colour fix of
    StableSR, arXiv:2305.07015).
    """
    return (target - low_frequencies(target)).add_(low_frequencies(source)).clamp_(0, 1)


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


Rows = Callable[
    [int, int], Tensor
]  # rows start .. stop of a picture, [B, 3, stop - start, W] in [0, 1]


def in_bands(
    fix: Callable[[Tensor, Tensor], Tensor] | None,
    target: Rows,
    source: Rows,
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """fix(target, source) of pictures of size (height, width), some rows after the other; None
    changes nothing.

    fix: `adain` or `wavelet`. Equal to the whole picture's up to the order of summation, and the
    same where one band holds it.
    """
    reach = 2**WAVELET_LEVELS - 1 if fix is wavelet else 0
    if fix is adain:
        bands = _rows(size, BAND_PIXELS)
        measured = [_statistics(partial(starmap, picture, bands)) for picture in (target, source)]
    for start, stop in _rows(size, BLUR_PIXELS if reach else PIECE_PIXELS):
        first, last = max(start - reach, 0), min(stop + reach, size[0])
        band = target(first, last)
        if fix is adain:
            band = _adain(band, source(first, last), *measured)
        elif fix is not None:
            band = fix(band, source(first, last))
        yield band[..., start - first : stop - first, :]


def _rows(size: tuple[int, int], pixels: int) -> list[tuple[int, int]]:
    """A picture's rows as (start, stop), as many together as have that many pixels."""
    height, width = size
    rows = max(pixels // width, 1)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


class Statistics(NamedTuple):
    """Mean and spread of each channel, [B, C, 1, 1]."""

    mean: Tensor
    std: Tensor


def _adain(target: Tensor, source: Tensor, of_target: Statistics, of_source: Statistics) -> Tensor:
    return ((target - of_target.mean) / of_target.std * of_source.std + of_source.mean).clamp(0, 1)


def _statistics(bands: Callable[[], Iterable[Tensor]]) -> Statistics:
    """Of all rows that `bands` yields, each time it is asked."""
    pixels, total = 0, torch.zeros(())
    for band in bands():
        pixels += band.shape[-2] * band.shape[-1]
        total = total.to(band) + band.sum(dim=(-2, -1), keepdim=True)
        del band
    mean = total / pixels
    squares = torch.zeros_like(mean)
    for band in bands():
        squares += (band - mean).square_().sum(dim=(-2, -1), keepdim=True)
        del band  # before the next is made
    # A picture of one pixel has no unbiased variance (0 / 0): it is flat.
    return Statistics(mean, torch.sqrt(squares / max(pixels - 1, 1) + 1e-5))

"""Infer, behind the colours: the result agrees with x_L, for reduced by its factor it is x_L again,
within x_L's noise.

Iterative back-projection (Irani & Peleg 1991): what the reduced picture lacks of x_L is enlarged
and added, again and again. Reducing and enlarging (bicubic, antialiased as Pillow's) are linear, so
all repetitions happen at x_L's size and the picture is touched once. What lies within x_L's noise
is left alone, or its grain would come back.

Blur and JPEG blocks of x_L are no noise to it: what the model took away of them comes back in part.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD = 2  # standard deviations of noise that are left alone, within which 95 % of it lies
STEPS = 10  # each leaves about 0.4 of the finest disagreement, and next to nothing of coarser ones
NOISE_MASK = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))
NORMAL_MEDIAN = 0.6745  # of the absolute values of noise with a standard deviation of 1

# The rows of a picture in order, [B, 3, h, W] in [0, 1], each time it is asked.
Bands = Callable[[], Iterable[Tensor]]


def agree(bands: Bands, x_L: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """The picture of size (height, width) in its bands, corrected so that it agrees with x_L,
    clamped to [0, 1].

        d = x_L - reduced(x),    wanted = sign(d) max(|d| - noise, 0),    out = x + enlarged(c)

    with the c for which reduced(enlarged(c)) is `wanted`, and twice the `noise_level` of x_L:
    reduced, each value of the result is x_L's, or off by the noise at most (up to what the steps
    leave, and but for clamped white or black). x_L: [B, 3, h, w] in [0, 1], no larger than the
    picture. Beside a band, what is held is as high as the picture and as wide as x_L.
    """
    (height, width), (low, narrow) = size, x_L.shape[-2:]
    thin = torch.cat([resize(band, (band.shape[-2], narrow)) for band in bands()], dim=-2)
    difference = x_L - resize(thin, (low, narrow))
    del thin
    noise = SPREAD * noise_level(x_L)
    wanted = difference - difference.clamp(-noise, noise)
    correction = wanted
    for _ in range(STEPS - 1):
        correction = correction + wanted - _there_and_back(correction, size)
    tall = resize(correction, (height, narrow))
    start = 0
    for band in bands():
        stop = start + band.shape[-2]
        yield (band + resize(tall[..., start:stop, :], (stop - start, width))).clamp(0, 1)
        start = stop


def resized(bands: Bands, size: tuple[int, int]) -> Bands:
    """The same picture at another size (height, width), held whole."""
    whole = resize(torch.cat(list(bands()), dim=-2), size).clamp(0, 1)
    return partial(iter, [whole])


def noise_level(x: Tensor) -> Tensor:
    """The standard deviation of the noise in [B, C, H, W], for each picture [B, 1, 1, 1]; 0 below 3
    x 3 pixels.

    Measured as Immerkaer (1996) does, with a mask that planes and edges along the axes don't answer
    to, by the median as Donoho & Johnstone (1994) do: detail that fills less than half of the
    picture hardly counts.
    """
    mask = x.new_tensor(NOISE_MASK)[None, None] / math.sqrt(36)
    if min(x.shape[-2:]) < len(mask[0, 0]):
        return x.new_zeros(len(x), 1, 1, 1)
    answers = F.conv2d(x.flatten(0, 1)[:, None], mask).abs().unflatten(0, x.shape[:2])
    return (answers.flatten(1).median(dim=1).values / NORMAL_MEDIAN)[:, None, None, None]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] at another (height, width) by Pillow's bicubic filter, antialiased where it
    reduces.
    """
    return F.interpolate(x, size=size, mode="bicubic", antialias=True)


def _there_and_back(x: Tensor, size: tuple[int, int]) -> Tensor:
    """reduced(enlarged(x)), one axis after the other, so that nothing has to be as large as the
    picture.
    """
    low, narrow = x.shape[-2:]
    x = resize(resize(x, (low, size[1])), (low, narrow))
    return resize(resize(x, (size[0], narrow)), (low, narrow))

"""What JPEG does to a picture, as tensor arithmetic on any device: libjpeg's whole numbers without its files.

Baseline JPEG loses information in four places only: colours are rounded, chroma is halved, coefficients are quantized,
and the way back is rounded. Entropy coding loses nothing and is left out. Every step follows libjpeg-turbo's default
("islow") arithmetic, fixed point included, so that the result is Pillow's, pixel for pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU T.81, annex K: what libjpeg scales by the quality; [vertical, horizontal] frequency.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# The left half of the cosine transform times 2^13 sqrt(8), [frequency, place]; even rows are mirrored, odd ones with
# the other sign. Not quite the rounded cosines: libjpeg multiplies by sums of rounded factors, e.g. 10703 and 10704.
COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)


@torch.no_grad()
def compress(levels: Tensor, quality: Sequence[int]) -> Tensor:
    """Save as JPEG with chroma halved (4:2:0) and read again: what is left of the picture.

    levels [B, 3, h, w], whole numbers from 0 to 255 in float32, any h and w from 1 up; quality, one per picture, 1 to
    100. The result has the same shape, range and dtype. It equals what Pillow with libjpeg-turbo writes and reads, on a
    CPU to the last level (tests/test_jpeg.py). Everything is a whole number that its float type holds exactly, so
    another device has no room to round otherwise. Needs float64, which Apple's MPS lacks.
    """
    if levels.ndim != 4 or levels.shape[1] != 3 or levels.numel() == 0 or levels.dtype != torch.float32:
        raise ValueError(f"levels are float32 [B, 3, h, w]; got {levels.dtype} {list(levels.shape)}")
    if len(quality) != len(levels) or not all(1 <= q <= 100 for q in quality):
        raise ValueError(f"wanted {len(levels)} qualities from 1 to 100; got {list(quality)}")
    h, w = levels.shape[-2:]
    y, chroma = to_ycc(levels)
    y = quantize_blocks(y, scaled_tables(LUMA, quality).to(y.device))
    chroma = quantize_blocks(halve(chroma), scaled_tables(CHROMA, quality).to(y.device))
    return to_rgb(y, double(chroma[..., : (w + 1) // 2])[..., :h, :w])


def scaled_tables(base: tuple, quality: Sequence[int]) -> Tensor:
    """The quantization table of each quality, [B, 8, 8] float64: libjpeg's scale in percent, cut to 1..255."""
    percent = torch.tensor([5000 // q if q < 50 else 200 - 2 * q for q in quality])
    return ((torch.tensor(base) * percent[:, None, None] + 50) // 100).clamp_(1, 255).double()


def to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Luma [B, 1, h, w] and chroma [B, 2, h, w], 0..255, by weights in units of 2^-16.

    No sum reaches 2^24: float32 is exact.
    """
    r, g, b = rgb.unbind(1)
    y = _shift(19595 * r + 38470 * g + 7471 * b + 32768, 16)
    middle = (128 << 16) + 32767
    cb = _shift(32768 * b - 11059 * r - 21709 * g + middle, 16)
    cr = _shift(32768 * r - 27439 * g - 5329 * b + middle, 16)
    return y[:, None], torch.stack([cb, cr], 1)


def to_rgb(y: Tensor, chroma: Tensor) -> Tensor:
    """The way back, [B, 3, h, w] in 0..255; exact in float32 like the way there."""
    cb, cr = (chroma - 128).unbind(1)
    y = y[:, 0]
    r = y + _shift(91881 * cr + 32768, 16)
    g = y + _shift(32768 - 22554 * cb - 46802 * cr, 16)
    b = y + _shift(116130 * cb + 32768, 16)
    return torch.stack([r, g, b], 1).clamp_(0, 255)


def halve(chroma: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, halves rounded down in even columns and up in odd ones.

    [B, 2, h, w] to [B, 2, ceil(h / 2), ceil(w / 16) * 8]: the width is filled up to whole blocks already here, because
    libjpeg repeats pixels to the right, but means below the picture.
    """
    h, w = chroma.shape[-2:]
    chroma = F.pad(chroma, (0, -w % 16, 0, h % 2), mode="replicate")
    sums = chroma[..., 0::2, :] + chroma[..., 1::2, :]
    sums = sums[..., 0::2] + sums[..., 1::2]
    return _shift(sums + 1 + torch.arange(sums.shape[-1], device=sums.device) % 2, 2)


def double(chroma: Tensor) -> Tensor:
    """Twice the size on each side; a pixel is 9/16 of its own mean and 3/16, 3/16, 1/16 of the nearest others.

    libjpeg's "fancy" upsampling. Where there are no more than two columns it only repeats.
    """
    if chroma.shape[-1] <= 2:
        return chroma.repeat_interleave(2, -1).repeat_interleave(2, -2)
    x = F.pad(chroma, (1, 1, 1, 1), mode="replicate")
    near = 3 * x[..., 1:-1, :]
    x = torch.stack([near + x[..., :-2, :], near + x[..., 2:, :]], -2).flatten(-3, -2)
    near = 3 * x[..., 1:-1]
    return _shift(torch.stack([near + x[..., :-2] + 8, near + x[..., 2:] + 7], -1).flatten(-2), 4)


def quantize_blocks(planes: Tensor, tables: Tensor) -> Tensor:
    """Cosine transform of 8 x 8 blocks, division by the table, rounding, and back: [B, c, h, w] in 0..255 both ways.

    tables [B, 8, 8]. Sides that are no multiple of eight are filled up with the last row and column.
    """
    b, c, h, w = planes.shape
    planes = F.pad(planes, (0, -w % 8, 0, -h % 8), mode="replicate").double() - 128
    rows, columns = planes.shape[-2] // 8, planes.shape[-1] // 8
    blocks = planes.reshape(b, c, rows, 8, columns, 8).transpose(3, 4)
    half = torch.tensor(COSINES, dtype=torch.float64, device=planes.device)
    sign = 1 - 2 * (torch.arange(8, device=planes.device) % 2)
    forward = torch.cat([half, half.flip(1) * sign[:, None]], 1)
    # Along rows, then along columns, and the way back in the other order, each rounded as libjpeg does. The transposed
    # order of the coefficients, [horizontal, vertical], saves two turns.
    x = _round_shift(blocks @ forward.T, 11).transpose(-1, -2)
    x = _round_shift(x @ forward.T, 15)
    table = tables.transpose(-1, -2)[:, None, None, None]
    x = x.sign() * ((x.abs() + 4 * table) / (8 * table)).floor() * table  # coefficients are eight times too large
    x = _round_shift(x @ forward, 11).transpose(-1, -2)
    x = (_round_shift(x @ forward, 18) + 128).clamp_(0, 255)
    return x.transpose(3, 4).reshape(b, c, 8 * rows, 8 * columns)[..., :h, :w].float()


def _shift(x: Tensor, bits: int) -> Tensor:
    """x >> bits, for whole numbers held as floats."""
    return (x * 2.0**-bits).floor_()


def _round_shift(x: Tensor, bits: int) -> Tensor:
    """Divided by 2^bits and rounded, halves upward."""
    return (x * 2.0**-bits + 0.5).floor_()

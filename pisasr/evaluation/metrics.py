"""How near a restored picture is to the true one: PSNR and SSIM as the StableSR line of papers measures them.

Pictures are uint8 [H, W, 3], RGB, as an 8-bit PNG holds them. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

# Added to the mean squared error, so equal pictures score 80 dB and not infinity.
PSNR_EPS = 1e-8
PSNR_CEILING = -10 * np.log10(PSNR_EPS)

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


@dataclass(frozen=True)
class Metric:
    """What the tables must say about one column.

    needs: 'hq' compares with the true picture, 'lq' with the input, 'hq_set' compares two whole folders, None judges
    the picture alone. protocol: the recipe, to stand beside every number.
    """

    label: str
    higher_is_better: bool
    needs: Literal["hq", "lq", "hq_set"] | None
    decimals: int
    protocol: str


METRICS = {
    "psnr": Metric("PSNR-Y (dB)", True, "hq", 2, "unrounded BT.601 Y in [0, 1], mean squared error + 1e-8"),
    "ssim": Metric(
        "SSIM-Y", True, "hq", 4, "BT.601 Y x 255 rounded, Gaussian 11x11 sigma 1.5, valid part, contrast term >= 0"
    ),
    "psnr_lq": Metric(
        "PSNR-Y to LQ (dB)", True, "lq", 2, "PSNR-Y of the picture shrunk to the LQ size (Pillow bicubic), no border"
    ),
    "niqe": Metric("NIQE", False, None, 4, "YIQ luma rounded, blocks of 96 px, two scales, float64, no border"),
    "featdist": Metric(
        "Feature distance",
        False,
        "hq",
        4,
        "EfficientNet-Lite0 (ImageNet), stem and blocks 2, 4, 10, unit-normalised, no border; this is not LPIPS",
    ),
    "lpips": Metric("LPIPS", False, "hq", 4, "pyiqa lpips (AlexNet, 0.1)"),
    "dists": Metric("DISTS", False, "hq", 4, "pyiqa dists"),
    "musiq": Metric("MUSIQ", True, None, 2, "pyiqa musiq (KonIQ-10k)"),
    "maniqa": Metric("MANIQA", True, None, 4, "pyiqa maniqa-pipal"),
    "clipiqa": Metric("CLIPIQA", True, None, 4, "pyiqa clipiqa (not clipiqa+)"),
    "fid": Metric("FID", False, "hq_set", 2, "pyiqa fid, folder against folder; comparable only at the same count"),
}


def luma(picture: np.ndarray) -> np.ndarray:
    """BT.601 studio-range Y of uint8 [H, W, 3], as float64 [H, W] in [16/255, 235/255], not rounded."""
    return (picture @ np.array([65.481, 128.553, 24.966]) / 255 + 16) / 255


def cut_border(picture: np.ndarray, border: int) -> np.ndarray:
    """Leave out `border` pixels on every side."""
    return picture[border : picture.shape[0] - border, border : picture.shape[1] - border]


def psnr_y(sr: np.ndarray, hq: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio of Y in dB, 10 log10(1 / (mse + 1e-8)); 80 for equals, NaN if all is border."""
    difference = cut_border(luma(sr) - luma(hq), border)
    if difference.size == 0:
        return float("nan")
    return float(-10 * np.log10(np.mean(difference**2) + PSNR_EPS))


def ssim_y(sr: np.ndarray, hq: np.ndarray, border: int = 0) -> float:
    """Structural similarity of Y (Wang et al. 2004), 1 for equal pictures; NaN when no 11x11 window fits.

    Two habits of the field are kept because the published numbers have them: Y is rounded to whole levels here (and
    not in PSNR), and the contrast-structure term is clamped at 0 before it is multiplied.
    """
    x, y = (cut_border(np.round(luma(picture) * 255), border) for picture in (sr, hq))
    if min(x.shape) < SSIM_WINDOW:
        return float("nan")
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = _gaussian_mean(x), _gaussian_mean(y)
    var_x = _gaussian_mean(x * x) - mu_x**2
    var_y = _gaussian_mean(y * y) - mu_y**2
    cov = _gaussian_mean(x * y) - mu_x * mu_y
    contrast = np.maximum((2 * cov + c2) / (var_x + var_y + c2), 0)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return float(np.mean(luminance * contrast))


def psnr_lq(sr: np.ndarray, lq: np.ndarray) -> float:
    """How faithful the picture stays to its input: shrink it to the LQ size and take PSNR-Y there."""
    height, width = lq.shape[:2]
    return psnr_y(np.asarray(Image.fromarray(sr).resize((width, height), Image.Resampling.BICUBIC)), lq)


def _gaussian_mean(x: np.ndarray) -> np.ndarray:
    """Weighted mean under the SSIM window at every place where it fits whole, [H, W] -> [H-10, W-10]."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return filter_separable(x, weights / weights.sum())


def filter_separable(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate [H, W] with the outer product of `weights` (k numbers), valid part: [H-k+1, W-k+1]."""
    height, width = (side - len(weights) + 1 for side in x.shape)
    rows = sum(weight * x[k : k + height] for k, weight in enumerate(weights))
    return sum(weight * rows[:, k : k + width] for k, weight in enumerate(weights))

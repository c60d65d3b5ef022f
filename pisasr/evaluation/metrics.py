"""Score: the metrics by name, a row each in METRICS below, and the two that all papers share, PSNR
and SSIM.

A new metric is a row in METRICS and a case in scoring.load_scorer. Pictures are uint8 [H, W, 3],
RGB, as an 8-bit PNG holds them. All arithmetic here is float64; other metrics live in niqe,
features, perceptual, fid and deep (pyiqa's).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5

# (picture, true picture or None, input or None), each uint8 [H, W, 3] -> score
Scorer = Callable[[Any, Any, Any], float]

# uint8 [H, W, 3] -> features, float32 [d]: of metrics that compare whole sets
Extractor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """How PSNR and SSIM are taken: the choices that move a published number without being a better
    or worse method.

    color: BT.601 studio-range Y, or the three channels of RGB. border_px: left out at every side.
    *_rounds_y: Y is rounded to whole levels first. psnr_eps: added to the mean squared error of
    values in [0, 1], so that equal pictures score a finite number. ssim_clamps: the
    contrast-structure term is kept from going below 0. source: whose habit.
    """

    name: str
    source: str
    color: Literal["y", "rgb"] = "y"
    border_px: int = 0
    psnr_rounds_y: bool = False
    psnr_eps: float = 0.0
    ssim_rounds_y: bool = False
    ssim_clamps: bool = False

    @property
    def psnr_of_equals(self) -> float:
        """The PSNR of two equal pictures, in dB."""
        return -10 * math.log10(self.psnr_eps) if self.psnr_eps else math.inf

    def describe(self, metric: str) -> str:
        """The recipe of one column of these two."""
        rounds, extra = (
            (
                self.psnr_rounds_y,
                f"mean squared error + {self.psnr_eps:g}" if self.psnr_eps else "no epsilon",
            )
            if metric == "psnr"
            else (self.ssim_rounds_y, f"contrast term {'>= 0' if self.ssim_clamps else 'as it is'}")
        )
        space = (
            "R, G and B"
            if self.color == "rgb"
            else f"BT.601 Y {'rounded' if rounds else 'unrounded'}"
        )
        window = (
            ""
            if metric == "psnr"
            else f"Gaussian {SSIM_WINDOW}x{SSIM_WINDOW} sigma {SSIM_SIGMA:g}, valid part, "
        )
        return f"{space}, border {self.border_px} px, {window}{extra}, float64"


PYIQA_HABIT = (
    "StableSR, OSEDiff, PiSA-SR: pyiqa's psnr and ssim with test_y_channel, color_space ycbcr"
)
BASICSR_HABIT = "BasicSR's calculate_psnr and calculate_ssim with test_y_channel, x4"
MATLAB_HABIT = (
    "classic x4 papers (EDSR and before): rgb2ycbcr of 8-bit pictures, scale px of border"
)

STABLESR = Protocol("stablesr", PYIQA_HABIT, psnr_eps=1e-8, ssim_rounds_y=True, ssim_clamps=True)
_PROTOCOLS = (
    STABLESR,
    replace(
        STABLESR, name="seesr", source="SeeSR: as stablesr, without the outer 4 px", border_px=4
    ),
    Protocol("basicsr", BASICSR_HABIT, border_px=4),
    Protocol("matlab", MATLAB_HABIT, border_px=4, psnr_rounds_y=True, ssim_rounds_y=True),
    Protocol("rgb", "all three channels, SSIM averaged over them", color="rgb"),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def luma(picture: np.ndarray) -> np.ndarray:
    """BT.601 studio-range Y of uint8 [H, W, 3], as float64 [H, W] in [16/255, 235/255], not
    rounded.
    """
    return (picture @ np.array([65.481, 128.553, 24.966]) / 255 + 16) / 255


def cut_border(picture: np.ndarray, border: int) -> np.ndarray:
    """Leave out `border` pixels on every side."""
    return picture[border : picture.shape[0] - border, border : picture.shape[1] - border]


def psnr(sr: np.ndarray, hq: np.ndarray, protocol: Protocol = STABLESR) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / (mse + eps)) of values in [0, 1]; NaN if all
    is border.
    """
    x, y = (levels(picture, protocol, protocol.psnr_rounds_y) for picture in (sr, hq))
    difference = cut_border(x - y, protocol.border_px)
    if difference.size == 0:
        return math.nan
    error = float(np.mean((difference / 255) ** 2)) + protocol.psnr_eps
    return -10 * math.log10(error) if error else math.inf


def ssim(sr: np.ndarray, hq: np.ndarray, protocol: Protocol = STABLESR) -> float:
    """Structural similarity (Wang et al. 2004), 1 for equal pictures; NaN when no 11x11 window
    fits.
    """
    x, y = (
        cut_border(levels(picture, protocol, protocol.ssim_rounds_y), protocol.border_px)
        for picture in (sr, hq)
    )
    if min(x.shape[:2]) < SSIM_WINDOW:
        return math.nan
    return float(
        np.mean([_ssim(x[..., k], y[..., k], protocol.ssim_clamps) for k in range(x.shape[2])])
    )


def psnr_lq(sr: np.ndarray, lq: np.ndarray) -> float:
    """How faithful the picture stays to its input: shrink it to the LQ size and take PSNR there."""
    height, width = lq.shape[:2]
    return psnr(
        np.asarray(Image.fromarray(sr).resize((width, height), Image.Resampling.BICUBIC)), lq
    )


def levels(picture: np.ndarray, protocol: Protocol, rounds_y: bool) -> np.ndarray:
    """What the protocol compares, from 0 to 255 and with its border: float64 [H, W, 1 or 3]."""
    if protocol.color == "rgb":
        return picture.astype(np.float64)
    y = luma(picture)[..., None] * 255
    return np.round(y) if rounds_y else y


def _ssim(x: np.ndarray, y: np.ndarray, clamps: bool) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = _gaussian_mean(x), _gaussian_mean(y)
    var_x = _gaussian_mean(x * x) - mu_x**2
    var_y = _gaussian_mean(y * y) - mu_y**2
    cov = _gaussian_mean(x * y) - mu_x * mu_y
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return float(np.mean(luminance * (np.maximum(contrast, 0) if clamps else contrast)))


def _gaussian_mean(x: np.ndarray) -> np.ndarray:
    """Weighted mean under the SSIM window at every place where it fits whole, [H, W] -> [H-10,
    W-10].
    """
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return filter_separable(x, weights / weights.sum())


def filter_separable(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate [H, W] with the outer product of `weights` (k numbers), valid part: [H-k+1,
    W-k+1].
    """
    height, width = (side - len(weights) + 1 for side in x.shape)
    rows = sum(weight * x[k : k + height] for k, weight in enumerate(weights))
    return sum(weight * rows[:, k : k + width] for k, weight in enumerate(weights))


# --- every metric ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What the tables must say about one column.

    needs: 'hq' compares with the true picture, 'lq' with the input, 'hq_set' compares two whole
    sets, None judges the picture alone. recipe: what stands beside every number; of PSNR and SSIM
    the Protocol knows it. wants: without which a picture has no number. package: whose version
    stands beside it; of pyiqa's, deep knows.
    """

    label: str
    higher_is_better: bool
    needs: Literal["hq", "lq", "hq_set"] | None
    decimals: int
    recipe: str = ""
    wants: str = ""
    package: str = "pisasr"

    @property
    def head(self) -> str:
        """The label with an arrow to where better is."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


# What stands beside the numbers of some, too long for their rows.
NIQE = "YIQ luma rounded, blocks of 96 px, two scales, float64"
NIQE_WANTS = "two whole blocks of 96 px that are not flat"
INCEPTION = "clean-fid resize, InceptionV3 pool3; comparable at one count only"
SHRUNK = "PSNR on Y of the picture shrunk to the LQ size (bicubic)"

METRICS = {
    #                  label, whether higher is better, needs, decimals, recipe
    "psnr": Metric("PSNR (dB)", True, "hq", 2, wants="pixels inside the border"),
    "ssim": Metric("SSIM", True, "hq", 4, wants="11 px each way inside the border"),
    "psnr_lq": Metric("PSNR to LQ (dB)", True, "lq", 2, SHRUNK),
    "lpips": Metric("LPIPS", False, "hq", 4, "AlexNet, version 0.1", package="torchmetrics"),
    "lpips_vgg": Metric("LPIPS-VGG", False, "hq", 4, "VGG16, version 0.1", package="torchmetrics"),
    "dists": Metric("DISTS", False, "hq", 4, "VGG16", package="torchmetrics"),
    "fid": Metric("FID", False, "hq_set", 2, INCEPTION),
    "niqe": Metric("NIQE", False, None, 4, NIQE, NIQE_WANTS),
    "musiq": Metric("MUSIQ", True, None, 2, "KonIQ-10k"),
    "maniqa": Metric("MANIQA", True, None, 4, "PIPAL weights (maniqa-pipal), 20 crops of 224 px"),
    "clipiqa": Metric("CLIPIQA", True, None, 4, "CLIP RN50, fixed prompts (not CLIPIQA+)"),
    "clipiqa+": Metric("CLIPIQA+", True, None, 4, "CLIP RN50, learned prompts"),
    "topiq": Metric("TOPIQ", True, None, 4, "topiq_nr, KonIQ-10k"),
    "liqe": Metric("LIQE", True, None, 4, "KonIQ-10k"),
}

# Other people's names for the same columns.
ALIASES = {
    "psnr-y": "psnr",
    "psnry": "psnr",
    "ssim-y": "ssim",
    "maniqa-pipal": "maniqa",
    "topiq_nr": "topiq",
}
ALIASES |= {"clip-iqa": "clipiqa", "clip-iqa+": "clipiqa+", "clipiqa_plus": "clipiqa+"}
ALIASES |= {"lpips-vgg": "lpips_vgg", "lpips-alex": "lpips"}

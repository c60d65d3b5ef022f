"""The scores a paper prints must be the scores we compute."""

import csv
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation.metrics import (
    PROTOCOLS,
    STABLESR,
    cut_border,
    levels,
    luma,
    psnr,
    psnr_lq,
    ssim,
)

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))


def random_picture(seed: int, height: int = 24, width: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_luma_spans_the_studio_range():
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert luma(black).item() == pytest.approx(16 / 255)
    assert luma(white).item() == pytest.approx(235 / 255)


def test_psnr_by_hand():
    hq = np.full((16, 16, 3), 100, np.uint8)
    step = 10 * (65.481 + 128.553 + 24.966) / 255 / 255  # ten levels of grey, seen through Y
    assert psnr(hq + np.uint8(10), hq) == pytest.approx(-10 * math.log10(step**2 + 1e-8))


def test_equal_pictures_score_80_db_and_1():
    picture = random_picture(0)
    assert psnr(picture, picture) == pytest.approx(80) == STABLESR.psnr_of_equals
    assert ssim(picture, picture) == pytest.approx(1)


def test_border_is_left_out():
    hq = random_picture(1)
    sr = hq.copy()
    sr[:4], sr[-4:], sr[:, :4], sr[:, -4:] = 0, 0, 0, 0
    assert psnr(sr, hq, PROTOCOLS["seesr"]) == pytest.approx(80)
    assert ssim(sr, hq, PROTOCOLS["seesr"]) == pytest.approx(1)
    assert psnr(sr, hq, replace(STABLESR, border_px=3)) < 80


def test_ssim_equals_its_definition_at_one_window():
    """An 11x11 picture has one window, so SSIM is the formula itself, written here with plain
    weighted moments.
    """
    x, y = (random_picture(seed, 11, 11) for seed in (2, 3))
    lx, ly = np.round(luma(x) * 255), np.round(luma(y) * 255)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * lx).sum(), (weights * ly).sum()
    vx, vy = (weights * (lx - mx) ** 2).sum(), (weights * (ly - my) ** 2).sum()
    cov = (weights * (lx - mx) * (ly - my)).sum()
    c1, c2 = 6.5025, 58.5225
    contrast = max((2 * cov + c2) / (vx + vy + c2), 0)
    assert ssim(x, y) == pytest.approx((2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast)


def test_ssim_contrast_never_pulls_below_zero():
    x = random_picture(4)
    assert ssim(255 - x, x) >= 0


def test_ssim_without_room_for_a_window_is_nan():
    assert math.isnan(ssim(random_picture(5, 10, 40), random_picture(6, 10, 40)))


def test_the_seesr_preset_is_the_stablesr_one_without_its_outer_4_px():
    x, y = random_picture(8), random_picture(9)
    inner = [picture[4:-4, 4:-4] for picture in (x, y)]
    for measure in (psnr, ssim):
        assert measure(x, y, PROTOCOLS["seesr"]) == pytest.approx(measure(*inner), rel=1e-12)


def test_the_matlab_preset_rounds_y_and_the_basicsr_preset_does_not():
    x, y = random_picture(10), random_picture(11)
    for name, rounds in (("matlab", np.round), ("basicsr", lambda levels: levels)):
        lx, ly = (rounds(luma(picture) * 255)[4:-4, 4:-4] for picture in (x, y))
        assert psnr(x, y, PROTOCOLS[name]) == pytest.approx(
            10 * math.log10(255**2 / np.mean((lx - ly) ** 2))
        )
    assert psnr(x, x, PROTOCOLS["basicsr"]) == math.inf


def test_the_rgb_preset_takes_all_channels():
    hq = random_picture(12)
    sr = hq.copy()
    sr[..., 2] ^= 1  # one level of blue: a third of the mean squared error of one level everywhere
    assert psnr(sr, hq, PROTOCOLS["rgb"]) == pytest.approx(10 * math.log10(255**2 * 3))
    grey = [
        np.repeat(picture[..., :1], 3, axis=2)
        for picture in (random_picture(13), random_picture(14))
    ]
    reds = [picture.copy() for picture in grey]
    reds[0][..., 1:] = reds[1][..., 1:]
    assert ssim(*reds, PROTOCOLS["rgb"]) == pytest.approx((ssim(*grey, PROTOCOLS["rgb"]) + 2) / 3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_torchmetrics_own_formulas_agree(name):
    """On the same levels; its SSIM clamps nothing and counts the mirrored margin, too, which is cut
    away here.
    """
    image = pytest.importorskip(
        "torchmetrics.functional.image", reason="torchmetrics is not installed"
    )
    import torch

    protocol = replace(PROTOCOLS[name], psnr_eps=0.0, ssim_clamps=False)
    pictures = random_picture(15, 64, 80), random_picture(16, 64, 80)

    def prepare(rounds):
        cuts = (
            cut_border(levels(picture, protocol, rounds), protocol.border_px)
            for picture in pictures
        )
        return [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in cuts]

    x, y = prepare(protocol.psnr_rounds_y)
    theirs = image.peak_signal_noise_ratio(x, y, data_range=255.0)
    assert psnr(*pictures, protocol) == pytest.approx(float(theirs), abs=1e-4)
    options = {"sigma": 1.5, "data_range": 255.0, "return_full_image": True}
    places = image.structural_similarity_index_measure(*prepare(protocol.ssim_rounds_y), **options)[
        1
    ]
    assert ssim(*pictures, protocol) == pytest.approx(
        float(places[..., 5:-5, 5:-5].mean()), abs=1e-6
    )


def test_the_basicsr_preset_neither_rounds_nor_clamps_in_ssim_by_hand():
    """19x19 without its border is one window; its luma is made to run against the other's, so SSIM
    is below 0.
    """
    x = random_picture(19, 19, 19)
    y = 255 - x
    lx, ly = (luma(picture)[4:-4, 4:-4] * 255 for picture in (x, y))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * lx).sum(), (weights * ly).sum()
    vx, vy = (weights * (lx - mx) ** 2).sum(), (weights * (ly - my) ** 2).sum()
    contrast = (2 * (weights * (lx - mx) * (ly - my)).sum() + 58.5225) / (vx + vy + 58.5225)
    expected = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025) * contrast
    assert expected < 0
    assert ssim(x, y, PROTOCOLS["basicsr"]) == pytest.approx(expected)
    assert ssim(x, y, PROTOCOLS["seesr"]) == 0


@pytest.mark.parametrize("real", [False, True])
def test_pyiqa_agrees(real):
    pyiqa = pytest.importorskip(
        "pyiqa", reason="pyiqa is not installed (its licence is non-commercial)"
    )
    import torch

    pairs = [(random_picture(17, 64, 80), random_picture(18, 64, 80))]
    if real:
        names = sorted(path.name for path in (REALSR / "osediff").glob("*.png"))[:3]
        if not names:
            pytest.skip("no RealSR pairs beside this checkout, nor in PISASR_REALSR")
        pairs = [
            tuple(
                np.asarray(Image.open(REALSR / side / name).convert("RGB"))
                for side in ("osediff", "hr")
            )
            for name in names
        ]
    for name in ("stablesr", "seesr"):
        options = {
            "test_y_channel": True,
            "color_space": "ycbcr",
            "crop_border": PROTOCOLS[name].border_px,
        }
        metrics = [
            pyiqa.create_metric(metric, device="cpu", **options) for metric in ("psnr", "ssim")
        ]
        for pair in pairs:
            x, y = (torch.tensor(picture).permute(2, 0, 1)[None] / 255 for picture in pair)
            theirs, ours = (
                [float(metric(x, y)) for metric in metrics],
                [f(*pair, PROTOCOLS[name]) for f in (psnr, ssim)],
            )
            assert theirs == pytest.approx(ours, abs=1e-5)


def test_pyiqa_s_niqe_agrees(tmp_path):
    pyiqa = pytest.importorskip(
        "pyiqa", reason="pyiqa is not installed (its licence is non-commercial)"
    )
    import torch
    from scipy.io import savemat

    from pisasr.evaluation.networks import MetricUnavailable
    from pisasr.evaluation.niqe import find_parameters, load_parameters, niqe

    try:
        pristine = load_parameters(find_parameters())
    except MetricUnavailable as missing:
        pytest.skip(f"NIQE's parameters are not installed: {missing}")
    savemat(
        tmp_path / "a.mat", {"mu_prisparam": pristine.mean, "cov_prisparam": pristine.covariance}
    )
    metric = pyiqa.create_metric(
        "niqe", device="cpu", pretrained_model_path=str(tmp_path / "a.mat")
    )
    rough = np.random.default_rng(20).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(rough).resize((400, 320), Image.Resampling.BICUBIC))
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    assert niqe(picture, pristine) == pytest.approx(float(metric(x)), rel=1e-3)


def test_psnr_lq_is_high_for_an_enlarged_input_and_low_for_another_picture():
    lq = np.asarray(
        Image.fromarray(random_picture(7, 4, 4)).resize((16, 16), Image.Resampling.BICUBIC)
    )
    enlarged = np.asarray(Image.fromarray(lq).resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr_lq(enlarged, lq) > 30 > psnr_lq(255 - enlarged, lq)


@pytest.mark.skipif(
    not REALSR.is_dir(), reason="no RealSR pairs beside this checkout, nor in PISASR_REALSR"
)
def test_psnr_and_ssim_agree_with_published_scores_of_every_picture():
    def read(path):
        return np.asarray(Image.open(path).convert("RGB"))

    with open(REALSR / "osediff_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    for row in rows:
        sr, hq = read(REALSR / "osediff" / row["name"]), read(REALSR / "hr" / row["name"])
        assert psnr(sr, hq) == pytest.approx(float(row["psnr"]), abs=1e-4), row["name"]
        assert ssim(sr, hq) == pytest.approx(float(row["ssim"]), abs=1e-5), row["name"]

"""The quality score: whatever spoils a photo lowers it, and more of it lowers it more."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_prepare_data import scene

from pisasr.data import quality
from pisasr.data.quality import Quality, measure

EXAMPLES = sorted((Path(__file__).parents[1] / "pisasr" / "demo" / "examples").glob("*.png"))


def pictures():
    return [scene(seed, 256, 256) for seed in range(6)] + [
        Image.open(path).convert("RGB") for path in EXAMPLES
    ]


def luma(picture):
    return np.asarray(picture.convert("L"))


def blurred(picture, sigma):
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def noisy(picture, sigma):
    pixels = np.asarray(picture, float)
    pixels = pixels + np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def compressed(picture, level):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=level)
    return Image.open(file).convert("RGB")


def enlarged(picture, factor):
    small = picture.resize(
        (picture.width // factor, picture.height // factor), Image.Resampling.BICUBIC
    )
    return small.resize(picture.size, Image.Resampling.BICUBIC)


CHAINS = {"blur": (blurred, (1, 2, 4)), "noise": (noisy, (5, 15, 30)), "jpeg": (compressed, (70, 40, 15)),
          "resize": (enlarged, (2, 4))}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
def test_the_score_falls_with_every_step_of_a_degradation(kind):
    spoil, strengths = CHAINS[kind]
    scores = np.array(
        [
            [measure(luma(p)).score] + [measure(luma(spoil(p, s))).score for s in strengths]
            for p in pictures()
        ]
    )
    means = scores.mean(axis=0)
    assert (np.diff(means) < 0).all(), means
    assert (scores[:, 0] > scores[:, -1]).all(), "the strongest is seen in every single picture"


def test_each_part_measures_what_it_is_named_for():
    picture = scene(3, 256, 256)
    step = Image.new("RGB", (256, 256))
    step.paste("white", (100, 0, 256, 256))
    for sigma in (1.5, 3):  # the measure smooths by 0.5 itself
        assert measure(luma(blurred(step, sigma))).blur == pytest.approx(
            (sigma**2 + 0.25) ** 0.5, rel=0.2
        )
    flat = Image.new("RGB", (256, 256), (120, 120, 120))
    for sigma in (2, 8):
        assert measure(luma(noisy(flat, sigma).convert("L"))).noise == pytest.approx(
            sigma * 0.67, rel=0.15
        )
    assert (
        measure(luma(compressed(picture, 15))).blockiness
        > 10 * measure(luma(picture)).blockiness + 1
    )
    assert measure(luma(flat)).flatness == 1


def test_a_sharp_subject_before_a_soft_background_is_sharp():
    sharp = scene(3, 256, 256)
    portrait = blurred(sharp, 5)
    portrait.paste(sharp.crop((64, 64, 192, 192)), (64, 64))
    whole, subject, soft = (measure(luma(p)).score for p in (sharp, portrait, blurred(sharp, 5)))
    assert whole - subject < 0.2 * (whole - soft)


@pytest.mark.parametrize("sigma", [0, 2, 5, 15])
def test_grain_is_no_edge(sigma):
    """A soft picture of little contrast has no edges, under grain as without."""
    soft = blurred(scene(3, 256, 256), 8).point(lambda level: 100 + level // 4)
    value = measure(luma(noisy(soft, sigma)))
    assert value.flatness == 1 and value.score < 0.2


def test_the_grid_is_found_at_any_offset():
    blocks = compressed(scene(4, 256, 256), 20)
    shifted = blocks.crop((3, 5, 251, 253))
    assert measure(luma(shifted)).blockiness == pytest.approx(
        measure(luma(blocks)).blockiness, rel=0.2
    )


@pytest.mark.parametrize("size", [(32, 32), (33, 500), (1000, 32)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_pictures_of_one_level_have_a_low_score(size, level):
    value = measure(np.full(size, level, np.uint8))
    assert 0 <= value.score < 0.2 and value.flatness == 1 and value.noise == 0


def test_what_is_smaller_than_two_patches_is_refused():
    with pytest.raises(ValueError, match="31x40 can't be scored; wanted 32 px a side"):
        measure(np.zeros((40, 31)))


def test_a_faultless_photo_scores_one_and_one_fault_is_enough_to_spoil_it():
    assert Quality(0, 0, 0, 0).score == 1
    for name in quality.CURVES:
        assert Quality(**{**dict.fromkeys(quality.CURVES, 0), name: 1e6}).score < 0.3
    assert sum(weight for _, _, weight in quality.CURVES.values()) == pytest.approx(1)

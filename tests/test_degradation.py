"""The degradation's promises, and its formulas against basicsr's where that can be imported.

basicsr 1.4.2 needs no place in the project's environment:
    pip install --target DIR --no-build-isolation --no-deps basicsr==1.4.2 opencv-python-headless scipy pyyaml tqdm
    PYTHONPATH=DIR python -m pytest tests/test_degradation.py
"""

import importlib
import math
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor

from pisasr.data import degradation, jpeg, kernels
from pisasr.data.degradation import (
    Blur,
    BlurRecipe,
    DegradationRecipe,
    Jpeg,
    Noise,
    NoiseRecipe,
    PassRecipe,
    Plan,
    Resize,
    ResizeRecipe,
    add_gaussian_noise,
    add_poisson_noise,
    blur,
    carry_out,
    carry_out_one,
    compress_jpeg,
    count_by_place,
    degrade,
    degrade_one,
    draw_kernel,
    draw_plan,
    sample_generator,
    stack_kernels,
)
from pisasr.data.kernels import Kernel

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "pisasr" / "demo" / "examples").glob("*.png"))
PUBLISHED = DegradationRecipe()
CAMERA = DegradationRecipe(
    prob_first=0.0,
    prob_antialias=1.0,
    prob_final_sinc=0.0,
    second=PassRecipe(
        blur=BlurRecipe(kinds=["iso"], odds=[1.0], sigma=[0.6, 1.8], prob_sinc=0.0),
        resize=ResizeRecipe(odds=[0.0, 0.0, 1.0], modes=["bicubic"]),
        noise=NoiseRecipe(prob_gaussian=1.0, sigma=[2.0, 8.0]),
        jpeg=[50.0, 90.0],
    ),
)


def photo(height: int = 96, width: int = 96) -> Tensor:
    """A smooth, coloured scene with one sharp edge, [3, height, width] in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width).expand(height, width)
    scene = torch.stack([0.5 + 0.3 * torch.sin(9 * x + 2 * y), 0.2 + 0.6 * y, 0.6 - 0.3 * torch.cos(14 * x * y)])
    return torch.where(torch.hypot(x - 0.5, y - 0.4) < 0.2, 0.4 * scene, scene).clamp(0, 1)


def generator(index: int = 0) -> torch.Generator:
    return sample_generator(0, 0, index)


# --- promises --------------------------------------------------------------------------------------------------------


def test_same_seed_same_pixels_also_with_other_threads():
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            runs.append(torch.stack([degrade_one(photo(), PUBLISHED, generator(index)) for index in range(12)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_another_seed_epoch_or_index_gives_other_pixels():
    numbers = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (0, 0, 2**32)]
    results = [degrade_one(photo(), PUBLISHED, sample_generator(*three)) for three in numbers]
    for i, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[:i])


def test_global_chance_is_neither_used_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = degrade_one(photo(), PUBLISHED, generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(degrade_one(photo(), PUBLISHED, generator()), first)


def test_batch_is_its_samples_one_after_the_other():
    batch = degrade(torch.stack([photo(), photo()]), PUBLISHED, generator())
    chance = generator()
    assert torch.equal(batch, torch.stack([degrade_one(photo(), PUBLISHED, chance) for _ in range(2)]))
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (5, 7), (31, 33), (64, 48)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_size_range_and_levels_at_any_size(size, scale):
    x_H = photo(*size)
    kept = x_H.clone()
    for index in range(6):
        x_L = degrade_one(x_H, replace(PUBLISHED, scale=scale), generator(index))
        assert x_L.shape == (3, max(1, size[0] // scale), max(1, size[1] // scale))
        assert x_L.min() >= 0 and x_L.max() <= 1
        assert torch.equal(x_L, (x_L * 255).round() / 255)
    assert torch.equal(x_H, kept)


@pytest.mark.parametrize(
    ("x_H", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"\[3, H, W\]; got \[1, 3, 8, 8\]"),
        (torch.zeros(1, 8, 8), r"got \[1, 8, 8\]"),
        (torch.zeros(3, 0, 8), r"got \[3, 0, 8\]"),
        (torch.full((3, 8, 8), -1.0), r"\[0, 1\]; got \[-1, -1\]; .*\(x \+ 1\) / 2"),
        (torch.full((3, 8, 8), math.nan), r"got \[nan, nan\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "float32.*got torch.uint8"),
    ],
)
def test_unfit_photo_is_refused_in_one_line(x_H, message):
    with pytest.raises(ValueError, match=message) as caught:
        degrade_one(x_H, PUBLISHED, generator())
    assert "\n" not in str(caught.value)


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_clean_is_antialiased_bicubic_and_nothing_else():
    x_L = degrade_one(photo(), replace(PUBLISHED, prob_clean=1.0), generator())
    expected = F.interpolate(photo()[None], size=(24, 24), mode="bicubic", antialias=True)[0]
    assert (x_L - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_camera_recipe_is_milder_than_the_published_one():
    """And no single sample goes far from the cleanly reduced photo."""
    clean = degrade_one(photo(), replace(CAMERA, prob_clean=1.0), generator())

    def errors(recipe):
        return [(degrade_one(photo(), recipe, generator(i)) - clean).square().mean().sqrt().item() for i in range(20)]

    assert max(errors(CAMERA)) < 0.06
    assert np.mean(errors(CAMERA)) < 0.85 * np.mean(errors(PUBLISHED))


def test_antialias_takes_the_stairs_away():
    """A pattern finer than x_L can hold: averaged to grey with antialiasing, a false pattern without."""
    stripes = (torch.arange(96) % 3 / 2).expand(3, 96, 96).contiguous()
    still = replace(
        CAMERA, second=replace(CAMERA.second, blur=BlurRecipe(prob=0.0), noise=NoiseRecipe(1.0, [0.0, 0.0]))
    )
    smooth = degrade_one(stripes, still, generator())
    aliased = degrade_one(stripes, replace(still, prob_antialias=0.0), generator())
    assert smooth[..., 2:-2].std() < 0.05 < 0.15 < aliased[..., 2:-2].std()


def test_passes_happen_as_often_as_the_recipe_says():
    """The first pass, the clean way, the last sinc and the early JPEG, each by its own chance."""
    recipe = replace(PUBLISHED, prob_first=0.3, prob_clean=0.2, prob_final_sinc=0.6, prob_jpeg_last=0.4)
    plans = [draw_plan(recipe, (16, 16), generator(index)).steps for index in range(400)]
    dirty = [steps for steps in plans if steps[6]]
    assert len(dirty) == pytest.approx(320, abs=32)
    for place, share in ((2, 0.3), (9, 0.6), (7, 0.6), (10, 0.4)):
        assert np.mean([steps[place] is not None for steps in dirty]) == pytest.approx(share, abs=0.1), place


@pytest.mark.parametrize("jpeg_last", [0.0, 1.0])
def test_steps_come_in_the_published_order(jpeg_last):
    always = replace(PUBLISHED.second, blur=replace(PUBLISHED.second.blur, prob=1.0))
    recipe = replace(PUBLISHED, second=always, prob_final_sinc=1.0, prob_jpeg_last=jpeg_last)
    plan = draw_plan(recipe, (96, 80), generator())
    order = [
        Blur,
        Resize,
        Noise,
        Jpeg,
        Blur,
        Resize,
        Noise,
        *([Resize, Blur, Jpeg] if jpeg_last else [Jpeg, Resize, Blur]),
    ]
    assert [type(step) for step in plan.steps if step] == order
    assert plan.steps[8].to == (24, 20) and plan.steps[9].kernel.shape == "sinc"


@pytest.mark.parametrize(
    "make",
    [
        lambda: BlurRecipe(kinds=["iso"]),
        lambda: BlurRecipe(kinds=["star"], odds=[1.0]),
        lambda: BlurRecipe(sigma=[3.0, 1.0]),
        lambda: BlurRecipe(sigma=[0.0, 1.0]),
        lambda: BlurRecipe(size=[8, 8]),
        lambda: BlurRecipe(prob=1.5),
        lambda: ResizeRecipe(odds=[0.0, 0.0, 0.0]),
        lambda: ResizeRecipe(modes=["lanczos"]),
        lambda: NoiseRecipe(sigma=[1.0]),
        lambda: PassRecipe(jpeg=[0.0, 101.0]),
        lambda: DegradationRecipe(scale=0),
        lambda: DegradationRecipe(prob_clean=math.nan),
    ],
)
def test_impossible_recipe_is_refused_in_one_line(make):
    with pytest.raises(ValueError) as caught:
        make()
    assert "got" in str(caught.value) and "\n" not in str(caught.value)


def test_recipe_goes_through_omegaconf():
    omegaconf = pytest.importorskip("omegaconf")
    schema = omegaconf.OmegaConf.structured(DegradationRecipe)
    assert omegaconf.OmegaConf.to_object(schema) == PUBLISHED
    given = {"prob_first": 0.5, "second": {"noise": {"sigma": [2, 8]}}}
    recipe = omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.merge(schema, given))
    assert recipe.prob_first == 0.5 and recipe.second.noise.sigma == [2.0, 8.0]
    assert recipe.second.blur == PUBLISHED.second.blur and recipe.first == PUBLISHED.first


def test_draws_follow_the_odds():
    """Kinds of kernel by their weights, sinc by its chance, sizes odd from 7 to 21, exponents half below one."""
    chance = generator()
    drawn = [draw_kernel(PUBLISHED.first.blur, chance) for _ in range(3000)]
    shapes = [kernel.shape for kernel in drawn]
    assert shapes.count("sinc") == pytest.approx(300, abs=80)
    assert shapes.count("plateau") == pytest.approx(0.9 * 0.15 * 3000, abs=90)
    assert {kernel.size for kernel in drawn} == {7, 9, 11, 13, 15, 17, 19, 21}
    stretched = sum(kernel.shape != "sinc" and kernel.parameters[0] != kernel.parameters[1] for kernel in drawn)
    assert stretched == pytest.approx(0.9 * 0.31 * 3000, abs=120)
    betas = [kernel.parameters[3] for kernel in drawn if kernel.shape == "gaussian" and kernel.parameters[3] != 1.0]
    assert np.mean([beta < 1 for beta in betas]) == pytest.approx(0.5, abs=0.1)
    cutoffs = [kernel.parameters[0] for kernel in drawn if kernel.shape == "sinc"]
    assert math.pi / 5 <= min(cutoffs) < math.pi / 4 and max(cutoffs) <= math.pi


# --- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 61), (10, 10), (3, 50)])
def test_blur_is_a_mirrored_filter(size):
    x, kernel = photo(*size), torch.rand(21, 21, generator=generator())
    mode = "reflect" if min(size) > 10 else "replicate"
    padded = F.pad(x[None], (10, 10, 10, 10), mode=mode)
    expected = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]
    torch.testing.assert_close(blur(x, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_sigma_and_colour(gray):
    noise = (add_gaussian_noise(torch.full((3, 200, 200), 0.5), 10.0, gray, generator()) - 0.5) * 255
    assert noise.std().item() == pytest.approx(10, rel=0.03) and abs(noise.mean().item()) < 0.2
    correlation = torch.corrcoef(noise.flatten(1))[0, 1].item()
    assert correlation == pytest.approx(1.0 if gray else 0.0, abs=0.03)


def test_poisson_noise_grows_with_the_root_of_brightness():
    """One grey of 64 levels' ramp: standard deviation sqrt(brightness / 64), times the strength."""
    ramp = ((torch.arange(64) * 4) / 255).repeat_interleave(150).expand(3, 150, -1).contiguous()
    noise = add_poisson_noise(ramp, 0.5, False, generator()) - ramp
    for level in (8, 24):
        columns = noise[..., level * 150 : (level + 1) * 150]
        assert columns.std().item() == pytest.approx(0.5 * math.sqrt(level * 4 / 255 / 64), rel=0.03)
        assert abs(columns.mean().item()) < 2e-3
    gray = add_poisson_noise(ramp, 0.5, True, generator()) - ramp
    torch.testing.assert_close(gray[0, :, 3000:4000], gray[2, :, 3000:4000])


def test_poisson_noise_leaves_black_black():
    assert not add_poisson_noise(torch.zeros(3, 8, 8), 2.0, False, generator()).any()


def test_jpeg_gets_better_with_quality():
    errors = [(compress_jpeg(photo(), q) - photo()).square().mean().item() for q in (10, 30, 50, 70, 90, 100)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 4 * errors[-1]


def test_jpeg_halves_colour_but_not_brightness():
    columns = (torch.arange(32) % 2).float()
    grey = columns.expand(3, 32, 32).contiguous()
    red_or_green = torch.stack([columns, 1 - columns, torch.zeros(32)])[:, None].expand(3, 32, 32).contiguous()
    assert (compress_jpeg(grey, 100) - grey).abs().max() < 0.02
    assert (compress_jpeg(red_or_green, 100) - red_or_green).abs().mean() > 0.2


def test_stored_result():
    """Our own pixels, so that a change of the maths is seen. Means, as another processor may round the last bit."""
    got = [degrade_one(photo(32, 32), PUBLISHED, generator(index)).mean((1, 2)).tolist() for index in range(4)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(STORED), rtol=0, atol=0.01)


def test_stored_plans():
    """Our own draws. They are numbers of the generator alone, the same on every machine: a seed means what it meant."""
    assert draw_plan(PUBLISHED, (512, 384), generator(3)) == STORED_PLAN
    clean = replace(PUBLISHED, prob_clean=1.0, scale=2)
    assert draw_plan(clean, (9, 7), generator()).steps == (*[None] * 8, Resize((4, 3), "bicubic", True), None, None)


@pytest.mark.parametrize("way", [1, 2])
def test_stored_pixels(way):
    """x_L of eight by eight pixels, drawn in turn and by plan: Gaussian noise alone, for one rounding changes all the
    Poisson noise that is drawn after it. Another processor may round some of them to the next level."""
    gaussian = NoiseRecipe(prob_gaussian=1.0)
    recipe = replace(
        PUBLISHED,
        first=replace(PUBLISHED.first, noise=gaussian),
        second=replace(PUBLISHED.second, noise=gaussian),
    )
    if way == 1:
        x_L = degrade_one(photo(32, 32), recipe, generator(5))
    else:
        x_L = carry_out_one(photo(32, 32), draw_plan(recipe, (32, 32), generator(5)))
    stored = torch.tensor(list(bytes.fromhex(STORED_PIXELS[way]))).reshape(3, 8, 8)
    off = (x_L * 255 - stored).abs()
    assert (off < 0.5).float().mean() > 0.9 and off.mean() < 0.2


STORED = [
    [0.5094, 0.4732, 0.5137],
    [0.5308, 0.4728, 0.5216],
    [0.5306, 0.4698, 0.5153],
    [0.5156, 0.4694, 0.5146],
]
STORED_PLAN = Plan(
    size=(512, 384),
    steps=(
        Blur(
            kernel=Kernel(
                shape="gaussian", size=13, parameters=(2.215376691167972, 2.308703923944059, -3.0004497143740263, 1.0)
            )
        ),
        Resize(to=0.6810506078690671, mode="area", antialias=False),
        Noise(kind="gaussian", strength=4.349193209433419, gray=False, seed=3109958195),
        Jpeg(quality=84),
        None,
        Resize(to=(108, 81), mode="area", antialias=False),
        Noise(kind="gaussian", strength=2.1597474880837586, gray=False, seed=2475113309),
        None,
        Resize(to=(128, 96), mode="bicubic", antialias=False),
        Blur(kernel=Kernel(shape="sinc", size=9, parameters=(2.4739865072420884,))),
        Jpeg(quality=96),
    ),
)
STORED_PIXELS = {
    1: (
        "94998771758aa0a1959680696c839b9d928d6f565b728c8f8e86644a526882858f8666505f707e7d90886e5d707c827c"
        "8e8879718a8e84768b857c789393827143473722253b51524e503a24283e57596a65472e354c676b7a72503640577276"
        "9d94756070829291aca48b7b8f9ca49fbfb8aba4bfc4bcafc3beb5b1d0d1c1b16e7465515870898b7476624d546c888b"
        "7e7a5d454f68868a837b5a414e6785898e866955667a8f8f938b74657c8b96929690847e9ca29d9194908986a7aa9d8e"
    ),
    2: (
        "b0b29f817c91a3a0adaa92757490aaaeaba080616284a2abaf9d7756546f898fa996765a596976749d8f796b707b7b72"
        "8e847b7d8991897b857f7b83969c9181454c432d2b3e443c4f52432c304b5a5969614b3237586e72887a5d4346617376"
        "a2937864677a837eada2928a94a2a096aea7a2a9b9c6c0b3aea9aab8cdd9d0c259625c4e547288855f625847557a979c"
        "6d695542527c9fa981765c47537897a08f806b5c6882969790867c788a9fa8a289868390a9bcbdb48683889ab8cac8be"
    ),
}


# --- plans -----------------------------------------------------------------------------------------------------------


def crops(count: int, side: int = 72) -> Tensor:
    """Pieces of the photos that come with the package, [count, 3, side, side]."""
    pieces = []
    for index in range(count):
        with Image.open(EXAMPLES[index % len(EXAMPLES)]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        top, left = (5 * index % (length - side + 1) for length in pixels.shape[1:])
        pieces.append(pixels[:, top : top + side, left : left + side].float() / 255)
    return torch.stack(pieces)


def plans_for(x_H: Tensor, recipe: DegradationRecipe, start: int = 0) -> list:
    return [draw_plan(recipe, tuple(x_H.shape[-2:]), generator(start + i)) for i in range(len(x_H))]


def far_apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean absolute difference in grey levels, and the share of values within two levels."""
    off = (one - other).abs() * 255
    return off.mean().item(), (off < 2.5).float().mean().item()


@pytest.mark.parametrize("recipe", [PUBLISHED, CAMERA, replace(PUBLISHED, prob_clean=0.2, prob_antialias=0.5, scale=2)])
def test_a_batch_gets_the_pixels_its_workers_would_have_made(recipe):
    """The tolerance that `carry_out` states: 0.05 grey levels on average, 99.5 % within two; 200 crops of photos."""
    x_H = crops(200)
    plans = plans_for(x_H, recipe)
    alone = torch.stack([carry_out_one(x, plan) for x, plan in zip(x_H, plans, strict=True)])
    batches = [carry_out(x_H[i : i + 8], plans[i : i + 8]) for i in range(0, 200, 8)]
    mean, share = far_apart(alone, torch.cat(batches))
    assert mean < 0.05 and share > 0.995


def test_a_device_that_rounds_otherwise_gets_nearly_the_same_pixels(monkeypatch):
    """Every blur, resize and noise off by up to 1e-6, several times float32's step: 0.2 levels, 99 % within two."""
    x_H = crops(100)
    plans = plans_for(x_H, PUBLISHED)
    alone = torch.stack([carry_out_one(x, plan) for x, plan in zip(x_H, plans, strict=True)])
    shaking = generator(1)

    def shaken(step):
        def f(*args, **kwargs):
            x = step(*args, **kwargs)
            return x + (torch.rand(x.shape, generator=shaking) - 0.5) * 2e-6

        return f

    for name in ("blur", "resize", "resize_by", "add_gaussian_noise", "add_poisson_noise"):
        monkeypatch.setattr(degradation, name, shaken(getattr(degradation, name)))
    batches = [carry_out(x_H[i : i + 4], plans[i : i + 4]) for i in range(0, 100, 4)]
    mean, share = far_apart(alone, torch.cat(batches))
    assert 0 < mean < 0.2 and share > 0.99


@pytest.mark.parametrize("recipe", [PUBLISHED, CAMERA, replace(PUBLISHED, prob_clean=1.0)])
def test_nothing_is_left_on_the_cpu(monkeypatch, recipe):
    """A device without numbers refuses to meet tensors of another one, as a GPU would. Counting levels needs numbers,
    so the count of photons is given, and the search in the tails finds every value late."""
    monkeypatch.setattr(degradation, "count_levels", lambda source: 200)
    x_H = torch.empty(20, 3, 40, 48, device="meta")
    plans = [draw_plan(recipe, (40, 48), generator(index)) for index in range(20)]
    with torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True):
        x_L = carry_out(x_H, plans)
    assert x_L.device.type == "meta" and x_L.shape == (20, 3, 10, 12)


def test_the_order_in_memory_does_not_matter():
    """A decoded picture has its colours last; so may a batch."""
    x_H = crops(4)
    plans = plans_for(x_H, PUBLISHED)
    turned = x_H.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(carry_out(turned, plans), carry_out(x_H, plans))
    for one, other, plan in zip(turned, x_H, plans, strict=True):
        assert torch.equal(carry_out_one(one, plan), carry_out_one(other, plan))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (5, 7), (9, 21), (31, 33)])
def test_tiny_batches_have_size_range_and_levels_too(size):
    x_H = torch.stack([photo(*size)] * 6)
    kept, plans = x_H.clone(), plans_for(x_H, PUBLISHED)
    x_L = carry_out(x_H, plans)
    assert x_L.shape == (6, 3, max(1, size[0] // 4), max(1, size[1] // 4)) and torch.equal(x_H, kept)
    assert x_L.min() >= 0 and x_L.max() <= 1 and torch.equal(x_L, (x_L * 255).round() / 255)
    alone = torch.stack([carry_out_one(x, plan) for x, plan in zip(x_H, plans, strict=True)])
    assert far_apart(x_L, alone)[0] < 0.1


def test_a_pictures_pixels_do_not_depend_on_its_neighbours():
    x_H = crops(8)
    plans = plans_for(x_H, PUBLISHED)
    whole, last = carry_out(x_H, plans), carry_out(x_H[5:], plans[5:])
    assert far_apart(whole[5:], last)[0] < 0.05


def test_plans_travel_and_compare():
    """Through a data loader's workers: every number is there, none is a tensor."""
    plan = draw_plan(PUBLISHED, (64, 64), generator())
    sent = pickle.dumps(plan)
    assert pickle.loads(sent) == plan and hash(plan) == hash(pickle.loads(sent)) and len(sent) < 1500
    assert draw_plan(PUBLISHED, (64, 64), generator()) == plan != draw_plan(PUBLISHED, (64, 64), generator(1))


def test_a_plan_begins_like_what_is_drawn_in_turn(monkeypatch):
    """Up to the first noise, whose field is where the two ways part."""
    taken = []
    take = degradation.take
    monkeypatch.setattr(degradation, "take", lambda x, step, *rest: (taken.append(step), take(x, step, *rest))[1])
    degrade_one(photo(), PUBLISHED, generator(4))
    plan = draw_plan(PUBLISHED, (96, 96), generator(4))
    assert taken[:2] == list(plan.steps[:2]) and taken[2] == replace(plan.steps[2], seed=None)
    assert taken[3:] != list(plan.steps[3:])


def test_both_passes_and_both_samples_have_noise_of_their_own():
    plans = [draw_plan(PUBLISHED, (64, 64), generator(index)) for index in range(50)]
    seeds = [step.seed for plan in plans for step in plan.steps if isinstance(step, Noise)]
    assert len(set(seeds)) == 100


@pytest.mark.parametrize(
    ("x_H", "count", "message"),
    [
        (torch.zeros(2, 3, 8, 8), 1, r"a plan for each photo; got torch.float32 \[2, 3, 8, 8\] and 1 plans"),
        (torch.zeros(3, 8, 8), 3, r"got torch.float32 \[3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8).double(), 1, "got torch.float64"),
        (torch.zeros(1, 3, 8, 9), 1, r"a plan is for \(8, 8\); draw it for the crop"),
    ],
)
def test_plans_that_do_not_fit_are_refused_in_one_line(x_H, count, message):
    plans = [draw_plan(PUBLISHED, (8, 8), generator(index)) for index in range(count)]
    with pytest.raises(ValueError, match=message) as caught:
        carry_out(x_H, plans)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("photons", [1, 2, 8, 64, 256])
def test_counts_by_place_are_poisson(photons):
    """Mean and variance are the rate at every brightness, and the shares of the first counts those of the formula."""
    for level in (0, 1, 10, 127, 255):
        rate = level * photons / 255
        counts = count_by_place(torch.full((40_000,), rate), photons, generator(level))
        error = math.sqrt(max(rate, 1e-9) / 40_000)
        assert counts.mean().item() == pytest.approx(rate, abs=5 * error)
        assert counts.var().item() == pytest.approx(rate, abs=5 * error * math.sqrt(2 * rate + 1))
        none = (counts == 0).float().mean().item()
        assert none == pytest.approx(math.exp(-rate), abs=0.012)


def test_counts_by_place_are_the_quantiles():
    """The first count that is reached with a probability above the place's number."""
    rates = torch.arange(256).repeat(40) * (64 / 255)
    counts = count_by_place(rates, 64, generator()).double()
    numbers = torch.rand(rates.shape, generator=generator()).double()
    exact = (torch.arange(256).repeat(40) * (64 / 255)).double()
    assert (torch.special.gammaincc(counts + 1, exact) > numbers - 1e-12).all()
    assert (torch.special.gammaincc(counts.clamp_min(1e-300), exact)[counts > 0] <= numbers[counts > 0] + 1e-12).all()


def test_counts_by_place_hardly_move_with_the_rate():
    """And only where it moves: what is drawn for one place is not taken from the next."""
    rates = torch.full((5000,), 100 * 256 / 255)
    moved = rates.clone()
    moved[:50] += 256 / 255
    one, other = (count_by_place(r, 256, generator()) for r in (rates, moved))
    assert torch.equal(one[50:], other[50:]) and 0 <= (other - one).min() and 0 < (other - one).max() <= 3


def test_poisson_noise_by_place_is_that_of_the_formula():
    ramp = ((torch.arange(64) * 4) / 255).repeat_interleave(150).expand(3, 150, -1).contiguous()
    noise = add_poisson_noise(ramp, 0.5, False, generator(), count_by_place) - ramp
    for level in (8, 24):
        columns = noise[..., level * 150 : (level + 1) * 150]
        assert columns.std().item() == pytest.approx(0.5 * math.sqrt(level * 4 / 255 / 64), rel=0.03)
        assert abs(columns.mean().item()) < 2e-3


@pytest.mark.parametrize("size", [(40, 61), (11, 30)])
def test_each_picture_of_a_batch_has_its_own_blur(size):
    x = torch.stack([photo(*size), photo(*size).flip(2)])
    own = [Kernel("gaussian", 7, (1.0, 1.0, 0.0)), Kernel("sinc", 21, (1.5,))]
    both = blur(x, stack_kernels(own))
    for i in range(2):
        torch.testing.assert_close(both[i], blur(x[i], own[i].make()), rtol=0, atol=2e-6)


def test_jpeg_in_a_batch_is_pillows():
    x, steps = crops(3), [Jpeg(30), Jpeg(75), Jpeg(95)]
    alone = torch.stack([compress_jpeg(one, step.quality) for one, step in zip(x, steps, strict=True)])
    together = torch.stack(degradation.take_together(list(x), steps))
    if features.check_feature("libjpeg_turbo"):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)
    torch.testing.assert_close(together, jpeg.compress((x * 255).round(), [30, 75, 95]) / 255, rtol=0, atol=0)


# --- basicsr ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def basicsr():
    """basicsr's degradations, image processing and JPEG in one namespace.

    It imports a module that torchvision has removed, for one function; the stand-in offers that one.
    """
    if importlib.util.find_spec("basicsr") is None:
        pytest.skip("basicsr is not installed (this file's first lines say how)")
    names = ("basicsr.data.degradations", "basicsr.utils.img_process_util", "basicsr.utils.diffjpeg")
    try:
        from torchvision.transforms.functional import rgb_to_grayscale

        stand_in = types.SimpleNamespace(rgb_to_grayscale=rgb_to_grayscale)
        sys.modules.setdefault("torchvision.transforms.functional_tensor", stand_in)
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        pytest.skip(f"basicsr is installed but can't be imported: {error}")
    return types.SimpleNamespace(**{key: value for module in modules for key, value in vars(module).items()})


@pytest.mark.parametrize("size", [7, 21])
@pytest.mark.parametrize(("sigma_x", "sigma_y", "angle"), [(0.2, 0.2, 0.0), (1.7, 1.7, 0.0), (2.9, 0.4, -2.5)])
def test_kernels_match_basicsr(basicsr, size, sigma_x, sigma_y, angle):
    for isotropic in (True, False):
        sigmas = (sigma_x, sigma_x, 0.0) if isotropic else (sigma_x, sigma_y, angle)
        shape = (size, sigma_x, sigma_y, angle)
        pairs = [(kernels.gaussian(size, *sigmas), basicsr.bivariate_Gaussian(*shape, isotropic=isotropic))]
        for beta in (0.5, 1.6, 4.0):
            theirs = basicsr.bivariate_generalized_Gaussian(*shape, beta, isotropic=isotropic)
            pairs.append((kernels.gaussian(size, *sigmas, beta), theirs))
            theirs = basicsr.bivariate_plateau(*shape, beta, isotropic=isotropic)
            pairs.append((kernels.plateau(size, *sigmas, beta), theirs))
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("cutoff", [math.pi / 5, 1.5, math.pi])
def test_sinc_matches_basicsr(basicsr, size, cutoff):
    """Within 2e-7: torch's J1 is right to 5e-7 only, where scipy's is exact."""
    theirs = basicsr.circular_lowpass_kernel(cutoff, size)
    np.testing.assert_allclose(kernels.sinc(size, cutoff).numpy(), theirs, rtol=0, atol=2e-7)


def test_blur_matches_basicsr_with_its_padded_kernels(basicsr):
    """Published kernels are zero-padded to 21 x 21 to fit in one batch; that changes nothing."""
    x, kernel = photo(50, 70), kernels.gaussian(13, 2.5, 0.8, 0.6).float()
    theirs = basicsr.filter2D(x[None], F.pad(kernel, (4, 4, 4, 4))[None])[0]
    torch.testing.assert_close(blur(x, kernel), theirs, rtol=0, atol=2e-6)


def test_a_batch_of_blurs_matches_basicsr(basicsr):
    """Every kind of kernel beside every other."""
    chance, drawn = generator(), {}
    for kind in degradation.KINDS:
        drawn[kind] = draw_kernel(BlurRecipe(kinds=[kind], odds=[1.0], prob_sinc=0.0), chance)
    stack = stack_kernels([*drawn.values(), Kernel("sinc", 21, (1.2,))])
    x = crops(len(stack))
    theirs = basicsr.filter2D(x, stack.float())
    torch.testing.assert_close(blur(x, stack), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("gray", [False, True])
def test_noise_by_plan_is_basicsrs_given_the_same_counts(basicsr, monkeypatch, gray):
    """The formula around the counts; how they are drawn is held against Poisson's distribution above."""
    monkeypatch.setattr(torch, "poisson", lambda rates: count_by_place(rates[0], 256, generator()).expand_as(rates))
    expected = basicsr.add_poisson_noise_pt(crops(1), 1.3, clip=True, rounds=False, gray_noise=float(gray))[0]
    got = add_poisson_noise(crops(1)[0], 1.3, gray, generator(), count_by_place)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_matches_basicsr_given_the_same_draws(basicsr, kind, gray):
    ours, theirs, strength = {
        "gaussian": (add_gaussian_noise, basicsr.add_gaussian_noise_pt, 12.0),
        "poisson": (add_poisson_noise, basicsr.add_poisson_noise_pt, 1.3),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = theirs(photo()[None], strength, clip=True, rounds=False, gray_noise=float(gray))[0]
    got = ours(photo(), strength, gray, torch.Generator().manual_seed(5))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quality", [30, 60, 80, 95])
def test_jpeg_does_the_damage_of_basicsrs_imitation(basicsr, quality):
    """As much damage to grey within 0.2 levels; pixels within 2 levels on average in grey, 3 in colour.

    Not the same pixels: the imitation transposes the tables and doesn't round them or its result, and it repeats chroma
    where libjpeg interpolates, which is kinder to colour. Sides are multiples of 16: others it pads with black, which
    bleeds into the picture.
    """
    imitate = basicsr.DiffJPEG(differentiable=False)

    def differ(a, b):
        return (a - b).abs().mean().item() * 255

    colour = photo()
    grey = colour.mean(0, keepdim=True).expand(3, -1, -1).contiguous()
    assert differ(compress_jpeg(colour, quality), imitate(colour[None], quality)[0]) < 3
    theirs, ours = imitate(grey[None], quality)[0], compress_jpeg(grey, quality)
    assert differ(ours, theirs) < 2
    assert differ(ours, grey) == pytest.approx(differ(theirs, grey), abs=0.2)

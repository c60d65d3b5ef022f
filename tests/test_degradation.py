"""The degradation: promises, odds, the steps, and stored values."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pisasr.data import degradation
from pisasr.data.degradation import (
    BlurRecipe,
    DegradationRecipe,
    Jpeg,
    Noise,
    NoiseRecipe,
    PassRecipe,
    Resize,
    ResizeRecipe,
    add_gaussian_noise,
    add_poisson_noise,
    blur,
    compress_jpeg,
    count_by_place,
    degrade_one,
    draw_kernel,
    draw_steps,
    sample_generator,
)
from pisasr.data.kernels import Kernel
from pisasr.training.config import ConfigError, load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "pisasr" / "demo" / "examples").glob("*.png"))
PUBLISHED = DegradationRecipe()
CAMERA = DegradationRecipe(
    prob_first=0.0,
    prob_antialias=1.0,
    prob_final_sinc=0.0,
    second=PassRecipe(
        blur=BlurRecipe(kinds=("iso",), odds=(1.0,), sigma=(0.6, 1.8), prob_sinc=0.0),
        resize=ResizeRecipe(odds=(0.0, 0.0, 1.0), modes=("bicubic",)),
        noise=NoiseRecipe(prob_gaussian=1.0, sigma=(2.0, 8.0)),
        jpeg=(50.0, 90.0),
    ),
)


def photo(height: int = 96, width: int = 96) -> Tensor:
    """A smooth, coloured scene with one sharp edge, [3, height, width] in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width).expand(height, width)
    scene = torch.stack(
        [0.5 + 0.3 * torch.sin(9 * x + 2 * y), 0.2 + 0.6 * y, 0.6 - 0.3 * torch.cos(14 * x * y)]
    )
    return torch.where(torch.hypot(x - 0.5, y - 0.4) < 0.2, 0.4 * scene, scene).clamp(0, 1)


def generator(index: int = 0) -> torch.Generator:
    return sample_generator(0, 0, index)


def test_same_seed_same_pixels_also_with_other_threads():
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            runs.append(
                torch.stack(
                    [degrade_one(photo(), PUBLISHED, generator(index)) for index in range(5)]
                )
            )
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


def test_clean_is_antialiased_bicubic_and_nothing_else():
    x_L = degrade_one(photo(), replace(PUBLISHED, prob_clean=1.0), generator())
    expected = F.interpolate(photo()[None], size=(24, 24), mode="bicubic", antialias=True)[0]
    assert (x_L - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_camera_recipe_is_milder_than_the_published_one():
    """And no single sample goes far from the cleanly reduced photo."""
    clean = degrade_one(photo(), replace(CAMERA, prob_clean=1.0), generator())

    def errors(recipe):
        return [
            (degrade_one(photo(), recipe, generator(i)) - clean).square().mean().sqrt().item()
            for i in range(20)
        ]

    assert max(errors(CAMERA)) < 0.06
    assert np.mean(errors(CAMERA)) < 0.85 * np.mean(errors(PUBLISHED))


def test_antialias_takes_the_stairs_away():
    """A pattern finer than x_L can hold: averaged to gray with antialiasing, a false pattern
    without.
    """
    stripes = (torch.arange(96) % 3 / 2).expand(3, 96, 96).contiguous()
    still = replace(
        CAMERA,
        second=replace(
            CAMERA.second, blur=BlurRecipe(prob=0.0), noise=NoiseRecipe(1.0, (0.0, 0.0))
        ),
    )
    smooth = degrade_one(stripes, still, generator())
    aliased = degrade_one(stripes, replace(still, prob_antialias=0.0), generator())
    assert smooth[..., 2:-2].std() < 0.05 < 0.15 < aliased[..., 2:-2].std()


def test_passes_happen_as_often_as_the_recipe_says():
    """The first pass, the clean way, the last sinc and the last JPEG, each by its own chance."""
    recipe = replace(
        PUBLISHED, prob_first=0.3, prob_clean=0.2, prob_final_sinc=0.6, prob_jpeg_last=0.4
    )
    drawn = [
        [type(step) for step in draw_steps(recipe, (16, 16), generator(index))]
        for index in range(400)
    ]
    dirty = [kinds for kinds in drawn if kinds != [Resize]]
    assert len(dirty) == pytest.approx(320, abs=32)
    ends = [kinds[len(kinds) - kinds[::-1].index(Resize) :] for kinds in dirty]
    for share, happened in (
        (0.3, [kinds.count(Noise) == 2 for kinds in dirty]),
        (0.6, [Kernel in end for end in ends]),
        (0.4, [Jpeg in end for end in ends]),
    ):
        assert np.mean(happened) == pytest.approx(share, abs=0.1)
    assert all(kinds.count(Jpeg) == kinds.count(Noise) for kinds in dirty)


@pytest.mark.parametrize("jpeg_last", [0.0, 1.0])
def test_steps_come_in_the_published_order(jpeg_last):
    always = replace(PUBLISHED.second, blur=replace(PUBLISHED.second.blur, prob=1.0))
    recipe = replace(PUBLISHED, second=always, prob_final_sinc=1.0, prob_jpeg_last=jpeg_last)
    steps = list(draw_steps(recipe, (96, 80), generator()))
    end = [Resize, Kernel, Jpeg] if jpeg_last else [Jpeg, Resize, Kernel]
    assert [type(step) for step in steps] == [
        Kernel,
        Resize,
        Noise,
        Jpeg,
        Kernel,
        Resize,
        Noise,
        *end,
    ]
    last = steps[7 if jpeg_last else 8 :]
    assert last[0].to == (24, 20) and last[1].shape == "sinc"


@pytest.mark.parametrize(
    "wrong",
    [
        "first: {blur: {kinds: [iso]}}",
        "first: {blur: {kinds: [star], odds: [1.0]}}",
        "first: {blur: {odds: null}}",
        "first: {blur: {sigma: [3.0, 1.0]}}",
        "first: {blur: {sigma: [0.0, 1.0]}}",
        "first: {blur: {size: [8, 8]}}",
        "first: {blur: {size: [7.0, 9.5]}}",
        "first: {blur: {prob: 1.5}}",
        "first: {resize: {odds: [0.0, 0.0, 0.0]}}",
        "first: {resize: {odds: [0.5, 0.5]}}",
        "first: {resize: {modes: [lanczos]}}",
        "first: {noise: {poisson: [0.0, .inf]}}",
        "first: {jpeg: [0.0, 101.0]}",
        "first: {blur: none}",
        "scale: 2.5",
        "first: null",
        "prob_clean: .nan",
    ],
)
def test_impossible_recipe_is_refused_in_one_line_that_names_the_field(wrong, tmp_path):
    (tmp_path / "recipe.yaml").write_text(wrong)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    told = str(caught.value).split("recipe.yaml: ")[1]
    names = re.findall(r"(\w+):", wrong)
    assert "\n" not in told and ".".join(names[:2]) in told
    assert names[2:3] == [] or names[2] in told or "odds" in told


def test_draws_follow_the_odds():
    """Kinds of kernel by their weights, sinc by its chance, sizes odd from 7 to 21, exponents half
    below one.
    """
    chance = generator()
    drawn = [draw_kernel(PUBLISHED.first.blur, chance) for _ in range(3000)]
    shapes = [kernel.shape for kernel in drawn]
    assert shapes.count("sinc") == pytest.approx(300, abs=80)
    assert shapes.count("plateau") == pytest.approx(0.9 * 0.15 * 3000, abs=90)
    assert {kernel.size for kernel in drawn} == {7, 9, 11, 13, 15, 17, 19, 21}
    stretched = sum(
        kernel.shape != "sinc" and kernel.parameters[0] != kernel.parameters[1] for kernel in drawn
    )
    assert stretched == pytest.approx(0.9 * 0.31 * 3000, abs=120)
    betas = [
        kernel.parameters[3]
        for kernel in drawn
        if kernel.shape == "gaussian" and kernel.parameters[3] != 1.0
    ]
    assert np.mean([beta < 1 for beta in betas]) == pytest.approx(0.5, abs=0.1)
    cutoffs = [kernel.parameters[0] for kernel in drawn if kernel.shape == "sinc"]
    assert math.pi / 5 <= min(cutoffs) < math.pi / 4 and max(cutoffs) <= math.pi


@pytest.mark.parametrize("size", [(40, 61), (10, 10), (3, 50)])
def test_blur_is_a_mirrored_filter(size):
    x, kernel = photo(*size), torch.rand(21, 21, generator=generator())
    mode = "reflect" if min(size) > 10 else "replicate"
    padded = F.pad(x[None], (10, 10, 10, 10), mode=mode)
    expected = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]
    torch.testing.assert_close(blur(x, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_sigma_and_color(gray):
    noise = (
        add_gaussian_noise(torch.full((3, 200, 200), 0.5), 10.0, gray, generator()) - 0.5
    ) * 255
    assert noise.std().item() == pytest.approx(10, rel=0.03) and abs(noise.mean().item()) < 0.2
    correlation = torch.corrcoef(noise.flatten(1))[0, 1].item()
    assert correlation == pytest.approx(1.0 if gray else 0.0, abs=0.03)


@pytest.mark.parametrize("by_place", [False, True])
def test_poisson_noise_grows_with_the_root_of_brightness(by_place):
    """One gray of 64 levels' ramp: standard deviation sqrt(brightness / 64), times the strength."""
    ramp = ((torch.arange(64) * 4) / 255).repeat_interleave(150).expand(3, 150, -1).contiguous()
    noise = add_poisson_noise(ramp, 0.5, False, generator(), by_place) - ramp
    for level in (8, 24):
        columns = noise[..., level * 150 : (level + 1) * 150]
        assert columns.std().item() == pytest.approx(
            0.5 * math.sqrt(level * 4 / 255 / 64), rel=0.03
        )
        assert abs(columns.mean().item()) < 2e-3
    gray = add_poisson_noise(ramp, 0.5, True, generator(), by_place) - ramp
    torch.testing.assert_close(gray[0, :, 3000:4000], gray[2, :, 3000:4000])


def test_poisson_noise_leaves_black_black():
    assert not add_poisson_noise(torch.zeros(3, 8, 8), 2.0, False, generator()).any()


def test_jpeg_halves_colour_but_not_brightness():
    columns = (torch.arange(32) % 2).float()
    gray = columns.expand(3, 32, 32).contiguous()
    red_or_green = (
        torch.stack([columns, 1 - columns, torch.zeros(32)])[:, None].expand(3, 32, 32).contiguous()
    )
    assert (compress_jpeg(gray, 100) - gray).abs().max() < 0.02
    assert (compress_jpeg(red_or_green, 100) - red_or_green).abs().mean() > 0.2


def test_stored_draws():
    """Our own draws, as training asks for them. They are numbers of the generator alone, the same
    on every machine: a seed means what it meant."""
    chance, steps, seeds = generator(3), [], []
    for step in draw_steps(PUBLISHED, (512, 384), chance):
        steps.append(step)
        if isinstance(step, Noise):
            seeds.append(degradation._own_generator(chance).initial_seed())
    assert steps == STORED_STEPS and seeds == [3109958195, 2475113309]
    clean = replace(PUBLISHED, prob_clean=1.0, scale=2)
    assert list(draw_steps(clean, (9, 7), generator())) == [Resize((4, 3), "bicubic", True)]


@pytest.mark.parametrize("by_place", [False, True])
def test_stored_pixels(by_place):
    """x_L of eight by eight pixels: Gaussian noise alone, for one rounding changes all the Poisson
    noise that is drawn after it in turn. Another processor may round some of them to the next
    level."""
    gaussian = NoiseRecipe(prob_gaussian=1.0)
    recipe = replace(
        PUBLISHED,
        first=replace(PUBLISHED.first, noise=gaussian),
        second=replace(PUBLISHED.second, noise=gaussian),
    )
    x_L = degrade_one(photo(32, 32), recipe, generator(5), by_place)
    stored = torch.tensor(list(bytes.fromhex(STORED_PIXELS[by_place]))).reshape(3, 8, 8)
    off = (x_L * 255 - stored).abs()
    assert (off < 0.5).float().mean() > 0.9 and off.mean() < 0.2


STORED_STEPS = [
    Kernel("gaussian", 13, (2.215376691167972, 2.308703923944059, -3.0004497143740263, 1.0)),
    Resize(0.6810506078690671, "area"),
    Noise("gaussian", 4.349193209433419, gray=False),
    Jpeg(84),
    Resize((108, 81), "area"),
    Noise("gaussian", 2.1597474880837586, gray=False),
    Resize((128, 96), "bicubic"),
    Kernel("sinc", 9, (2.4739865072420884,)),
    Jpeg(96),
]
STORED_PIXELS = {
    False: (
        "94998771758aa0a1959680696c839b9d928d6f565b728c8f8e86644a526882858f8666505f707e7d90886e5d707c827c"
        "8e8879718a8e84768b857c789393827143473722253b51524e503a24283e57596a65472e354c676b7a72503640577276"
        "9d94756070829291aca48b7b8f9ca49fbfb8aba4bfc4bcafc3beb5b1d0d1c1b16e7465515870898b7476624d546c888b"
        "7e7a5d454f68868a837b5a414e6785898e866955667a8f8f938b74657c8b96929690847e9ca29d9194908986a7aa9d8e"
    ),
    True: (
        "b0b29f817c91a3a0adaa92757490aaaeaba080616284a2abaf9d7756546f898fa996765a596976749d8f796b707b7b72"
        "8e847b7d8991897b857f7b83969c9181454c432d2b3e443c4f52432c304b5a5969614b3237586e72887a5d4346617376"
        "a2937864677a837eada2928a94a2a096aea7a2a9b9c6c0b3aea9aab8cdd9d0c259625c4e547288855f625847557a979c"
        "6d695542527c9fa981765c47537897a08f806b5c6882969790867c788a9fa8a289868390a9bcbdb48683889ab8cac8be"
    ),
}


def crops(count: int, side: int = 72) -> Tensor:
    """Pieces of the photos that come with the package, [count, 3, side, side]."""
    pieces = []
    for index in range(count):
        with Image.open(EXAMPLES[index % len(EXAMPLES)]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        top, left = (5 * index % (length - side + 1) for length in pixels.shape[1:])
        pieces.append(pixels[:, top : top + side, left : left + side].float() / 255)
    return torch.stack(pieces)


def test_a_machine_that_rounds_otherwise_gets_nearly_the_same_pixels(monkeypatch):
    """Every blur, resize and noise off by up to 1e-6, several times float32's step: 0.2 levels, 99
    % within two. In turn it is more, because there a count moves all that follow."""
    x_H = crops(40)
    shaking = generator(1)

    def shaken(step):
        def f(*args, **kwargs):
            x = step(*args, **kwargs)
            return x + (torch.rand(x.shape, generator=shaking) - 0.5) * 2e-6

        return f

    def run():
        return [
            torch.stack(
                [
                    degrade_one(x, PUBLISHED, generator(index), by_place)
                    for index, x in enumerate(x_H)
                ]
            )
            for by_place in (True, False)
        ]

    calm = run()
    for name in ("blur", "resize", "resize_by", "add_gaussian_noise", "add_poisson_noise"):
        monkeypatch.setattr(degradation, name, shaken(getattr(degradation, name)))
    off, off_in_turn = ((one - other).abs() * 255 for one, other in zip(calm, run(), strict=True))
    assert 0 < off.mean() < 0.2 < off_in_turn.mean() and (off < 2.5).float().mean() > 0.99


@pytest.mark.parametrize("by_place", [False, True])
def test_the_order_in_memory_does_not_matter(by_place):
    """A decoded picture has its colours last."""
    for index, x_H in enumerate(crops(4)):
        turned = x_H.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        one, other = (degrade_one(x, PUBLISHED, generator(index), by_place) for x in (x_H, turned))
        assert torch.equal(one, other)


@pytest.mark.parametrize("photons", [1, 8, 64, 256])
def test_counts_by_place_are_the_quantiles(photons):
    """The first count that is reached with a probability above the place's number."""
    rates = torch.arange(256).repeat(40).double() * (photons / 255)
    counts = count_by_place(rates.float(), photons, generator()).double()
    numbers = torch.rand(rates.shape, generator=generator()).double()
    reached, before = (torch.special.gammaincc(n, rates) for n in (counts + 1, counts))
    assert (reached > numbers - 1e-12).all()
    assert (before <= numbers + 1e-12)[counts > 0].all()


def test_counts_by_place_hardly_move_with_the_rate():
    """And only where it moves: what is drawn for one place is not taken from the next."""
    rates = torch.full((5000,), 100 * 256 / 255)
    moved = rates.clone()
    moved[:50] += 256 / 255
    one, other = (count_by_place(r, 256, generator()) for r in (rates, moved))
    assert (
        torch.equal(one[50:], other[50:])
        and 0 <= (other - one).min()
        and 0 < (other - one).max() <= 3
    )

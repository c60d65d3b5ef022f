"""The degradation's promises, and its formulas against basicsr's where that can be imported.

basicsr 1.4.2 needs no place in the project's environment:
    pip install --target DIR --no-build-isolation --no-deps basicsr==1.4.2 opencv-python-headless scipy pyyaml tqdm
    PYTHONPATH=DIR python -m pytest tests/test_degradation.py
"""

import importlib
import json
import math
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pisasr.data import degradation, kernels
from pisasr.data.degradation import (
    BlurRecipe,
    DegradationRecipe,
    NoiseRecipe,
    PassRecipe,
    ResizeRecipe,
    add_gaussian_noise,
    add_poisson_noise,
    blur,
    compress_jpeg,
    degrade,
    degrade_one,
    draw_kernel,
    sample_generator,
)

ROOT = Path(__file__).parents[1]
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


def test_passes_happen_as_often_as_the_recipe_says(monkeypatch):
    calls = []
    first = degradation.pass_first
    monkeypatch.setattr(degradation, "pass_first", lambda *args: calls.append(1) or first(*args))
    for index in range(100):
        degrade_one(photo(16, 16), replace(PUBLISHED, prob_first=0.3), generator(index))
    assert 15 <= len(calls) <= 45


@pytest.mark.parametrize(
    ("jpeg_last", "ending"),
    [(0.0, ["compress_jpeg", "resize_to_lq", "blur"]), (1.0, ["resize_to_lq", "blur", "compress_jpeg"])],
)
def test_steps_come_in_the_published_order(monkeypatch, jpeg_last, ending):
    steps = []
    for name in ("blur", "resize_by", "add_random_noise", "compress_jpeg", "resize_to_lq"):
        step = getattr(degradation, name)
        monkeypatch.setattr(degradation, name, lambda *a, n=name, f=step, **k: steps.append(n) or f(*a, **k))
    always = replace(PUBLISHED.second, blur=replace(PUBLISHED.second.blur, prob=1.0))
    recipe = replace(PUBLISHED, second=always, prob_final_sinc=1.0, prob_jpeg_last=jpeg_last)
    degrade_one(photo(), recipe, generator())
    assert steps == ["blur", "resize_by", "add_random_noise", "compress_jpeg", "blur", "add_random_noise", *ending]


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


def test_draws_follow_the_odds(monkeypatch):
    """Kinds of kernel by their weights, sinc by its chance, sizes odd from 7 to 21, exponents half below one."""
    made = []
    for name in ("gaussian", "plateau", "sinc"):
        monkeypatch.setattr(kernels, name, lambda *args, name=name: made.append((name, *args)))
    chance = generator()
    for _ in range(3000):
        draw_kernel(PUBLISHED.first.blur, chance)
    names = [name for name, *_ in made]
    assert names.count("sinc") == pytest.approx(300, abs=80)
    assert names.count("plateau") == pytest.approx(0.9 * 0.15 * 3000, abs=90)
    assert {size for _, size, *_ in made} == {7, 9, 11, 13, 15, 17, 19, 21}
    stretched = sum(name != "sinc" and rest[1] != rest[2] for name, *rest in made)
    assert stretched == pytest.approx(0.9 * 0.31 * 3000, abs=120)
    betas = [rest[4] for name, *rest in made if name == "gaussian" and rest[4] != 1.0]
    assert np.mean([beta < 1 for beta in betas]) == pytest.approx(0.5, abs=0.1)
    cutoffs = [rest[1] for name, *rest in made if name == "sinc"]
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


STORED = [
    [0.5094, 0.4732, 0.5137],
    [0.5308, 0.4728, 0.5216],
    [0.5306, 0.4698, 0.5153],
    [0.5156, 0.4694, 0.5146],
]


# --- scripts/degrade.py ----------------------------------------------------------------------------------------------


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "degrade.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_script_writes_pairs_that_depend_on_name_and_seed(tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    picture = Image.fromarray((photo(50, 71) * 255).byte().permute(1, 2, 0).numpy())
    picture.save(photos / "a.png")
    picture.save(photos / "more" / "b.bmp")
    lq, hq = tmp_path / "lq", tmp_path / "hq"
    done = run_script("--input", photos, "--output", lq, "--hq_output", hq, "--crop", 45, "--seed", 7)
    assert done.returncode == 0, done.stderr
    a, b = (Image.open(lq / name) for name in ("a.png", "more/b.png"))
    assert a.size == b.size == (11, 11) and Image.open(hq / "a.png").size == (44, 44)
    assert a.tobytes() != b.tobytes()
    manifest = json.loads((lq / "manifest.json").read_text())
    assert manifest["seed"] == 7 and [entry["name"] for entry in manifest["pictures"]] == ["a.png", "more/b.png"]

    (photos / "a.png").unlink()
    (photos / "broken.png").write_bytes(b"no picture")
    again = run_script("--input", photos, "--output", tmp_path / "again", "--crop", 45, "--seed", 7)
    assert again.returncode == 3 and "broken.png" in again.stderr and len(again.stderr.splitlines()) == 1
    assert (tmp_path / "again" / "more" / "b.png").read_bytes() == (lq / "more" / "b.png").read_bytes()


def test_script_never_writes_over_a_photo(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = run_script("--input", tmp_path, "--output", tmp_path / "lq", "--hq_output", tmp_path)
    assert done.returncode == 1 and "a.png is one of the photos" in done.stderr


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

"""Degrade a photo x_H to x_L as a bad camera and two trips through the internet would.

Order, odds and ranges are Real-ESRGAN's second-order degradation (arXiv:2107.10833) with the
numbers of the published PiSA-SR training; all of them are in `DegradationRecipe`. `draw_steps`
draws what happens, the functions below it do the work, `degrade_one` runs both.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked
from torch import Generator, Tensor

from pisasr.data.kernels import Kernel

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights with the digits of torchvision's rgb_to_grayscale
GUIDES = 1024  # stretches of probability whose first Poisson count is kept


# --- recipes: ranges are [low, high], drawn uniformly; odds are weights ---------------------------


def _check_rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"[low, high] with low <= high expected, got {list(bounds)}")
    return bounds


def _check_odds(odds: tuple[float, ...]) -> tuple[float, ...]:
    if not any(odds):
        raise ValueError(f"one weight above 0 expected, got {list(odds)}")
    return odds


SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)
Rising, Weighty = AfterValidator(_check_rising), AfterValidator(_check_odds)
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Amount = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Width = Annotated[float, Field(strict=True, ge=0.01, le=1e6)]
Factor = Annotated[float, Field(strict=True, ge=0, le=16)]
Quality = Annotated[float, Field(strict=True, ge=1, le=100)]
Side = Annotated[int, Field(strict=True, ge=1, le=255)]
Amounts = Annotated[tuple[Amount, Amount], Rising]
Factors = Annotated[tuple[Factor, Factor], Rising]
Mode = Literal["area", "bilinear", "bicubic"]
# `iso` ones are round, `aniso` ones are stretched and turned any way.
Shape = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]
SHAPE_ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@checked(frozen=True, config=SETTINGS)
class BlurRecipe:
    """One random blur kernel."""

    prob: Probability = 1.0  # that there is a blur at all
    size: Annotated[tuple[Side, Side], Rising] = (7, 21)  # every odd number in it, equally likely
    kinds: Annotated[tuple[Shape, ...], Field(min_length=1)] = get_args(Shape)
    odds: Annotated[tuple[Amount, ...], Weighty] = SHAPE_ODDS  # for each of `kinds`
    sigma: Annotated[tuple[Width, Width], Rising] = (0.2, 3.0)  # px; drawn twice for `aniso` kinds
    beta_generalized: Amounts = (0.5, 4.0)  # exponent: see `draw_beta`
    beta_plateau: Amounts = (1.0, 2.0)
    prob_sinc: Probability = 0.1  # that a sinc takes the place of the kinds above

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "BlurRecipe":
        if len(self.odds) != len(self.kinds):
            raise ValueError(f"odds needs {len(self.kinds)} weights, one for each of kinds")
        if self.size[0] == self.size[1] and self.size[0] % 2 == 0:
            raise ValueError(f"size needs an odd number in it, got {list(self.size)}")
        return self


@checked(frozen=True, config=SETTINGS)
class ResizeRecipe:
    """One random change of size; bilinear and bicubic reduce with aliasing, which is wanted."""

    odds: Annotated[tuple[Amount, Amount, Amount], Weighty] = (0.2, 0.7, 0.1)  # up, down, keep
    up: Factors = (1.0, 1.5)
    down: Factors = (0.3, 1.0)
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = get_args(Mode)  # equally likely


@checked(frozen=True, config=SETTINGS)
class NoiseRecipe:
    """Gaussian noise (electronics) or Poisson noise (few photons); always one of the two."""

    prob_gaussian: Probability = 0.5
    sigma: Amounts = (1.0, 15.0)  # Gaussian: in gray levels of 255; [0, 0] is none
    poisson: Amounts = (0.05, 2.0)  # strength; 1: counting 256 photons at white
    prob_gray: Probability = 0.4  # that red, green and blue get the same noise


@checked(frozen=True, config=SETTINGS)
class PassRecipe:
    """One trip: blur, resize, noise, JPEG."""

    blur: BlurRecipe = BlurRecipe()
    resize: ResizeRecipe = ResizeRecipe()
    noise: NoiseRecipe = NoiseRecipe()
    jpeg: Annotated[tuple[Quality, Quality], Rising] = (60.0, 95.0)  # rounded after the draw


# Milder; its factors count from the size of x_L, not from its input.
SECOND_PASS = PassRecipe(
    blur=BlurRecipe(prob=0.5, sigma=(0.2, 1.5)),
    resize=ResizeRecipe(odds=(0.3, 0.4, 0.3), up=(1.0, 1.2), down=(0.6, 1.0)),
    noise=NoiseRecipe(sigma=(1.0, 12.0), poisson=(0.05, 1.0)),
    jpeg=(60.0, 100.0),
)


@checked(frozen=True, config=SETTINGS)
class DegradationRecipe:
    """Every number of the degradation. Defaults as published; the last three fields are ours."""

    scale: Annotated[int, Field(strict=True, ge=1)] = 4  # of x_H's sides to x_L's, rounded down
    first: PassRecipe = PassRecipe()
    second: PassRecipe = SECOND_PASS
    prob_final_sinc: Probability = 0.8  # a last sinc (oversharpening), of second.blur.size
    prob_jpeg_last: Probability = 0.5  # the last JPEG after the sinc; before the reduction if not
    prob_first: Probability = 1.0  # that the first pass happens; 0 leaves one mild camera
    prob_clean: Probability = 0.0  # that x_L is only x_H, reduced by antialiased bicubic
    prob_antialias: Probability = 0.0  # that the second pass reduces as cameras do


# --- draws: a step is a Kernel to blur with or one of these ---------------------------------------


@dataclass(frozen=True)
class Resize:
    to: tuple[int, int] | float  # a size, or a factor: see `resize` and `resize_by`
    mode: str
    antialias: bool = False


@dataclass(frozen=True)
class Noise:
    kind: str  # gaussian or poisson
    strength: float  # sigma in gray levels, or the strength of Poisson noise
    gray: bool


@dataclass(frozen=True)
class Jpeg:
    quality: int


Step = Kernel | Resize | Noise | Jpeg


def sample_generator(seed: int, epoch: int, index: int) -> Generator:
    """Return the generator of one training sample: the same numbers, the same pixels anywhere.

    Any three whole numbers within 64 bits; negative ones are free for other uses than samples. They
    are hashed: the neighbors of a seed share nothing with it.
    """
    words = [number % 2**64 for number in (seed, epoch, index)]  # SeedSequence takes none below 0
    # 32 bits, because torch's CPU generator uses no more of its seed.
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint32)[0]
    return Generator().manual_seed(int(mixed))


def uniform(bounds: tuple[float, float], generator: Generator) -> float:
    """Draw a number from [low, high)."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def happens(probability: float, generator: Generator) -> bool:
    """Draw whether an event of this probability happens; always one draw, even for 0 and 1."""
    return uniform((0.0, 1.0), generator) < probability


def choose(
    options: Sequence[Any], generator: Generator, odds: Sequence[float] | None = None
) -> Any:
    """Draw one of the options, equally likely or by weight."""
    weights = np.cumsum(odds if odds is not None else [1.0] * len(options))
    place = uniform((0.0, float(weights[-1])), generator)
    return options[int(np.searchsorted(weights, place, side="right"))]


def draw_size(bounds: tuple[int, int], generator: Generator) -> int:
    """Draw an odd kernel size within bounds."""
    return choose([size for size in range(bounds[0], bounds[1] + 1) if size % 2], generator)


def draw_beta(bounds: tuple[float, float], generator: Generator) -> float:
    """Draw an exponent, below or above one by a fair coin: spiky and flat kernels alike."""
    low, high = bounds
    return uniform((low, 1.0) if happens(0.5, generator) else (1.0, high), generator)


def draw_kernel(recipe: BlurRecipe, generator: Generator) -> Kernel:
    """Draw a blur kernel."""
    size = draw_size(recipe.size, generator)
    if happens(recipe.prob_sinc, generator):
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return Kernel("sinc", size, (uniform((lowest, math.pi), generator),))
    kind = choose(recipe.kinds, generator, recipe.odds)
    sigma_x = sigma_y = uniform(recipe.sigma, generator)
    angle = 0.0
    if kind.endswith("aniso"):
        sigma_y = uniform(recipe.sigma, generator)
        angle = uniform((-math.pi, math.pi), generator)
    if kind.startswith("plateau"):
        beta = draw_beta(recipe.beta_plateau, generator)
        return Kernel("plateau", size, (sigma_x, sigma_y, angle, beta))
    beta = draw_beta(recipe.beta_generalized, generator) if kind.startswith("generalized") else 1.0
    return Kernel("gaussian", size, (sigma_x, sigma_y, angle, beta))


def draw_factor(recipe: ResizeRecipe, generator: Generator) -> float:
    """Draw by how much to change the size: above one enlarges."""
    bounds = choose((recipe.up, recipe.down, None), generator, recipe.odds)
    return 1.0 if bounds is None else uniform(bounds, generator)


def draw_noise(recipe: NoiseRecipe, generator: Generator) -> Noise:
    """Draw Gaussian or Poisson noise of random strength."""
    gray = happens(recipe.prob_gray, generator)
    if happens(recipe.prob_gaussian, generator):
        return Noise("gaussian", uniform(recipe.sigma, generator), gray)
    return Noise("poisson", uniform(recipe.poisson, generator), gray)


def draw_steps(
    recipe: DegradationRecipe, size: tuple[int, int], generator: Generator
) -> Iterator[Step]:
    """Draw what happens to a photo of `size` (H, W), step by step.

    Lazily: the caller may draw from the same generator between two steps.
    """
    size_L = (size[0] / recipe.scale, size[1] / recipe.scale)
    if happens(recipe.prob_clean, generator):
        yield Resize(whole_size(size_L), "bicubic", antialias=True)
        return
    if happens(recipe.prob_first, generator):
        first = recipe.first
        if happens(first.blur.prob, generator):
            yield draw_kernel(first.blur, generator)
        yield Resize(draw_factor(first.resize, generator), choose(first.resize.modes, generator))
        yield draw_noise(first.noise, generator)
        yield Jpeg(round(uniform(first.jpeg, generator)))
    yield from draw_second(recipe, size_L, generator)


def draw_second(
    recipe: DegradationRecipe, size: tuple[float, float], generator: Generator
) -> Iterator[Step]:
    """Draw the second pass: blur, resize to about x_L's size, noise; then JPEG before or after the
    reduction to `size` and the last sinc.

    `size` is (H, W) / scale as fractions: resize factors multiply it before anything is rounded.
    The published training then enlarges to x_H's size in a random mode; here the caller enlarges by
    bicubic, as inference does.
    """
    second = recipe.second
    antialias = happens(recipe.prob_antialias, generator)
    if happens(second.blur.prob, generator):
        yield draw_kernel(second.blur, generator)
    factor = draw_factor(second.resize, generator)
    yield Resize(whole_size(size, factor), choose(second.resize.modes, generator), antialias)
    yield draw_noise(second.noise, generator)
    jpeg_last = happens(recipe.prob_jpeg_last, generator)
    if not jpeg_last:
        yield Jpeg(round(uniform(second.jpeg, generator)))
    yield Resize(whole_size(size), choose(second.resize.modes, generator), antialias)
    if happens(recipe.prob_final_sinc, generator):
        side = draw_size(second.blur.size, generator)
        yield Kernel("sinc", side, (uniform((math.pi / 3, math.pi), generator),))
    if jpeg_last:
        yield Jpeg(round(uniform(second.jpeg, generator)))


def whole_size(size: tuple[float, float], factor: float = 1.0) -> tuple[int, int]:
    """Round (H, W) * factor down to whole pixels, at least one."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


# --- steps on a picture x [3, h, w] ---------------------------------------------------------------


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel with a kernel [k, k], the border mirrored; may leave [0, 1].

    By Fourier transform: a tenth of conv2d's time for a 21 x 21 kernel on 192 x 192 pixels.
    """
    k = kernel.shape[-1]
    # Reflection needs as many pixels as it pads; smaller pictures repeat their border.
    mode = "reflect" if min(x.shape[-2:]) > k // 2 else "replicate"
    x = F.pad(x[None], (k // 2,) * 4, mode=mode)[0]
    h, w = x.shape[-2:]
    size = (-(-h // 24) * 24, -(-w // 24) * 24)  # lengths with small prime factors are fast
    # The transform convolves, filtering correlates: hence the flip.
    spectrum = torch.fft.rfft2(kernel.flip(-2, -1).to(x), s=size)
    filtered = torch.fft.irfft2(torch.fft.rfft2(x, s=size) * spectrum, s=size)
    return filtered[..., k - 1 : h, k - 1 : w]  # the first k - 1 rows and columns wrapped round


def resize(x: Tensor, size: tuple[int, int], mode: str, antialias: bool = False) -> Tensor:
    """Resize to (height, width). `area` averages what falls into a pixel: no antialiasing."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x[None], size=size, mode=mode, antialias=antialias and mode != "area")[0]


def resize_by(x: Tensor, factor: float, mode: str) -> Tensor:
    """Resize by a factor, which also places the samples: not quite `resize` to the same size."""
    h, w = x.shape[-2:]
    if min(int(h * factor), int(w * factor)) < 1:
        return resize(x, (max(1, int(h * factor)), max(1, int(w * factor))), mode)
    return F.interpolate(x[None], scale_factor=factor, mode=mode)[0]


def add_gaussian_noise(x: Tensor, sigma: float, gray: bool, generator: Generator) -> Tensor:
    """Add noise of standard deviation sigma / 255, clamped to [0, 1]; gray: equal channels."""
    shape = (1, *x.shape[-2:]) if gray else x.shape
    return (x + torch.randn(shape, generator=generator) * (sigma / 255)).clamp_(0, 1)


def add_poisson_noise(
    x: Tensor, strength: float, gray: bool, generator: Generator, by_place: bool = False
) -> Tensor:
    """Add the noise of counted photons, whose variance grows with brightness; clamped to [0, 1].

    White is as many photons as the picture has different levels, rounded up to a power of two
    (scikit-image's rule, kept by Real-ESRGAN). by_place: see `degrade_one`.
    """
    source = (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True) if gray else x
    source = round_to_levels(source)
    levels = int(torch.bincount((source * 255).round().long().flatten()).count_nonzero())
    photons = 2 ** math.ceil(math.log2(levels))
    if by_place:
        counts = count_by_place(source * photons, photons, generator)
    else:
        counts = torch.poisson(source * photons, generator=generator)
    return (x + (counts / photons - source) * strength).clamp_(0, 1)


def count_by_place(rates: Tensor, photons: int, generator: Generator) -> Tensor:
    """Draw Poisson counts as quantiles at one uniform number a place: rates that differ a little
    give counts that do. Rates are whole multiples of photons / 255, up to photons.
    """
    level = (rates * (255 / photons)).round_()
    place = level.double() + torch.rand(rates.shape, generator=generator)
    table, guide = quantile_tables(photons)
    found = guide[(place * GUIDES).long()]
    found += table[found] <= place
    late = table[found] <= place  # in the tails, where a guide's stretch holds more than one count
    found[late] = torch.searchsorted(table, place[late], right=True)
    return found - level * (len(table) // 256)


@cache
def quantile_tables(photons: int) -> tuple[Tensor, Tensor]:
    """Tabulate level + P(count <= n) for rates of level * photons / 255, flat and rising; and the
    first entry above level + i / GUIDES, where a search in it begins.
    """
    n = torch.arange(photons + math.ceil(7 * math.sqrt(photons)) + 16, dtype=torch.float64)
    level = torch.arange(256, dtype=torch.float64)[:, None]
    reached = torch.special.gammaincc(n + 1, level * (photons / 255)).clamp_(max=1)
    reached[:, -1] = 1
    table = (level + reached).flatten()
    starts = torch.arange(256 * GUIDES, dtype=torch.float64) / GUIDES
    return table, torch.searchsorted(table, starts, right=True)


def compress_jpeg(x: Tensor, quality: int) -> Tensor:
    """Save as JPEG in memory and read it back: [0, 1] in, the 256 levels of [0, 1] out.

    libjpeg through Pillow, chroma halved (4:2:0). The published training uses a differentiable
    imitation (DiffJPEG), which transposes the quantization tables and repeats chroma where libjpeg
    interpolates: the same damage to brightness, more to color.
    """
    levels = (x.clamp(0, 1) * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(x.dtype).div_(255)


def round_to_levels(x: Tensor) -> Tensor:
    """Round to the 256 levels that a PNG can hold, in [0, 1]."""
    return (x * 255).round_().clamp_(0, 255).div_(255)


# --- all of it ------------------------------------------------------------------------------------


@torch.no_grad()
def degrade_one(
    x_H: Tensor, recipe: DegradationRecipe, generator: Generator, by_place: bool = False
) -> Tensor:
    """Make of a photo what a bad camera and two trips through the internet would have made.

    x_H [3, H, W] in [0, 1], float32, on the CPU  ->  x_L [3, H // scale, W // scale] (at least 1 x
    1), rounded to 256 levels. Enlarge it by bicubic to get the model's input. All draws come from
    `generator`: the same seed gives the same pixels.

    by_place: how noise is drawn. Training has True: each field of noise has a seed of its own and
    Poisson counts are quantiles, so that another machine's rounding moves a few counts and nothing
    that is drawn later. Fixed test sets were made with False, where one count more moves all that
    follow; they keep their pixels.
    """
    x = x_H
    for step in draw_steps(recipe, (x_H.shape[-2], x_H.shape[-1]), generator):
        match step:
            case Kernel():
                x = blur(x, step.make())
            case Resize(float() as factor, mode):
                x = resize_by(x, factor, mode)
            case Resize(tuple() as size, mode, antialias):
                x = resize(x, size, mode, antialias)
            case Noise(kind, strength, gray):
                source = _own_generator(generator) if by_place else generator
                if kind == "gaussian":
                    x = add_gaussian_noise(x, strength, gray, source)
                else:
                    x = add_poisson_noise(x, strength, gray, source, by_place)
            case Jpeg(quality):
                x = compress_jpeg(x, quality)
    return round_to_levels(x)


def _own_generator(generator: Generator) -> Generator:
    return Generator().manual_seed(int(torch.randint(2**32, (), generator=generator)))

"""Stop two of training, x_H -> x_L: from a good photo to what a bad camera and two trips through
the internet leave.

Order, odds and ranges are Real-ESRGAN's second-order degradation (arXiv:2107.10833) with the
numbers of the published PiSA-SR training; all of them live in `DegradationRecipe`. `draw_steps` is
the chance in it, the functions below that are the work, `degrade_one` walks through both.
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

from .kernels import Kernel

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights with the digits of torchvision's rgb_to_grayscale
GUIDES = 1024  # stretches of probability whose first Poisson count is kept


# --- what can be chosen: ranges are [low, high], drawn uniformly; odds are weights in the order tha


def _rises(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"wanted [low, high] with low <= high; got {list(bounds)}")
    return bounds


def _weighs(odds: tuple[float, ...]) -> tuple[float, ...]:
    if not any(odds):
        raise ValueError(f"wanted one weight above 0 at least; got {list(odds)}")
    return odds


SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)
Chance = Annotated[float, Field(strict=True, ge=0, le=1)]
Amount = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Width = Annotated[float, Field(strict=True, ge=0.01, le=1e6)]
Factor = Annotated[float, Field(strict=True, ge=0, le=16)]
Quality = Annotated[float, Field(strict=True, ge=1, le=100)]
Side = Annotated[int, Field(strict=True, ge=1, le=255)]
Rising, Weighty = AfterValidator(_rises), AfterValidator(_weighs)
Mode = Literal["area", "bilinear", "bicubic"]
# `iso` ones are round, `aniso` ones are stretched and turned any way.
Shape = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]


@checked(frozen=True, config=SETTINGS)
class BlurRecipe:
    """One random blur kernel."""

    prob: Chance = 1.0  # that there is a blur at all
    size: Annotated[tuple[Side, Side], Rising] = (
        7,
        21,
    )  # of kernels: every odd number in it is equally likely
    kinds: Annotated[tuple[Shape, ...], Field(min_length=1)] = get_args(Shape)
    odds: Annotated[tuple[Amount, ...], Weighty] = (
        0.45,
        0.25,
        0.12,
        0.03,
        0.12,
        0.03,
    )  # for each of `kinds`
    sigma: Annotated[tuple[Width, Width], Rising] = (
        0.2,
        3.0,
    )  # px, drawn once for `iso`, twice for `aniso` kinds
    beta_generalized: Annotated[tuple[Amount, Amount], Rising] = (
        0.5,
        4.0,
    )  # exponent: see `draw_beta`
    beta_plateau: Annotated[tuple[Amount, Amount], Rising] = (1.0, 2.0)
    prob_sinc: Chance = 0.1  # that a sinc takes the place of the kinds above

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "BlurRecipe":
        if len(self.odds) != len(self.kinds):
            raise ValueError(
                f"odds has a weight for each of {', '.join(self.kinds)}; got {list(self.odds)}"
            )
        if self.size[0] == self.size[1] and self.size[0] % 2 == 0:
            raise ValueError(
                f"size has to hold an odd number; got {list(self.size)}; write e.g. [7, 21]"
            )
        return self


@checked(frozen=True, config=SETTINGS)
class ResizeRecipe:
    """One random change of size. Neither bilinear nor bicubic filters before it reduces: aliasing
    is wanted.
    """

    odds: Annotated[tuple[Amount, Amount, Amount], Weighty] = (
        0.2,
        0.7,
        0.1,
    )  # of enlarging, reducing, keeping
    up: Annotated[tuple[Factor, Factor], Rising] = (1.0, 1.5)
    down: Annotated[tuple[Factor, Factor], Rising] = (0.3, 1.0)
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = get_args(Mode)  # equally likely


@checked(frozen=True, config=SETTINGS)
class NoiseRecipe:
    """Gaussian noise (electronics) or Poisson noise (few photons); always one of the two."""

    prob_gaussian: Chance = 0.5
    sigma: Annotated[tuple[Amount, Amount], Rising] = (
        1.0,
        15.0,
    )  # Gaussian: in grey levels of 255; [0, 0] is none
    poisson: Annotated[tuple[Amount, Amount], Rising] = (
        0.05,
        2.0,
    )  # strength; 1: counting 256 photons at white
    prob_gray: Chance = 0.4  # that red, green and blue get the same noise


@checked(frozen=True, config=SETTINGS)
class PassRecipe:
    """One trip: blur, resize, noise, JPEG."""

    blur: BlurRecipe = BlurRecipe()
    resize: ResizeRecipe = ResizeRecipe()
    noise: NoiseRecipe = NoiseRecipe()
    jpeg: Annotated[tuple[Quality, Quality], Rising] = (
        60.0,
        95.0,
    )  # rounded to whole numbers after the draw


@checked(frozen=True, config=SETTINGS)
class DegradationRecipe:
    """Every number of the degradation. The defaults are the published ones; the last three fields
    are ours.
    """

    scale: Annotated[int, Field(strict=True, ge=1)] = (
        4  # x_L has 1 / scale of x_H's sides, rounded down
    )
    first: PassRecipe = PassRecipe()
    second: PassRecipe = (
        PassRecipe(  # milder; its factors count from the size of x_L, not from its input
            blur=BlurRecipe(prob=0.5, sigma=(0.2, 1.5)),
            resize=ResizeRecipe(odds=(0.3, 0.4, 0.3), up=(1.0, 1.2), down=(0.6, 1.0)),
            noise=NoiseRecipe(sigma=(1.0, 12.0), poisson=(0.05, 1.0)),
            jpeg=(60.0, 100.0),
        )
    )
    prob_final_sinc: Chance = (
        0.8  # a last sinc: the ringing of oversharpened pictures; second.blur.size is its size
    )
    prob_jpeg_last: Chance = (
        0.5  # the last JPEG after the reduction to x_L's size and the sinc; before them otherwise
    )
    prob_first: Chance = (
        1.0  # that the first pass happens. Zero leaves one mild camera: the second pass alone
    )
    prob_clean: Chance = 0.0  # that x_L is only x_H, reduced by antialiased bicubic
    prob_antialias: Chance = (
        0.0  # that the second pass and the last step reduce with antialiasing, as cameras do
    )


# --- chance: every draw comes from the generator given; a step is what is drawn, a Kernel to blur with or one of these


@dataclass(frozen=True)
class Resize:
    to: tuple[int, int] | float  # a size, or a factor: see `resize` and `resize_by`
    mode: str
    antialias: bool = False


@dataclass(frozen=True)
class Noise:
    kind: str  # gaussian or poisson
    strength: float  # sigma in grey levels, or the strength of Poisson noise
    gray: bool


@dataclass(frozen=True)
class Jpeg:
    quality: int


Step = Kernel | Resize | Noise | Jpeg


def sample_generator(seed: int, epoch: int, index: int) -> Generator:
    """The chance of one training sample: the same three numbers give the same pixels, in any worker
    and any order.

    Any three whole numbers within 64 bits; negative ones are free for other uses than samples. They
    are hashed: the neighbours of a seed share nothing with it.
    """
    words = [
        number % 2**64 for number in (seed, epoch, index)
    ]  # SeedSequence takes no negative ones
    # 32 bits, because torch's CPU generator looks at no more of its seed.
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint32)[0]
    return Generator().manual_seed(int(mixed))


def uniform(bounds: tuple[float, float], generator: Generator) -> float:
    """A number from [low, high)."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def chance(probability: float, generator: Generator) -> bool:
    """True with this probability. Always one draw, so that a probability changes nothing but its
    own step.
    """
    return uniform((0.0, 1.0), generator) < probability


def choose(
    options: Sequence[Any], generator: Generator, odds: Sequence[float] | None = None
) -> Any:
    """One of the options, equally likely or by weight."""
    weights = np.cumsum(odds if odds is not None else [1.0] * len(options))
    return options[
        int(np.searchsorted(weights, uniform((0.0, float(weights[-1])), generator), side="right"))
    ]


def draw_size(bounds: tuple[int, int], generator: Generator) -> int:
    """An odd kernel size within bounds."""
    return choose([size for size in range(bounds[0], bounds[1] + 1) if size % 2], generator)


def draw_beta(bounds: tuple[float, float], generator: Generator) -> float:
    """An exponent: a fair coin says below or above one, so that flat and spiky kernels are equally
    frequent.
    """
    low, high = bounds
    return (
        uniform((low, 1.0), generator)
        if chance(0.5, generator)
        else uniform((1.0, high), generator)
    )


def draw_kernel(recipe: BlurRecipe, generator: Generator) -> Kernel:
    """A random blur kernel."""
    size = draw_size(recipe.size, generator)
    if chance(recipe.prob_sinc, generator):
        return Kernel(
            "sinc",
            size,
            (uniform((math.pi / 3 if size < 13 else math.pi / 5, math.pi), generator),),
        )
    kind = choose(recipe.kinds, generator, recipe.odds)
    sigma_x = sigma_y = uniform(recipe.sigma, generator)
    angle = 0.0
    if kind.endswith("aniso"):
        sigma_y = uniform(recipe.sigma, generator)
        angle = uniform((-math.pi, math.pi), generator)
    if kind.startswith("plateau"):
        return Kernel(
            "plateau", size, (sigma_x, sigma_y, angle, draw_beta(recipe.beta_plateau, generator))
        )
    beta = draw_beta(recipe.beta_generalized, generator) if kind.startswith("generalized") else 1.0
    return Kernel("gaussian", size, (sigma_x, sigma_y, angle, beta))


def draw_factor(recipe: ResizeRecipe, generator: Generator) -> float:
    """By how much to change the size: above one enlarges."""
    direction = choose(("up", "down", "keep"), generator, recipe.odds)
    return (
        1.0
        if direction == "keep"
        else uniform(recipe.up if direction == "up" else recipe.down, generator)
    )


def draw_noise(recipe: NoiseRecipe, generator: Generator) -> Noise:
    """Gaussian or Poisson noise of random strength."""
    gray = chance(recipe.prob_gray, generator)
    if chance(recipe.prob_gaussian, generator):
        return Noise("gaussian", uniform(recipe.sigma, generator), gray)
    return Noise("poisson", uniform(recipe.poisson, generator), gray)


def draw_steps(
    recipe: DegradationRecipe, size: tuple[int, int], generator: Generator
) -> Iterator[Step]:
    """What happens to a photo of `size` (H, W), step by step; each is drawn when it is asked for.

    So whoever takes a step before asking for the next may draw from the same generator in between.
    """
    size_L = (size[0] / recipe.scale, size[1] / recipe.scale)
    if chance(recipe.prob_clean, generator):
        yield Resize(whole_size(size_L), "bicubic", antialias=True)
        return
    if chance(recipe.prob_first, generator):
        first = recipe.first
        if chance(first.blur.prob, generator):
            yield draw_kernel(first.blur, generator)
        yield Resize(draw_factor(first.resize, generator), choose(first.resize.modes, generator))
        yield draw_noise(first.noise, generator)
        yield Jpeg(round(uniform(first.jpeg, generator)))
    yield from draw_second(recipe, size_L, generator)


def draw_second(
    recipe: DegradationRecipe, size: tuple[float, float], generator: Generator
) -> Iterator[Step]:
    """Blur, resize to about x_L's size, noise; then JPEG before or after the reduction to `size`
    and the last sinc.

    `size` is (H, W) / scale as fractions: resize factors multiply it before anything is rounded.

    The published training goes one step further and enlarges back to x_H's size in a random mode.
    Here x_L stays small and the caller enlarges it by bicubic, which is what inference does to
    every picture it is given.
    """
    second = recipe.second
    antialias = chance(recipe.prob_antialias, generator)
    if chance(second.blur.prob, generator):
        yield draw_kernel(second.blur, generator)
    factor = draw_factor(second.resize, generator)
    yield Resize(whole_size(size, factor), choose(second.resize.modes, generator), antialias)
    yield draw_noise(second.noise, generator)
    jpeg_last = chance(recipe.prob_jpeg_last, generator)
    if not jpeg_last:
        yield Jpeg(round(uniform(second.jpeg, generator)))
    yield Resize(whole_size(size), choose(second.resize.modes, generator), antialias)
    if chance(recipe.prob_final_sinc, generator):
        side = draw_size(second.blur.size, generator)
        yield Kernel("sinc", side, (uniform((math.pi / 3, math.pi), generator),))
    if jpeg_last:
        yield Jpeg(round(uniform(second.jpeg, generator)))


def whole_size(size: tuple[float, float], factor: float = 1.0) -> tuple[int, int]:
    """Whole pixels, rounded down, never none."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


# --- what happens to a picture x [3, h, w] --------------------------------------------------------


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel with a kernel [k, k], the border mirrored. May leave [0, 1] where the
    kernel is negative.

    By Fourier transform: a 21 x 21 kernel on 192 x 192 pixels takes a tenth of the time that conv2d
    needs, and every kernel takes the same.
    """
    k = kernel.shape[-1]
    # A mirror can't show more than there is; pictures that small repeat their border instead.
    mode = "reflect" if min(x.shape[-2:]) > k // 2 else "replicate"
    x = F.pad(x[None], (k // 2,) * 4, mode=mode)[0]
    h, w = x.shape[-2:]
    size = (
        -(-h // 24) * 24,
        -(-w // 24) * 24,
    )  # transforms of lengths with small prime factors are the fast ones
    # The transform convolves, filtering correlates: hence the flip. The first k - 1 rows and
    # columns wrapped round.
    spectrum = torch.fft.rfft2(kernel.flip(-2, -1).to(x), s=size)
    return torch.fft.irfft2(torch.fft.rfft2(x, s=size) * spectrum, s=size)[
        ..., k - 1 : h, k - 1 : w
    ]


def resize(x: Tensor, size: tuple[int, int], mode: str, antialias: bool = False) -> Tensor:
    """Change to size (height, width). `area` averages whatever falls into a pixel and needs no
    antialiasing.
    """
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x[None], size=size, mode=mode, antialias=antialias and mode != "area")[0]


def resize_by(x: Tensor, factor: float, mode: str) -> Tensor:
    """Change the size by a factor, which also places the samples: that is not quite `resize` to the
    rounded size.
    """
    h, w = x.shape[-2:]
    if min(int(h * factor), int(w * factor)) < 1:
        return resize(x, (max(1, int(h * factor)), max(1, int(w * factor))), mode)
    return F.interpolate(x[None], scale_factor=factor, mode=mode)[0]


def add_gaussian_noise(x: Tensor, sigma: float, gray: bool, generator: Generator) -> Tensor:
    """Noise of standard deviation sigma / 255, the same in all channels when gray; the result cut
    to [0, 1].
    """
    shape = (1, *x.shape[-2:]) if gray else x.shape
    return (x + torch.randn(shape, generator=generator) * (sigma / 255)).clamp_(0, 1)


def add_poisson_noise(
    x: Tensor, strength: float, gray: bool, generator: Generator, by_place: bool = False
) -> Tensor:
    """Noise of light counted in photons: its variance grows with brightness; the result cut to [0,
    1].

    White is as many photons as the picture has different levels, rounded up to a power of two: a
    picture of few levels is a noisy one (scikit-image's rule, kept by Real-ESRGAN). `by_place`: see
    `degrade_one`.
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
    """Poisson counts, one uniform number for each place: the count is the quantile at that number,
    so that rates that differ a little give counts that do. Rates are whole multiples of photons /
    255, up to photons.
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
    """level + P(count <= n) for 256 rates of level * photons / 255 and n from 0 to far in the tail,
    flat and rising; and the first entry above level + i / GUIDES, a guide to where a search in it
    ends."""
    n = torch.arange(photons + math.ceil(7 * math.sqrt(photons)) + 16, dtype=torch.float64)
    level = torch.arange(256, dtype=torch.float64)[:, None]
    reached = torch.special.gammaincc(n + 1, level * (photons / 255)).clamp_(max=1)
    reached[:, -1] = 1
    table = (level + reached).flatten()
    return table, torch.searchsorted(
        table, torch.arange(256 * GUIDES, dtype=torch.float64) / GUIDES, right=True
    )


def compress_jpeg(x: Tensor, quality: int) -> Tensor:
    """Save as JPEG in memory and read it back: [0, 1] in, the 256 levels of [0, 1] out.

    libjpeg through Pillow, chroma halved (4:2:0). It is what made the pictures people have, it is
    exact where a differentiable imitation approximates, and no gradient is needed here. The
    published training uses such an imitation (DiffJPEG): it transposes the quantization tables and
    repeats chroma where libjpeg interpolates, so that it does the same damage to brightness and
    more to colour; the test says how much.
    """
    levels = (x.clamp(0, 1) * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(x.dtype).div_(255)


def round_to_levels(x: Tensor) -> Tensor:
    """The nearest of the 256 levels that a PNG can hold, in [0, 1]."""
    return (x * 255).round_().clamp_(0, 255).div_(255)


# --- the journey ----------------------------------------------------------------------------------


@torch.no_grad()
def degrade_one(
    x_H: Tensor, recipe: DegradationRecipe, generator: Generator, by_place: bool = False
) -> Tensor:
    """Make the photo a bad camera and two trips through the internet would have made.

    Blur, resize, noise, JPEG, twice; the second pass adds the ringing of oversharpening.
    Order, ranges and odds follow Real-ESRGAN (arXiv:2107.10833) and live in `recipe`.

    x_H [3, H, W] in [0, 1], float32, on the CPU  ->  x_L [3, H // scale, W // scale] (at least 1 x
    1), rounded to the 256 levels a PNG can hold. Enlarge it by bicubic to get the model's input.
    All chance comes from `generator`: the same seed gives the same pixels.

    `by_place` says where noise comes from. Training has it True: each field of noise has a seed of
    its own, and a Poisson count is the quantile at its place's number, so that another machine's
    rounding moves a few counts, and nothing that is drawn later. Fixed test sets were made in turn
    (False), where one count more moves all that follow; they keep their pixels.
    """
    _check_photo(x_H)
    x = x_H
    for step in draw_steps(recipe, (x_H.shape[-2], x_H.shape[-1]), generator):
        match step:
            case Kernel():
                x = blur(x, step.make())
            case Resize(to, mode, antialias):
                x = (
                    resize_by(x, to, mode)
                    if isinstance(to, float)
                    else resize(x, to, mode, antialias)
                )
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


def _check_photo(x_H: Tensor) -> None:
    if x_H.ndim != 3 or x_H.shape[0] != 3 or x_H.numel() == 0:
        raise ValueError(f"x_H is [3, H, W]; got {list(x_H.shape)}")
    if x_H.dtype != torch.float32 or x_H.device.type != "cpu":
        raise ValueError(
            f"x_H is a float32 tensor on the CPU; got {x_H.dtype} on {x_H.device}; call .float().cpu()"
        )
    low, high = (bound.item() for bound in torch.aminmax(x_H))
    if not (
        low > -1e-3 and high < 1.001
    ):  # room for rounding; written this way round, it also catches nan
        raise ValueError(
            f"x_H lies in [0, 1]; got [{low:.3g}, {high:.3g}]; from [-1, 1], pass (x + 1) / 2"
        )

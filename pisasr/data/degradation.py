"""From a good photo x_H to what a bad camera and two trips through the internet would have left of it.

Order, odds and ranges are Real-ESRGAN's second-order degradation (arXiv:2107.10833) with the numbers of the published
PiSA-SR training; all of them live in `DegradationRecipe`.

Three ways there. `degrade_one` draws and works in turn, on one CPU thread; fixed test sets are made so. For training,
chance and work are apart: `draw_plan` draws everything, and the plan is carried out by `carry_out_one` in a worker or,
for a whole batch on any device, by `carry_out`, with the same pixels within the tolerance stated there.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from . import jpeg
from .kernels import Kernel

KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
MODES = ("area", "bilinear", "bicubic")
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights with the digits of torchvision's rgb_to_grayscale
GUIDES = 1024  # stretches of probability whose first Poisson count is kept


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


# ---------------------------------------------------------------------------------------------------------------------
# What can be chosen. Ranges are [low, high], drawn uniformly; odds are weights in the order their docstring names.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlurRecipe:
    """One random blur kernel."""

    prob: float = 1.0
    """Chance that there is a blur at all."""
    size: list[int] = _list(7, 21)
    """Kernel sides: every odd number in the range is equally likely."""
    kinds: list[str] = _list(*KINDS)
    """Shapes to choose from; `iso` ones are round, `aniso` ones are stretched and turned any way."""
    odds: list[float] = _list(0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """One weight for each of `kinds`."""
    sigma: list[float] = _list(0.2, 3.0)
    """Width in pixels, drawn once for `iso` and twice for `aniso` kinds."""
    beta_generalized: list[float] = _list(0.5, 4.0)
    """Exponent of the generalized kinds: half of the time from below one, half from above."""
    beta_plateau: list[float] = _list(1.0, 2.0)
    """The same for the plateau kinds."""
    prob_sinc: float = 0.1
    """Chance that a sinc takes the place of the kinds above."""

    def __post_init__(self) -> None:
        _check_ranges(self, "size", "sigma", "beta_generalized", "beta_plateau")
        _check_odds(self, "odds", len(self.kinds))
        _check_names("blur.kinds", self.kinds, KINDS)
        _check_chances(self, "prob", "prob_sinc")
        if self.sigma[0] == 0:
            raise ValueError(f"blur.sigma is above 0; got {list(self.sigma)}; for no blur, set blur.prob to 0")
        if not any(size % 2 for size in range(self.size[0], self.size[1] + 1)):
            raise ValueError(f"blur.size has to hold an odd number; got {list(self.size)}; write e.g. [7, 21]")


@dataclass(frozen=True)
class ResizeRecipe:
    """One random change of size."""

    odds: list[float] = _list(0.2, 0.7, 0.1)
    """Weights of enlarging, reducing, keeping the size."""
    up: list[float] = _list(1.0, 1.5)
    """Factor when enlarging."""
    down: list[float] = _list(0.3, 1.0)
    """Factor when reducing."""
    modes: list[str] = _list(*MODES)
    """Interpolations, equally likely. Neither bilinear nor bicubic filters before it reduces: aliasing is wanted."""

    def __post_init__(self) -> None:
        _check_ranges(self, "up", "down")
        _check_odds(self, "odds", 3)
        _check_names("resize.modes", self.modes, MODES)


@dataclass(frozen=True)
class NoiseRecipe:
    """Gaussian noise (electronics) or Poisson noise (few photons); always one of the two."""

    prob_gaussian: float = 0.5
    """Chance of Gaussian noise; Poisson noise otherwise."""
    sigma: list[float] = _list(1.0, 15.0)
    """Standard deviation of the Gaussian noise, in grey levels of 255. [0, 0] is none."""
    poisson: list[float] = _list(0.05, 2.0)
    """Strength of the Poisson noise; one is what counting about 256 photons at white would give."""
    prob_gray: float = 0.4
    """Chance that red, green and blue get the same noise."""

    def __post_init__(self) -> None:
        _check_ranges(self, "sigma", "poisson")
        _check_chances(self, "prob_gaussian", "prob_gray")


@dataclass(frozen=True)
class PassRecipe:
    """One trip: blur, resize, noise, JPEG."""

    blur: BlurRecipe = field(default_factory=BlurRecipe)
    resize: ResizeRecipe = field(default_factory=ResizeRecipe)
    noise: NoiseRecipe = field(default_factory=NoiseRecipe)
    jpeg: list[float] = _list(60.0, 95.0)
    """JPEG quality, 1 to 100; rounded to whole numbers after the draw."""

    def __post_init__(self) -> None:
        _check_ranges(self, "jpeg")
        if not (1 <= self.jpeg[0] and self.jpeg[1] <= 100):
            raise ValueError(f"jpeg is a quality between 1 and 100; got {list(self.jpeg)}; write e.g. [60, 95]")


def published_second_pass() -> PassRecipe:
    """Milder than the first: blurs half of the time, and its factors count from the size of x_L, not from its input."""
    return PassRecipe(
        blur=BlurRecipe(prob=0.5, sigma=[0.2, 1.5]),
        resize=ResizeRecipe(odds=[0.3, 0.4, 0.3], up=[1.0, 1.2], down=[0.6, 1.0]),
        noise=NoiseRecipe(sigma=[1.0, 12.0], poisson=[0.05, 1.0]),
        jpeg=[60.0, 100.0],
    )


@dataclass(frozen=True)
class DegradationRecipe:
    """Every number of the degradation. The defaults are the published ones; the last three fields are ours."""

    scale: int = 4
    """x_L has 1 / scale of x_H's height and width, rounded down."""
    first: PassRecipe = field(default_factory=PassRecipe)
    second: PassRecipe = field(default_factory=published_second_pass)
    prob_final_sinc: float = 0.8
    """Chance of a last sinc, the ringing of oversharpened pictures. Its size comes from second.blur.size."""
    prob_jpeg_last: float = 0.5
    """Chance that the last JPEG comes after the reduction to x_L's size and the sinc; before them otherwise."""
    prob_first: float = 1.0
    """Chance that the first pass happens. Zero leaves one mild camera: the second pass alone."""
    prob_clean: float = 0.0
    """Chance that x_L is only x_H, reduced by antialiased bicubic."""
    prob_antialias: float = 0.0
    """Chance that the second pass and the last step reduce with antialiasing, as cameras and browsers do."""

    def __post_init__(self) -> None:
        _check_chances(self, "prob_final_sinc", "prob_jpeg_last", "prob_first", "prob_clean", "prob_antialias")
        if self.scale < 1:
            raise ValueError(f"scale is a whole number from 1 up; got {self.scale}")


def _check_ranges(recipe: Any, *names: str) -> None:
    for name in names:
        values = list(getattr(recipe, name))
        if len(values) != 2 or not 0 <= values[0] <= values[1] < math.inf:
            raise ValueError(f"{type(recipe).__name__}.{name} is a range [low, high], low >= 0; got {values}")


def _check_odds(recipe: Any, name: str, count: int) -> None:
    values = list(getattr(recipe, name))
    if len(values) != count or not all(0 <= value < math.inf for value in values) or sum(values) == 0:
        raise ValueError(f"{type(recipe).__name__}.{name} wants {count} weights, not negative, not all 0; got {values}")


def _check_chances(recipe: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{type(recipe).__name__}.{name} is a chance from 0 to 1; got {getattr(recipe, name)}")


def _check_names(where: str, names: list[str], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"{where} wants some of {', '.join(known)}; got {', '.join(unknown) or 'none'}")


# ---------------------------------------------------------------------------------------------------------------------
# What was chosen: numbers and words only, so that plans can be compared, kept and sent from process to process.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blur:
    kernel: Kernel


@dataclass(frozen=True)
class Resize:
    """To a size, or by a factor: see `resize` and `resize_by`."""

    to: tuple[int, int] | float
    mode: str
    antialias: bool = False


@dataclass(frozen=True)
class Noise:
    kind: str
    """Either gaussian or poisson."""
    strength: float
    """sigma in grey levels, or the strength of Poisson noise."""
    gray: bool
    seed: int | None = None
    """Where the field of noise comes from; None where the one who draws the steps also draws the field."""


@dataclass(frozen=True)
class Jpeg:
    quality: int


Step = Blur | Resize | Noise | Jpeg


@dataclass(frozen=True)
class Plan:
    """Everything that happens to one photo, drawn before anything is done."""

    size: tuple[int, int]
    """(H, W) of the x_H it is for."""
    steps: tuple[Step | None, ...]
    """Blur, resize, noise, JPEG, twice, then the reduction to x_L's size, sinc, JPEG; None for what doesn't happen."""


# ---------------------------------------------------------------------------------------------------------------------
# Chance. Every draw comes from the generator given.
# ---------------------------------------------------------------------------------------------------------------------


def sample_generator(seed: int, epoch: int, index: int) -> Generator:
    """The chance of one training sample: the same three numbers give the same pixels, in any worker and any order.

    Any three whole numbers within 64 bits; negative ones are free for other uses than samples. They are hashed: the
    neighbours of a seed share nothing with it.
    """
    words = [number % 2**64 for number in (seed, epoch, index)]  # SeedSequence takes no negative ones
    # 32 bits, because torch's CPU generator looks at no more of its seed.
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint32)[0]
    return Generator().manual_seed(int(mixed))


def uniform(bounds: list[float] | tuple[float, float], generator: Generator) -> float:
    """A number from [low, high)."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def chance(probability: float, generator: Generator) -> bool:
    """True with this probability. Always one draw, so that a probability changes nothing but its own step."""
    return uniform((0.0, 1.0), generator) < probability


def choose(options: list[Any] | tuple[Any, ...], generator: Generator, odds: list[float] | None = None) -> Any:
    """One of the options, equally likely or by weight."""
    weights = np.cumsum(odds if odds is not None else [1.0] * len(options))
    return options[int(np.searchsorted(weights, uniform((0.0, float(weights[-1])), generator), side="right"))]


def draw_size(bounds: list[int], generator: Generator) -> int:
    """An odd kernel size within bounds."""
    return choose([size for size in range(bounds[0], bounds[1] + 1) if size % 2], generator)


def draw_beta(bounds: list[float], generator: Generator) -> float:
    """An exponent: a fair coin says below or above one, so that flat and spiky kernels are equally frequent."""
    low, high = bounds
    return uniform((low, 1.0), generator) if chance(0.5, generator) else uniform((1.0, high), generator)


def draw_kernel(recipe: BlurRecipe, generator: Generator) -> Kernel:
    """A random blur kernel."""
    size = draw_size(recipe.size, generator)
    if chance(recipe.prob_sinc, generator):
        return Kernel("sinc", size, (uniform((math.pi / 3 if size < 13 else math.pi / 5, math.pi), generator),))
    kind = choose(recipe.kinds, generator, recipe.odds)
    sigma_x = sigma_y = uniform(recipe.sigma, generator)
    angle = 0.0
    if kind.endswith("aniso"):
        sigma_y = uniform(recipe.sigma, generator)
        angle = uniform((-math.pi, math.pi), generator)
    if kind.startswith("plateau"):
        return Kernel("plateau", size, (sigma_x, sigma_y, angle, draw_beta(recipe.beta_plateau, generator)))
    beta = draw_beta(recipe.beta_generalized, generator) if kind.startswith("generalized") else 1.0
    return Kernel("gaussian", size, (sigma_x, sigma_y, angle, beta))


def draw_factor(recipe: ResizeRecipe, generator: Generator) -> float:
    """By how much to change the size: above one enlarges."""
    direction = choose(("up", "down", "keep"), generator, recipe.odds)
    return 1.0 if direction == "keep" else uniform(recipe.up if direction == "up" else recipe.down, generator)


def draw_noise(recipe: NoiseRecipe, generator: Generator) -> Noise:
    """Gaussian or Poisson noise of random strength."""
    gray = chance(recipe.prob_gray, generator)
    if chance(recipe.prob_gaussian, generator):
        return Noise("gaussian", uniform(recipe.sigma, generator), gray)
    return Noise("poisson", uniform(recipe.poisson, generator), gray)


def draw_jpeg(quality: list[float], generator: Generator) -> Jpeg:
    """JPEG of random quality."""
    return Jpeg(round(uniform(quality, generator)))


def draw_steps(recipe: DegradationRecipe, size: tuple[int, int], generator: Generator) -> Iterator[Step | None]:
    """The eleven steps of `Plan.steps`, one by one; each is drawn when it is asked for.

    So whoever takes a step before asking for the next may draw from the same generator in between.
    """
    size_L = (size[0] / recipe.scale, size[1] / recipe.scale)
    if chance(recipe.prob_clean, generator):
        yield from (*[None] * 8, Resize(whole_size(size_L), "bicubic", antialias=True), None, None)
        return
    if chance(recipe.prob_first, generator):
        yield from draw_first(recipe.first, generator)
    else:
        yield from [None] * 4
    yield from draw_second(recipe, size_L, generator)


def draw_first(recipe: PassRecipe, generator: Generator) -> Iterator[Step | None]:
    """Blur, resize, noise, JPEG; the size that comes out is random."""
    yield Blur(draw_kernel(recipe.blur, generator)) if chance(recipe.blur.prob, generator) else None
    yield Resize(draw_factor(recipe.resize, generator), choose(recipe.resize.modes, generator))
    yield draw_noise(recipe.noise, generator)
    yield draw_jpeg(recipe.jpeg, generator)


def draw_second(recipe: DegradationRecipe, size: tuple[float, float], generator: Generator) -> Iterator[Step | None]:
    """Blur, resize to about x_L's size, noise; then JPEG before or after the reduction to `size` and the last sinc.

    `size` is (H, W) / scale as fractions: resize factors multiply it before anything is rounded.

    The published training goes one step further and enlarges back to x_H's size in a random mode. Here x_L stays small
    and the caller enlarges it by bicubic, which is what inference does to every picture it is given.
    """
    second = recipe.second
    antialias = chance(recipe.prob_antialias, generator)
    yield Blur(draw_kernel(second.blur, generator)) if chance(second.blur.prob, generator) else None
    factor = draw_factor(second.resize, generator)
    yield Resize(whole_size(size, factor), choose(second.resize.modes, generator), antialias)
    yield draw_noise(second.noise, generator)
    jpeg_last = chance(recipe.prob_jpeg_last, generator)
    yield None if jpeg_last else draw_jpeg(second.jpeg, generator)
    yield Resize(whole_size(size), choose(second.resize.modes, generator), antialias)
    if chance(recipe.prob_final_sinc, generator):
        side = draw_size(second.blur.size, generator)
        yield Blur(Kernel("sinc", side, (uniform((math.pi / 3, math.pi), generator),)))
    else:
        yield None
    yield draw_jpeg(second.jpeg, generator) if jpeg_last else None


def whole_size(size: tuple[float, float], factor: float = 1.0) -> tuple[int, int]:
    """Whole pixels, rounded down, never none."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def draw_plan(recipe: DegradationRecipe, size: tuple[int, int], generator: Generator) -> Plan:
    """What would happen to a photo of `size` (H, W), with a seed for each field of noise.

    Fast (no pixel is touched) and small: draw it in a worker, send it along with x_H, carry it out anywhere. Up to the
    first noise the steps are those of `degrade_one` with the same generator; from there on chance goes another way,
    because Poisson draws in turn take more or fewer numbers from the generator depending on pixels.
    """
    if min(size) < 1:
        raise ValueError(f"size is (H, W) of a photo; got {tuple(size)}")
    steps: list[Step | None] = []
    for step in draw_steps(recipe, size, generator):
        if isinstance(step, Noise):
            step = replace(step, seed=int(torch.randint(2**32, (), generator=generator)))
        steps.append(step)
    return Plan(tuple(size), tuple(steps))


# ---------------------------------------------------------------------------------------------------------------------
# What happens to a picture x [3, h, w].
# ---------------------------------------------------------------------------------------------------------------------


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel with a kernel [k, k], the border mirrored. May leave [0, 1] where the kernel is negative.

    A batch [B, 3, h, w] may come with a kernel for each picture, [B, k, k]; smaller ones are zero around.

    By Fourier transform: a 21 x 21 kernel on 192 x 192 pixels takes a tenth of the time that conv2d needs, and every
    kernel takes the same.
    """
    k = kernel.shape[-1]
    # A mirror can't show more than there is; pictures that small repeat their border instead.
    mode = "reflect" if min(x.shape[-2:]) > k // 2 else "replicate"
    padded = F.pad(x if x.ndim == 4 else x[None], (k // 2,) * 4, mode=mode)
    x = padded if x.ndim == 4 else padded[0]
    h, w = x.shape[-2:]
    size = (-(-h // 24) * 24, -(-w // 24) * 24)  # transforms of lengths with small prime factors are the fast ones
    # The transform convolves, filtering correlates: hence the flip. The first k - 1 rows and columns wrapped round.
    spectrum = torch.fft.rfft2(kernel.flip(-2, -1).to(x), s=size).unsqueeze(-3)
    return torch.fft.irfft2(torch.fft.rfft2(x, s=size) * spectrum, s=size)[..., k - 1 : h, k - 1 : w]


def resize(x: Tensor, size: tuple[int, int], mode: str, antialias: bool = False) -> Tensor:
    """Change to size (height, width). `area` averages whatever falls into a pixel and needs no antialiasing."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x[None], size=size, mode=mode, antialias=antialias and mode != "area")[0]


def resize_by(x: Tensor, factor: float, mode: str) -> Tensor:
    """Change the size by a factor, which also places the samples: that is not quite `resize` to the rounded size."""
    h, w = x.shape[-2:]
    if min(int(h * factor), int(w * factor)) < 1:
        return resize(x, (max(1, int(h * factor)), max(1, int(w * factor))), mode)
    return F.interpolate(x[None], scale_factor=factor, mode=mode)[0]


def add_gaussian_noise(x: Tensor, sigma: float, gray: bool, generator: Generator) -> Tensor:
    """Noise of standard deviation sigma / 255, the same in all channels when gray; the result cut to [0, 1]."""
    shape = (1, *x.shape[-2:]) if gray else x.shape
    return (x + torch.randn(shape, generator=generator).to(x.device) * (sigma / 255)).clamp_(0, 1)


def count_in_turn(rates: Tensor, photons: int, generator: Generator) -> Tensor:
    """Poisson counts, drawn one after the other: a rate that differs a little changes all the counts that follow."""
    return torch.poisson(rates, generator=generator)


def count_by_place(rates: Tensor, photons: int, generator: Generator) -> Tensor:
    """Poisson counts, one uniform number for each place: rates that differ a little give counts that do.

    The count is the quantile at that number. Rates are whole multiples of photons / 255, up to photons. The uniform
    numbers are drawn on the CPU, so that a device makes no difference.
    """
    level = (rates * (255 / photons)).round_()
    place = level.double() + torch.rand(rates.shape, generator=generator).to(rates.device)
    table, guide = quantile_tables(photons, rates.device)
    found = guide[(place * GUIDES).long()]
    found += table[found] <= place
    late = table[found] <= place  # in the tails, where a guide's stretch holds more than one count
    found[late] = torch.searchsorted(table, place[late], right=True)
    return found - level * (len(table) // 256)


@cache
def quantile_tables(photons: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """level + P(count <= n) for 256 rates of level * photons / 255 and n from 0 to far in the tail, flat and rising;
    and the first entry above level + i / GUIDES, a guide to where a search in it ends."""
    n = torch.arange(photons + math.ceil(7 * math.sqrt(photons)) + 16, dtype=torch.float64)
    level = torch.arange(256, dtype=torch.float64)[:, None]
    reached = torch.special.gammaincc(n + 1, level * (photons / 255)).clamp_(max=1)
    reached[:, -1] = 1
    table = (level + reached).flatten()
    guide = torch.searchsorted(table, torch.arange(256 * GUIDES, dtype=torch.float64) / GUIDES, right=True)
    return table.to(device), guide.to(device)


def count_levels(source: Tensor) -> int:
    """How many of the 256 levels of [0, 1] a picture has."""
    return int(torch.bincount((source * 255).round().long().flatten()).count_nonzero())


def add_poisson_noise(
    x: Tensor,
    strength: float,
    gray: bool,
    generator: Generator,
    count: Callable[[Tensor, int, Generator], Tensor] = count_in_turn,
) -> Tensor:
    """Noise of light counted in photons: its variance grows with brightness; the result cut to [0, 1].

    White is as many photons as the picture has different levels, rounded up to a power of two: a picture of few
    levels is a noisy one (scikit-image's rule, kept by Real-ESRGAN).
    """
    source = (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True) if gray else x
    source = round_to_levels(source)
    photons = 2 ** math.ceil(math.log2(count_levels(source)))
    noise = count(source * photons, photons, generator) / photons - source
    return (x + noise * strength).clamp_(0, 1)


def compress_jpeg(x: Tensor, quality: int) -> Tensor:
    """Save as JPEG in memory and read it back: [0, 1] in, the 256 levels of [0, 1] out.

    libjpeg through Pillow, chroma halved (4:2:0). It is what made the pictures people have, it is exact where a
    differentiable imitation approximates, and no gradient is needed here. The published training uses such an imitation
    (DiffJPEG): it transposes the quantization tables and repeats chroma where libjpeg interpolates, so that it does the
    same damage to brightness and more to colour; the test says how much. `jpeg.compress` gives the same pixels without
    leaving the device.
    """
    levels = (x.clamp(0, 1) * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(x.dtype).div_(255)


def round_to_levels(x: Tensor) -> Tensor:
    """The nearest of the 256 levels that a PNG can hold, in [0, 1]."""
    return (x * 255).round_().clamp_(0, 255).div_(255)


# ---------------------------------------------------------------------------------------------------------------------
# The journey.
# ---------------------------------------------------------------------------------------------------------------------


def take(x: Tensor, step: Step | None, generator: Generator | None = None) -> Tensor:
    """One step of one picture [3, h, w]. Noise comes from `generator` in turn, or from its own seed by place."""
    match step:
        case None:
            return x
        case Blur(kernel):
            return blur(x, kernel.make())
        case Resize(to, mode, antialias):
            return resize_by(x, to, mode) if isinstance(to, float) else resize(x, to, mode, antialias)
        case Noise(kind, strength, gray, seed):
            source = generator or Generator().manual_seed(seed)
            if kind == "gaussian":
                return add_gaussian_noise(x, strength, gray, source)
            return add_poisson_noise(x, strength, gray, source, count_in_turn if generator else count_by_place)
        case Jpeg(quality):
            return compress_jpeg(x, quality)


def take_together(xs: list[Tensor], steps: Sequence[Step | None]) -> list[Tensor]:
    """One step of each picture: blurs and JPEGs of equal sizes as one batch, everything else picture by picture."""
    done = list(xs)
    largest = max((step.kernel.size for step in steps if isinstance(step, Blur)), default=1)
    groups: dict[tuple, list[int]] = {}
    for i, (x, step) in enumerate(zip(xs, steps, strict=True)):
        if isinstance(step, Jpeg):
            groups.setdefault((Jpeg, x.shape), []).append(i)
        elif isinstance(step, Blur):
            # The largest kernel's margin may be more than a small picture can mirror: no common one there.
            size = step.kernel.size if min(x.shape[-2:]) <= largest // 2 else None
            groups.setdefault((Blur, x.shape, size), []).append(i)
        else:
            done[i] = take(x, step)
    for (kind, *_), members in groups.items():
        x = torch.stack([xs[i] for i in members])
        if kind is Jpeg:
            x = jpeg.compress((x.clamp(0, 1) * 255).round_(), [steps[i].quality for i in members]) / 255
        else:
            x = blur(x, stack_kernels([steps[i].kernel for i in members]))
        for i, one in zip(members, x, strict=True):
            done[i] = one
    return done


def stack_kernels(kernels: list[Kernel]) -> Tensor:
    """[B, k, k], k that of the largest; the others have zeros around."""
    k = max(kernel.size for kernel in kernels)
    return torch.stack([F.pad(kernel.make(), ((k - kernel.size) // 2,) * 4) for kernel in kernels])


@torch.no_grad()
def degrade_one(x_H: Tensor, recipe: DegradationRecipe, generator: Generator) -> Tensor:
    """`degrade` for one picture [3, H, W], drawing and working in turn."""
    _check_photo(x_H, 3)
    x = x_H
    for step in draw_steps(recipe, tuple(x_H.shape[-2:]), generator):
        x = take(x, step, generator)
    return round_to_levels(x)


@torch.no_grad()
def carry_out_one(x_H: Tensor, plan: Plan) -> Tensor:
    """What a worker does with a plan: x_H [3, H, W] in [0, 1], float32, on the CPU -> x_L, as `degrade` has it."""
    _check_photo(x_H, 3)
    _check_plans(x_H, [plan])
    x = x_H
    for step in plan.steps:
        x = take(x, step)
    return round_to_levels(x)


@torch.no_grad()
def carry_out(x_H: Tensor, plans: Sequence[Plan]) -> Tensor:
    """The same for a batch, one plan for each photo, on x_H's device; chance alone comes from the CPU.

    x_H [B, 3, H, W] in [0, 1], float32 -> x_L [B, 3, H // scale, W // scale] in the 256 levels of [0, 1]. The range is
    not checked: that would wait for the device. Needs float64, which MPS lacks: there, let workers carry plans out.

    Within 0.05 grey levels of `carry_out_one` on average, 99.5 % of the values within two levels: values that lie
    between two levels are rounded either way before JPEG and Poisson noise, which make a little more of it. Measured on
    a CPU over 200 crops of 512 px, published recipe: 0.003 levels, 99.98 %; with up to 1e-6 added after every step, as
    another device's rounding would: 0.06, 99.7 %. One thing jumps: a picture whose number of levels is next to a power
    of two may get half or twice the photons. It happened to none of 826 Poisson noises that were shaken so.
    """
    if x_H.ndim != 4 or x_H.shape[1] != 3 or x_H.dtype != torch.float32 or len(plans) != len(x_H) or not plans:
        raise ValueError(
            f"x_H is float32 [B, 3, H, W] with a plan for each photo; got {x_H.dtype} {list(x_H.shape)} and "
            f"{len(plans)} plans"
        )
    _check_plans(x_H, plans)
    xs = list(x_H)
    for steps in zip(*(plan.steps for plan in plans), strict=True):
        xs = take_together(xs, steps)
    return round_to_levels(torch.stack(xs))


def degrade(x_H: Tensor, recipe: DegradationRecipe, generator: Generator) -> Tensor:
    """Make the photo a bad camera and two trips through the internet would have made.

    Blur, resize, noise, JPEG, twice; the second pass adds the ringing of oversharpening.
    Order, ranges and odds follow Real-ESRGAN (arXiv:2107.10833) and live in `recipe`.

    x_H [B, 3, H, W] in [0, 1], float32, on the CPU  ->  x_L [B, 3, H // scale, W // scale] (at least 1 x 1), rounded to
    the 256 levels a PNG can hold. Enlarge it by bicubic to get the model's input.
    All chance comes from `generator`: the same seed gives the same pixels. Each sample has its own draws, one sample
    after the other, so a sample's pixels depend on those before it; `degrade_one` has no such memory.
    """
    _check_photo(x_H, 4)
    return torch.stack([degrade_one(x, recipe, generator) for x in x_H])


def _check_plans(x_H: Tensor, plans: Sequence[Plan]) -> None:
    if others := [plan.size for plan in plans if plan.size != tuple(x_H.shape[-2:])]:
        raise ValueError(f"x_H is {list(x_H.shape)}, a plan is for {others[0]}; draw it for the crop, not the photo")


def _check_photo(x_H: Tensor, dimensions: int) -> None:
    if x_H.ndim != dimensions or x_H.shape[-3] != 3 or x_H.numel() == 0:
        wanted = "[3, H, W]" if dimensions == 3 else "[B, 3, H, W]"
        raise ValueError(f"x_H is {wanted}; got {list(x_H.shape)}")
    if x_H.dtype != torch.float32 or x_H.device.type != "cpu":
        raise ValueError(f"x_H is a float32 tensor on the CPU; got {x_H.dtype} on {x_H.device}; call .float().cpu()")
    low, high = (bound.item() for bound in torch.aminmax(x_H))
    if not (low > -1e-3 and high < 1.001):  # room for rounding; written this way round, it also catches nan
        raise ValueError(f"x_H lies in [0, 1]; got [{low:.3g}, {high:.3g}]; from [-1, 1], pass (x + 1) / 2")

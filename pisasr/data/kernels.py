"""Within stop two of training: the shapes of blur, [size, size] float64 kernels, size odd, entries
summing to one.

Formulas as Real-ESRGAN (arXiv:2107.10833, section 3) uses them. Angles in radians, lengths in
pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def centred_grid(size: int) -> tuple[Tensor, Tensor]:
    """x (growing to the right) and y (growing downward) of every entry, both [size, size], zero in
    the middle.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"a kernel has an odd size, so that it has a middle; got {size}; take {abs(size) + 1}"
        )
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis.expand(size, size), axis[:, None].expand(size, size)


def squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """How many sigmas from the middle, squared, along axes turned by `angle`: d' Sigma^-1 d of a
    bivariate normal.
    """
    x, y = centred_grid(size)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def normalize(kernel: Tensor) -> Tensor:
    """Scale to a sum of one, so that a blur keeps the picture's brightness."""
    return kernel / kernel.sum()


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float = 1.0) -> Tensor:
    """exp(-d^(2 beta) / 2) with d = squared_distance^(1/2): a lens out of focus, or shaken where
    sigma_x != sigma_y.

    beta = 1 is the normal distribution; below it the middle is a spike with long tails, above it a
    disc.
    """
    return normalize(torch.exp(-0.5 * squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """1 / (1 + d^(2 beta)): flat in the middle, with tails that never quite end."""
    return normalize(1 / (1 + squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> Tensor:
    """The ideal round low-pass filter cut to size x size: it leaves the rings and overshoot of
    oversharpened pictures.

        cutoff J1(cutoff r) / (2 pi r),  cutoff^2 / (4 pi) in the middle

    cutoff in radians a pixel: pi keeps everything that the grid can hold along an axis. Entries may
    be negative.
    """
    x, y = centred_grid(size)
    r = torch.hypot(x, y)
    r[size // 2, size // 2] = 1.0  # any number but zero; this entry is replaced below
    # torch's J1 is right to 5e-7: far below what a picture of 256 levels can show.
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return normalize(kernel)


SHAPES: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian, "plateau": plateau, "sinc": sinc}


@dataclass(frozen=True)
class Kernel:
    """A kernel in words: which function makes it, and what is passed after the size."""

    shape: str
    """A name in SHAPES."""
    size: int
    parameters: tuple[float, ...]

    def make(self) -> Tensor:
        """[size, size], float64."""
        return SHAPES[self.shape](self.size, *self.parameters)

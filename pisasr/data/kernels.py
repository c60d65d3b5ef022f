"""Make blur kernels: [size, size] float64, size odd, entries summing to one.

Formulas as Real-ESRGAN (arXiv:2107.10833, section 3) uses them. Angles in radians, lengths in px.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def centered_grid(size: int) -> tuple[Tensor, Tensor]:
    """Return x (to the right) and y (downward) of every entry, [size, size], 0 in the middle."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis.expand(size, size), axis[:, None].expand(size, size)


def squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Return d' Sigma^-1 d of a bivariate normal whose axes are turned by `angle`."""
    x, y = centered_grid(size)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def normalize(kernel: Tensor) -> Tensor:
    """Scale to a sum of one, so that a blur keeps brightness."""
    return kernel / kernel.sum()


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float = 1.0) -> Tensor:
    """exp(-d^(2 beta) / 2), d = squared_distance^(1/2): out of focus; sigma_x != sigma_y: shaken.

    beta = 1 is the normal distribution; below it the middle is a spike with long tails, above it a
    disc.
    """
    return normalize(torch.exp(-0.5 * squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """1 / (1 + d^(2 beta)): flat in the middle, with tails that never quite end."""
    return normalize(1 / (1 + squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> Tensor:
    """The ideal round low-pass filter cut to size x size: the rings of oversharpened pictures.

        cutoff J1(cutoff r) / (2 pi r),  cutoff^2 / (4 pi) in the middle

    cutoff in radians a pixel: pi keeps all that the grid can hold along an axis.
    """
    x, y = centered_grid(size)
    r = torch.hypot(x, y)
    r[size // 2, size // 2] = 1.0  # any number but zero; this entry is replaced below
    # torch's J1 is right to 5e-7: far below what a picture of 256 levels can show.
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return normalize(kernel)


SHAPES: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian, "plateau": plateau, "sinc": sinc}


@dataclass(frozen=True)
class Kernel:
    """Which function makes a kernel, and what is passed after the size."""

    shape: str  # a name in SHAPES
    size: int
    parameters: tuple[float, ...]

    def make(self) -> Tensor:
        """[size, size], float64."""
        return SHAPES[self.shape](self.size, *self.parameters)

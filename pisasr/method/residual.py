"""The paper's formula: what is taken from z_L, and in which proportion."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Strength = float | Tensor  # one for all places, or a map [h, w] with that of each latent pixel


def mix_residuals(
    eps_pix: Tensor, eps_full: Tensor, lambda_pix: Strength, lambda_sem: Strength
) -> Tensor:
    """Blend what to remove by how much of each the viewer wants.

    eps_pix is what the pixel adapter alone takes from z_L: noise, blur, blocks. eps_full is what
    both adapters take together; the difference is the semantic adapter's own doing.

        eps = lambda_pix * eps_pix + lambda_sem * (eps_full - eps_pix)

    Both [B, c, h, w], shaped like z_L. (1, 1) is eps_full, (1, 0) is eps_pix, (0, 0) leaves z_L
    alone. Linear in the predictions at every place, so strengths may differ from place to place.
    They weigh predictions: weighing the adapters' weights gives another image.
    """
    return lambda_pix * eps_pix + lambda_sem * (eps_full - eps_pix)


def remove_residual(z_L: Tensor, eps: Tensor) -> Tensor:
    """z_H = z_L - eps. No noise level enters; the low-quality latent is the starting point."""
    return z_L - eps


def needed(lambda_pix: Strength, lambda_sem: Strength) -> tuple[bool, bool]:
    """Whether (eps_pix, eps_full) have a part in the mix; what has none need not be predicted.

    Equal strengths cancel eps_pix, lambda_sem = 0 cancels eps_full; of maps, where they do so
    everywhere.
    """
    return _anywhere(lambda_pix != lambda_sem), _anywhere(lambda_sem != 0)


def needed_by(lambdas: Iterable[tuple[Strength, Strength]]) -> tuple[bool, bool]:
    """Whether some of these pairs need (eps_pix, eps_full)."""
    needs = [needed(*pair) for pair in lambdas]
    return any(pix for pix, _ in needs), any(full for _, full in needs)


def restore_latent(
    z_L: Tensor,
    eps_pix: Tensor | Any,
    eps_full: Tensor | Any,
    lambda_pix: Strength,
    lambda_sem: Strength,
) -> Tensor:
    """z_H at these strengths. A prediction that is not `needed` may be None.

    Where maps hold two numbers, z_H is to the bit what these numbers make of it.
    """
    match needed(lambda_pix, lambda_sem):
        case False, False:
            return z_L
        case False, True:
            return remove_residual(z_L, _times(lambda_sem, eps_full))
        case True, False:
            return remove_residual(z_L, _times(lambda_pix, eps_pix))
    eps = mix_residuals(eps_pix, eps_full, lambda_pix, lambda_sem)
    equal = lambda_pix == lambda_sem
    if isinstance(equal, Tensor):  # equal numbers cancel eps_pix without its rounding
        eps = torch.where(equal, lambda_sem * eps_full, eps)
    return remove_residual(z_L, eps)


def _times(strength: Strength, eps: Tensor) -> Tensor:
    """strength * eps; once is eps itself, of a big picture a copy less."""
    return eps if isinstance(strength, float) and strength == 1 else strength * eps


def _anywhere(condition: bool | Tensor) -> bool:
    return bool(condition.any()) if isinstance(condition, Tensor) else condition

"""Infer and train, from eps to z_H: the paper in one place. What is taken from z_L, and in which proportion."""

from typing import Any

from torch import Tensor


def mix_residuals(eps_pix: Tensor, eps_pisa: Tensor, lambda_pix: float, lambda_sem: float) -> Tensor:
    """Blend what to remove by how much of each the viewer wants.

    eps_pix is what the pixel adapter alone takes from z_L: noise, blur, blocks. eps_pisa is what both adapters take
    together; the difference is the semantic adapter's own doing.

        eps = lambda_pix * eps_pix + lambda_sem * (eps_pisa - eps_pix)

    Both [B, c, h, w], shaped like z_L. (1, 1) is eps_pisa, (1, 0) is eps_pix, (0, 0) leaves z_L alone.
    The strengths weigh predictions: weighing the adapters' weights passes through the UNet and gives another image.
    """
    return lambda_pix * eps_pix + lambda_sem * (eps_pisa - eps_pix)


def remove_residual(z_L: Tensor, eps: Tensor) -> Tensor:
    """z_H = z_L - eps: one plain subtraction. No noise level enters; the low-quality latent is the starting point."""
    return z_L - eps


def needed(lambda_pix: float, lambda_sem: float) -> tuple[bool, bool]:
    """Whether (eps_pix, eps_pisa) have a part in the mix; one that has none need not be predicted.

    Equal strengths cancel eps_pix, lambda_sem = 0 cancels eps_pisa.
    """
    return lambda_pix != lambda_sem, lambda_sem != 0


def restore_latent(
    z_L: Tensor, eps_pix: Tensor | Any, eps_pisa: Tensor | Any, lambda_pix: float, lambda_sem: float
) -> Tensor:
    """z_H at these strengths. A prediction that is not `needed` is not looked at, and may be None."""
    match needed(lambda_pix, lambda_sem):
        case False, False:
            return z_L
        case False, True:
            return remove_residual(z_L, lambda_sem * eps_pisa)
        case True, False:
            return remove_residual(z_L, lambda_pix * eps_pix)
    return remove_residual(z_L, mix_residuals(eps_pix, eps_pisa, lambda_pix, lambda_sem))

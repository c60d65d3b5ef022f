"""The paper in one place: what is taken from z_L, and in which proportion."""

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

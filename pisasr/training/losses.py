"""Photo to adapter: what the restored picture is scored by, tensors in and out. Distillation has a
file of its own.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from pisasr.evaluation.networks import load_lpips

Perceptual = Callable[[Tensor, Tensor], Tensor]
GREY_LEVEL = 2 / 255


def pixel_l2(x_pred: Tensor, x_H: Tensor) -> Tensor:
    """Mean square difference over all elements, both [B, 3, H, W] in [-1, 1], in float32 (the
    paper's l2).
    """
    return nn.functional.mse_loss(x_pred.float(), x_H.float())


def lattice(x_pred: Tensor, x_H: Tensor, cell_px: int, cells: int = 8) -> Tensor:
    """The share of the error that repeats from latent cell to latent cell, 0 to 1; both [B, 3, H,
    W] in [-1, 1].

    A latent's cell is cell_px wide. What the error's pixels have in common at the same place of
    their cells, averaged over windows of cells * cells of them and without the windows' means, is a
    lattice: no photo has it, the eye sees it on flat areas at one grey level, and an l2 over all
    pixels hardly does. Its mean square is divided by that of the window's whole error and a grey
    level more, so that a calm window counts as much as a busy one: noise is at 1 / cells^2, a
    lattice of one level alone at 1/2.
    """
    error = (x_pred - x_H).float()
    batch, channels, height, width = error.shape
    rows, columns = height // cell_px, width // cell_px
    folded = error[..., : rows * cell_px, : columns * cell_px]
    folded = folded.reshape(batch, channels, rows, cell_px, columns, cell_px).permute(
        0, 1, 3, 5, 2, 4
    )
    folded = folded.reshape(batch, channels * cell_px**2, rows, columns)

    def over_windows(x: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(x, min(cells, rows, columns), stride=1)
        return means.reshape(batch, channels, cell_px**2, -1)

    repeated, whole = over_windows(folded), over_windows(folded.square()).mean(2)
    mean = repeated.mean(2, keepdim=True)
    return (
        (repeated - mean).square().mean(2) / (whole - mean[:, :, 0].square() + GREY_LEVEL**2)
    ).mean()


def sharpen(x_H: Tensor, amount: float, sigma: float = 2.0) -> Tensor:
    """Unsharp masking: x + amount * (x - blur(x)), [B, 3, H, W] in [-1, 1], clamped to it; sigma in
    pixels.

    A target for detail that a small model can hit: an l2 alone averages what it can't know into
    softness, and a sharpened target asks for the contrast of the edges that it does know.
    """
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-((torch.arange(-reach, reach + 1, device=x_H.device) / sigma) ** 2) / 2).to(
        x_H
    )
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = nn.functional.pad(x_H, (reach,) * 4, mode="replicate")
    blurred = nn.functional.conv2d(
        nn.functional.conv2d(padded, taps[..., None], groups=3), taps[:, :, None], groups=3
    )
    return (x_H + amount * (x_H - blurred)).clamp(-1, 1)


def build_perceptual(
    net: Literal["vgg", "alex", "squeeze"], device: torch.device | str = "cpu"
) -> Perceptual:
    """Return LPIPS 0.1 (arXiv:1801.03924) as a loss: (x_pred, x_H) -> mean distance.

    Both [B, 3, H, W] in [-1, 1]; frozen, differentiable in x_pred. The paper's net is "vgg".
    Raises MetricUnavailable where the network can't be had.
    """
    lpips = load_lpips(net, device)
    return lambda x_pred, x_H: lpips((x_pred + 1) / 2, (x_H + 1) / 2).mean()

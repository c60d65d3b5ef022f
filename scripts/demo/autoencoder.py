"""Train the small default's autoencoder: photos in, the same photos out.

The first half of the journey that the base makes before any adapter learns; `prior.py` is the second.
"""

from typing import Any

import torch
from parts import Data, Schedule, train_part
from torch import Tensor, nn

from pisasr.models.autoencoder import LappedAutoencoder
from pisasr.training.checkpoints import Checkpoints

STATISTICS = 64  # pictures that principal components and channel widths are taken from


def train_autoencoder(
    data: Data,
    schedule: Schedule,
    checkpoints: Checkpoints,
    latent_channels: int = 16,
    device: torch.device | str = "cpu",
    **options: Any,
) -> LappedAutoencoder:
    """Start from principal components, then minimise the mean square error of photos and of their degraded versions.

    Both, because inference encodes what nobody has repaired yet. Noise of the posterior's width is added to the
    latents, so that neighbouring latents decode to neighbouring pictures. Options: those of `base.train_part`.
    """
    photos = first_photos(data, STATISTICS)
    torch.manual_seed(data.photos.seed)
    model = LappedAutoencoder(latent_channels=latent_channels)
    model.start_from_principal_components(photos)
    model.to(device)

    def loss(batch: dict[str, Any]) -> Tensor:
        x, x_L = batch["x_H"].to(device), batch["x_L"].to(device)
        degraded = torch.rand(len(x), device=device) < 0.25
        x = torch.where(degraded[:, None, None, None], x_L, x)
        return nn.functional.mse_loss(model.decode(model.encode(x).latent_dist.sample()).sample, x)

    model = train_part("vae", model, loss, data, schedule, checkpoints, **options).cpu()
    whiten(model, photos)
    return model


def first_photos(data: Data, count: int) -> Tensor:
    """[count, 3, crop_px, crop_px] in [-1, 1], the same for the same data."""
    return next(data.batches(count, 0))["x_H"]


@torch.no_grad()
def whiten(model: LappedAutoencoder, x: Tensor) -> None:
    """Rescale every latent channel to unit variance over x, without changing any reconstruction."""
    z = torch.cat([model.encode(batch).latent_dist.mode() for batch in x.split(4)])
    std = z.std((0, 2, 3))
    for layer in (model.analysis, model.encoder[-1]):
        layer.weight.div_(std[:, None, None, None])
        layer.bias.div_(std)
    for layer in (model.synthesis, model.decoder[0]):
        layer.weight.mul_(std[None, :, None, None])

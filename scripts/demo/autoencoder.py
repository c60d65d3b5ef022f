"""Of step 3: the base's autoencoder. Photos in, the same photos out; `prior.py` is the second
half.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pisasr.models.autoencoder import LappedAutoencoder


def autoencoder_loss(model: LappedAutoencoder) -> Callable[[dict[str, Any]], Tensor]:
    """Mean square error of photos and, a quarter of the time, of their degraded versions.

    Both, because inference encodes what nobody has repaired yet. Noise of the posterior's width is
    added to the latents, so that neighbouring latents decode to neighbouring pictures.
    """

    def loss(batch: dict[str, Any]) -> Tensor:
        x, x_L = batch["x_H"].to(model.device), batch["x_L"].to(model.device)
        degraded = torch.rand(len(x), device=model.device) < 0.25
        x = torch.where(degraded[:, None, None, None], x_L, x)
        return nn.functional.mse_loss(model.decode(model.encode(x).latent_dist.sample()).sample, x)

    return loss


@torch.no_grad()
def whiten(model: LappedAutoencoder, x: Tensor) -> None:
    """Rescale every latent channel to unit variance over x, without changing any reconstruction."""
    z = torch.cat([model.encode(batch).latent_dist.mode() for batch in x.split(4)])
    std = z.std((0, 2, 3))
    layer: Any
    for layer in (model.analysis, model.encoder[-1]):
        layer.weight.div_(std[:, None, None, None])
        layer.bias.div_(std)
    for layer in (model.synthesis, model.decoder[0]):
        layer.weight.mul_(std[None, :, None, None])

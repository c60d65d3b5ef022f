"""Tensors in, tensors out: the three steps that training and inference share. Images to latents, latents to what is
wrong with them, latents to images."""

from typing import Literal

import torch
from torch import Tensor, nn

from pisasr.method.text import PromptEncoder
from pisasr.method.vae_tiling import decode_tiled, encode_tiled

ONE_STEP = 1  # the only timestep the UNet is asked at: z_L counts as almost clean (published as `timesteps1`)


def vae_factor(vae: nn.Module) -> int:
    """Image pixels per latent pixel along each side: 8 for Stable Diffusion's VAE."""
    return getattr(vae, "downscale", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def predict(unet: nn.Module, z: Tensor, prompt_embeds: Tensor, timestep: int | Tensor = ONE_STEP) -> Tensor:
    """What the UNet would remove from z [B, c, h, w]; same shape and dtype as z.

    prompt_embeds [B or 1, tokens, d]; h and w may be anything. Computed in the UNet's own dtype.
    """
    dtype = unet.conv_in.weight.dtype
    embeds = prompt_embeds.to(z.device, dtype).expand(len(z), -1, -1)
    return unet(z.to(dtype), timestep, encoder_hidden_states=embeds).sample.to(z.dtype)


class PiSASR:
    """A UNet, a VAE and their way with words, as three verbs. Only holds them: switches and grad mode are the caller's.

    x [B, 3, H, W] in [-1, 1], H and W multiples of `factor`; z [B, c, H/factor, W/factor], scaled as the UNet knows it.
    All sizes come from the parts' own configs.
    """

    def __init__(self, unet: nn.Module, vae: nn.Module, prompt_encoder: PromptEncoder | None = None):
        self.unet, self.vae, self.prompt_encoder = unet, vae, prompt_encoder
        self.factor = vae_factor(vae)

    def encode(
        self,
        x: Tensor,
        posterior: Literal["mean", "sample"] = "mean",
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        tile_px: int | None = None,
    ) -> Tensor:
        """x -> z, scaled. "mean" leaves nothing to chance; "sample" adds std * N(0, 1) as training does.

        noise, shaped like z, takes the place of the generator's draw. Pictures beyond tile_px * tile_px image pixels
        are encoded in pieces, to the same result, without gradients (None: always whole). Results have x's dtype, the
        VAE computes in its own.
        """
        x_vae = x.to(self._vae_dtype)
        with own_precision(x.device):
            distribution = (
                self.vae.encode(x_vae).latent_dist if tile_px is None else encode_tiled(self.vae, x_vae, tile_px)
            )
        z = distribution.mean
        if posterior == "sample":
            if noise is None:
                noise = draw_noise(z, generator)
            z = z + distribution.std * noise.to(z)
        return self.scale(z).to(x.dtype)

    def predict(
        self, z: Tensor, prompt_embeds: Tensor, timestep: int | Tensor = ONE_STEP, unet: nn.Module | None = None
    ) -> Tensor:
        """What the UNet (this model's, or another) would remove from z, with whatever adapters are on: `predict`."""
        return predict(self.unet if unet is None else unet, z, prompt_embeds, timestep)

    def decode(self, z: Tensor, tile_px: int | None = None) -> Tensor:
        """z -> x, not clamped: values a little outside [-1, 1] are the VAE's own. tile_px as for `encode`."""
        latent = self.unscale(z).to(self._vae_dtype)
        with own_precision(z.device):
            if tile_px is None:
                return self.vae.decode(latent).sample.to(z.dtype)
            return decode_tiled(self.vae, latent, max(tile_px // self.factor, 1)).to(z.dtype)

    def scale(self, latent: Tensor) -> Tensor:
        """The VAE's latent, as the UNet knows it (near unit variance)."""
        return (latent - self._shift) * self.vae.config.scaling_factor

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return z / self.vae.config.scaling_factor + self._shift

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype


def own_precision(device: torch.device) -> torch.autocast:
    """A block in which autocast is off: everything is computed in the dtype that it is held in.

    For the VAE: autocast's norms keep float32 copies of its widest tensors, most of what a training step holds.
    """
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) shaped like a tensor, drawn where the generator lives: a CPU generator gives the same on every device."""
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)

"""The method, tensors in and out: encode, predict, mix and decode; `restore` is all four.

    encode_and_predict    x_L -> z_L                encode
                          z_L -> eps_pix, eps_full  each weight set in turn, tile by tile
                          z_L, eps -> z_H           residual.restore_latent, for a pair of strengths
                          z_H -> x_H                decode

Inference calls these with merged weights, training `restore` with live adapters.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pisasr.method.residual import Strength, needed_by, restore_latent
from pisasr.method.text import PromptEncoder
from pisasr.method.tiling import blend_tiles
from pisasr.method.vae_tiling import decode_tiled, encode_tiled

ONE_STEP = 1  # the UNet's only timestep: z_L counts as almost clean (published as `timesteps1`)


def vae_factor(vae: Any) -> int:
    """Image pixels per latent pixel along each side: 8 for Stable Diffusion's VAE."""
    return getattr(vae, "downscale", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def predict_eps(
    unet: Any, z: Tensor, prompt_embeds: Tensor | None, timestep: int | Tensor = ONE_STEP
) -> Tensor:
    """Predict what the UNet would remove from z [B, c, h, w]; same shape and dtype as z.

    prompt_embeds [B, tokens, d], or fewer that serve in turn (one for all tiles of a picture); None
    for a base without words. h and w may be anything. Computed in the UNet's own dtype.
    """
    dtype = unet.dtype
    if prompt_embeds is not None:
        repeats = len(z) // len(prompt_embeds)
        prompt_embeds = prompt_embeds.to(z.device, dtype).repeat(repeats, 1, 1)
    return unet(z.to(dtype), timestep, encoder_hidden_states=prompt_embeds).sample.to(z.dtype)


Predictor = Callable[[Tensor], Tensor]  # z [B, c, h, w] -> eps, shaped like it


class Predictors(NamedTuple):
    """What predicts eps from z_L with the pixel adapter, and with both; None if not needed."""

    pix: Predictor | None
    full: Predictor | None

    def only(self, pix: bool, full: bool) -> "Predictors":
        """Those of them that are needed."""
        return Predictors(self.pix if pix else None, self.full if full else None)


class Latents(NamedTuple):
    """z_L and its predictions, each [B, c, h, w]; a prediction that is not needed is None."""

    z_L: Tensor
    eps_pix: Tensor | None
    eps_full: Tensor | None


class Restored(NamedTuple):
    """The result at one pair of strengths: x_H [B, 3, H, W], not clamped, and z_H [B, c, h, w]."""

    x_H: Tensor
    z_H: Tensor


@dataclass(frozen=True)
class Plan:
    """How big things are cut. The default cuts nothing.

    tile, overlap: of the UNet, in latent pixels. even: tiles form an even grid, their sides
    multiples of this number; None: the published plan. batch_size: tiles at once. vae_tile_px:
    beyond this square, in image pixels, the VAE works in bands, without gradients. low_memory: and
    holds half as much, for up to half as much arithmetic again.
    """

    tile: int | None = None
    overlap: int = 0
    even: int | None = None
    batch_size: int = 1
    vae_tile_px: int | None = None
    low_memory: bool = False


def restore(
    model: "PiSASR",
    x_L: Tensor,
    predictors: Predictors,
    lambdas: Iterable[tuple[Strength, Strength]],
    plan: Plan = Plan(),
    noise: Tensor | None = None,
) -> Iterator[Restored]:
    """Yield the result for each (lambda_pix, lambda_sem): one encode, the passes that some pair
    needs, one decode a pair.

    x_L [B, 3, H, W] in [-1, 1] on the model's device, H and W multiples of its factor. Strengths
    are numbers, or maps [h, w] there. noise: as for `PiSASR.encode`. No gradient passes the encode.
    """
    pairs = list(lambdas)
    needed = predictors.only(*needed_by(pairs))
    latents = encode_and_predict(model, x_L, needed, plan, noise)
    del x_L
    for pair in pairs:
        z_H = restore_latent(*latents, *pair)
        yield Restored(model.decode(z_H, plan), z_H)


def encode_and_predict(
    model: "PiSASR",
    x_L: Tensor,
    predictors: Predictors,
    plan: Plan = Plan(),
    noise: Tensor | None = None,
) -> Latents:
    """Encode x_L and make each prediction: the half of `restore` that no strength changes."""
    with torch.no_grad():
        z_L = model.encode(x_L, noise, plan)
    del x_L  # of a big picture, as large as all that follows

    def predict(predictor: Predictor | None) -> Tensor | None:
        if predictor is None or plan.tile is None:
            return None if predictor is None else predictor(z_L)
        return blend_tiles(predictor, z_L, plan.tile, plan.overlap, plan.batch_size, plan.even)

    return Latents(z_L, predict(predictors.pix), predict(predictors.full))


class PiSASR:
    """A UNet, a VAE and a prompt encoder. Switches of adapters and grad mode are the caller's.

    x [B, 3, H, W] in [-1, 1], H and W multiples of `factor`; z [B, c, H/factor, W/factor], scaled
    for the UNet. All sizes come from the parts' own configs.
    """

    def __init__(self, unet: Any, vae: Any, prompt_encoder: PromptEncoder | Any = None):
        self.unet, self.vae, self.prompt_encoder = unet, vae, prompt_encoder
        self.factor = vae_factor(vae)

    def encode(self, x: Tensor, noise: Tensor | None = None, plan: Plan = Plan()) -> Tensor:
        """Encode x to a scaled z: the posterior's mean, or mean + std * noise (shaped like z).

        The result has x's dtype, the VAE computes in its own.
        """
        x_vae = x.to(self.vae.dtype)
        with without_autocast(x.device):
            if plan.vae_tile_px is None:
                posterior = self.vae.encode(x_vae).latent_dist
            else:
                posterior = encode_tiled(self.vae, x_vae, plan.vae_tile_px, plan.low_memory)
        z = posterior.mean
        if noise is not None:
            z = z + posterior.std * noise.to(z)
        return self.scale(z).to(x.dtype)

    def latent_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """The shape of the z that x is encoded to."""
        height, width = (side // self.factor for side in x.shape[-2:])
        return len(x), self.vae.config.latent_channels, height, width

    def decode(self, z: Tensor, plan: Plan = Plan()) -> Tensor:
        """Decode z to x, not clamped: values a little outside [-1, 1] are the VAE's own."""
        latent = self.unscale(z).to(self.vae.dtype)
        with without_autocast(z.device):
            if plan.vae_tile_px is None:
                return self.vae.decode(latent).sample.to(z.dtype)
            tile = max(plan.vae_tile_px // self.factor, 1)
            return decode_tiled(self.vae, latent, tile, plan.low_memory).to(z.dtype)

    def scale(self, latent: Tensor) -> Tensor:
        """Scale the VAE's latent to what the UNet expects (near unit variance)."""
        factor = self.vae.config.scaling_factor
        return latent if factor == 1 else latent * factor

    def unscale(self, z: Tensor) -> Tensor:
        """Undo `scale`."""
        factor = self.vae.config.scaling_factor
        return z if factor == 1 else z / factor


def without_autocast(device: torch.device) -> torch.autocast:
    """Switch autocast off, so that everything is computed in the dtype that it is held in.

    For the VAE: autocast's norms keep float32 copies of its widest tensors, most of what a training
    step holds.
    """
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type if available else "cpu", enabled=False)


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, 1) shaped like a tensor, on the generator's device.

    So a CPU generator gives the same numbers on every device.
    """
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)

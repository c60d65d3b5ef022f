"""Infer and train, from x_L to x_H: the method, tensors in and out. `restore`, and its halves,
`look` and `mix`.

    look    x_L -> z_L               encode
            z_L -> eps_pix, eps_pisa predict, by each weight set in turn, tile by tile
    mix     z_L, eps -> z_H          residual.restore_latent, for each pair of strengths
            z_H -> x_H               decode

Inference calls it with merged weights, training and validation with live adapters; nowhere else do
these meet.
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

ONE_STEP = 1  # the only timestep the UNet is asked at: z_L counts as almost clean (published as `timesteps1`)


def vae_factor(vae: Any) -> int:
    """Image pixels per latent pixel along each side: 8 for Stable Diffusion's VAE."""
    return getattr(vae, "downscale", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def predict(
    unet: Any, z: Tensor, prompt_embeds: Tensor, timestep: int | Tensor = ONE_STEP
) -> Tensor:
    """What the UNet would remove from z [B, c, h, w]; same shape and dtype as z.

    prompt_embeds [B, tokens, d], or fewer that serve in turn (of one picture, all its tiles). h and
    w may be anything. Computed in the UNet's own dtype.
    """
    dtype = unet.dtype
    embeds = prompt_embeds.to(z.device, dtype).repeat(len(z) // len(prompt_embeds), 1, 1)
    return unet(z.to(dtype), timestep, encoder_hidden_states=embeds).sample.to(z.dtype)


class Predictors(NamedTuple):
    """What looks at z_L [B, c, h, w] and answers with eps, shaped like it; None where nobody
    asks.
    """

    pix: Callable[[Tensor], Tensor] | None
    pisa: Callable[[Tensor], Tensor] | None

    def only(self, pix: bool, pisa: bool) -> "Predictors":
        """Those of them that are needed."""
        assert (self.pix or not pix) and (self.pisa or not pisa), (
            "a prediction is needed that nobody makes"
        )
        return Predictors(self.pix if pix else None, self.pisa if pisa else None)


class Predicted(NamedTuple):
    """All that strengths choose from, each [B, c, h, w]; a prediction that nobody needs is None."""

    z_L: Tensor
    eps_pix: Tensor | None
    eps_pisa: Tensor | None


class Restored(NamedTuple):
    """The result at one pair of strengths: x_H [B, 3, H, W] as it was decoded, not clamped, and z_H
    [B, c, h, w].

    x_H is None where nothing was to be decoded.
    """

    x_H: Tensor | None
    z_H: Tensor


@dataclass(frozen=True)
class Plan:
    """How big things are cut. The default cuts nothing.

    tile, overlap: of the UNet, in latent pixels; even: an even grid of such tiles, their sides
    multiples of this number, None: the published plan; batch_size: tiles (or pictures) that go
    through it at once; vae_tile_px: beyond this square, in image pixels, the VAE works in pieces,
    without gradients; lean: and holds half as much, for up to half as much arithmetic again.
    """

    tile: int | None = None
    overlap: int = 0
    even: int | None = None
    batch_size: int = 1
    vae_tile_px: int | None = None
    lean: bool = False


def restore(
    model: "PiSASR",
    x_L: Tensor,
    predictors: Predictors,
    lambdas: Iterable[tuple[Strength, Strength]],
    plan: Plan = Plan(),
    noise: Tensor | None = None,
    decode: bool = True,
) -> Iterator[Restored]:
    """Yield the result for each (lambda_pix, lambda_sem): one encode, a pass for each prediction
    that some pair needs, a decode a pair, made when it is asked for.

    x_L [B, 3, H, W] in [-1, 1] on the model's device, H and W multiples of its factor. Strengths as
    for `mix`. noise: as for `PiSASR.encode`. No gradient passes the encode; behind it, all that the
    caller has switched on.
    """
    pairs = list(lambdas)
    predicted = look(model, x_L, predictors.only(*needed_by(pairs)), plan, noise)
    del x_L  # of a big picture, as large as all that follows
    for pair in pairs:
        yield mix(model, predicted, pair, plan, decode)


def look(
    model: "PiSASR",
    x_L: Tensor,
    predictors: Predictors,
    plan: Plan = Plan(),
    noise: Tensor | None = None,
) -> Predicted:
    """The half of `restore` that no strength changes: the encode, and what each predictor
    answers.
    """
    with torch.no_grad():
        z_L = model.encode(x_L, noise, plan.vae_tile_px, plan.lean)

    def predicted(predictor: Callable[[Tensor], Tensor] | None) -> Tensor | None:
        if predictor is None or plan.tile is None:
            return None if predictor is None else predictor(z_L)
        return blend_tiles(predictor, z_L, plan.tile, plan.overlap, plan.batch_size, plan.even)

    return Predicted(z_L, *map(predicted, predictors))


def mix(
    model: "PiSASR",
    predicted: Predicted,
    pair: tuple[Strength, Strength],
    plan: Plan = Plan(),
    decode: bool = True,
) -> Restored:
    """The half of `restore` that costs no prediction: z_H at (lambda_pix, lambda_sem), numbers or
    maps [h, w] on the model's device, and its decode.
    """
    z_H = restore_latent(*predicted, *pair)
    return Restored(model.decode(z_H, plan.vae_tile_px, plan.lean) if decode else None, z_H)


class PiSASR:
    """A UNet, a VAE and their way with words. Only holds them: switches and grad mode are the
    caller's.

    x [B, 3, H, W] in [-1, 1], H and W multiples of `factor`; z [B, c, H/factor, W/factor], scaled
    as the UNet knows it. All sizes come from the parts' own configs.
    """

    def __init__(self, unet: Any, vae: Any, prompt_encoder: PromptEncoder | Any = None):
        self.unet, self.vae, self.prompt_encoder = unet, vae, prompt_encoder
        self.factor = vae_factor(vae)

    def encode(
        self, x: Tensor, noise: Tensor | None = None, tile_px: int | None = None, lean: bool = False
    ) -> Tensor:
        """x -> z, scaled: the posterior's mean, or where noise (shaped like z) is given mean + std
        * noise.

        Pictures beyond tile_px * tile_px image pixels are encoded in pieces (see `vae_tiling`),
        without gradients (None: always whole; lean: see `vae_tiling`). The result has x's dtype,
        the VAE computes in its own.
        """
        x_vae = x.to(self._vae_dtype)
        with own_precision(x.device):
            posterior = (
                self.vae.encode(x_vae).latent_dist
                if tile_px is None
                else encode_tiled(self.vae, x_vae, tile_px, lean)
            )
        z = (
            posterior.mean
            if noise is None
            else posterior.mean + posterior.std * noise.to(posterior.mean)
        )
        return self.scale(z).to(x.dtype)

    def latent_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """The shape of the z that x is encoded to."""
        return (
            len(x),
            self.vae.config.latent_channels,
            x.shape[-2] // self.factor,
            x.shape[-1] // self.factor,
        )

    def decode(self, z: Tensor, tile_px: int | None = None, lean: bool = False) -> Tensor:
        """z -> x, not clamped: values a little outside [-1, 1] are the VAE's own. tile_px, lean as
        for `encode`.
        """
        latent = self.unscale(z).to(self._vae_dtype)
        with own_precision(z.device):
            if tile_px is None:
                return self.vae.decode(latent).sample.to(z.dtype)
            return decode_tiled(self.vae, latent, max(tile_px // self.factor, 1), lean).to(z.dtype)

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
        return self.vae.dtype


def own_precision(device: torch.device) -> torch.autocast:
    """A block in which autocast is off: everything is computed in the dtype that it is held in.

    For the VAE: autocast's norms keep float32 copies of its widest tensors, most of what a training
    step holds.
    """
    return torch.autocast(
        device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False
    )


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) shaped like a tensor, drawn where the generator lives: a CPU generator gives the same
    on every device.
    """
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)

"""Borrow a restoration network for a base: RRDBNet behind eps, and a latent that is the picture.

    z      = S(x)                    pixel_unshuffle by 4, [B, 3, H, W] -> [B, 48, H/4, W/4]
    x_L    = C z                     of each 4 x 4 pixels a weighted mean that undoes bicubic
    eps(z) = z - S(RRDBNet(x_L))     so that z - eps(z) is the network's own picture

RRDBNet is ESRGAN's (arXiv:1809.00219), as Real-ESRGAN x4plus has it (arXiv:2107.10833): 23 blocks,
64 features, 16.7 M parameters. The modules have upstream's names.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 4
SLOPE = 0.2  # of every leaky ReLU
BAND, HALO = 2**13, 2  # pixels of the trunk that are enlarged at once, and rows beyond them
SHARE = 0.2  # of a block's work that is added to its input
# C along one axis of a 4 x 4 cell. Bicubic (a = -0.5) leaks .0215 of each neighbor into the mean of
# the inner two pixels and .1582 into that of the outer two; these weights cancel the leaks.
TAPS = (-0.0785, 0.5785, 0.5785, -0.0785)


class DenseBlock(nn.Module):
    """Apply five convolutions, each to everything before it. [B, features, h, w]"""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.features, self.growth = features, growth
        for k in range(5):
            out = growth if k < 4 else features
            conv = nn.Conv2d(features + k * growth, out, 3, padding=1)
            self.add_module(f"conv{k + 1}", conv)

    def forward(self, x: Tensor, room: Tensor | None = None) -> Tensor:
        """room: memory that all blocks use in turn, for what a convolution sees."""
        *convs, last = self.children()
        maps, seen = [x], x
        for conv in convs:
            maps.append(F.leaky_relu(conv(seen), SLOPE, inplace=True))
            if room is None:
                seen = torch.cat([seen, maps[-1]], dim=1)
            else:
                b, h, w, c = len(x), *x.shape[2:], sum(each.shape[1] for each in maps)
                seen = room[: b * h * w * c].view(b, h, w, c).permute(0, 3, 1, 2)
                torch.cat(maps, dim=1, out=seen)
        del maps
        out = last(seen)
        return torch.add(x, out, alpha=SHARE, out=None if room is None else out)


class ResidualBlock(nn.Module):
    """Apply three dense blocks in a row. [B, features, h, w]"""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor, room: Tensor | None = None) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x, room), room), room), alpha=SHARE)


class RRDBNet(ModelMixin, ConfigMixin):
    """Predict eps [B, 48, h, w] of z like a UNet; timestep and words are ignored."""

    _supports_group_offloading = False
    has_noise_levels = False  # nothing can be distilled from it
    trains_merged = True  # many small convolutions: see adapters.use_merged_forward
    # Of big pictures. A pixel sees 64 of its neighbors each way; this far from the rim of a tile,
    # blended, results are the whole picture's within .1 levels on average and 2 at most.
    tile, tile_overlap = 512, 96

    @register_to_config
    def __init__(
        self,
        blocks: int = 23,
        features: int = 64,
        growth: int = 32,
        in_channels: int = 3 * SCALE**2,
        out_channels: int = 3 * SCALE**2,
        cross_attention_dim: int | None = None,
    ):
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def upscale(self, x_L: Tensor) -> Tensor:
        """x_L [B, 3, h, w] in [0, 1] -> [B, 3, 4h, 4w], not clamped: the network itself."""
        plain = x_L.is_cpu and not torch.is_grad_enabled()
        if not plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            first = self.conv_first(x_L)
            return self._enlarge(first + self.conv_body(self.body(first)))
        x = self.conv_first(x_L)
        b, c, h, w = x.shape
        room = x.new_empty(b * h * w * (c + 4 * self.config.growth))
        for block in self.body:
            x = block(x, room)
        del room
        x = self.conv_body(x).add_(self.conv_first(x_L))  # once more, rather than kept
        large, rows = x.new_empty(b, 3, h * SCALE, w * SCALE), max(BAND // w, 8)
        for top in range(0, h, rows):
            start, stop = max(top - HALO, 0), min(top + rows, h)
            band = self._enlarge(x[:, :, start : stop + HALO])[:, :, (top - start) * SCALE :]
            large[:, :, top * SCALE : stop * SCALE] = band[:, :, : (stop - top) * SCALE]
        return large

    def _enlarge(self, x: Tensor) -> Tensor:
        """The picture of the trunk's last map; a pixel sees HALO of its pixels each way."""
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2)), SLOPE, inplace=True)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE, inplace=True))

    def forward(
        self,
        sample: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        x_L = shrink(sample) / 2 + 0.5
        if x_L.device.type == "cpu":
            x_L = x_L.contiguous(memory_format=torch.channels_last)
        eps = sample - F.pixel_unshuffle(self.upscale(x_L) * 2 - 1, SCALE)
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)


def shrink(z: Tensor) -> Tensor:
    """C: z [B, 48, h, w] -> [B, 3, h, w], of a bicubically enlarged picture that picture."""
    taps = torch.tensor(TAPS, dtype=z.dtype, device=z.device)
    cells = z.unflatten(1, (3, SCALE, SCALE))
    return torch.einsum("bcijhw,i,j->bchw", cells, taps, taps)


class PixelAutoencoder(ModelMixin, ConfigMixin):
    """Rearrange x [B, 3, H, W] <-> z [B, 48, H/4, W/4], with the calls of AutoencoderKL.

    No weights and no loss: decode(encode(x)) is x to the bit. H and W are multiples of 4.
    """

    downscale = SCALE  # image pixels per latent pixel, on each axis
    is_linear = True  # so that strengths mix pixels as they mix latents

    @register_to_config
    def __init__(self, latent_channels: int = 3 * SCALE**2, scaling_factor: float = 1.0):
        super().__init__()
        # Without a tensor it would have no device.
        self.one = nn.Parameter(torch.ones(()), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """Float32 always: what only moves pixels must not round them."""
        return torch.float32

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        # diffusers' own posterior holds seven times as much.
        posterior = SimpleNamespace(mean=F.pixel_unshuffle(x, SCALE), std=0.0)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        x = F.pixel_shuffle(z, SCALE)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).latent_dist.mean).sample

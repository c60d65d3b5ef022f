"""Infer and train, the small default's own VAE: an overlapping linear transform with a
convolutional correction.

A convolutional autoencoder trained from nothing needs days to pass on what a principal-component
transform passes on at once. So this one is a linear transform first: C filters of 12x12 px at every
fourth pixel in each direction, and as many on the way back. Their overlap keeps the grid from
showing. Two small residual networks, one on each side, start at zero and add what a linear map
can't. There is no normalisation layer: every output depends on a bounded neighbourhood alone, so a
picture cut into tiles with `halo` decodes to exactly the same pixels.
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

DOWNSCALE = 4


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(x))); the second convolution starts at zero, so the block starts as the
    identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zeroed(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(nn.functional.silu(self.conv1(x)))


class LappedAutoencoder(ModelMixin, ConfigMixin):
    """x [B, 3, H, W] in [-1, 1] <-> latents [B, C, H/4, W/4], with the calls of diffusers'
    AutoencoderKL.

    `encode(x).latent_dist` is a Gaussian of fixed small width (`posterior_std`) around the
    transform's output; every latent channel is scaled to unit variance over the training photos, so
    `scaling_factor` is 1. H and W must be multiples of 4.
    """

    use_tiling = False  # as diffusers' autoencoders have it; the pipeline looks at it
    tile_sample_min_size = 512
    _group_offload_block_modules = [
        "analysis",
        "synthesis",
        "encoder",
        "decoder",
    ]  # what group offload moves

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        encoder_channels: int = 48,
        encoder_blocks: int = 1,
        decoder_channels: int = 64,
        decoder_blocks: int = 4,
        posterior_std: float = 0.02,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        pixels = 3 * DOWNSCALE**2
        self.analysis = nn.Conv2d(pixels, latent_channels, 3, padding=1)
        self.synthesis = nn.Conv2d(latent_channels, pixels, 3, padding=1)
        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, encoder_channels, 3, padding=1),
            *(ResidualBlock(encoder_channels) for _ in range(encoder_blocks)),
            _zeroed(nn.Conv2d(encoder_channels, latent_channels, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, decoder_channels, 3, padding=1),
            *(ResidualBlock(decoder_channels) for _ in range(decoder_blocks)),
            _zeroed(nn.Conv2d(decoder_channels, pixels, 3, padding=1)),
        )

    def enable_tiling(self) -> None:
        """Let the pipeline work in pieces of tile_sample_min_size px, to the same result."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Leave it to the pipeline how large the pieces are."""
        self.use_tiling = False

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel, on each axis."""
        return DOWNSCALE

    @property
    def halo(self) -> int:
        """Latent pixels on each side that an output pixel can depend on, when encoding or
        decoding.
        """
        return 2 + 2 * max(self.config.encoder_blocks, self.config.decoder_blocks)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        blocks = nn.functional.pixel_unshuffle(x, DOWNSCALE)
        mean = self.analysis(blocks) + self.encoder(blocks)
        log_variance = torch.full_like(
            mean, 2 * torch.tensor(self.config.posterior_std).log().item()
        )
        posterior = DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        x = nn.functional.pixel_shuffle(self.synthesis(z) + self.decoder(z), DOWNSCALE)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).latent_dist.mode()).sample

    @torch.no_grad()
    def start_from_principal_components(self, x: Tensor) -> None:
        """Set the linear path to the principal components of 4x4 blocks, whitened, and leave the
        rest silent.

        x [N, 3, H, W] in [-1, 1]: the photos whose statistics count. The components fill the middle
        tap of each 3x3 block kernel; training spreads them over the overlap.
        """
        blocks = (
            nn.functional.pixel_unshuffle(x, DOWNSCALE)
            .permute(0, 2, 3, 1)
            .reshape(-1, 3 * DOWNSCALE**2)
            .double()
        )
        center = blocks.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov((blocks - center).T))
        largest = variance.argsort(descending=True)[: self.config.latent_channels]
        std, basis = variance[largest].sqrt(), directions[:, largest]
        for layer in (self.analysis, self.synthesis):
            layer.weight.zero_()
        self.analysis.weight[:, :, 1, 1] = (basis / std).T.to(self.dtype)
        self.synthesis.weight[:, :, 1, 1] = (basis * std).to(self.dtype)
        for layer, bias in ((self.analysis, -(center @ (basis / std))), (self.synthesis, center)):
            layer.get_parameter("bias").copy_(bias)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

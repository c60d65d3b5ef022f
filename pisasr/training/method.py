"""The method on one batch, as a stage learns it: frozen parts, the step with its gradients, chance by sample."""

import zlib

import torch
from torch import Tensor, nn

from pisasr.data.degradation import sample_generator
from pisasr.method.model import PiSASR, predict
from pisasr.method.residual import remove_residual

LOW_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def freeze_in(part: nn.Module, dtype: torch.dtype, norms: torch.dtype = torch.float32) -> nn.Module:
    """A part in low precision, frozen. Adapters on it stay as they are; norms are float32, as autocast has them.

    The VAE runs without autocast (`model.own_precision`), where every weight must have the input's type: norms=dtype.
    """
    part.requires_grad_(False)
    are_norms = {id(p) for m in part.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()}
    for name, parameter in part.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(norms if id(parameter) in are_norms else dtype)
    return part


def restore(
    model: PiSASR, network: nn.Module, x_L: Tensor, prompt_embeds: Tensor, posterior_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """The method with gradients through eps alone: x_L -> z_L -> eps -> z_H -> x_H'.

    x_L [B, 3, H, W] in [-1, 1], posterior_noise like z_L. Returns (x_pred clamped to [-1, 1], z_H), both float32.
    """
    with torch.no_grad():
        z_L = model.encode(x_L, posterior_noise).float()
    z_H = remove_residual(z_L, network(z_L, prompt_embeds).float())
    return model.decode(z_H).float().clamp(-1, 1), z_H


class Predictor(nn.Module):
    """The UNet as the method calls it, in a module of its own so that DDP can wrap it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, z_L: Tensor, prompt_embeds: Tensor) -> Tensor:
        return predict(self.unet, z_L, prompt_embeds)


def draw(seeds: list[int], shape: tuple[int, ...], purpose: str) -> Tensor:
    """N(0, 1) [len(seeds), *shape], each sample from a generator of its own: process and batch size change nothing."""
    return torch.stack([torch.randn(tuple(shape), generator=stream(seed, purpose)) for seed in seeds])


def stream(seed: int, purpose: str) -> torch.Generator:
    """A stream of chance per sample and purpose."""
    return sample_generator(seed, zlib.crc32(purpose.encode()), 0)

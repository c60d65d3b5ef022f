"""Score a restored batch. A new loss: a function, a `weight_NAME` in `config.StageConfig`, and a
line in `score`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pisasr.method.adapters import active
from pisasr.method.color import wavelet
from pisasr.method.model import PiSASR, predict_eps
from pisasr.training.config import CsdConfig, StageConfig
from pisasr.training.critic import Critic
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.rng import generator_for, randn_for

COLOR_PX = 16  # a square whose mean is its color: larger than what a base repairs

# prompts -> embeddings [B, tokens, d]; None for a base without a text encoder
Prompts = Callable[[list[str]], Any]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one process learns from at a time: pictures [B, 3, H, W] in [-1, 1], float32."""

    x_L: Tensor
    x_H: Tensor
    captions: list[str]
    seeds: list[int]


class Scorers(NamedTuple):
    """What some losses need, and what LPIPS and the critic compare with in place of x_H."""

    lpips: nn.Module | None = None
    csd: Callable[[Batch, Tensor], Tensor] | None = None
    critic: Critic | None = None
    target: Callable[[Batch], Tensor] | None = None


def score(
    settings: StageConfig, scorers: Scorers, batch: Batch, x_pred: Tensor, z_H: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total to minimize, and the "total" and each loss before its weight, detached.

    Pixels are compared with the photo's, looks (LPIPS, the critic) with the target's if there is
    one. x_pred like batch.x_H; z_H [B, c, h, w], scaled. A loss of weight 0 is not computed.
    """
    x_seen = batch.x_H if scorers.target is None else scorers.target(batch)
    values: dict[str, Tensor] = {}
    if settings.weight_l2:
        values["l2"] = pixel_l2(x_pred, batch.x_H)
    if settings.weight_psnr:
        values["psnr"] = minus_psnr(x_pred, batch.x_H)
    if settings.weight_lpips and scorers.lpips is not None:
        values["lpips"] = scorers.lpips((x_pred + 1) / 2, (x_seen + 1) / 2).mean()
    if settings.weight_color:
        values["color"] = color_l2(x_pred, batch.x_H)
    if settings.weight_csd and scorers.csd is not None:
        values["csd"] = scorers.csd(batch, z_H)
    if scorers.critic is not None:
        values["critic"] = scorers.critic(x_pred, x_seen)
    total = torch.stack([settings.weights[name] * value for name, value in values.items()]).sum()
    return total, {name: value.detach() for name, value in {**values, "total": total}.items()}


@torch.no_grad()
def taught_by_base(batch: Batch, model: PiSASR, scale: int, ratio: float) -> Tensor:
    """Return x_H [B, 3, H, W] where the base's own picture stands in for this share of photos.

    It is what the bare base makes of the photo, made small without a fault, in the photo's broad
    tones. A photo shows more than any input tells, and what is judged by its look beside one keeps
    noise and blocks for texture; the base's picture can be reached, and is clean. Only for a base
    that restores by itself.
    """
    draws = [torch.rand(1, generator=generator_for(seed, "base target")) for seed in batch.seeds]
    taught = torch.cat(draws).to(batch.x_H.device) < ratio
    x_H = batch.x_H / 2 + 0.5
    small = nn.functional.interpolate(x_H, scale_factor=1 / scale, mode="bicubic", antialias=True)
    x_L = nn.functional.interpolate(small, x_H.shape[-2:], mode="bicubic", antialias=True)
    z_L = model.encode(x_L.clamp(0, 1) * 2 - 1)
    with active(model.unet, ()):
        x_base = model.decode(z_L - predict_eps(model.unet, z_L, None)).float() / 2 + 0.5
    return torch.where(taught[:, None, None, None], wavelet(x_base, x_H) * 2 - 1, batch.x_H)


def pixel_l2(x_pred: Tensor, x_H: Tensor) -> Tensor:
    """Mean square difference over all elements, [B, 3, H, W] in [-1, 1], in float32."""
    return nn.functional.mse_loss(x_pred.float(), x_H.float())


def minus_psnr(x_pred: Tensor, x_H: Tensor) -> Tensor:
    """Mean over pictures of minus the PSNR in dB: l2 of which a smooth picture has its full share.

    The mean of l2 is that of grass and gravel (NAFNet's loss: Chen et al., ECCV 2022).
    """
    l2 = (x_pred.float() - x_H.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(l2 / 4 + 1e-8).mean()


def color_l2(x_pred: Tensor, x_H: Tensor) -> Tensor:
    """Mean square difference of what is left of both after a blur, so that no tint pays.

    As DPED's color loss (Ignatov et al., ICCV 2017), with means of COLOR_PX squares for a Gaussian.
    """
    difference = x_pred.float() - x_H.float()
    return nn.functional.avg_pool2d(difference, COLOR_PX, ceil_mode=True).square().mean()


def distillation(
    model: PiSASR, prompts: Prompts, alphas_cumprod: Tensor, settings: CsdConfig
) -> Callable[[Batch, Tensor], Tensor]:
    """Build classifier score distillation by the base itself, with both adapters off.

    alphas_cumprod [1000]: of the schedule that the base was trained with.
    """
    distill = ClassifierScoreDistillation(
        alphas_cumprod, settings.cfg, settings.t_min, settings.t_max
    )

    def teacher(z_t: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        with active(model.unet, ()):
            return predict_eps(model.unet, z_t, prompt_embeds, t)

    def loss(batch: Batch, z_H: Tensor) -> Tensor:
        positive = [", ".join(filter(None, (text, settings.prompt))) for text in batch.captions]
        negative = [settings.negative_prompt] * len(positive)
        t = torch.cat([distill.draw_t(generator_for(seed, "csd time")) for seed in batch.seeds])
        noise = randn_for(batch.seeds, z_H.shape[1:], "csd noise").to(z_H.device)
        return distill(z_H, teacher, prompts(positive), prompts(negative), t.to(z_H.device), noise)

    return loss

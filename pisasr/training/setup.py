"""Prepare a training: precision, photos, and the frozen base with both adapters."""

import logging
import os
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pisasr.data.photos import Photos, list_photos, share_out
from pisasr.method.adapters import attach, use_merged_forward
from pisasr.method.layers import use_fast_layers
from pisasr.method.model import PiSASR, predict_eps
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.training.config import ConfigError, RunConfig, TrainConfig
from pisasr.training.losses import Prompts
from pisasr.training.stages import Stage, stages_of

log = logging.getLogger(__name__)

Shares = list[tuple[list[int], int]]  # as KeyedBatches takes them
LOW_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Base(NamedTuple):
    """The frozen base with both fresh adapters on it."""

    model: PiSASR
    prompts: Prompts
    alphas_cumprod: Tensor | None  # [1000], of its noise schedule; None without one


def apply_precision(run: RunConfig, device: torch.device) -> None:
    """Choose CUDA's algorithms for the whole process.

    deterministic: algorithms that give the same bytes again on the same card, no search for the
    fastest ones, no TF32, and no memory-efficient attention (its gradients are sums in any order).
    torch warns of an operation that has no such algorithm.
    """
    log.info("precision %s on %s", run.mixed_precision, device.type)
    if device.type != "cuda":
        return
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not run.deterministic
    torch.backends.cuda.enable_mem_efficient_sdp(not run.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = not run.deterministic
    torch.backends.cudnn.allow_tf32 = not run.deterministic


def open_photos(config: TrainConfig) -> tuple[Photos, Shares]:
    """Return the training set and each source's share; UsageError if no photo can be used."""
    data = config.data
    found = list_photos(data.photos, data.mix)
    log.info("%d photos", len(found))
    photos = Photos(found, data.crop_px, config.degradation, config.run.seed, data.caption)
    photos.check_usable()
    return photos, share_out(found, data.mix)


def share_of_batch(stage: Stage, config: TrainConfig, processes: int) -> int:
    """Return how many pictures one process sees at a time; ConfigError if the rest is not 0."""
    share, rest = divmod(stage.settings.batch_size, processes * config.run.accumulation)
    if rest:
        raise ConfigError(
            f"{stage.name}.batch_size={stage.settings.batch_size} must be a multiple of "
            f"{processes} processes x run.accumulation={config.run.accumulation}."
        )
    return share


def load_model(config: TrainConfig, device: torch.device) -> Base:
    """Load the base, put both adapters on it and freeze the rest."""
    base = load_base(config.model.pretrained_model)
    unet = base["unet"].to(memory_format=torch.channels_last)
    vae, text_encoder = base["vae"], base.get("text_encoder")
    scheduler = base.get("scheduler")
    check_fits_base(config, unet, scheduler)
    # Fresh adapters are the only draw that belongs to no step and no sample.
    torch.manual_seed(config.run.seed)
    prepare_model(config, unet, vae)
    low = LOW_PRECISION[config.run.mixed_precision or "no"]
    # Where they are merged a forward, W + B A is summed in float32 and rounded once.
    freeze(unet, torch.float32 if getattr(unet, "trains_merged", False) else low)
    freeze(vae, low, norms=low)  # it runs without autocast, where every weight has the input's type
    prompts: Prompts = no_prompts
    if text_encoder is not None:
        freeze(text_encoder, low)
        prompts = PromptEncoder(base["tokenizer"], text_encoder.to(device))
    alphas = DDPMScheduler.from_config(scheduler.config).alphas_cumprod if scheduler else None
    return Base(PiSASR(unet.to(device), vae.to(device), prompts), prompts, alphas)


def no_prompts(prompts: str | list[str]) -> None:
    """Encode prompts for a base without a text encoder: captions are ignored."""


def check_fits_base(config: TrainConfig, unet: Any, scheduler: Any) -> None:
    """Raise ConfigError if distillation is wanted from a network without noise levels, or a target
    from one with them, which restores nothing by itself.
    """
    knows = scheduler is not None and getattr(unet, "has_noise_levels", True)
    for stage in stages_of(config):
        if stage.settings.weight_csd and not knows:
            raise ConfigError(
                f"{stage.name}.weight_csd must be 0: {type(unet).__name__} knows no noise levels, "
                "so it has no score to distill."
            )
        if stage.settings.base_target_ratio and knows:
            raise ConfigError(
                f"{stage.name}.base_target_ratio needs a base that restores by itself, as the "
                f"embedded one does; {type(unet).__name__} does not: choose 0."
            )


def prepare_model(config: TrainConfig, unet: Any, vae: Any) -> None:
    """Attach both adapters, choose fast forwards, and enable gradient checkpointing."""
    use_fast_layers(vae)
    attach(unet, "pix", config.model.rank_pix, config.model.alpha)
    attach(unet, "sem", config.model.rank_sem, config.model.alpha)
    if getattr(unet, "trains_merged", False):
        use_merged_forward(unet)
    if config.model.gradient_checkpointing:
        parts = [part for part in (unet, vae) if part._supports_gradient_checkpointing]
        if not parts:
            raise ConfigError("model.gradient_checkpointing: this base has no blocks for it.")
        for part in parts:
            part.enable_gradient_checkpointing()


def freeze(part: nn.Module, low: torch.dtype, norms: torch.dtype = torch.float32) -> None:
    """Freeze all but adapters, in low precision, with norms as autocast wants them."""
    part.requires_grad_(False)
    kinds = [m for m in part.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    are_norms = {id(p) for m in kinds for p in m.parameters()}
    for name, parameter in part.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(norms if id(parameter) in are_norms else low)


class Predictor(nn.Module):
    """The UNet as the method calls it, in a module of its own so that DDP can wrap it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, z_L: Tensor, prompt_embeds: Tensor | None) -> Tensor:
        return predict_eps(self.unet, z_L, prompt_embeds)

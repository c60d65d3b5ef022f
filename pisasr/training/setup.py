"""Photo to adapter, before the first step: settle precision, open the photos, refuse what can't be,
load the base.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pisasr.config import ConfigError, RunConfig, TrainConfig
from pisasr.data.photos import Photos, choose_photos, count_captions, share_out
from pisasr.method.adapters import attach
from pisasr.method.layers import use_fast_layers
from pisasr.method.model import PiSASR, predict_eps
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.training.ground import check_adapter
from pisasr.training.stages import Stage, stages_of

log = logging.getLogger(__name__)

Shares = list[tuple[list[int], int]]  # as KeyedBatches takes them
LOW_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# --- precision ------------------------------------------------------------------------------------


def settle(config: TrainConfig) -> TrainConfig:
    """The configuration with run.mixed_precision decided: its own, else the launcher's, else "no".

    `accelerate launch --mixed_precision fp16` arrives as an environment variable; it says "no"
    whether or not anybody asked for that, so only the others count. ConfigError where both have a
    word and they differ.
    """
    launched, own = (
        os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(),
        config.run.mixed_precision,
    )
    if launched not in LOW_PRECISION:
        raise ConfigError(
            f"the launcher says mixed precision {launched}; wanted one of {', '.join(LOW_PRECISION)}."
        )
    if launched != "no" and own not in (None, launched):
        raise ConfigError(
            f"run.mixed_precision is {own}, the launcher says {launched}; leave one of them out, or make them agree."
        )
    run = config.run.model_copy(update={"mixed_precision": own or launched})
    return config.model_copy(update={"run": run})


def apply_precision(run: RunConfig, device: torch.device) -> None:
    """Set what CUDA computes by, for the whole process, and say so; a CPU has nothing to be set.

    deterministic: algorithms that give the same bytes again on the same card with the same
    versions, no search for the fastest ones in cuDNN, and no memory-efficient attention (its
    gradients are sums in any order): flash attention in fp16 and bf16, the plain one in float32,
    which needs more memory. An operation that has no such algorithm is named by a warning of
    torch's, and its bytes are not promised. tf32: products of float32 numbers rounded to ten bits
    of mantissa.
    """
    chosen = f"precision {run.mixed_precision} on {device.type}"
    if device.type != "cuda":
        log.info("%s", chosen)
        return
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not run.deterministic
    torch.backends.cuda.enable_mem_efficient_sdp(not run.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.tf32
    log.info(
        "%s, TF32 %s, deterministic %s",
        chosen,
        *("on" if on else "off" for on in (run.tf32, run.deterministic)),
    )


# --- photos and stages ----------------------------------------------------------------------------


def open_photos(config: TrainConfig) -> tuple[Photos, Shares]:
    """The training set that the configuration names, and what each source gives; before any model
    is loaded.

    UsageError where there are no photos, or none that can be used.
    """
    data = config.data
    chosen = choose_photos(data.photos, data.hq_fraction, data.mix)
    with_caption = count_captions(chosen)
    log.info(
        "%d photos, %d with a caption of their own; the others have %r",
        len(chosen),
        with_caption,
        data.caption,
    )
    photos = Photos(
        [photo.path for photo in chosen],
        crop_px=data.crop_px,
        recipe=config.degradation,
        seed=config.run.seed,
        caption=data.caption,
        keep_in_memory=data.keep_in_memory,
        captions={photo.path: photo.caption for photo in chosen if photo.caption},
        pairs={photo.path: photo.pair for photo in chosen if photo.pair},
    )
    photos.check_usable()
    return photos, share_out(chosen, data.mix)


def check_stages(config: TrainConfig, photos: Photos, processes: int, look: bool) -> None:
    """ConfigError or CheckpointError where a stage can't be what it is told; `look`: at adapter
    files, too.
    """
    for stage in stages_of(config):
        share_of_batch(stage, config, processes)
        if stage.settings.asks_teacher and not photos.taught:
            raise ConfigError(
                f"{stage.name}.beyond.weight_teacher, or lpips_to=teacher, wants a teacher's pictures; make them with "
                "scripts/demo/teacher.py and name only such folders in data.photos."
            )
        if look and stage.settings.init_from:
            check_adapter(Path(stage.settings.init_from), "pix", config)
        if look and stage.settings.start_from:
            check_adapter(Path(stage.settings.start_from), stage.learns, config)


def share_of_batch(stage: Stage, config: TrainConfig, processes: int) -> int:
    """Pictures that one process sees at a time. ConfigError where the batch can't be shared
    evenly.
    """
    share, rest = divmod(stage.settings.batch_size, processes * config.run.accumulation)
    if rest:
        raise ConfigError(
            f"{stage.name}.batch_size={stage.settings.batch_size} does not divide among {processes} processes with "
            f"run.accumulation={config.run.accumulation}; choose a multiple of their product."
        )
    return share


# --- the model ------------------------------------------------------------------------------------


def load_model(config: TrainConfig, device: torch.device) -> tuple[PiSASR, PromptEncoder, Tensor]:
    """The frozen base with both fresh adapters on it, its words, its noise schedule (alphas_cumprod
    [1000]).
    """
    base = load_base(config.model.pretrained_model)
    unet, vae, text_encoder = (
        base["unet"].to(memory_format=torch.channels_last),
        base["vae"],
        base["text_encoder"],
    )
    torch.manual_seed(
        config.run.seed
    )  # fresh adapters are the only draw that no step and no sample owns
    dress(config, unet, vae)
    freeze_parts(LOW_PRECISION[config.run.mixed_precision or "no"], unet, vae, text_encoder)
    for part in (unet, vae, text_encoder):
        part.to(device)
    alphas_cumprod = DDPMScheduler.from_config(base["scheduler"].config).alphas_cumprod
    words = PromptEncoder(base["tokenizer"], text_encoder)
    return PiSASR(unet, vae, words), words, alphas_cumprod


def dress(config: TrainConfig, unet: Any, vae: Any) -> None:
    """Put both adapters on, give the VAE its fast layers, through which gradients pass and never
    into them, and let backward compute again what the configuration would not have kept.
    ConfigError where a VAE can't.
    """
    use_fast_layers(vae)
    attach(unet, "pix", config.model.rank_pix, config.model.alpha)
    attach(unet, "sem", config.model.rank_sem, config.model.alpha)
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.model.gradient_checkpointing_vae:
        if not vae._supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing_vae: {type(vae).__name__} has no blocks for it; leave it off."
            )
        vae.enable_gradient_checkpointing()


def freeze_parts(
    low: torch.dtype, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module
) -> None:
    """Freeze all but the adapters. The weights are as autocast wants them, in low precision with
    norms in float32; the VAE runs without autocast (`model.without_autocast`), where every weight must
    have the input's type."""
    for part, norms in ((unet, torch.float32), (vae, low), (text_encoder, torch.float32)):
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

    def forward(self, z_L: Tensor, prompt_embeds: Tensor) -> Tensor:
        return predict_eps(self.unet, z_L, prompt_embeds)

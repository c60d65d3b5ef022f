"""Photo to adapter, before the first step: open the photos, refuse what can't be, load the base with its adapters."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pisasr.config import ConfigError, TrainConfig
from pisasr.data.photos import Photos, choose_photos, count_captions, share_out
from pisasr.method.adapters import attach
from pisasr.method.model import PiSASR, predict
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.training.ground import check_adapter
from pisasr.training.precision import LOW_PRECISION, freeze_in
from pisasr.training.stages import Stage, stages_of

log = logging.getLogger(__name__)

Shares = list[tuple[list[int], int]]  # as KeyedBatches takes them


def open_photos(config: TrainConfig) -> tuple[Photos, Shares]:
    """The training set that the configuration names, and what each source gives; before any model is loaded."""
    data = config.data
    chosen = choose_photos(data.photos, data.hq_fraction, data.mix)
    with_caption = count_captions(chosen)
    log.info("%d photos, %d with a caption of their own; the others have %r", len(chosen), with_caption, data.caption)
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
    return photos, share_out(chosen, data.mix)


def check_stages(config: TrainConfig, photos: Photos, processes: int, look: bool) -> None:
    """ConfigError or CheckpointError where a stage can't be what it is told; `look`: at adapter files, too."""
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
    """Pictures that one process sees at a time. ConfigError where the batch can't be shared evenly."""
    share, rest = divmod(stage.settings.batch_size, processes * config.run.accumulation)
    if rest:
        raise ConfigError(
            f"{stage.name}.batch_size={stage.settings.batch_size} does not divide among {processes} processes with "
            f"run.accumulation={config.run.accumulation}; choose a multiple of their product."
        )
    return share


def load_model(config: TrainConfig, device: torch.device) -> tuple[PiSASR, PromptEncoder, Tensor]:
    """The frozen base with both fresh adapters on it, its words, its noise schedule (alphas_cumprod [1000])."""
    base = load_base(config.model.pretrained_model)
    unet, vae, text_encoder = base["unet"].to(memory_format=torch.channels_last), base["vae"], base["text_encoder"]
    torch.manual_seed(config.run.seed)  # fresh adapters are the only draw that no step and no sample owns
    attach_adapters(config, unet)
    freeze_parts(LOW_PRECISION[config.run.mixed_precision or "no"], unet, vae, text_encoder)
    checkpoint_parts(config, unet, vae)
    for part in (unet, vae, text_encoder):
        part.to(device)
    alphas_cumprod = DDPMScheduler.from_config(base["scheduler"].config).alphas_cumprod
    words = PromptEncoder(base["tokenizer"], text_encoder)
    return PiSASR(unet, vae, words), words, alphas_cumprod


def attach_adapters(config: TrainConfig, unet: nn.Module) -> None:
    for name, rank in (("pix", config.model.rank_pix), ("sem", config.model.rank_sem)):
        attach(unet, name, rank, config.model.alpha)


def freeze_parts(low: torch.dtype, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> None:
    """Freeze all but the adapters; held as autocast wants it, the VAE, which has none, all in one precision."""
    for part, norms in ((unet, torch.float32), (vae, low), (text_encoder, torch.float32)):
        freeze_in(part, low, norms)


def checkpoint_parts(config: TrainConfig, unet: Any, vae: Any) -> None:
    """Let backward compute again what the configuration would not have kept. ConfigError where a VAE can't."""
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.model.gradient_checkpointing_vae:
        if not vae._supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing_vae: {type(vae).__name__} has no blocks for it; leave it off."
            )
        vae.enable_gradient_checkpointing()


class Predictor(nn.Module):
    """The UNet as the method calls it, in a module of its own so that DDP can wrap it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, z_L: Tensor, prompt_embeds: Tensor) -> Tensor:
        return predict(self.unet, z_L, prompt_embeds)

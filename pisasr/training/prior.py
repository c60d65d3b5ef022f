"""Train the small default's prior: a UNet that learns to tell noise from photos, and a text encoder to steer it.

This is what Stable Diffusion brings ready-made. Two kinds of pictures are shown, each under words that name its
quality, so that classifier-free guidance between those words points from poor to good: a direction that classifier
score distillation can follow.
"""

import json
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pisasr.autoencoder import LappedAutoencoder
from pisasr.data.degradation import DegradationRecipe, degrade
from pisasr.training.autoencoder import random_crops

# The first of each kind is what the shipped configuration distils with.
GOOD = ("a sharp, clean photo", "a sharp, detailed photo", "clean, high quality photo", "sharp photo", "clean")
POOR = (
    "blurry, noisy, jpeg artifacts",
    "a blurry, noisy photo",
    "low quality, lowres",
    "jpeg artifacts, over-smooth, dirty",
    "blurring, worst quality",
)
# Beyond those: words of the published negative prompt and of plain captions, so that they are one token each.
MORE_WORDS = """painting oil illustration drawing art sketch cartoon cg style 3d render unreal engine messy frames
watermark signature deformed smooth a an the of and with in on picture image texture nature tree trees leaf leaves
flower flowers water sky cloud clouds mountain mountains grass animal animals bird cat dog person people face hair
fur building street city text window wood stone rock snow fog light dark bright soft detailed focus macro"""


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte, and each of the words above as one token. Its files go to `folder`."""
    words = dict.fromkeys(" ".join((*GOOD, *POOR, MORE_WORDS)).replace(",", " , ").replace("-", " - ").split())
    characters = sorted(ByteLevel.alphabet())
    tokens, merges = dict.fromkeys(characters + [c + "</w>" for c in characters]), {}
    for word in words:
        *start, last = word
        pieces = [*start, last + "</w>"]
        while len(pieces) > 1:
            left, right, *rest = pieces
            merges[f"{left} {right}"] = None
            tokens[left + right] = None
            pieces = [left + right, *rest]
    tokens |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}\n')
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """Three levels; words and self-attention at the coarsest, where they are cheap."""
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 96, 96),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise levels, so that a timestep means the same here."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )


def train_prior(
    tiles: Tensor,
    vae: LappedAutoencoder,
    folder: Path,
    recipe: DegradationRecipe,
    minutes: float,
    batch: int = 8,
    crop_px: int = 128,
    lr: float = 5e-4,
    seed: int = 0,
    log=print,
) -> None:
    """Train for the given wall-clock minutes and write the whole base (diffusers' layout) into `folder`.

    Half the batch are photos under GOOD words, a third are degraded ones under POOR words; one in five of either has
    no words, and so has the rest. The published weights are an exponential moving average.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    text_encoder, scheduler = build_text_encoder(tokenizer), build_scheduler()
    unet = build_unet(vae.config.latent_channels).to(memory_format=torch.channels_last)
    vae.requires_grad_(False)
    parts = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = torch.optim.swa_utils.AveragedModel(parts, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(parts.parameters(), lr=lr, weight_decay=1e-3, fused=True)
    start, step, running = time.monotonic(), 0, 1.0
    while (spent := (time.monotonic() - start) / 60 / minutes) < 1:
        fall = min(1.0, 2 - 2 * spent)  # constant for the first half, then down to zero
        optimizer.param_groups[0]["lr"] = lr * min(1.0, step / 100) * fall
        poor = torch.rand(batch, generator=generator) < 0.35
        z = _latents(tiles, vae, recipe, poor, crop_px, generator)
        embeds = text_encoder(_words(tokenizer, poor, generator)).last_hidden_state
        t = (1000 * torch.rand(batch, generator=generator) ** 1.5).long()
        noise = torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            guess = unet(scheduler.add_noise(z, noise, t), t, encoder_hidden_states=embeds).sample
        loss = nn.functional.mse_loss(guess.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(parts)
        step, running = step + 1, 0.99 * running + 0.01 * loss.item()
        if step % 200 == 0:
            log(f"prior step {step}: loss {running:.4f}, {spent:.0%} of the time")
            save_base(folder, vae, average.module, tokenizer, scheduler)
    save_base(folder, vae, average.module, tokenizer, scheduler)


def save_base(folder: Path, vae, parts: nn.ModuleDict, tokenizer, scheduler) -> None:
    """The base in diffusers' layout, every weight in float16."""
    index = {
        "_class_name": "PiSASRPipeline",
        "vae": ["pisasr.autoencoder", "LappedAutoencoder"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, part in (("vae", vae), *parts.items()):
        half = type(part)(part.config) if name == "text_encoder" else type(part).from_config(part.config)
        half.load_state_dict(part.state_dict())
        half.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")


@torch.no_grad()
def _latents(tiles, vae, recipe, poor: Tensor, crop_px: int, generator) -> Tensor:
    x = random_crops(tiles, len(poor), crop_px, generator)
    if poor.any():
        x_L = degrade((x[poor] + 1) / 2, recipe, generator)
        x[poor] = nn.functional.interpolate(x_L, size=x.shape[2:], mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    return vae.encode(x).latent_dist.mode()


def _words(tokenizer, poor: Tensor, generator: torch.Generator) -> Tensor:
    """Token ids [B, 77]: a phrase that fits each sample, or none."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    phrases = [(POOR if bad else GOOD)[draw(len(GOOD))] if draw(5) else "" for bad in poor]
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(phrases, **options).input_ids

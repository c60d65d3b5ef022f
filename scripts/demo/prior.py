"""Of step 3: the base's prior, a UNet that learns to tell noise from photos, and a text encoder to
steer it.

This is what Stable Diffusion brings ready-made. Two kinds of pictures are shown, each under words
that name its quality, so that classifier-free guidance between those words points from poor to
good: a direction that classifier score distillation can follow.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pisasr.models.autoencoder import LappedAutoencoder
from pisasr.pipeline import usual_dtype

# The first of each kind is what the shipped configuration distils with.
GOOD = (
    "a sharp, clean photo",
    "a sharp, detailed photo",
    "clean, high quality photo",
    "sharp photo",
    "clean",
)
POOR = (
    "blurry, noisy, jpeg artifacts",
    "a blurry, noisy photo",
    "low quality, lowres",
    "jpeg artifacts, over-smooth, dirty",
    "blurring, worst quality",
)
# Beyond those: words of the published negative prompt and of plain captions, so that they are one
# token each.
MORE_WORDS = """painting oil illustration drawing art sketch cartoon cg style 3d render unreal engine messy frames
watermark signature deformed smooth a an the of and with in on picture image texture nature tree trees leaf leaves
flower flowers water sky cloud clouds mountain mountains grass animal animals bird cat dog person people face hair
fur building street city text window wood stone rock snow fog light dark bright soft detailed focus macro"""


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte, and each of the words above as one token. Its files
    go to `folder`.
    """
    words = dict.fromkeys(
        " ".join((*GOOD, *POOR, MORE_WORDS)).replace(",", " , ").replace("-", " - ").split()
    )
    characters = sorted(ByteLevel.alphabet())
    tokens = dict.fromkeys(characters + [c + "</w>" for c in characters])
    merges: dict[str, None] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            left, right, *rest = pieces
            merges[f"{left} {right}"] = None
            tokens[left + right] = None
            pieces = [left + right, *rest]
    tokens |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}\n'
    )
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


def build_parts(
    latent_channels: int, tokenizer_folder: Path
) -> tuple[nn.ModuleDict, CLIPTokenizer, DDPMScheduler]:
    """What learns (unet, text_encoder), untrained, and what does not."""
    tokenizer = build_tokenizer(tokenizer_folder)
    text_encoder = build_text_encoder(tokenizer)
    unet = build_unet(latent_channels).to(memory_format=torch.channels_last)
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), tokenizer, build_scheduler()


def prior_loss(
    parts: nn.ModuleDict, vae: LappedAutoencoder, tokenizer: CLIPTokenizer, scheduler: DDPMScheduler
) -> Callable[[dict[str, Any]], Tensor]:
    """How wrong the UNet is about the noise that was added to latents.

    Two of three pictures are photos under GOOD words, the third is degraded and under POOR words;
    one in five of either has no words. Small noise comes more often than large: what adapters start
    from is the network at t = 1, and distillation asks below t = 500.
    """
    device = vae.device
    native = (
        device.type != "cpu" or usual_dtype("cpu") == torch.bfloat16
    )  # slow on other processors
    alphas = scheduler.alphas_cumprod.to(device)

    def loss(batch: dict[str, Any]) -> Tensor:
        x_H, x_L = batch["x_H"].to(device), batch["x_L"].to(device)
        poor = torch.rand(len(x_H)) < 0.35
        z = vae.encode(
            torch.where(poor.to(device)[:, None, None, None], x_L, x_H)
        ).latent_dist.mode()
        embeds = parts["text_encoder"](draw_words(tokenizer, poor).to(device)).last_hidden_state
        t = (1000 * torch.rand(len(z)) ** 1.5).long().to(device)
        noise = torch.randn(z.shape).to(device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=native):
            guess = parts["unet"](
                alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, encoder_hidden_states=embeds
            ).sample
        return nn.functional.mse_loss(guess.float(), noise)

    return loss


def draw_words(tokenizer: CLIPTokenizer, poor: Tensor) -> Tensor:
    """Token ids [B, 77]: a phrase that fits each picture, or none."""

    def draw(count: int) -> int:
        return int(torch.randint(count, ()))

    phrases = [(POOR if bad else GOOD)[draw(len(GOOD))] if draw(5) else "" for bad in poor]
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(phrases, **options).input_ids


def save_base(
    folder: Path,
    vae: LappedAutoencoder,
    parts: Mapping[str, nn.Module],
    tokenizer: CLIPTokenizer,
    scheduler: DDPMScheduler,
) -> None:
    """The base in diffusers' layout, every weight in float16."""
    index = {
        "_class_name": "PiSASRPipeline",
        "vae": ["pisasr.models.autoencoder", "LappedAutoencoder"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "color_fix": "wavelet",  # adain greys a page: letters made blacker spread the values, and it shrinks them
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    part: Any
    for name, part in {"vae": vae, **parts}.items():
        half = (
            type(part)(part.config)
            if name == "text_encoder"
            else type(part).from_config(part.config)
        )
        half.load_state_dict(part.state_dict())
        half.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")

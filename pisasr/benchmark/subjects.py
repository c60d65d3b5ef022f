"""Measure, what is measured: a whole model on disk in one of three sizes, loaded as users load
theirs; pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pisasr.method.adapters import adapter_shapes
from pisasr.method.layers import use_fast_layers
from pisasr.models.bases import EMBEDDED
from pisasr.models.weights import Adapter, base_facts, save_adapter
from pisasr.pipeline import PiSASRPipeline

RANK = 4

# What differs from diffusers' and transformers' defaults. full: SD-2.1-base; tiny: its kinds of
# layers, for tests.
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    },
    "vae": {"block_out_channels": (8, 8, 16), "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
FULL: dict[str, dict[str, Any]] = {
    "unet": {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
    },
}


@dataclass(frozen=True)
class Change:
    """How a pipeline is made. plain: with diffusers' own layers where pisasr has faster ones.
    memory_format: None is as it is loaded. mode: torch.compile's; None is eager.
    """

    dtype: torch.dtype
    plain: bool = False
    memory_format: torch.memory_format | None = None
    mode: str | None = None


def write_model(size: str, folder: Path) -> Path | None:
    """A model with seeded random weights and two adapters below `folder`; None, the embedded one,
    for "demo".

    Full weights are held in bfloat16: 3 GB.
    """
    if size == "demo":
        return None
    torch.manual_seed(0)
    kinds, held = (
        {"tiny": TINY, "full": FULL}[size],
        torch.bfloat16 if size == "full" else torch.float32,
    )
    unet, vae = build(kinds)
    text_encoder = CLIPTextModel(CLIPTextConfig(**kinds["text_encoder"], hidden_act="gelu"))
    for name in ("pix", "sem"):
        save_adapter(folder / "adapters" / f"{name}.safetensors", random_adapter(unet, name))
    for part, module in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        for parameter in module.parameters():
            parameter.data = parameter.data.to(held)
        module.save_pretrained(folder / part)
    CLIPTokenizer.from_pretrained(str(EMBEDDED / "tokenizer")).save_pretrained(folder / "tokenizer")
    DDPMScheduler.from_pretrained(str(EMBEDDED / "scheduler")).save_pretrained(folder / "scheduler")
    return folder


def build(kinds: dict[str, dict[str, Any]]) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """A UNet and a VAE of these kinds of layers, with random weights; on the device that is
    current.
    """
    levels = len(kinds["vae"]["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    unet = UNet2DConditionModel(**kinds["unet"], use_linear_projection=True)
    return unet, AutoencoderKL(**kinds["vae"], **blocks, latent_channels=4)


def without_data(
    kinds: dict[str, dict[str, Any]], dtype: torch.dtype
) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Both as a pipeline holds them, on the device meta, for counting."""
    with torch.device("meta"):
        unet, vae = build(kinds)
    for network in (unet, vae):
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        use_fast_layers(network.eval().requires_grad_(False))
    return unet, vae


def random_adapter(unet: nn.Module, name: Any) -> Adapter:
    """One that changes every layer it is on: B is not zero, as a fresh one's would be."""
    tensors = {key: 0.05 * torch.randn(shape) for key, shape in adapter_shapes(unet, RANK).items()}
    facts: Any = unet.config
    return Adapter(name, RANK, 8.0, tensors, base_facts(facts))


def load(model: Path | None, change: Change, device: str) -> PiSASRPipeline:
    """The pipeline by its own door, then changed. On "meta" it is without data."""
    pipe = PiSASRPipeline.from_pretrained(model, torch_dtype=change.dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    networks: list[Any] = [pipe.unet, pipe.unet_pix, pipe.vae]
    for layer in (layer for network in networks for layer in network.modules() if change.plain):
        if type(layer).__module__.startswith("pisasr.method"):
            layer.__class__ = type(layer).__bases__[0]
    if change.memory_format is not None:
        for network in networks:
            network.to(memory_format=change.memory_format)
    if change.mode is not None:
        pipe.compile(mode=change.mode)
    return pipe


def picture(height: int, width: int, number: int = 0) -> Image.Image:
    """Flat areas, edges and noise, seeded: never zeros, whose arithmetic some processors skip."""
    chance = np.random.default_rng(number)
    coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (width, height)
    )
    noisy = np.asarray(coarse) + chance.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

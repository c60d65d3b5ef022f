"""A Stable Diffusion of a few thousand numbers, written down by formula: the same on every machine,
made in no time.

Every weight is a sine wave over its entries, so no random generator can make two machines differ.
"""

import json
from pathlib import Path

import pisasr  # noqa: F401  lets diffusers be imported beside a broken torchvision

# isort: split
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pisasr import PiSASRPipeline
from pisasr.method.adapters import adapter_shapes
from pisasr.models.rrdbnet import PixelAutoencoder, RRDBNet
from pisasr.models.weights import Adapter, base_facts

CROSS = 16


def wave(shape: tuple[int, ...], phase: float, size: float = 1.0) -> Tensor:
    """Numbers that look like noise and are none: size * sin(12.9 i^1.1 + phase)."""
    count = torch.Size(shape).numel()
    i = torch.arange(count, dtype=torch.float64)
    return (size * torch.sin(12.9 * i**1.1 + phase)).float().reshape(shape)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Give a module its weights: about unit gain for matrices, norms near one, biases small."""
    for index, (name, parameter) in enumerate(module.named_parameters()):
        is_norm = "norm" in name and name.endswith("weight")
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.copy_(wave(parameter.shape, index, 1.4 / fan_in**0.5) + is_norm)
    return module.eval().requires_grad_(False)


def make_unet(latent_channels: int = 4) -> UNet2DConditionModel:
    return fill(
        UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=CROSS,
            attention_head_dim=2,
            norm_num_groups=8,
            use_linear_projection=True,
        )
    )


def make_vae() -> AutoencoderKL:
    """A fourfold VAE (three levels) with Stable Diffusion's scaling factor."""
    return fill(
        AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.18215,
        )
    )


def make_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=CROSS,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=512,
        eos_token_id=513,
    )
    return fill(CLIPTextModel(config))


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without a single merge: one token per byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": words[-2],
        "eos_token": words[-1],
        "unk_token": words[-1],
        "pad_token": "!",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(str(folder))


def write_base(folder: Path, vae: nn.Module | None = None, latent_channels: int = 4) -> Path:
    """The tiny base as a folder in diffusers' layout."""
    make_unet(latent_channels).save_pretrained(folder / "unet")
    (make_vae() if vae is None else vae).save_pretrained(folder / "vae")
    make_text_encoder().save_pretrained(folder / "text_encoder")
    make_tokenizer(folder / "tokenizer")
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def photo(width: int = 12, height: int = 9, mode: str = "RGB") -> Image.Image:
    """A picture with something going on in it."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = (wave((height, width, channels), 1.0, 80) + 128).to(torch.uint8).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def equal(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))


def write_photos(folder: Path, count: int) -> Path:
    """Small photos of noise, each its own."""
    folder.mkdir()
    for i in range(count):
        noise = torch.randint(
            0, 256, (40, 44, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
        )
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    return folder


def make_adapter(unet: nn.Module, name: str, rank: int, alpha: float = 8.0) -> Adapter:
    """An adapter whose every tensor matters; pix and sem differ."""
    phase = {"pix": 1000, "sem": 2000}[name]
    shapes = adapter_shapes(unet, rank)
    tensors = {key: wave(shape, phase + i, 0.15) for i, (key, shape) in enumerate(shapes.items())}
    return Adapter(name, rank, alpha, tensors, base_facts(unet.config))


@torch.no_grad()
def linear_pipe() -> PiSASRPipeline:
    """A base of the embedded one's kind: its mix is linear in pixels. Nothing is clipped."""
    unets = [fill(RRDBNet(blocks=1, features=8, growth=4)) for _ in range(2)]
    for unet, size in zip(unets, (0.1, 0.3), strict=True):
        unet.conv_last.weight.mul_(size)
        unet.conv_last.bias.fill_(0.5)
    options = {"color_fix": "wavelet", "process_size": 64, "native_upscale": 4.0}
    return PiSASRPipeline(PixelAutoencoder(), unets[0], unet_pix=unets[1], **options)

"""The method at Stable Diffusion 2.1's full size, with random weights: nothing depends on small
sizes.

    pytest -m slow -s tests/test_full_size.py

Takes minutes and about 8 GB in bfloat16, where the processor has it, twice both in float32; prints
seconds and the peak of memory.
"""

import resource
import time

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from pisasr.method.adapters import adapter_shapes, merge_both
from pisasr.models.weights import Adapter
from pisasr.pipeline import PiSASRPipeline, usual_dtype

LAYERS = 258  # that the published rule finds in SD-2.1's UNet


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        attention_head_dim=(5, 10, 20, 20),
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def make_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
    )
    return CLIPTextModel(config)


def random_adapter(unet, name: str, rank: int = 4) -> Adapter:
    tensors = {key: 0.05 * torch.randn(shape) for key, shape in adapter_shapes(unet, rank).items()}
    return Adapter(name, rank, 8.0, tensors)


@pytest.fixture
def seconds():
    """A stopwatch that tells."""
    start = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal start
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {now - start:.1f} s, peak {peak:.1f} GiB so far")
        start = now

    return lap


@pytest.mark.slow
@torch.no_grad()
def test_both_modes_run_at_full_size(tmp_path, seconds):
    torch.manual_seed(0)
    unet = make_unet().requires_grad_(False).eval()
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    pix, sem = (random_adapter(unet, name) for name in ("pix", "sem"))
    assert len(pix.targets) == LAYERS
    seconds("UNet made")
    dtype = usual_dtype("cpu")
    unet, unet_pix = merge_both(unet, pix, sem, dtype)
    seconds("both adapters merged")
    pipe = PiSASRPipeline(
        vae=make_vae().to(dtype).eval(),
        text_encoder=make_text_encoder().to(dtype).eval(),
        tokenizer=tiny.make_tokenizer(tmp_path / "tokenizer"),
        unet=unet,
        unet_pix=unet_pix,
        scheduler=DDPMScheduler(),
    )
    seconds("VAE and text encoder made")

    photo = Image.fromarray((tiny.wave((128, 128, 3), 0.0, 100) + 128).to(torch.uint8).numpy())
    default = pipe(photo).images[0]
    seconds("128 -> 512 px, lambda (1, 1), one pass")
    adjusted = pipe(photo, lambda_pix=0.5, lambda_sem=1.5).images[0]
    seconds("128 -> 512 px, lambda (0.5, 1.5), two passes")
    assert default.size == adjusted.size == (512, 512)
    assert not np.array_equal(np.asarray(default), np.asarray(adjusted))

"""Infer, without PyTorch: encoder, UNets and decoder as ONNX files, for any size. What is between them is arithmetic.

    encoder.onnx      x [B, 3, H, W] in [-1, 1]                   -> z [B, c, H/factor, W/factor], the posterior's mean
    unet_pix.onnx     z, prompt_embeds [B, tokens, d]             -> eps_pix, like z
    unet.onnx         z, prompt_embeds                            -> eps_pisa, like z
    decoder.onnx      z_H = z - [lambda_pix * eps_pix + lambda_sem * (eps_pisa - eps_pix)]  -> x, not clamped
    empty_prompt.npy  prompt_embeds [1, tokens, d] of no words

All in float32; H and W are multiples of `multiple_of`, which the files tell as metadata. Sizes, colours and tiles are
the caller's. unet_pix.onnx is not written where one UNet makes both predictions.
"""

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pisasr.files import write_whole
from pisasr.method.model import ONE_STEP
from pisasr.pipeline import PiSASRPipeline


class Step(nn.Module):
    """One step of the method, and the networks that it needs."""

    def __init__(self, step: Callable[..., Tensor], network: nn.Module):
        super().__init__()
        self.step, self.network = step, network

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.step(*tensors)


def export_onnx(pipe: PiSASRPipeline, folder: Path) -> list[Path]:
    """Write every step of a float32 pipeline into a folder that exists, and return the files."""
    model, channels = pipe.model, pipe.vae.config.latent_channels
    latent = multiple_of(pipe) // model.factor
    z = torch.zeros(2, channels, 4 * latent, 3 * latent)
    x = torch.zeros(2, 3, *(model.factor * side for side in z.shape[2:]))
    words = model.prompt_encoder("", "cpu")

    def eps(unet: Any) -> Callable[..., Tensor]:
        return lambda z, embeds: unet(z, ONE_STEP, encoder_hidden_states=embeds).sample

    steps: dict[str, tuple[Step, dict[str, Tensor]]] = {
        "encoder": (Step(model.encode, pipe.vae), {"x": x}),
        "unet_pix": (Step(eps(pipe.unet_pix), pipe.unet_pix), {"z": z, "prompt_embeds": words.repeat(2, 1, 1)}),
        "unet": (Step(eps(pipe.unet), pipe.unet), {"z": z, "prompt_embeds": words.repeat(2, 1, 1)}),
        "decoder": (Step(model.decode, pipe.vae), {"z": z}),
    }
    if pipe.unet_pix is pipe.unet:
        del steps["unet_pix"]
    written = [_write(folder / f"{name}.onnx", *step, multiple_of(pipe)) for name, step in steps.items()]
    content = io.BytesIO()
    np.save(content, words.float().numpy())
    write_whole(folder / "empty_prompt.npy", content.getvalue())
    return [*written, folder / "empty_prompt.npy"]


def multiple_of(pipe: PiSASRPipeline) -> int:
    """Pixels that H and W are multiples of, so that the UNet halves every side without a remainder."""
    return pipe.model.factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)


def _write(path: Path, step: Step, inputs: dict[str, Tensor], multiple: int) -> Path:
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    side = inputs.get("x", inputs.get("z")).shape[-2] // 4
    shapes = tuple(
        {0: batch} if name == "prompt_embeds" else {0: batch, 2: side * height, 3: side * width} for name in inputs
    )
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            step.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            dynamic_shapes=(shapes,),  # of *tensors
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props["multiple_of"] = str(multiple)
    program.save(str(path), external_data=False)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells how it goes about it; what goes wrong is an exception."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

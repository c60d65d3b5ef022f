"""Write every network of a pipeline as an ONNX file, for pictures of any size and number.

Between the UNets and the decoder is the formula alone, so both strengths stay free. The prompt is
the empty one, all is float32; README.md lists the files with their inputs and outputs.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pisasr.errors import ModelError
from pisasr.files import write_whole
from pisasr.method.color import COLOR_FIXES
from pisasr.method.model import ONE_STEP
from pisasr.models.bases import EMBEDDED
from pisasr.pictures.images import from_levels, to_signed, to_unit
from pisasr.pipeline import PiSASRPipeline

MAX_ERROR = 0.5  # levels of 255; rounding is a hundredth of that
CHECKED = EMBEDDED / "examples" / "astronaut.png"  # 128 x 128 px


class Step(nn.Module):
    """A function as a module, with the networks whose weights it uses."""

    def __init__(self, function: Callable[..., Tensor], *networks: nn.Module):
        super().__init__()
        self.function, self.networks = function, nn.ModuleList(networks)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def write_onnx(pipe: PiSASRPipeline, folder: Path) -> float:
    """Write a float32 pipeline on the CPU into an existing folder, and compare.

    Returns the largest difference to the pipeline's picture, in levels of 255. ModelError where it
    is too large; pisasr.json, without which repair.py does not run, is then missing.
    """
    model = pipe.model
    # H and W are multiples of this, so that the UNet halves every side without a remainder.
    multiple = model.factor * 2 ** (len(getattr(pipe.unet.config, "block_out_channels", "1")) - 1)
    embeds = model.prompt_encoder("", torch.device("cpu"))
    fix = COLOR_FIXES[pipe.config.color_fix]

    def predict(z_L: Tensor) -> Tensor:
        prompts = None if embeds is None else embeds.expand(z_L.shape[0], -1, -1)
        return pipe.unet(z_L, ONE_STEP, encoder_hidden_states=prompts).sample

    def colors(x_H: Tensor, x_L: Tensor) -> Tensor:
        return to_unit(x_H) if fix is None else fix(to_unit(x_H), to_unit(x_L))

    x, z = (3, multiple), (pipe.vae.config.latent_channels, multiple // model.factor)
    (folder / "pisasr.json").unlink(missing_ok=True)
    _save(_trace(Step(model.encode, pipe.vae), {"x_L": x}, "z_L"), folder / "encoder.onnx")
    unet = _trace(Step(predict, pipe.unet), {"z_L": z}, "eps")
    _save(unet, folder / "unet.onnx")
    if pipe.unet_pix is not pipe.unet:
        with warnings.catch_warnings(action="error"):  # a weight without a place
            unet.apply_weights(Step(predict, pipe.unet_pix).state_dict())
        _save(unet, folder / "unet_pix.onnx")
    _save(_trace(Step(model.decode, pipe.vae), {"z_H": z}, "x_H"), folder / "decoder.onnx")
    _save(_trace(Step(colors), {"x_H": (3, 1), "x_L": (3, 1)}, "picture"), folder / "colors.onnx")
    shutil.copyfile(Path(__file__).with_name("repair.py"), folder / "repair.py")

    facts = {
        "eps_pix": "unet.onnx" if pipe.unet_pix is pipe.unet else "unet_pix.onnx",
        "multiple_of": multiple,
        "process_size": pipe.config.process_size,
        "native_upscale": pipe.config.native_upscale,
        "color_fix": pipe.config.color_fix,
        "model": pipe.identity,
    }
    error = _compare(pipe, folder, facts)
    if not error <= MAX_ERROR:
        raise ModelError(f"the files' picture is off by {error:.3g} of 255 levels; don't use them.")
    write_whole(folder / "pisasr.json", json.dumps(facts, indent=2) + "\n")
    return error


def _compare(pipe: PiSASRPipeline, folder: Path, facts: dict[str, Any]) -> float:
    """Largest difference in levels of 255 for an example photo at the base's own factor, or 1."""
    from pisasr.hub.repair import restore  # imports onnxruntime

    photo, upscale = Image.open(CHECKED).convert("RGB"), pipe.config.native_upscale or 1
    prediction = pipe.predict(photo, upscale=upscale, process_size=1)
    x_L = to_signed(from_levels(prediction.given)).numpy()
    (made,) = restore(x_L, folder, facts, 1.0, 0.5)
    expected = np.asarray(pipe.decode(prediction, 1.0, 0.5, "np"))
    return float(255 * np.abs(made.transpose(1, 2, 0) - expected).max())


def _trace(step: Step, inputs: dict[str, tuple[int, int]], output: str) -> Any:
    """The ONNX program of a step. inputs: channels of each, and what its sides are multiples of."""
    names = ("batch", "height", "width")
    batch, height, width = (torch.export.Dim(name, min=1, max=2**20) for name in names)
    shapes = tuple({0: batch, 2: m * height, 3: m * width} for _, m in inputs.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        return torch.onnx.export(
            step.eval(),
            tuple(torch.zeros(2, channels, 3 * m, 2 * m) for channels, m in inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=(shapes,),  # of *tensors
            dynamo=True,
            optimize=False,  # takes minutes; runtimes do it again
            verbose=False,
        )


def _save(program: Any, path: Path) -> None:
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # holds source lines and paths of this machine
    program.save(str(path))

"""Infer, without PyTorch: every network of a pipeline as an ONNX file, for pictures of any size and
number.

encoder.onnx    x_L [B, 3, H, W] in [-1, 1]     -> z_L [B, c, H / factor, W / factor], the
posterior's mean, scaled unet_pix.onnx   z_L                             -> eps_pix, like z_L; no
such file where one UNet makes both predictions unet.onnx       z_L                             ->
eps_pisa, like z_L decoder.onnx    z_H, like z_L                   -> x_H [B, 3, H, W], not clamped
colors.onnx     x_H, x_L, of any height, width  -> the picture in [0, 1], with the model's own
colour fix repair.py       one photo through all of them   pisasr.json     what they are

Between the UNets and the decoder is the formula alone, so both strengths stay free, and may be maps
[h, w]. The prompt is the empty one. All is float32; H and W are multiples of `multiple_of`, which
lets the UNet halve every side.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from pisasr.pictures.images import to_unit
from pisasr.pipeline import PiSASRPipeline

FORMULA = "z_H = z_L - [lambda_pix * eps_pix + lambda_sem * (eps_pisa - eps_pix)]"
MOST_OFF = 0.5  # levels of 255, for which something must be wrong; rounding is a hundredth of that
CHECKED = EMBEDDED / "examples" / "astronaut.png"  # of 128 x 128 px


class Step(nn.Module):
    """One step of the method, and the networks that it takes weights from."""

    def __init__(self, step: Callable[..., Tensor], *networks: nn.Module):
        super().__init__()
        self.step, self.networks = step, nn.ModuleList(networks)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.step(*tensors)


def write_onnx(pipe: PiSASRPipeline, folder: Path) -> float:
    """Write a float32 pipeline on the CPU into a folder that exists; how far the files' picture is
    from its own, at most, in levels of 255.

    pisasr.json is written last, when this is known. ModelError where it is too much.
    """
    model, multiple = pipe.model, multiple_of(pipe)
    words = model.prompt_encoder("", torch.device("cpu"))
    fix = COLOR_FIXES[pipe.config.color_fix]

    def predict(z_L: Tensor) -> Tensor:
        return pipe.unet(
            z_L, ONE_STEP, encoder_hidden_states=words.expand(z_L.shape[0], -1, -1)
        ).sample

    def colors(x_H: Tensor, x_L: Tensor) -> Tensor:
        return to_unit(x_H) if fix is None else fix(to_unit(x_H), to_unit(x_L))

    x, z = (3, multiple), (pipe.vae.config.latent_channels, multiple // model.factor)
    (folder / "pisasr.json").unlink(missing_ok=True)
    _save(_traced(Step(model.encode, pipe.vae), {"x_L": x}, "z_L"), folder / "encoder.onnx")
    unet = _traced(Step(predict, pipe.unet), {"z_L": z}, "eps")
    _save(unet, folder / "unet.onnx")
    if pipe.unet_pix is not pipe.unet:
        with warnings.catch_warnings(action="error"):  # a weight that is in no place
            unet.apply_weights(Step(predict, pipe.unet_pix).state_dict())
        _save(unet, folder / "unet_pix.onnx")
    _save(_traced(Step(model.decode, pipe.vae), {"z_H": z}, "x_H"), folder / "decoder.onnx")
    _save(_traced(Step(colors), {"x_H": (3, 1), "x_L": (3, 1)}, "picture"), folder / "colors.onnx")
    shutil.copyfile(Path(__file__).with_name("repair.py"), folder / "repair.py")

    facts = {
        "formula": FORMULA,
        "eps_pix": "unet.onnx" if pipe.unet_pix is pipe.unet else "unet_pix.onnx",
        "eps_pisa": "unet.onnx",
        "multiple_of": multiple,
        "factor": model.factor,
        "process_size": pipe.config.process_size,
        "color_fix": pipe.config.color_fix,
        "model": pipe.identity,
    }
    off = deviation(pipe, folder, facts)
    if not off <= MOST_OFF:
        raise ModelError(
            f"the files' picture is {off:.3g} of 255 levels from the pipeline's; don't use them."
        )
    write_whole(folder / "pisasr.json", json.dumps(facts, indent=2) + "\n")
    return off


def multiple_of(pipe: PiSASRPipeline) -> int:
    """Pixels that H and W are multiples of, so that the UNet halves every side without a
    remainder.
    """
    return pipe.model.factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)


def deviation(pipe: PiSASRPipeline, folder: Path, facts: dict[str, Any]) -> float:
    """Levels of 255 between an example photo repaired by the files and by the pipeline, at its own
    size.
    """
    from pisasr.hub.repair import restore  # which wants onnxruntime

    strengths = (1.0, 1.0) if pipe.unet_pix is pipe.unet else (1.0, 0.5)  # which asks both
    photo = Image.open(CHECKED).convert("RGB")
    x_L = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
    (came,) = restore(x_L, folder, facts, *strengths)
    (meant,) = pipe(photo, *strengths, upscale=1, process_size=1, output_type="np").images
    return float(255 * np.abs(came.transpose(1, 2, 0) - meant).max())


def _traced(step: Step, inputs: dict[str, tuple[int, int]], output: str) -> Any:
    """The program of a step. inputs: of each the channels, and what its sides are multiples of."""
    batch, height, width = (
        torch.export.Dim(name, min=1, max=2**20) for name in ("batch", "height", "width")
    )
    given = tuple(
        torch.zeros(2, channels, 3 * multiple, 2 * multiple)
        for channels, multiple in inputs.values()
    )
    shapes = tuple(
        {0: batch, 2: multiple * height, 3: multiple * width} for _, multiple in inputs.values()
    )
    with torch.no_grad(), _quiet():
        return torch.onnx.export(
            step.eval(),
            given,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=(shapes,),  # of *tensors
            dynamo=True,
            optimize=False,  # takes minutes; runtimes do it again
            verbose=False,
        )


def _save(program: Any, path: Path) -> None:
    """Write a program, without where its lines stood on this disk."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells how it goes about it; what goes wrong is an exception."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)

"""Infer, before a model is passed on: a pipeline whose two strengths are in its weights, and how
far off it is.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pisasr.errors import ModelError
from pisasr.method.baking import bake
from pisasr.pipeline import Given, PiSASRPipeline


class Error(NamedTuple):
    """How far a picture is from the one that was meant, in levels of 255 over all pixels and
    colours.
    """

    mean: float
    most: float


def baked(pipe: PiSASRPipeline, lambda_pix: float, lambda_sem: float) -> PiSASRPipeline:
    """A pipeline with one UNet, whose picture at (1, 1) is that of `pipe` at these strengths, to
    rounding where `is_exact`. Its own strengths are then one: (a, 1) takes a times what was baked.
    ModelError where some are in it.
    """
    if pipe.config.get("baked") is not None:
        raise ModelError(
            "this model's strengths are in one UNet already; give the model that it was made from."
        )
    unet = bake(pipe.unet_pix, pipe.unet, lambda_pix, lambda_sem)
    others = {name: part for name, part in pipe.components.items() if not name.startswith("unet")}
    told = {"lambda_pix": lambda_pix, "lambda_sem": lambda_sem}
    return PiSASRPipeline(unet=unet, color_fix=pipe.config.color_fix, baked=told, **others)


def errors_of(
    made: PiSASRPipeline,
    pipe: PiSASRPipeline,
    pictures: Iterable[Given],
    lambda_pix: float,
    lambda_sem: float,
    **options: Any,
) -> list[Error]:
    """How far each picture of a baked pipeline is from that of `pipe`. options: those of
    `PiSASRPipeline.__call__`.
    """
    found = []
    for picture in pictures:
        (meant,) = pipe(picture, lambda_pix, lambda_sem, output_type="np", **options).images
        (came,) = made(picture, output_type="np", **options).images
        levels = 255 * np.abs(came - meant)
        found.append(Error(float(levels.mean()), float(levels.max())))
    return found

"""Infer, in ComfyUI: four nodes. A model, a picture looked at, strengths mixed; and all of it at
once.

ComfyUI keeps what a node gave until its inputs change. So a strength that moves runs `MixAndDecode`
alone: one decode.

An IMAGE is [B, H, W, C] in [0, 1], float32; it never passes through eight bits. A MASK is [H, W] or
[B, H, W], 1 where it is painted. Nothing here is left to chance (the VAE's mean is taken), so no
node has a seed.
"""

from typing import Any, NamedTuple

import comfy.model_management as manager
import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor

from pisasr.pipeline import COLOR_FIXES, Looked

from .models import DTYPES, Model, adapters, bases, embedded, load, moved

CATEGORY = "image/upscaling"
MODELS_OWN = "the model's own"

PiSASRModel = io.Custom("PISASR_MODEL")
PiSASRLooked = io.Custom("PISASR_LOOKED")


class Seen(NamedTuple):
    """What PISASR_LOOKED is: the pictures of a batch as a model saw them, kept where ComfyUI keeps
    pictures.
    """

    model: Model
    pictures: tuple[Looked, ...]


class Load(io.ComfyNode):
    """Names -> PISASR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PiSASRLoad",
            display_name="PiSA-SR Load",
            category=CATEGORY,
            description="A base and its two adapters. Folders are looked for in models/pisasr and models/diffusers.",
            inputs=[
                io.Combo.Input(
                    "base",
                    options=list(bases()),
                    tooltip="The small model inside the package, or a folder in diffusers' layout (SD-2.1-base).",
                ),
                io.Combo.Input(
                    "adapters",
                    options=list(adapters()),
                    tooltip="The adapters beside the base, or in models/pisasr a folder of pix.safetensors and "
                    "sem.safetensors, or the published .pkl.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    tooltip="What it computes in. auto: fp16 where ComfyUI would use it, else what the machine is "
                    "fastest in.",
                ),
            ],
            outputs=[PiSASRModel.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, base: str, adapters: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load(base, adapters, dtype))


class Predict(io.ComfyNode):
    """The half of the method that no strength changes: IMAGE -> PISASR_LOOKED."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PiSASRPredict",
            display_name="PiSA-SR Predict",
            category=CATEGORY,
            description="Looks at the picture: the slow half, which the strengths do not change.",
            inputs=[
                PiSASRModel.Input("model"),
                io.Image.Input("image"),
                _upscale(),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="What the picture shows. Usually left empty, as published.",
                ),
            ],
            outputs=[PiSASRLooked.Output(display_name="looked")],
        )

    @classmethod
    def execute(
        cls, model: Model, image: Tensor, upscale: float, prompt: str = ""
    ) -> io.NodeOutput:
        pipe = model.for_looking(_pixels(image, upscale))
        keep = manager.intermediate_device()
        pictures = (
            moved(pipe.look(picture, upscale=upscale, prompt=prompt), keep)
            for picture in model.one_by_one(_pictures(image))
        )
        return io.NodeOutput(Seen(model, tuple(pictures)))


class MixAndDecode(io.ComfyNode):
    """The half that makes a picture of it, at two strengths, others inside a mask: PISASR_LOOKED ->
    IMAGE.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PiSASRMixAndDecode",
            display_name="PiSA-SR Mix and Decode",
            category=CATEGORY,
            description="Makes the picture at two strengths. Moving them runs this node alone.",
            inputs=[
                PiSASRLooked.Input("looked"),
                *_strengths(),
                _color_fix(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where it is painted, the two strengths below hold; half painted is halfway between. Of "
                    "any size in the picture's proportions; one for all pictures of a batch, or one for each.",
                ),
                _strength("lambda_pix_inside", 1.0, "lambda_pix inside the mask.", optional=True),
                _strength("lambda_sem_inside", 0.0, "lambda_sem inside the mask.", optional=True),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        looked: Seen,
        lambda_pix: float,
        lambda_sem: float,
        color_fix: str,
        mask: Tensor | None = None,
        lambda_pix_inside: float = 1.0,
        lambda_sem_inside: float = 0.0,
    ) -> io.NodeOutput:
        model, pictures = looked
        masks = _masks(mask, len(pictures))
        pixels = max(picture.frame.padded[0] * picture.frame.padded[1] for picture in pictures)
        pipe, device = model.for_mixing(pixels), manager.get_torch_device()
        fix: Any = None if color_fix == MODELS_OWN else color_fix
        results = [
            pipe.mix(
                moved(picture, device),
                _by_place(lambda_pix, lambda_pix_inside, mask),
                _by_place(lambda_sem, lambda_sem_inside, mask),
                color_fix=fix,
                output_type="pt",
            )
            for picture, mask in model.one_by_one(list(zip(pictures, masks, strict=True)))
        ]
        return io.NodeOutput(_image(results))


class Upscale(io.ComfyNode):
    """The whole method at once: IMAGE -> IMAGE, with only the passes that the two strengths
    need.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PiSASRUpscale",
            display_name="PiSA-SR Upscale",
            category=CATEGORY,
            description="Repairs and enlarges pictures in one step. To try strengths, use Predict and Mix and Decode.",
            inputs=[
                io.Image.Input("image"),
                _upscale(),
                *_strengths(),
                _color_fix(),
                PiSASRModel.Input(
                    "model", optional=True, tooltip="Of PiSA-SR Load; without it, the small model."
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        upscale: float,
        lambda_pix: float,
        lambda_sem: float,
        color_fix: str,
        model: Model | None = None,
    ) -> io.NodeOutput:
        model = model or embedded()
        pipe = model.for_looking(_pixels(image, upscale))
        fix: Any = None if color_fix == MODELS_OWN else color_fix
        results = [
            result
            for picture in model.one_by_one(_pictures(image))
            for result in pipe(
                picture, lambda_pix, lambda_sem, upscale=upscale, color_fix=fix, output_type="pt"
            ).images
        ]
        return io.NodeOutput(_image(results))


class PiSASRExtension(ComfyExtension):
    """What ComfyUI is told of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Load, Predict, MixAndDecode, Upscale]


async def comfy_entrypoint() -> PiSASRExtension:
    """The door that ComfyUI knocks at."""
    return PiSASRExtension()


# --- inputs that nodes share ----------------------------------------------------------------------


def _upscale() -> Any:
    return io.Float.Input(
        "upscale",
        default=4.0,
        min=1.0,
        max=16.0,
        step=0.25,
        tooltip="How many times as wide and as high.",
    )


def _strength(name: str, default: float, tooltip: str, optional: bool = False) -> Any:
    slider = io.NumberDisplay.slider
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=2.0,
        step=0.05,
        display_mode=slider,
        tooltip=tooltip,
        optional=optional,
    )


def _strengths() -> list[Any]:
    return [
        _strength(
            "lambda_pix",
            1.0,
            "How much of noise, blur and blocks is taken away: 0 none, 1 as trained.",
        ),
        _strength("lambda_sem", 1.0, "How much detail is added: 0 none, 1 as trained."),
    ]


def _color_fix() -> Any:
    return io.Combo.Input(
        "color_fix",
        options=[MODELS_OWN, *COLOR_FIXES],
        tooltip="How the result gets the picture's colours back.",
    )


# --- ComfyUI's tensors and the pipeline's ---------------------------------------------------------


def _pictures(image: Tensor) -> list[Tensor]:
    """IMAGE -> [C, H, W] each. What is a little outside [0, 1], as some nodes leave it, is clamped
    as on saving.
    """
    return list(image.clamp(0, 1).movedim(-1, 1))


def _image(results: list[Any]) -> Tensor:
    """[C, H, W] each -> IMAGE."""
    return torch.stack(results).movedim(1, -1).contiguous().to(manager.intermediate_device())


def _pixels(image: Tensor, upscale: float) -> float:
    return image.shape[1] * image.shape[2] * upscale**2


def _masks(mask: Tensor | None, count: int) -> list[Tensor | None]:
    """A mask [H, W] for each of `count` pictures. ValueError where there are neither one nor
    `count` of them.
    """
    if mask is None:
        return [None] * count
    masks = list(mask if mask.ndim == 3 else mask[None])
    if len(masks) not in (1, count):
        raise ValueError(
            f"{len(masks)} masks came with {count} pictures; give one mask, or one for each picture."
        )
    return masks * count if len(masks) == 1 else masks


def _by_place(outside: float, inside: float, mask: Tensor | None) -> float | Tensor:
    """A strength where the mask is 0, another where it is 1, in between what lies between; [H,
    W].
    """
    if (
        mask is None or not mask.any()
    ):  # ComfyUI's word for no mask is black, 64x64, whatever the picture
        return outside
    return torch.lerp(torch.full_like(mask, outside), torch.full_like(mask, inside), mask)

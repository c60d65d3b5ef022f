"""Four nodes: Load, Predict, Mix and Decode, and Upscale, which is all of them at once.

ComfyUI keeps a node's output until its inputs change, so moving a strength runs `MixAndDecode`
alone: one decode. An IMAGE is [B, H, W, C] in [0, 1], float32; it never passes through eight bits.
A MASK is [H, W] or [B, H, W], 1 where painted. Nothing is random (the VAE's mean is taken), so no
node has a seed.
"""

from typing import Any, get_args

import comfy.model_management as manager
import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor

from pisasr.options import ColorFix, Options
from pisasr.pipeline import Prediction

from .models import DTYPES, Model, Progress, adapters, bases, embedded, load

OWN_COLOR_FIX = "the model's own"
PIX = "How much of noise, blur and blocks is taken away: 0 none, 1 as trained."
SEM = "How much detail is added: 0 none, 1 as trained."

PiSASRModel = io.Custom("PISASR_MODEL")
PiSASRPrediction = io.Custom("PISASR_PREDICTION")  # a model and its predictions of a batch


def _schema(node: type, name: str, inputs: list[Any], output: Any) -> io.Schema:
    """A node's first docstring line is its description."""
    return io.Schema(
        node_id=f"PiSASR{node.__name__}",
        display_name=f"PiSA-SR {name}",
        category="image/upscaling",
        description=(node.__doc__ or "").partition("\n")[0],
        inputs=inputs,
        outputs=[output],
    )


def _strength(name: str, tooltip: str, default: float = 1.0, optional: bool = False) -> Any:
    shown_as = {"display_mode": io.NumberDisplay.slider, "tooltip": tooltip, "optional": optional}
    return io.Float.Input(name, default=default, min=0.0, max=2.0, step=0.05, **shown_as)


def _upscale() -> Any:
    tooltip, default = "How many times as wide and as high.", float(Options.upscale)
    return io.Float.Input("upscale", default=default, min=1.0, max=16.0, step=0.25, tooltip=tooltip)


def _color_fix() -> Any:
    tooltip, choices = "How colors are restored.", [OWN_COLOR_FIX, *get_args(ColorFix)]
    return io.Combo.Input("color_fix", options=choices, tooltip=tooltip)


class Load(io.ComfyNode):
    """A base and its two adapters, from models/pisasr and models/diffusers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        base = "The model inside the package, or a folder in diffusers' layout (SD-2.1-base)."
        both = "The base's, or from models/pisasr a folder of pix and sem, or the published .pkl."
        dtype = "auto: fp16 where ComfyUI would use it, else what the machine is fastest in."
        inputs = [
            io.Combo.Input("base", options=list(bases()), tooltip=base),
            io.Combo.Input("adapters", options=list(adapters()), tooltip=both),
            io.Combo.Input("dtype", options=list(DTYPES), tooltip=dtype),
        ]
        return _schema(cls, "Load", inputs, PiSASRModel.Output(display_name="model"))

    @classmethod
    def execute(cls, base: str, adapters: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load(base, adapters, dtype))


class Predict(io.ComfyNode):
    """The slow half: encodes the picture and predicts what both adapters would change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        words = "What the picture shows. Usually left empty, as published."
        prompt = io.String.Input("prompt", default="", optional=True, tooltip=words)
        inputs = [PiSASRModel.Input("model"), io.Image.Input("image"), _upscale(), prompt]
        return _schema(cls, "Predict", inputs, PiSASRPrediction.Output(display_name="prediction"))

    @classmethod
    def execute(
        cls, model: Model, image: Tensor, upscale: float, prompt: str = ""
    ) -> io.NodeOutput:
        pipe = model.on_device(_pixels(image, upscale))
        keep, progress = manager.intermediate_device(), Progress(len(image))
        options: dict[str, Any] = {"upscale": upscale, "prompt": prompt}
        options["on_tile"] = progress.on_tile
        pictures = progress.each(_pictures(image))
        predictions = tuple(pipe.predict(one, **options).to(keep) for one in pictures)
        return io.NodeOutput((model, predictions))


class MixAndDecode(io.ComfyNode):
    """Makes the picture at two strengths. Moving them runs this node alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        painted = "Where the strengths below hold; one for all pictures, or one for each."
        inputs = [
            PiSASRPrediction.Input("prediction"),
            _strength("lambda_pix", PIX),
            _strength("lambda_sem", SEM),
            _color_fix(),
            io.Mask.Input("mask", optional=True, tooltip=painted),
            _strength("lambda_pix_inside", "lambda_pix inside the mask.", 1.0, optional=True),
            _strength("lambda_sem_inside", "lambda_sem inside the mask.", 0.0, optional=True),
        ]
        return _schema(cls, "Mix and Decode", inputs, io.Image.Output(display_name="image"))

    @classmethod
    def execute(
        cls,
        prediction: tuple[Model, tuple[Prediction, ...]],
        lambda_pix: float,
        lambda_sem: float,
        color_fix: str,
        mask: Tensor | None = None,
        lambda_pix_inside: float = 1.0,
        lambda_sem_inside: float = 0.0,
    ) -> io.NodeOutput:
        model, pictures = prediction
        masks = _masks(mask, len(pictures))
        pixels = max(picture.frame.padded[0] * picture.frame.padded[1] for picture in pictures)
        pipe, device = model.on_device(pixels, vae_alone=True), manager.get_torch_device()
        results = [
            pipe.decode(
                picture.to(device),
                _by_place(lambda_pix, lambda_pix_inside, place),
                _by_place(lambda_sem, lambda_sem_inside, place),
                **_finish(color_fix),
            )
            for picture, place in Progress(len(pictures)).each([*zip(pictures, masks, strict=True)])
        ]
        return io.NodeOutput(_image(results))


class Upscale(io.ComfyNode):
    """Repairs and enlarges in one step. To try strengths, use Predict and Mix and Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "Of PiSA-SR Load; without it, the model inside the package."
        model = PiSASRModel.Input("model", optional=True, tooltip=tooltip)
        strengths = [_strength("lambda_pix", PIX), _strength("lambda_sem", SEM)]
        inputs = [io.Image.Input("image"), _upscale(), *strengths, _color_fix(), model]
        return _schema(cls, "Upscale", inputs, io.Image.Output(display_name="image"))

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
        pipe = (model or embedded()).on_device(_pixels(image, upscale))
        progress = Progress(len(image))
        options: dict[str, Any] = {"upscale": upscale, "on_tile": progress.on_tile}
        results = [
            pipe(one, lambda_pix, lambda_sem, **options, **_finish(color_fix)).images[0]
            for one in progress.each(_pictures(image))
        ]
        return io.NodeOutput(_image(results))


class PiSASRExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Load, Predict, MixAndDecode, Upscale]


async def comfy_entrypoint() -> PiSASRExtension:
    """Called by ComfyUI."""
    return PiSASRExtension()


# --- ComfyUI's tensors and the pipeline's ---------------------------------------------------------


def _pictures(image: Tensor) -> list[Tensor]:
    """IMAGE -> [C, H, W] each, clamped as on saving: some nodes leave values outside [0, 1]."""
    return list(image.clamp(0, 1).movedim(-1, 1))


def _image(results: list[Any]) -> Tensor:
    """[C, H, W] each -> IMAGE."""
    return torch.stack(results).movedim(1, -1).contiguous().to(manager.intermediate_device())


def _finish(color_fix: str) -> dict[str, Any]:
    own = color_fix == OWN_COLOR_FIX
    return {"color_fix": None if own else color_fix, "output_type": "pt"}


def _pixels(image: Tensor, upscale: float) -> float:
    return image.shape[1] * image.shape[2] * upscale**2


def _masks(mask: Tensor | None, count: int) -> list[Tensor | None]:
    """A mask [H, W] for each of `count` pictures; ValueError for another number of masks."""
    masks = [None] if mask is None else list(mask.reshape(-1, *mask.shape[-2:]))
    if len(masks) not in (1, count):
        raise ValueError(f"{len(masks)} masks for {count} pictures; give one, or one for each.")
    return masks * count if len(masks) == 1 else masks


def _by_place(outside: float, inside: float, mask: Tensor | None) -> float | Tensor:
    """A strength [H, W]: `outside` where the mask is 0, `inside` where it is 1."""
    if mask is None or not mask.any():  # ComfyUI gives a black 64x64 one where there is none
        return outside
    return torch.lerp(torch.full_like(mask, outside), torch.full_like(mask, inside), mask)

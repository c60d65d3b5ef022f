"""PiSASRPipeline: from a low-quality picture to its repaired picture.

read -> frame -> encode -> predict -> mix -> decode -> finish: `predict` is what no strength
changes, `decode` what two strengths make of it, `__call__` both.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from pisasr.errors import CheckpointError, ModelError, PisasrError, UserNotice, is_out_of_memory
from pisasr.files import write_whole
from pisasr.method.adapters import merge_both
from pisasr.method.color import COLOR_FIXES
from pisasr.method.layers import has_hooks, set_memory_format, use_fast_layers
from pisasr.method.model import (
    Latents,
    PiSASR,
    Plan,
    Predictors,
    draw_noise,
    encode_and_predict,
    predict_eps,
)
from pisasr.method.residual import Strength, needed, restore_latent
from pisasr.method.text import PromptEncoder
from pisasr.method.tiling import count_tiles
from pisasr.models import bases
from pisasr.models.weights import Adapter, fingerprint, load_adapters, save_adapter
from pisasr.options import VAE_TILE_PX, ColorFix, Options, OutputType
from pisasr.pictures import frames, images
from pisasr.pictures.frames import Frame
from pisasr.pictures.images import Picture
from pisasr.pictures.maps import Map, check_proportions, check_strength, to_latent

SMALLEST_TILE = 16  # latent pixels; out of memory with smaller ones is an error
NOT_FINITE = "the model answered with nan or inf"
Given = Image.Image | np.ndarray | Tensor | Picture
Result = Image.Image | np.ndarray | Tensor
OnTile = Callable[[int, int], None]  # (done, total) tiles of a picture's predictions
Answer = TypeVar("Answer", bound=tuple)

# Lies beside what `save_pretrained` writes: DiffusionPipeline.from_pretrained(FOLDER,
# custom_pipeline=FOLDER, trust_remote_code=True) takes the pipeline from it.
CUSTOM_PIPELINE = '''"""The pipeline of this folder, for diffusers; it needs the package pisasr."""

from pisasr.pipeline import PiSASRPipeline  # noqa: F401
'''


@dataclass(frozen=True)
class Prediction:
    """A picture, encoded, with both predictions: all that strengths choose from.

    latents [1, c, h, w]; given [1, 3, H, W] at frame.padded, what colors are matched to; plan: how
    big things were cut when memory sufficed; options: how to finish. Threads may share it, and it
    can be pickled.
    """

    latents: Latents
    given: Tensor
    picture: Picture
    frame: Frame
    plan: Plan
    options: Options

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds on a device."""
        return [tensor for tensor in (*self.latents, self.given) if tensor is not None]

    def to(self, device: torch.device | str) -> "Prediction":
        """The same with its tensors on a device."""
        latents = Latents._make(None if z is None else z.to(device) for z in self.latents)
        return replace(self, latents=latents, given=self.given.to(device))


class PiSASRPipeline(DiffusionPipeline):
    """Repair and enlarge photos in one step, with one strength for fidelity and one for detail.

    unet carries both adapters in its weights and gives eps_full; unet_pix carries the pixel adapter
    and gives eps_pix, or is None where unet makes both predictions. A base without words has no
    text encoder and no tokenizer. The scheduler only says how the base was trained. color_fix,
    process_size: the model's own. native_upscale: the one factor that a base works at (None: any);
    its results are resized to what was asked for.

    diffusers' ways of saving memory work: `enable_model_cpu_offload` moves each part once a
    picture, however many tiles it has; sequential and group offload move layers.
    """

    model_cpu_offload_seq = "text_encoder->unet_pix->unet->vae"
    _optional_components = ["unet_pix", "text_encoder", "tokenizer", "scheduler"]

    unet: Any
    unet_pix: Any

    def __init__(
        self,
        vae: Any,
        unet: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        scheduler: Any = None,
        unet_pix: Any = None,
        color_fix: ColorFix = "adain",
        process_size: int = 512,
        native_upscale: float | None = None,
    ):
        super().__init__()
        Options(color_fix=color_fix, process_size=process_size, upscale=native_upscale or 1)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            unet_pix=unet if unet_pix is None else unet_pix,
            scheduler=scheduler,
        )
        self.register_to_config(
            color_fix=color_fix, process_size=process_size, native_upscale=native_upscale
        )
        for network in self._networks:
            use_fast_layers(network)
            set_memory_format(network)
        self._prompt_encoder: PromptEncoder | None = None
        self._reference: bases.Reference | None = None  # the base of the UNets, if known
        self._adapters: tuple[Adapter, Adapter | None] | None = None
        self._too_large: dict[tuple[torch.Size, Plan], Plan] = {}  # ran out of memory -> tried next

    @property
    def _networks(self) -> list[Any]:
        return list(dict.fromkeys((self.vae, self.unet_pix, self.unet)))

    @property
    def device(self) -> torch.device:
        """Where the UNets are; the text encoder may be offloaded."""
        return self.unet.device

    def to(self, *args: Any, **kwargs: Any) -> "PiSASRPipeline":
        """Move to a device or a dtype, with the memory format that is fastest there."""
        super().to(*args, **kwargs)
        for network in self._networks:
            set_memory_format(network)
        return self

    # --- loading and saving -----------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike | None = None,
        adapters: str | os.PathLike | None = None,
        torch_dtype: torch.dtype | Literal["auto"] = torch.float32,
        dtype: torch.dtype | Literal["auto"] | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> "PiSASRPipeline":
        """Load a base and merge its adapters, or load what `save_pretrained` wrote.

        model: a folder in diffusers' layout, a hub id, "SD-2.1-base" (found at one of its mirrors),
        or None for the model inside the package. adapters: a folder, a hub id or the
        published .pkl; None is MODEL/adapters. torch_dtype (or dtype, as in diffusers): "auto" is
        `usual_dtype`. variant: which of the base's files ("fp16"). options: vae, text_encoder,
        tokenizer, scheduler replace the base's own; revision (of the model), cache_dir, token,
        local_files_only, force_download are the hub's. A local path never touches the network. The
        adapters are merged once, in float32, and cast afterwards. Raises ModelError or
        CheckpointError, one line.
        """
        parts = ("vae", *bases.OPTIONAL)
        given = {name: options.pop(name) for name in parts if options.get(name) is not None}
        hub = {name: value for name, value in options.items() if name not in parts}
        if unknown := sorted(hub.keys() - bases.HUB_OPTIONS):
            known = ("adapters", "torch_dtype", "variant", *parts, *bases.HUB_OPTIONS)
            raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}.")
        torch_dtype = dtype or torch_dtype
        if torch_dtype == "auto":
            torch_dtype = usual_dtype("cuda" if torch.cuda.is_available() else "cpu")
        named = folder = bases.find_model(model, variant=variant, **hub)
        settings = bases.read_settings(folder)
        if (reference := bases.read_reference(folder)) is not None:
            adapters = named / "adapters" if adapters is None else adapters
            variant = variant or reference.variant
            folder = bases.find_model(reference.base, variant=variant, **{**hub, **reference.hub})
            settings = {**bases.read_settings(folder), **settings}
        unet_config = bases.check_base(folder, given)
        if bases.is_merged(folder):
            if adapters is not None:
                raise ModelError(
                    f"{folder} has its adapters merged already; drop `adapters`, or take a base."
                )
            unets = {
                part: bases.load_unet(folder, part, torch_dtype, variant)
                for part in ("unet", "unet_pix")
                if (folder / part).is_dir()
            }
            return cls(
                **unets, **bases.load_others(folder, torch_dtype, variant, given), **settings
            )
        own_hub = {name: value for name, value in hub.items() if name != "revision"}
        pix, sem = _find_adapters(folder, adapters, own_hub)
        bases.check_trained_on((pix, sem), unet_config)
        base = bases.load_unet(folder, "unet", variant=variant)
        unet, unet_pix = merge_both(base, pix, sem, torch_dtype)
        others = bases.load_others(folder, torch_dtype, variant, given)
        pipe = cls(unet=unet, unet_pix=unet_pix, **others, **settings)
        name = None if model is None else str(model)
        pipe._reference = reference or bases.Reference(name, variant, hub.get("revision"))
        pipe._adapters = pix, sem
        return pipe

    def save_pretrained(
        self, save_directory: str | os.PathLike, adapters_only: bool = False, **options: Any
    ) -> None:
        """Write a folder that `from_pretrained` loads: every part whole, the adapters merged.

        adapters_only: the two adapters instead, and by which name the base was loaded (30 MB for
        SD-2.1 at rank 4). options: diffusers' (variant, safe_serialization, max_shard_size,
        push_to_hub, ...). A folder written whole is also loaded by
        `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`
        where pisasr is installed.
        """
        folder = Path(save_directory)
        if adapters_only:
            if self._reference is None or self._adapters is None:
                raise ModelError(
                    "the base and the adapters of this pipeline are unknown; save it whole."
                )
            if unknown := sorted(options):
                raise TypeError(f"with adapters_only, save_pretrained doesn't know {unknown[0]!r}.")
            for adapter in filter(None, self._adapters):
                save_adapter(folder / "adapters" / f"{adapter.name}.safetensors", adapter)
            bases.write_reference(folder, self._reference, self.config.color_fix)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "pipeline.py", CUSTOM_PIPELINE)
        is_one = self.unet_pix is self.unet
        try:
            if is_one:
                self.register_modules(unet_pix=None)  # else it would be written twice
            super().save_pretrained(str(folder), **options)
        finally:
            if is_one:
                self.register_modules(unet_pix=self.unet)

    def load_lora_weights(self, adapters: str | os.PathLike) -> None:
        """Replace the adapters: a folder, a hub id or the published .pkl, as for `from_pretrained`.

        The base's UNet is read again, so that nothing of the former adapters stays. Raises
        ModelError if it is not known.
        """
        self._replace_unets(*load_adapters(adapters))

    def unload_lora_weights(self) -> None:
        """Take the adapters off: both predictions are the bare base's, read again."""
        self._replace_unets(None, None)

    def _replace_unets(self, pix: Adapter | None, sem: Adapter | None) -> None:
        if self._reference is None:
            raise ModelError(
                "this pipeline was not loaded as a base with adapters, so its base is unknown; "
                "load it by from_pretrained(BASE, adapters=...)."
            )
        variant = self._reference.variant
        folder = bases.find_model(self._reference.base, variant=variant, **self._reference.hub)
        base = bases.load_unet(folder, "unet", variant=variant)
        dtype, device = self.unet.dtype, self.unet.device
        if pix is None:
            unet = unet_pix = base.to(dtype)
        else:
            bases.check_trained_on((pix, sem), bases.check_base(folder))
            unet, unet_pix = merge_both(base, pix, sem, dtype)
        if getattr(self.unet, "_hf_hook", None) is None:
            unet, unet_pix = unet.to(device), unet_pix.to(device)
        self.unet, self.unet_pix = unet, unet_pix
        self._adapters = None if pix is None else (pix, sem)
        self.maybe_free_model_hooks()  # an offloaded pipeline hooks on to its new parts

    @property
    def identity(self) -> str:
        """Which model this is: the base's name (of a folder the last part) and the adapters'
        `fingerprint`; "merged" for a pipeline that was saved whole.
        """
        if self._reference is None:
            return "merged"
        base = "embedded" if self._reference.base is None else self._reference.base
        name = Path(base).name if Path(base).expanduser().exists() else base
        if self._adapters is None:
            return name
        return f"{name}, adapters={fingerprint(*self._adapters)}"

    @property
    def model(self) -> PiSASR:
        """The same parts as tensors in, tensors out."""
        encoder = self._prompt_encoder
        if encoder is None or not encoder.serves(self.tokenizer, self.text_encoder):
            encoder = self._prompt_encoder = PromptEncoder(self.tokenizer, self.text_encoder)
        return PiSASR(self.unet, self.vae, encoder)

    # --- repairing --------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        image: Given | Sequence[Given],
        lambda_pix: float | Map = 1.0,
        lambda_sem: float | Map = 1.0,
        on_tile: OnTile | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Repair pictures: `.images` has one for each, exactly round(upscale * side) large.

        Args:
            image: PIL pictures of any mode and size, brought to sRGB by the profile or gamma that
                they carry, and turned upright by their EXIF if PIL.Image.open gave them; arrays
                [H, W, C] or [B, H, W, C] and tensors [C, H, W] or [B, C, H, W], of uint8, uint16,
                or floats in [0, 1], which are not rounded; or a list of such. Gray stays gray,
                alpha is enlarged and kept.
            lambda_pix: how much of noise, blur and blocks is taken away; 0 none, 1 as trained. A
                number, or a map: floats [H, W], array or tensor, of any size in the picture's
                proportions.
            lambda_sem: how much detail is added; 0 none, 1 as trained. A number or a map.
            on_tile: called with (done, total) tiles of each picture; raising in it stops the run.
            return_dict: return an ImagePipelineOutput, or a tuple with the list.
            options: those of `pisasr.options.Options`, which explains them.

        Returns:
            The pictures in their order. They may differ in size, so they are a list for every
            output_type.

        Raises:
            ValueError, TypeError: an argument that makes no sense. PisasrError: the model answered
            with nan or inf.
        """
        settings, pictures = Options.of(options), images.pictures_of(image)
        strengths = _check_strengths(lambda_pix, lambda_sem, pictures)
        planned = [self._frame(picture, settings) for picture in pictures]
        results = []
        for picture, frame in zip(pictures, planned, strict=True):
            pair = self._place(frame, *strengths)
            # Without a name here: of a big picture each latent is as large as all that follows.
            x_H, finishing = self._decode(
                self._predict(picture, frame, settings, on_tile, needed(*pair)), pair
            )
            results.append(_finish(x_H, finishing))
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=results) if return_dict else (results,)

    @torch.no_grad()
    def predict(self, image: Given, on_tile: OnTile | None = None, **options: Any) -> Prediction:
        """Encode one picture and make both predictions: the half of `__call__` that no strength
        changes. Its results at any strengths then cost a decode each. options: those of `__call__`.
        """
        settings, pictures = Options.of(options), images.pictures_of(image)
        if len(pictures) != 1:
            raise ValueError(f"predict takes one picture, {len(pictures)} came; call it for each.")
        (picture,) = pictures
        prediction = self._predict(picture, self._frame(picture, settings), settings, on_tile)
        self.maybe_free_model_hooks()
        return prediction

    @torch.no_grad()
    def decode(
        self,
        prediction: Prediction,
        lambda_pix: float | Map = 1.0,
        lambda_sem: float | Map = 1.0,
        output_type: OutputType = "pil",
        color_fix: ColorFix | None = None,
    ) -> Result:
        """Make the picture at these strengths: the bytes of `__call__`, for a decode and no UNet
        pass. color_fix None: as `predict` was told.
        """
        if not isinstance(prediction, Prediction):
            raise TypeError(f"decode got {prediction!r}; it takes what `predict` returned.")
        color_fix = color_fix or prediction.options.color_fix
        options = replace(prediction.options, output_type=output_type, color_fix=color_fix)
        strengths = _check_strengths(lambda_pix, lambda_sem, [prediction.picture])
        pair = self._place(prediction.frame, *strengths)
        prediction = replace(prediction, options=options)
        result = _finish(*self._decode(prediction, pair))
        self.maybe_free_model_hooks()
        return result

    def working_size(self, image: Given, **options: Any) -> tuple[int, int]:
        """(width, height) at which a picture is worked on, before it gets the size asked for."""
        (picture,) = images.pictures_of(image)
        return self._frame(picture, Options.of(options)).padded

    def _frame(self, picture: Picture, options: Options) -> Frame:
        """The sizes that the picture passes through."""
        return frames.plan_frame(
            *picture.size,
            options.upscale,
            options.process_size or self.config.process_size,
            multiple=self.model.factor,
            native_upscale=self.config.native_upscale,
        )

    def _place(self, frame: Frame, *strengths: float | np.ndarray) -> tuple[Strength, Strength]:
        """Strengths for the method: numbers, and maps over the latent on the device."""
        factor, device = self.model.factor, self._execution_device
        pix, sem = (
            strength
            if isinstance(strength, float)
            else to_latent(strength, frame, factor).to(device)
            for strength in strengths
        )
        return pix, sem

    def _predict(
        self,
        picture: Picture,
        frame: Frame,
        options: Options,
        on_tile: OnTile | None,
        needs: tuple[bool, bool] = (True, True),
    ) -> Prediction:
        """Frame, encode, predict."""
        model, device = self.model, self._execution_device
        # A base of one factor undoes the enlargement, which clipping would keep it from.
        enlarged = frames.prepare(picture.pixels, frame, clip=not self.config.native_upscale)
        given = images.to_batch([frames.pad(enlarged, frame)], device)
        del enlarged
        shape = torch.Size(model.latent_shape(given))
        generator = options.make_generator()
        noise = None if generator is None else draw_noise(given.new_empty(shape).float(), generator)
        embeds = self._embed(model, options.prompt, device)

        def call(plan: Plan) -> Latents:
            total = sum(needs) * count_tiles(shape[2], shape[3], plan.tile, plan.overlap, plan.even)
            predictors = self._predictors(embeds, total, on_tile).only(*needs)
            return encode_and_predict(
                model, images.to_signed(images.from_levels(given)), predictors, plan, noise
            )

        latents, plan = self._run(call, self._plan(options), shape)
        color_fix = options.color_fix or self.config.color_fix
        options = replace(options, color_fix=color_fix, generator=None)  # which can't be pickled
        return Prediction(latents, given, picture, frame, plan, options)

    def _decode(
        self, prediction: Prediction, pair: tuple[Strength, Strength]
    ) -> tuple[Tensor, Prediction]:
        """Mix and decode; what `_finish` takes: z_H where that is the result, and no latents."""
        model = self.model
        z_H = restore_latent(*prediction.latents, *pair)
        prediction = replace(prediction, latents=Latents._make([None] * 3))
        if prediction.options.output_type == "latent":
            return z_H, prediction

        def call(plan: Plan) -> tuple[Tensor]:
            return (model.decode(z_H, plan),)

        return self._run(call, prediction.plan, z_H.shape)[0][0], prediction

    def _embed(self, model: PiSASR, prompt: str, device: torch.device) -> Tensor | None:
        if self.text_encoder is not None:  # offloading's hooks move it themselves
            model.prompt_encoder.offload = not any(map(has_hooks, self.text_encoder.modules()))
        return model.prompt_encoder(prompt, device)

    def _predictors(self, embeds: Tensor | None, total: int, on_tile: OnTile | None) -> Predictors:
        """Both merged UNets, counting their tiles together."""
        done = 0

        def predictor(unet: Any) -> Callable[[Tensor], Tensor]:
            def predict(z: Tensor) -> Tensor:
                nonlocal done
                eps = predict_eps(unet, z, embeds)
                done += len(z)
                if on_tile is not None:
                    on_tile(done, total)
                return eps

            return predict

        return Predictors(predictor(self.unet_pix), predictor(self.unet))

    def _plan(self, options: Options) -> Plan:
        """How big things are cut, as asked for."""
        tile, overlap = options.tile_plan(self.model.factor, self.unet)
        # An even grid's sides are halved without a remainder by all but the UNet's lowest level: a
        # coarser step would waste more.
        levels = len(getattr(self.unet.config, "block_out_channels", ()))
        even = 2 ** max(levels - 2, 0) if options.evenly else None
        return Plan(tile, overlap, even, options.batch_size, options.vae_tile_size or VAE_TILE_PX)

    def _run(
        self, call: Callable[[Plan], Answer], plan: Plan, shape: torch.Size
    ) -> tuple[Answer, Plan]:
        """call(plan), and the plan that memory sufficed for: out of memory takes smaller tiles, an
        answer that isn't finite takes float32.

        shape: of the latent. PisasrError if float32 doesn't help either.
        """
        while (shape, plan) in self._too_large:
            plan = self._too_large[shape, plan]
        while True:
            try:
                answer = call(plan)
                if not _is_finite(answer):
                    del answer  # else it would wait beside its successor
                    with self._in_float32():
                        answer = call(plan)
                    if not _is_finite(answer):
                        raise PisasrError(f"{NOT_FINITE}; try strengths nearer to 1.")
                return answer, plan
            except Exception as error:  # its frames, and what they hold, are gone after this block
                less = smaller(plan, max(shape[2:])) if is_out_of_memory(error) else None
                if less is None:
                    raise
            self._too_large[shape, plan] = less
            plan = less
            if self._execution_device.type != "cpu":
                torch.get_device_module(self._execution_device).empty_cache()
            warnings.warn(
                f"out of memory; going on with UNet tiles of {plan.tile} latent pixels and VAE "
                f"tiles of {plan.vae_tile_px} px, which changes the result little",
                UserNotice,
                stacklevel=4,
            )

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Hold all networks in float32 for a block; PisasrError if they are, or can't be cast."""
        low = [(each, each.dtype) for each in self._networks if each.dtype != torch.float32]
        # Weights that sequential or group offload keeps elsewhere can't be cast here.
        if not low or any(p.is_meta for each in self._networks for p in each.parameters()):
            raise PisasrError(
                f"{NOT_FINITE}; try float32 (--dtype fp32), or strengths nearer to 1."
            )
        warnings.warn(
            f"{NOT_FINITE} in {low[0][1]}; once more in float32", UserNotice, stacklevel=5
        )
        try:
            for network, _ in low:
                torch.nn.Module.to(network, dtype=torch.float32)  # diffusers' own warns at length
            yield
        finally:
            for network, dtype in low:
                torch.nn.Module.to(network, dtype=dtype)  # exactly: float32 holds all that it held


def smaller(plan: Plan, side: int) -> Plan | None:
    """The next plan to try when memory was out, for a latent of this longer side; None for none.

    Tiles of half the length, one at a time, the VAE holding half of its maps.
    """
    tile = min(plan.tile or side, side) // 2
    if tile < SMALLEST_TILE:
        return None
    return replace(
        plan,
        tile=tile,
        overlap=min(plan.overlap, tile // 3),
        batch_size=1,
        vae_tile_px=(plan.vae_tile_px or VAE_TILE_PX) // 2,
        low_memory=True,
    )


def usual_dtype(device: str) -> torch.dtype:
    """The dtype that a device computes fastest in.

    float16 on CUDA, bfloat16 on a CPU that multiplies it natively (AVX-512 with bf16, AMX, Arm with
    bf16), where float32 takes twice the time; float32 elsewhere.
    """
    if device.startswith("cuda"):
        return torch.float16
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    multiplies = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if device == "cpu" and multiplies else torch.float32


def _check_strengths(
    lambda_pix: Any, lambda_sem: Any, pictures: Sequence[Picture]
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """Both strengths as numbers or maps; maps in the proportions of these pictures."""
    for picture in pictures:
        check_proportions("lambda_pix", lambda_pix, picture.size)
        check_proportions("lambda_sem", lambda_sem, picture.size)
    return check_strength("lambda_pix", lambda_pix), check_strength("lambda_sem", lambda_sem)


def _is_finite(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether all numbers are, by their sum: testing each takes a copy."""
    return all(
        tensor is None or bool(tensor.sum(dtype=torch.float32).isfinite()) for tensor in tensors
    )


def _finish(x_H: Tensor, prediction: Prediction) -> Result:
    """The decoded picture [1, 3, H, W] at frame.output, with the input's colors, gray, alpha."""
    frame, picture, options = prediction.frame, prediction.picture, prediction.options
    if options.output_type == "latent":
        return x_H[0]
    made = frames.crop(x_H, frame).float().clamp_(-1, 1).add_(1).div_(2)  # nobody else has it
    if (fix := COLOR_FIXES[options.color_fix or "none"]) is not None:
        made = fix(made, images.from_levels(frames.crop(prediction.given, frame)))
    if options.output_type == "pil":
        return images.as_image(
            images.join(frames.finish(images.from_batch(made, 8)[0], frame), picture)
        )
    values = images.join(frames.finish(images.from_batch(made)[0], frame), picture)
    if options.output_type == "uint16":
        return images.to_levels(values, 16)
    if options.output_type == "np":
        return values
    return torch.from_numpy(values).movedim(-1, 0).contiguous()


def _find_adapters(
    folder: Path, adapters: str | os.PathLike | None, hub: dict[str, Any]
) -> tuple[Adapter, Adapter | None]:
    if adapters is None and not (folder / "adapters").is_dir():
        raise CheckpointError(
            f"{folder} comes without adapters; give `adapters`: a folder, a hub id or pisa_sr.pkl."
        )
    place = folder / "adapters" if adapters is None else adapters
    pix, sem = load_adapters(place, **hub)
    if sem is None:
        line = f"{place} has no semantic adapter; lambda_sem changes nothing"
        warnings.warn(line, UserNotice, stacklevel=3)
    return pix, sem

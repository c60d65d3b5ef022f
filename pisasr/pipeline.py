"""Infer, the whole journey in one hand: PiSASRPipeline, from a picture to its repaired picture."""

import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from pisasr.errors import (
    CheckpointError,
    MemoryShort,
    ModelError,
    NotFinite,
    PisasrError,
    UserNotice,
    is_out_of_memory,
)
from pisasr.files import write_whole
from pisasr.method import color, consistent
from pisasr.method.adapters import merge_in_place, merged
from pisasr.method.compiling import CompilingFailed, compile_checked
from pisasr.method.layers import forget, has_hooks, lay_out, use_fast_layers
from pisasr.method.memory import GIB, Forecast, free_bytes, held_bytes, resident_bytes, tiles_of
from pisasr.method.model import (
    PiSASR,
    Plan,
    Predicted,
    Predictors,
    Restored,
    draw_noise,
    look,
    mix,
    predict,
)
from pisasr.method.residual import Strength, needed_by
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import (
    BASES,
    HUB_OPTIONS,
    Reference,
    baked_strengths,
    check_base,
    find_model,
    is_merged,
    load_others,
    load_unet,
    own_color_fix,
    read_reference,
    write_hashes,
    write_reference,
)
from pisasr.models.weights import Adapter, fingerprint, load_adapters, save_adapter
from pisasr.options import (
    COLOR_FIXES,
    SAME_SIZE,
    VAE_TILE_PX,
    ColorFix,
    Generators,
    Options,
    OutputType,
    Tiling,
    check_choice,
    generators_for,
)
from pisasr.pictures.frames import Frame, crop, finish, pad, plan_frame, prepare
from pisasr.pictures.images import (
    Picture,
    as_image,
    from_batch,
    from_levels,
    join,
    pictures_of,
    to_batch,
    to_levels,
    to_signed,
    to_unit,
)
from pisasr.pictures.maps import Map, check_proportions, check_strength, to_latent

SMALLEST_TILE = 16  # latent pixels; below, out of memory is told and not tried again
FLAT = 8 / 255  # standard deviation, of each colour, of a picture that may come out as one
NOT_FINITE = "the model answered with nan or inf"
Given = Image.Image | np.ndarray | Tensor | Picture
Result = Image.Image | np.ndarray | Tensor
Strengths = tuple[float | Map, float | Map]
CheckedPair = tuple[float | np.ndarray, float | np.ndarray]
Shape = tuple[int, int, int, int]  # of a latent, [B, c, h, w]
T = TypeVar("T")
Answer = TypeVar("Answer", Predicted, Restored)

# Lies beside what `save_pretrained` writes: DiffusionPipeline.from_pretrained(FOLDER,
# custom_pipeline=FOLDER, trust_remote_code=True) takes the pipeline from it.
CUSTOM_PIPELINE = '''"""The pipeline of this folder, for diffusers; it wants the package pisasr."""

from pisasr.pipeline import PiSASRPipeline  # noqa: F401
'''


@dataclass(frozen=True)
class Job:
    """A picture on its way: what came, the sizes it passes through, its words and its own
    chance.
    """

    picture: Picture
    frame: Frame
    prompt: str
    generator: torch.Generator | None


@dataclass(frozen=True)
class Looked:
    """Pictures of one frame as the model saw them, and all that strengths choose from; usually one
    picture.

    `PiSASRPipeline.look` gives it and `mix` takes it. z_L, eps_pix and eps_pisa [B, c, h, w] are
    its own (an eps is None where nobody needed it); given [B, 3, H, W], at frame.padded, is what
    colours are matched to; plan is how big things were cut when memory sufficed. `mix` changes
    nothing here, so threads may share it, and it can be pickled.
    """

    z_L: Tensor
    eps_pix: Tensor | None
    eps_pisa: Tensor | None
    given: Tensor
    jobs: tuple[Job, ...]
    plan: Plan
    color_fix: str
    consistent: bool = False

    @property
    def frame(self) -> Frame:
        """The sizes that its pictures pass through."""
        return self.jobs[0].frame


class PiSASRPipeline(DiffusionPipeline):
    """Repair and enlarge photos in one step, with one strength for fidelity and one for detail.

    unet carries both adapters in its weights and gives eps_pisa; unet_pix carries the pixel adapter
    and gives eps_pix, or is None where unet makes both predictions. The scheduler takes no part:
    its config says how the base was trained. color_fix is what this model's pictures get where no
    other is asked for. baked: lambda_pix and lambda_sem that `pisasr export` put into unet; at (1,
    1) it then gives these, lambda_pix takes that much of both, and another lambda_sem is refused.

    diffusers' ways of saving memory work: `enable_model_cpu_offload` moves each part once a
    picture, however many tiles it has; sequential and group offload move layers. The VAE works in
    pieces beyond 512 px (`method.vae_tiling`); `vae.enable_tiling()` has it do so in the pieces
    that the VAE names, `disable_vae_tiling` whole.
    """

    model_cpu_offload_seq = "text_encoder->unet_pix->unet->vae"
    _optional_components = ["unet_pix"]

    unet: UNet2DConditionModel
    unet_pix: UNet2DConditionModel

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: UNet2DConditionModel,
        scheduler: Any,
        unet_pix: UNet2DConditionModel | None = None,
        color_fix: str = "adain",
        baked: dict[str, float] | None = None,
    ):
        super().__init__()
        unet_pix = unet if unet_pix is None else unet_pix
        check_choice("color_fix", color_fix, COLOR_FIXES)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            unet_pix=unet_pix,
            scheduler=scheduler,
        )
        self.register_to_config(color_fix=color_fix, **({} if baked is None else {"baked": baked}))
        for network in (vae, unet, unet_pix):
            use_fast_layers(network)
            lay_out(network)
        self._words: PromptEncoder | None = None
        self._reference: Reference | None = (
            None  # the base that the UNets were made from, where it is known
        )
        self._adapters: tuple[Adapter, Adapter | None] | None = None
        self._vae_tiling = True
        self._graphs = (
            False  # whether the networks give their results in memory that they use again
        )
        self._too_much: dict[
            tuple[Shape, Plan], Plan
        ] = {}  # what ran out of memory, and what was tried next

    def maybe_free_model_hooks(self) -> None:
        """As diffusers has it; weights that leave the device take along what layers remember of
        them.
        """
        if getattr(self, "_all_hooks", None):
            for unet in (self.unet_pix, self.unet):
                forget(unet)
        super().maybe_free_model_hooks()

    @property
    def device(self) -> torch.device:
        """Where the UNets are; the text encoder may rest elsewhere."""
        return self.unet.device

    def to(self, *args: Any, **kwargs: Any) -> "PiSASRPipeline":
        """To a device or a dtype, as diffusers has it; weights lie as that device reads them
        fastest.
        """
        super().to(*args, **kwargs)
        for network in (self.vae, self.unet, self.unet_pix):
            lay_out(network)
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
        vae: torch.nn.Module | None = None,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: Any = None,
        scheduler: Any = None,
        **hub: Any,
    ) -> "PiSASRPipeline":
        """Load a base and merge its adapters, or load what `save_pretrained` wrote.

        model: a folder in diffusers' layout, a hub id, "SD-2.1-base" (found at one of its mirrors),
        or None for the small model inside the package. adapters: a folder, a hub id or the
        published .pkl; None is MODEL/adapters. torch_dtype: "auto" is `usual_dtype`. dtype is
        diffusers' newer name of it. variant: which of the base's files ("fp16"), as diffusers has
        it. vae, text_encoder, tokenizer, scheduler: take the place of the base's own. hub: revision
        (of the model), cache_dir, token, local_files_only, force_download. A local path never
        touches the network. The adapters are merged once, in float32, and cast afterwards.
        ModelError or CheckpointError, one line each.
        """
        if unknown := sorted(hub.keys() - HUB_OPTIONS):
            raise TypeError(
                f"from_pretrained doesn't know {unknown[0]!r}; it takes adapters, torch_dtype, variant, vae, "
                f"text_encoder, tokenizer, scheduler, and for the hub {', '.join(HUB_OPTIONS)}."
            )
        wanted = dtype or torch_dtype
        torch_dtype = (
            usual_dtype("cuda" if torch.cuda.is_available() else "cpu")
            if wanted == "auto"
            else wanted
        )
        given = {
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "scheduler": scheduler,
        }
        given = {name: part for name, part in given.items() if part is not None}
        named = folder = find_model(model, variant=variant, **hub)
        color_fix = own_color_fix(folder, COLOR_FIXES)
        if (reference := read_reference(folder)) is not None:
            adapters = named / "adapters" if adapters is None else adapters
            variant = variant or reference.variant
            folder = find_model(reference.base, variant=variant, **{**hub, **reference.hub})
        unet_config = check_base(folder, given)
        if is_merged(folder):
            if adapters is not None:
                raise ModelError(
                    f"{folder} has its adapters merged already; drop `adapters`, or give a bare base."
                )
            parts = ("unet", "unet_pix") if (folder / "unet_pix").is_dir() else ("unet",)
            unets = {part: load_unet(folder, part, torch_dtype, variant) for part in parts}
            others = load_others(folder, torch_dtype, variant, given)
            return cls(**unets, color_fix=color_fix, baked=baked_strengths(folder), **others)
        own_hub = {name: value for name, value in hub.items() if name != "revision"}
        pix, sem = _find_adapters(folder, adapters, own_hub)
        _check_trained_on((pix, sem), unet_config)
        unet, unet_pix = _merge_both(
            load_unet(folder, "unet", variant=variant), pix, sem, torch_dtype
        )
        others = load_others(folder, torch_dtype, variant, given)
        pipe = cls(unet=unet, unet_pix=unet_pix, color_fix=color_fix, **others)
        pipe._reference = reference or Reference(
            None if model is None else str(model), variant, hub.get("revision")
        )
        pipe._adapters = pix, sem
        return pipe

    def save_pretrained(
        self, save_directory: str | os.PathLike, adapters_only: bool = False, **options: Any
    ) -> None:
        """Write a folder that `from_pretrained` loads: every part whole, the adapters merged into
        two UNets, or one where it makes both predictions.

        adapters_only: the two adapters instead, and by which name the base was loaded (30 MB for
        SD-2.1 at rank 4). options: diffusers' (variant, safe_serialization, max_shard_size,
        push_to_hub, ...). A folder written whole is also loaded by
        `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`
        where pisasr is installed. Its hashes.json says what each file was, and `from_pretrained`
        holds them against it.
        """
        folder = Path(save_directory)
        if adapters_only:
            if self._reference is None or self._adapters is None:
                raise ModelError(
                    "nobody knows the base and the adapters of this pipeline; save it whole."
                )
            if unknown := sorted(options):
                raise TypeError(f"with adapters_only, save_pretrained doesn't know {unknown[0]!r}.")
            for adapter in filter(None, self._adapters):
                save_adapter(folder / "adapters" / f"{adapter.name}.safetensors", adapter)
            write_reference(folder, self._reference, self.config.color_fix)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "pipeline.py", CUSTOM_PIPELINE)
        is_one = self.unet_pix is self.unet
        try:
            if is_one:
                self.register_modules(unet_pix=None)  # else it would be written twice
            super().save_pretrained(str(folder), **options)
            write_hashes(folder)
        finally:
            if is_one:
                self.register_modules(unet_pix=self.unet)

    def _upload_folder(self, working_dir: str | os.PathLike, *place: Any, **more: Any) -> Any:
        """diffusers', which is called by save_pretrained(push_to_hub=True) before our hashes would
        be there.
        """
        write_hashes(Path(working_dir))
        return super()._upload_folder(working_dir, *place, **more)

    def load_lora_weights(self, adapters: str | os.PathLike) -> None:
        """Give this pipeline other adapters: a folder, a hub id or the published .pkl, as for
        `from_pretrained`.

        The base's UNet is read again, so that nothing of the former adapters stays. ModelError
        where it is not known.
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
        folder = find_model(
            self._reference.base, variant=self._reference.variant, **self._reference.hub
        )
        base = load_unet(folder, "unet", variant=self._reference.variant)
        dtype, device = self.unet.dtype, self.unet.device
        if pix is None:
            unet = unet_pix = base.to(dtype)
        else:
            _check_trained_on((pix, sem), check_base(folder))
            unet, unet_pix = _merge_both(base, pix, sem, dtype)
        if getattr(self.unet, "_hf_hook", None) is None:
            unet, unet_pix = unet.to(device), unet_pix.to(device)
        self.unet, self.unet_pix, self._adapters = (
            unet,
            unet_pix,
            None if pix is None else (pix, sem),
        )
        self.maybe_free_model_hooks()  # an offloaded pipeline hooks on to its new parts

    @torch.no_grad()
    def compile(self, mode: str | None = None, **options: Any) -> bool:
        """Have torch.compile fuse what the networks do; whether all of them compile here.

        Each is compared with itself on a small latent (`method.compiling` states the bounds), and
        where it fails or differs it stays as it was, with a warning in one line. Other adapters
        want another call.

        mode, options: torch.compile's. "reduce-overhead" and "max-autotune" make CUDA graphs, one
        for each shape, of whole networks; any other compiles their repeated blocks alone.
        """
        device, channels = self._execution_device, self.vae.config.latent_channels
        whole = self._graphs = mode in ("reduce-overhead", "max-autotune")
        z = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
        model, words = self.model, self.model.prompt_encoder("", device)
        x = model.decode(z).clamp(-1, 1)
        calls: dict[str, Callable[[], Tensor]] = {
            "unet_pix": lambda: predict(self.unet_pix, z, words).clone(),
            "unet": lambda: predict(self.unet, z, words).clone(),
            "vae": lambda: model.decode(model.encode(x)).clone(),
        }
        reasons = [
            compile_checked(part, getattr(self, part), call, whole, mode=mode, **options)
            for part, call in calls.items()
        ]
        for reason in filter(None, reasons):
            warnings.warn(reason, CompilingFailed, stacklevel=3)
        return not any(reasons)

    # --- repairing --------------------------------------------------------------------------------

    def __call__(
        self,
        image: Given | Sequence[Given],
        lambda_pix: float | Map = 1.0,
        lambda_sem: float | Map = 1.0,
        *,
        upscale: float = 4,
        process_size: int = 512,
        working_size: float | None = None,
        color_fix: ColorFix | None = None,
        consistent: bool = False,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tiling: Tiling | None = None,
        vae_tile_size: int | None = None,
        batch_size: int = 1,
        low_memory: bool = False,
        prompt: str | Sequence[str] = "",
        posterior: Literal["mean", "sample"] = "mean",
        generator: Generators = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Repair pictures: `.images` has one for each, exactly round(upscale * side) large.

        Args:
            image: PIL pictures of any mode and size, brought to sRGB by the profile or gamma that they carry, and
                turned upright by their EXIF where they are as PIL.Image.open gave them (a copy is taken as it lies:
                PIL.ImageOps.exif_transpose turns it); arrays [H, W, C] or [B, H, W, C] and tensors [C, H, W] or
                [B, C, H, W], of uint8, uint16, or floats in [0, 1], which are not rounded; or a list of such. Grey
                stays grey, alpha is enlarged and kept.
            lambda_pix: how much of noise, blur and blocks is taken away; 0 none, 1 as trained. A number, or a map with
                the strength at each place: floats [H, W], array or tensor, of any size in the picture's proportions.
            lambda_sem: how much detail is added; 0 none, 1 as trained. A number or a map.
            upscale: any factor from 1 up.
            process_size: the short side, in pixels of the result, up to which small pictures are enlarged first.
            working_size: the most that the model works on, in megapixels of the enlarged picture: larger ones are
                shrunk before it and enlarged behind it, for inputs that are soft at their size. None is no limit.
            color_fix: how the result gets the input's colours back: "adain" (as published), "wavelet" or "none". None
                is the model's own way: adain, unless its model_index.json names another.
            consistent: whether the result, reduced to the input's size, must be the input again, but for the input's
                noise (`method.consistent`, behind the colour fix).
            tile_size: of the UNet, in latent pixels; None is 768 image pixels.
            tile_overlap: in latent pixels, and then the published plan is meant; None is a twelfth of the tile in an
                even grid, a third in the published plan.
            tiling: "even", a grid of equal tiles no larger than tile_size, or "published": tiles of that size, the last
                ones pulled back to the rim, nearly twice the work.
            vae_tile_size: in image pixels; beyond its square the VAE works in pieces, up to 1024 px to the same
                result. None is 512.
            batch_size: how many neighbouring pictures of one size, or tiles of one picture, go through a network at
                once. It changes speed and memory, and the result by rounding alone.
            low_memory: whether the VAE, working in pieces, holds half as much, for up to half as much arithmetic again.
            prompt: what the picture shows; one for all pictures, or one for each.
            posterior: the VAE's "mean", or a "sample" of it with `generator`, as published.
            generator: a seed, which every picture starts anew from; a torch.Generator, which goes on from picture to
                picture; or a list with one of these for each picture.
            output_type: "pil" pictures of 8 bits; "np" [H, W, C] or "pt" [C, H, W], the decoder's own values in [0, 1]
                as float32 (C: 1 grey, 3 colour, + 1 alpha); "uint16" [H, W, C], for files of 16 bits; "latent" z_H
                [c, h, w], scaled, of the padded picture.
            return_dict: whether to return an ImagePipelineOutput, or a tuple with the list.

        Returns:
            The pictures in the order they came. They may differ in size, so they are a list for every output_type.

        Raises:
            ValueError, TypeError: an argument that makes no sense. PisasrError: the model answered with nan or inf.
        """
        options = Options(
            upscale, process_size, working_size, color_fix, consistent, tile_size, tile_overlap, tiling, vae_tile_size,
            batch_size, low_memory, prompt, posterior, generator, output_type,
        )  # fmt: skip
        jobs = self._plan(pictures_of(image), options)
        pairs = self._check_pairs([(lambda_pix, lambda_sem)], jobs)
        kinds = groupby(
            jobs, key=lambda job: (job.frame, job.picture.pixels.dtype)
        )  # levels and floats don't mix
        same = (list(group) for _, group in kinds)
        batches = [
            group[i : i + batch_size] for group in same for i in range(0, len(group), batch_size)
        ]
        results = [
            one for batch in batches for made in self._repair(batch, pairs, options) for one in made
        ]
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=results) if return_dict else (results,)

    def sweep(self, image: Given, lambdas: Iterable[Strengths], **options: Any) -> list[Result]:
        """One picture at several (lambda_pix, lambda_sem): one encode and at most two UNet passes
        for all of them.

        Strengths are numbers or maps; options: those of `__call__`.
        """
        return list(self.sweep_lazily(image, lambdas, **options))

    def sweep_lazily(
        self, image: Given, lambdas: Iterable[Strengths], **options: Any
    ) -> Iterator[Result]:
        """The pictures of `sweep` one after another, each decoded when it is asked for: many need
        no more memory.

        Wrong options are refused at the call; the encode and the UNet passes come with the first
        picture.
        """
        job, settings = self._plan_one("sweep", image, options)
        pairs = self._check_pairs(lambdas, [job])

        def results() -> Iterator[Result]:
            for (result,) in self._repair([job], pairs, settings):
                yield result
            self.maybe_free_model_hooks()

        return results()

    @torch.no_grad()
    def look(self, image: Given, **options: Any) -> Looked:
        """The half of `__call__` that no strength changes, of one picture: the encode and both
        predictions.

        What comes of it at any strengths is then `mix`'s, which asks no UNet. options: those of
        `__call__` but output_type.
        """
        job, settings = self._plan_one("look", image, options, without=("output_type",))
        looked = self._look([job], (True, True), settings)
        self.maybe_free_model_hooks()
        return looked

    @torch.no_grad()
    def mix(
        self,
        looked: Looked,
        lambda_pix: float | Map = 1.0,
        lambda_sem: float | Map = 1.0,
        *,
        output_type: OutputType = "pil",
        color_fix: ColorFix | None = None,
        consistent: bool | None = None,
    ) -> Result:
        """The picture that `look` saw, at these strengths: the bytes of `__call__`, for a decode
        and no UNet pass.

        lambda_pix, lambda_sem, output_type: as for `__call__`. color_fix, consistent: None is what
        `look` was told.
        """
        if not isinstance(looked, Looked):
            raise TypeError(f"mix came with {looked!r}; it takes what `look` gave.")
        options = Options(
            output_type=output_type, color_fix=color_fix, consistent=consistent or False
        )
        (pair,) = self._check_pairs([(lambda_pix, lambda_sem)], looked.jobs)
        if options.color_fix is not None:
            looked = replace(looked, color_fix=options.color_fix)
        if consistent is not None:
            if consistent and looked.frame.output == looked.frame.source:
                raise ValueError(SAME_SIZE)
            looked = replace(looked, consistent=consistent)
        (result,), _ = self._mix(looked, self._at(looked.frame, pair), options.output_type)
        self.maybe_free_model_hooks()
        return result

    def plan(self, image: Given | tuple[int, int], **options: Any) -> Forecast:
        """What repairing a picture will take, in megapixels, tiles and bytes; nothing is computed.

        image: a picture, or its (width, height). options: those of `__call__`. Where memory is too
        short for these, it is the plan that the picture will be repaired by.
        """
        settings, factor = self._check_options("plan", options), self.model.factor
        if isinstance(image, tuple) and [isinstance(side, int | np.integer) for side in image] != [
            True,
            True,
        ]:
            raise TypeError(f"{image!r} came; wanted a picture, or its (width, height).")
        sizes = (
            [image]
            if isinstance(image, tuple)
            else [picture.size for picture in pictures_of(image)]
        )
        if len(sizes) != 1:
            raise ValueError(f"a plan is of one picture, {len(sizes)} came; call it once for each.")
        frame = _frame(sizes[0], settings, factor)
        width, height = (side // factor for side in frame.padded)
        shape = 1, self.vae.config.latent_channels, height, width
        return self._forecast(shape, self._first_plan(self._cut(settings, factor), shape))

    @property
    def identity(self) -> str:
        """Which model made a picture, for its file to tell: the base's name, of a folder the last
        part, and the `fingerprint` of the adapters; "merged", with neither, where a pipeline was
        saved whole, and what was baked.
        """
        if (baked := self.config.get("baked")) is not None:
            return f"merged, {_told(baked)}"
        if self._reference is None:
            return "merged"
        base = "embedded" if self._reference.base is None else self._reference.base
        name = Path(base).name if Path(base).expanduser().exists() else base
        return (
            name if self._adapters is None else f"{name}, adapters={fingerprint(*self._adapters)}"
        )

    @property
    def model(self) -> PiSASR:
        """The same parts as tensors in, tensors out."""
        if self._words is None or not self._words.serves(self.tokenizer, self.text_encoder):
            self._words = PromptEncoder(self.tokenizer, self.text_encoder)
        return PiSASR(self.unet, self.vae, self._words)

    def enable_vae_tiling(self) -> None:
        """Let the VAE work in pieces beyond vae_tile_size. This is the default."""
        self._vae_tiling = True

    def disable_vae_tiling(self) -> None:
        """Let the VAE take every picture whole: it needs several times the memory."""
        self._vae_tiling = False

    def _plan(self, pictures: list[Picture], options: Options) -> list[Job]:
        """Every picture's sizes, words and chance, before anything is computed."""
        factor = self.model.factor
        frames = [_frame(picture.size, options, factor) for picture in pictures]
        prompts = (
            [options.prompt] * len(pictures)
            if isinstance(options.prompt, str)
            else list(options.prompt)
        )
        generators = generators_for(options.generator, len(pictures))
        if len(prompts) != len(pictures):
            raise ValueError(
                f"{len(pictures)} pictures came with {len(prompts)} prompts; give one, or one for each."
            )
        return [Job(*each) for each in zip(pictures, frames, prompts, generators, strict=True)]

    def _plan_one(
        self, who: str, image: Given, options: dict[str, Any], without: tuple[str, ...] = ()
    ) -> tuple[Job, Options]:
        """One picture and its checked options; TypeError or ValueError where `who` was given
        others.
        """
        settings, pictures = self._check_options(who, options, without), pictures_of(image)
        if len(pictures) != 1:
            raise ValueError(
                f"a {who} is of one picture, {len(pictures)} came; call it once for each."
            )
        (job,) = self._plan(pictures, settings)
        return job, settings

    def _check_pairs(self, lambdas: Iterable[Strengths], jobs: Iterable[Job]) -> list[CheckedPair]:
        """Strengths for these pictures: numbers, and maps in their proportions; such as this model
        can give.
        """
        try:
            given = [(lambda_pix, lambda_sem) for lambda_pix, lambda_sem in lambdas]
        except (TypeError, ValueError):
            raise TypeError(
                "strengths must be pairs of numbers or maps, (lambda_pix, lambda_sem)."
            ) from None
        pairs = [
            (check_strength("lambda_pix", pix), check_strength("lambda_sem", sem))
            for pix, sem in given
        ]
        for (pix, sem), job in product(given, jobs):
            check_proportions("lambda_pix", pix, job.picture.size)
            check_proportions("lambda_sem", sem, job.picture.size)
        baked = self.config.get("baked")
        if baked is not None and any(np.any(lambda_sem != 1.0) for _, lambda_sem in pairs):
            raise ValueError(
                f"this model has {_told(baked)} in its one UNet, so lambda_sem must stay 1; lambda_pix takes that much "
                "of both. For other strengths give the model that it was exported from."
            )
        return pairs

    @staticmethod
    def _check_options(who: str, options: dict[str, Any], without: tuple[str, ...] = ()) -> Options:
        if unknown := sorted(
            options.keys() - {field.name for field in fields(Options) if field.name not in without}
        ):
            known = " but " + ", ".join(without) if without else ""
            raise TypeError(
                f"{who} doesn't know {unknown[0]!r}; it takes the options of __call__ beside the strengths{known}."
            )
        return Options(**options)

    @torch.no_grad()  # of a generator, torch switches gradients off while it works and not while its caller does
    def _repair(
        self, jobs: list[Job], pairs: list[CheckedPair], options: Options
    ) -> Iterator[list[Result]]:
        """Pictures of one frame, looked at once: for each pair a list of results, made when they
        are asked for.
        """
        placed = [self._at(jobs[0].frame, pair) for pair in pairs]
        looked = self._look(jobs, needed_by(placed), options)
        for pair in placed:
            results, plan = self._mix(looked, pair, options.output_type)
            looked = replace(looked, plan=plan)  # what was too much once is not tried again
            yield results

    def _at(self, frame: Frame, pair: CheckedPair) -> tuple[Strength, Strength]:
        """Strengths as the method has them: numbers, and maps over the latent on the device."""
        factor, device = self.model.factor, self._execution_device

        def at(strength: float | np.ndarray) -> Strength:
            return (
                strength
                if isinstance(strength, float)
                else to_latent(strength, frame, factor).to(device)
            )

        return at(pair[0]), at(pair[1])

    def _look(self, jobs: list[Job], needs: tuple[bool, bool], options: Options) -> Looked:
        """Sizes and ranges before the method's first half, for pictures of one frame."""
        model, device, frame = self.model, self._execution_device, jobs[0].frame
        given = to_batch([pad(prepare(job.picture.pixels, frame), frame) for job in jobs], device)
        shape = model.latent_shape(given)
        noise = self._noise(shape, jobs, device) if options.posterior == "sample" else None

        def attempt(plan: Plan) -> Predicted:
            def in_own_dtype() -> Predicted:
                predictors = self._predictors(model, jobs, needs, tiles_of(shape, plan), device)
                return look(model, to_signed(from_levels(given)), predictors, plan, noise)

            return self._finite(in_own_dtype)

        asked = self._cut(options, model.factor)
        if (first := self._first_plan(asked, shape)) != asked and (
            shape,
            asked,
        ) not in self._too_much:
            free = (free_bytes(device) or 0) / GIB
            _tell_less(f"{self._forecast(shape, asked)}, and {free:.1f} GiB are free", first)
        predicted, plan = self._in_less(first, shape, attempt)
        used = tuple(replace(job, generator=None) for job in jobs)
        color_fix = options.color_fix or self.config.color_fix
        return Looked(*predicted, given, used, plan, color_fix, options.consistent)

    def _mix(
        self, looked: Looked, pair: tuple[Strength, Strength], output_type: OutputType
    ) -> tuple[list[Result], Plan]:
        """The method's second half, and colours, ranges and sizes behind it; and the plan that
        memory sufficed for.
        """
        model, frame = self.model, looked.frame
        predicted = Predicted(looked.z_L, looked.eps_pix, looked.eps_pisa)

        def attempt(plan: Plan) -> list[Result]:
            x_H, z_H = self._finite(
                lambda: mix(model, predicted, pair, plan, decode=output_type != "latent")
            )
            if x_H is None:
                return list(z_H)
            _check_not_flat(x_H, looked)
            made, source = crop(x_H, frame), crop(looked.given, frame)
            bands = partial(
                color.in_bands,
                COLOR_FIXES[looked.color_fix],
                lambda start, stop: to_unit(made[..., start:stop, :].float()),
                lambda start, stop: from_levels(source[..., start:stop, :]),
                (made.shape[-2], made.shape[-1]),
            )
            if not looked.consistent:
                return _results(bands(), made.shape[-2], looked.jobs, output_type)
            x_L = from_levels(to_batch([job.picture.pixels for job in looked.jobs], made.device))
            size = frame.output[::-1]
            at_output = bands if frame.output == frame.content else consistent.resized(bands, size)
            return _results(
                consistent.agree(at_output, x_L, size), size[0], looked.jobs, output_type
            )

        return self._in_less(looked.plan, model.latent_shape(looked.given), attempt)

    def _finite(self, attempt: Callable[[], Answer]) -> Answer:
        """attempt(), whose tensors are finite; where they are not, once more with all networks in
        float32, for which half precision is wide enough no longer. PisasrError where that doesn't
        help, or can't be done.
        """
        if all(map(_is_finite, made := attempt())):
            return made
        del made  # else it would wait beside its successor
        networks = list(dict.fromkeys((self.vae, self.unet_pix, self.unet)))
        low = [(network, network.dtype) for network in networks if network.dtype != torch.float32]
        # Weights that sequential or group offload keeps elsewhere can't be cast here.
        if low and not any(p.is_meta for network in networks for p in network.parameters()):
            warnings.warn(
                NOT_FINITE + f" in {low[0][1]}; once more in float32", NotFinite, stacklevel=2
            )
            try:
                for network, _ in low:
                    torch.nn.Module.to(
                        network, torch.float32
                    )  # diffusers' own advises against casting, at length
                if all(map(_is_finite, made := attempt())):
                    return made
            finally:
                for network, dtype in low:
                    torch.nn.Module.to(network, dtype)  # to the bit: float32 holds all that it held
        raise PisasrError(NOT_FINITE + "; try float32 (--dtype fp32), or strengths nearer to 1.")

    def _first_plan(self, asked: Plan, shape: Shape) -> Plan:
        """How a latent of this shape is cut at first: as asked, or the next `smaller` plan that was
        not too much before and takes no more than is free. Where none does, one step smaller: an
        estimate may be wrong.
        """
        while (shape, asked) in self._too_much:
            asked = self._too_much[shape, asked]
        free = free_bytes(self._execution_device)
        plans, less = [asked], smaller(asked, max(shape[2:]))
        while less is not None:
            plans, less = [*plans, less], smaller(less, max(shape[2:]))
        if free is None:
            return asked
        fitting = (plan for plan in plans if self._needed(shape, plan) <= free)
        return next(fitting, plans[min(1, len(plans) - 1)])

    def _needed(self, shape: Shape, plan: Plan) -> int:
        """Bytes beside what the device holds already: tensors, and the largest part that offloading
        keeps elsewhere.
        """
        device, parts = (
            self._execution_device.type,
            (self.text_encoder, self.unet_pix, self.unet, self.vae),
        )
        away = (
            sum(p.nbytes for p in part.parameters() if p.device.type != device) for part in parts
        )
        return max(away) + held_bytes(self.unet, self.vae, shape, plan)

    def _forecast(self, shape: Shape, plan: Plan) -> Forecast:
        held = resident_bytes(
            self._execution_device, self.text_encoder, self.unet_pix, self.unet, self.vae
        )
        megapixels = shape[0] * shape[2] * shape[3] * self.model.factor**2 / 1e6
        return Forecast(
            megapixels, tiles_of(shape, plan), held + self._needed(shape, plan), plan.lean
        )

    def _in_less(self, plan: Plan, shape: Shape, attempt: Callable[[Plan], T]) -> tuple[T, Plan]:
        """attempt(plan) of a latent of this shape, or where memory was out, by the next `smaller`
        plan, and so on; with the plan that sufficed.
        """
        while True:
            try:
                return attempt(plan), plan
            except (
                Exception
            ) as error:  # leaves this block before the next attempt, and what it holds is free then
                less = smaller(plan, max(shape[2:])) if is_out_of_memory(error) else None
                if less is None:
                    raise
            self._too_much[shape, plan] = less
            plan = less
            _empty_cache(self._execution_device)
            _tell_less("out of memory", plan)

    def _predictors(
        self,
        model: PiSASR,
        jobs: list[Job],
        needs: tuple[bool, bool],
        tiles: int,
        device: torch.device,
    ) -> Predictors:
        """The merged UNets that are needed, under one progress bar over the tiles of both where
        there are several.
        """
        prompts = [job.prompt for job in jobs]
        model.prompt_encoder.rests = not any(
            map(has_hooks, self.text_encoder.modules())
        )  # hooks move it themselves
        embeds = model.prompt_encoder(prompts if len(set(prompts)) > 1 else prompts[0], device)
        passes = sum(needs)
        bar = self.progress_bar(total=tiles * passes) if tiles > 1 and passes else None

        def predictor(unet: UNet2DConditionModel) -> Callable[[Tensor], Tensor]:
            def eps(z: Tensor) -> Tensor:
                predicted = predict(unet, z, embeds)
                predicted = predicted.clone() if self._graphs else predicted
                if bar is not None:
                    bar.update(len(z) // len(jobs))
                    if bar.n >= bar.total:
                        bar.close()
                return predicted

            return eps

        return Predictors(predictor(self.unet_pix), predictor(self.unet)).only(*needs)

    def _cut(self, options: Options, factor: int) -> Plan:
        tile, overlap = options.tile_plan(factor)
        vae_tile = VAE_TILE_PX if options.vae_tile_size is None else options.vae_tile_size
        if options.vae_tile_size is None and getattr(
            self.vae, "use_tiling", False
        ):  # by vae.enable_tiling()
            vae_tile = self.vae.tile_sample_min_size
        # Sides that the UNet halves without a remainder, but for its lowest level: a coarser step
        # would waste more.
        even = 2 ** max(len(self.unet.config.block_out_channels) - 2, 0) if options.evenly else None
        pieces = vae_tile if self._vae_tiling else None
        return Plan(tile, overlap, even, options.batch_size, pieces, options.low_memory)

    @staticmethod
    def _noise(shape: tuple[int, ...], jobs: list[Job], device: torch.device) -> Tensor:
        """Each picture's own draw, whatever its company."""
        like = torch.empty(1, *shape[1:], device=device)
        return torch.cat([draw_noise(like, job.generator) for job in jobs])


def _frame(size: tuple[int, int], options: Options, factor: int) -> Frame:
    return plan_frame(
        *size,
        options.upscale,
        options.process_size,
        multiple=factor,
    )


def _is_finite(tensor: Tensor | None) -> bool:
    """Whether all its numbers are, by their sum: asking each takes a copy. None has none."""
    return tensor is None or bool(tensor.sum(dtype=torch.float32).isfinite())


def _check_not_flat(x_H: Tensor, looked: Looked) -> None:
    """PisasrError where a picture of many tones came out as one: a decoder that is out of its range
    answers so.
    """
    for x, given in zip(x_H, looked.given, strict=True):
        least, most = x.aminmax()
        if (
            not least.clamp(-1, 1) < most.clamp(-1, 1)
            and from_levels(given).flatten(1).std(1).max() > FLAT
        ):
            raise PisasrError(
                "the model answered with one colour alone; try float32, or strengths nearer to 1."
            )


def smaller(plan: Plan, side: int) -> Plan | None:
    """The next plan to try when memory was out, for a latent of this longer side; None where
    nothing is left to try.

    Tiles and pieces of half the length, one at a time, the VAE holding half of its maps.
    """
    tile = min(plan.tile or side, side) // 2
    if tile < SMALLEST_TILE:
        return None
    pieces = (plan.vae_tile_px or VAE_TILE_PX) // 2
    return replace(
        plan,
        tile=tile,
        overlap=min(plan.overlap, tile // 3),
        batch_size=1,
        vae_tile_px=pieces,
        lean=True,
    )


def _tell_less(why: str, plan: Plan) -> None:
    warnings.warn(
        f"{why}; going on with UNet tiles of {plan.tile} latent pixels and VAE pieces of {plan.vae_tile_px} px, which "
        "changes the result little (tile_size, vae_tile_size and low_memory ask for it from the start)",
        MemoryShort,
        stacklevel=3,
    )


def _empty_cache(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def usual_dtype(device: str) -> torch.dtype:
    """What a device computes fastest in: float16 on CUDA, bfloat16 on a CPU that multiplies it
    natively (AVX-512 with bf16, AMX, Arm with bf16), where float32 takes twice the time; float32
    elsewhere.

    In bfloat16 the embedded model's pictures differ from float32's by a quarter of a grey level on
    average, three at most (a corner of each of its four example photos, to 256 px).
    """
    if device.startswith("cuda"):
        return torch.float16
    return torch.bfloat16 if device == "cpu" and _multiplies_bf16() else torch.float32


def _multiplies_bf16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16")):
        return True
    told = Path("/proc/cpuinfo")
    return platform.machine() == "aarch64" and told.is_file() and " bf16 " in told.read_text()


def _results(
    bands: Iterable[Tensor], height: int, jobs: Sequence[Job], output_type: OutputType
) -> list[Result]:
    """Bands [B, 3, h, W] in [0, 1], `height` rows in all, of frame.content, or at frame.output
    already, as what was asked for, at frame.output; grey, alpha as before.
    """
    frame = jobs[0].frame
    if output_type == "pil":
        made = _gather(bands, height, 8)
        return [
            as_image(join(finish(levels, frame), job.picture)) for levels, job in _each(made, jobs)
        ]
    if (
        output_type == "uint16"
        and frame.output == frame.content
        and not any(job.picture.is_special for job in jobs)
    ):
        return [*_gather(bands, height, 16)]
    results: list[Result] = []
    for values, job in _each(_gather(bands, height), jobs):
        floats = join(finish(values, frame), job.picture)
        if output_type == "uint16":
            results.append(to_levels(floats, 16))
        else:
            results.append(
                floats
                if output_type == "np"
                else torch.from_numpy(floats).movedim(-1, 0).contiguous()
            )
    return results


def _gather(bands: Iterable[Tensor], height: int, bits: int | None = None) -> np.ndarray:
    """The whole of pictures that come in bands of rows."""
    made, row = np.empty(0), 0
    for array in (from_batch(band, bits) for band in bands):
        if row == 0:
            made = np.empty((len(array), height, *array.shape[2:]), array.dtype)
        made[:, row : row + array.shape[1]] = array
        row += array.shape[1]
    return made


def _each(made: np.ndarray, jobs: Sequence[Job]) -> Iterator[tuple[np.ndarray, Job]]:
    return zip(made, jobs, strict=True)


def _told(strengths: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in strengths.items())


# --- bringing base and adapters together ----------------------------------------------------------


def _find_adapters(
    folder: Path, adapters: str | os.PathLike | None, hub: dict[str, Any]
) -> tuple[Adapter, Adapter | None]:
    if adapters is None and not (folder / "adapters").is_dir():
        raise CheckpointError(
            f"{folder} comes without adapters; give `adapters`: a folder, a hub id or pisa_sr.pkl."
        )
    pix, sem = load_adapters(place := folder / "adapters" if adapters is None else adapters, **hub)
    if sem is None:
        warnings.warn(
            f"{place} has no semantic adapter; lambda_sem changes nothing", UserNotice, stacklevel=3
        )
    return pix, sem


def _check_trained_on(adapters: Iterable[Adapter | None], unet_config: dict[str, Any]) -> None:
    """Name the other base, where the sizes tell; `merged` checks every tensor anyway."""
    sizes = {"cross_attention_dim": "cross-attention size", "in_channels": "latent channels"}
    for adapter, (key, what) in product(filter(None, adapters), sizes.items()):
        trained, came = adapter.base.get(key), unet_config.get(key)
        if trained is not None and trained != came:
            known = (
                f", this is {BASES[came]}" if key == "cross_attention_dim" and came in BASES else ""
            )
            raise ModelError(
                f"the {adapter.name} adapter was trained on a base of {what} {trained}, this base has {came}{known}; "
                "give the base it was trained on (the published adapters': SD-2.1-base)."
            )


def _merge_both(
    unet: UNet2DConditionModel, pix: Adapter, sem: Adapter | None, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """(unet with both, unet with pix). The float32 base is used up; without a semantic adapter both
    are one module.
    """
    if sem is None:
        unet = merge_in_place(unet, [pix], dtype)
        return unet, unet
    unet_pix = merged(unet, [pix], dtype)
    return merge_in_place(unet, [pix, sem], dtype), unet_pix

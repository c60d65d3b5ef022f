"""What a user holds: PiSASRPipeline, from a picture to its repaired picture."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from pisasr.errors import CheckpointError, ModelError, PisasrError
from pisasr.method import color
from pisasr.method.adapters import merge_in_place, merged
from pisasr.method.model import PiSASR
from pisasr.method.residual import needed, restore_latent
from pisasr.method.text import PromptEncoder
from pisasr.method.tiling import blend_tiles, check_plan
from pisasr.models.bases import BASES, check_base, find_model, is_merged, load_others, load_unet, own_color_fix
from pisasr.models.weights import Adapter, load_adapters
from pisasr.pictures import images

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
COLOR_FIXES = {"adain": color.adain, "wavelet": color.wavelet, "none": None}
TILE_PX = 768  # latent tiles in image pixels: the published 96 latent pixels of an eightfold VAE
VAE_TILE_PX = 512

Picture = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Options:
    """How pictures are repaired: what `PiSASRPipeline.__call__` and the sweeps take beside pictures and strengths.

    upscale: any factor from 1 up. process_size: the short side, in pixels of the result, up to which small pictures are
    enlarged first. color_fix: how the result gets the input's colours back; None is the model's own way (adain, as
    published, unless its model_index.json names another). tile_size, tile_overlap: latent pixels; None is 768 image
    pixels and a third of the tile. vae_tile_size: image pixels; beyond its square the VAE works in pieces, to the same
    result. posterior: "mean", or "sample" with `generator`: a seed, which every picture starts anew from, or a
    torch.Generator, which goes on from picture to picture.
    output_type: "pil"; "np" [H, W, C] or "pt" [C, H, W], the same levels in [0, 1] (C: 1 grey, 3 colour, + 1 alpha).
    """

    upscale: float = 4
    process_size: int = 512
    color_fix: Literal["adain", "wavelet", "none"] | None = None
    tile_size: int | None = None
    tile_overlap: int | None = None
    vae_tile_size: int | None = None
    prompt: str = ""
    posterior: Literal["mean", "sample"] = "mean"
    generator: torch.Generator | int | None = None
    output_type: Literal["pil", "np", "pt"] = "pil"

    def __post_init__(self):
        if not (math.isfinite(self.upscale) and self.upscale >= 1):
            raise ValueError(f"upscale is {self.upscale}; it must be a finite number from 1 up.")
        for name in ("process_size", "vae_tile_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be a positive number of pixels.")
        if self.color_fix is not None:
            _check_choice("color_fix", self.color_fix, COLOR_FIXES)
        _check_choice("posterior", self.posterior, ("mean", "sample"))
        _check_choice("output_type", self.output_type, ("pil", "np", "pt"))

    def tile_plan(self, factor: int) -> tuple[int, int]:
        """(tile, overlap) in latent pixels of a VAE of this factor."""
        tile = TILE_PX // factor if self.tile_size is None else self.tile_size
        overlap = tile // 3 if self.tile_overlap is None else self.tile_overlap
        check_plan(tile, overlap)
        return tile, overlap

    def fresh_generator(self) -> torch.Generator | None:
        """The generator for one picture."""
        return torch.Generator().manual_seed(self.generator) if isinstance(self.generator, int) else self.generator


class PiSASRPipeline(DiffusionPipeline):
    """Repair and enlarge photos in one step, with one strength for fidelity and one for detail.

    unet carries both adapters in its weights and gives eps_pisa; unet_pix carries the pixel adapter and gives eps_pix.
    The scheduler takes no part: its config says how the base was trained. color_fix is what this model's pictures get
    where no other is asked for.
    """

    model_cpu_offload_seq = "text_encoder->unet_pix->unet->vae"

    def __init__(self, vae, text_encoder, tokenizer, unet, unet_pix, scheduler, color_fix: str = "adain"):
        super().__init__()
        _check_choice("color_fix", color_fix, COLOR_FIXES)
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, unet_pix=unet_pix, scheduler=scheduler
        )
        self.register_to_config(color_fix=color_fix)
        self._prompt_encoder = PromptEncoder(tokenizer, text_encoder)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike | None = None,
        adapters: str | os.PathLike | None = None,
        torch_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "PiSASRPipeline":
        """Load a base and merge its adapters, or load what `save_pretrained` wrote.

        model: a folder in diffusers' layout, a hub id, "SD-2.1-base" (found at one of its mirrors), or None for the
        small model inside the package. adapters: a folder, a hub id or the published .pkl; None is MODEL/adapters.
        dtype is diffusers' newer name of torch_dtype. hub: revision, cache_dir, token, local_files_only, force_download
        for a model on the hub. A local path never touches the network.
        The adapters are merged once, in float32, and cast afterwards. ModelError or CheckpointError, one line each.
        """
        if unknown := sorted(hub.keys() - HUB_OPTIONS):
            raise TypeError(f"from_pretrained doesn't know {unknown[0]!r}; hub options are {HUB_OPTIONS}.")
        torch_dtype = dtype or torch_dtype
        folder = find_model(model, **hub)
        unet_config = check_base(folder)
        color_fix = own_color_fix(folder, COLOR_FIXES)
        if is_merged(folder):
            if adapters is not None:
                raise ModelError(f"{folder} has its adapters merged already; drop `adapters`, or give a bare base.")
            unet, unet_pix = (load_unet(folder, part, torch_dtype) for part in ("unet", "unet_pix"))
        else:
            pix, sem = _find_adapters(folder, adapters)
            for adapter in filter(None, (pix, sem)):
                _check_trained_on(adapter, unet_config)
            unet, unet_pix = _merge_both(load_unet(folder, "unet"), pix, sem, torch_dtype)
        return cls(unet=unet, unet_pix=unet_pix, color_fix=color_fix, **load_others(folder, torch_dtype))

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        lambda_pix: float = 1.0,
        lambda_sem: float = 1.0,
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[list]:
        """Repair pictures: `.images` has one for each, exactly round(upscale * side) large.

        image: PIL pictures of any mode and size, uint8 arrays [H, W, 3], tensors [3, H, W] in [0, 1], a list of such,
        or a batch [B, 3, H, W]. Grey stays grey, alpha is enlarged and kept. options: see `Options`.
        """
        settings, pairs = Options(**options), _check_pairs([(lambda_pix, lambda_sem)])
        results = [result for picture in _pictures(image) for result in self._repair(picture, pairs, settings)]
        return ImagePipelineOutput(images=results) if return_dict else (results,)

    def sweep(self, image: Picture, lambdas: Iterable[tuple[float, float]], **options: Any) -> list:
        """One picture at several (lambda_pix, lambda_sem): one encode and at most two UNet passes for all of them."""
        return list(self.sweep_lazily(image, lambdas, **options))

    def sweep_lazily(self, image: Picture, lambdas: Iterable[tuple[float, float]], **options: Any) -> Iterator[Picture]:
        """The pictures of `sweep` one after another, each decoded when it is asked for: many need no more memory.

        Wrong options are refused at the call; the encode and the UNet passes come with the first picture.
        """
        settings, pairs = Options(**options), _check_pairs(lambdas)
        (picture,) = _pictures(image)
        return self._repair(picture, pairs, settings)

    @property
    def model(self) -> PiSASR:
        """The same parts as tensors in, tensors out."""
        return PiSASR(self.unet, self.vae, self._prompt_encoder)

    @torch.no_grad()  # of a generator, torch switches gradients off while it works and not while its caller does
    def _repair(self, picture: Image.Image, pairs: list[tuple[float, float]], options: Options) -> Iterator[Picture]:
        """Sizes, ranges and colours around the method: encode, predict what is wrong, remove it, decode.

        Removing and decoding are done anew for each pair, when its picture is asked for.
        """
        model = self.model
        vae_tile = VAE_TILE_PX if options.vae_tile_size is None else options.vae_tile_size
        rgb, alpha, is_grey = images.split(picture)
        frame = images.plan_frame(*rgb.size, options.upscale, options.process_size, multiple=model.factor)
        prepared = images.prepare(rgb, frame)

        x_L = images.to_signed(images.pad(prepared, frame)).to(self._execution_device)
        z_L = model.encode(x_L, options.posterior, options.fresh_generator(), tile_px=vae_tile)
        eps_pix, eps_pisa = self._residuals(z_L, pairs, options)

        for lambda_pix, lambda_sem in pairs:
            z_H = restore_latent(z_L, eps_pix, eps_pisa, lambda_pix, lambda_sem)
            x_H = images.crop(model.decode(z_H, tile_px=vae_tile), frame)
            restored = images.finish(_to_picture(x_H, prepared, options.color_fix or self.config.color_fix), frame)
            yield _as_type(images.join(restored, alpha, is_grey), options.output_type)

    def _residuals(
        self, z_L: Tensor, pairs: list[tuple[float, float]], options: Options
    ) -> tuple[Tensor | None, Tensor | None]:
        """(eps_pix, eps_pisa), each only if some pair asks for it: one UNet pass per tile for each that is."""
        model, embeds = self.model, self._prompt_encoder(options.prompt)
        wanted = [any(needed(*pair)[which] for pair in pairs) for which in (0, 1)]
        unets = [unet for unet, want in zip((self.unet_pix, self.unet), wanted, strict=True) if want]
        tile, overlap = options.tile_plan(model.factor)
        if not unets:
            return None, None
        found = iter(blend_tiles(lambda z: tuple(model.predict(z, embeds, unet=u) for u in unets), z_L, tile, overlap))
        eps_pix, eps_pisa = (next(found) if want else None for want in wanted)
        return eps_pix, eps_pisa


def _to_picture(x_H: Tensor, prepared: Image.Image, color_fix: str) -> Image.Image:
    if not x_H.isfinite().all():
        raise PisasrError("the model answered with nan or inf; try float32 (--dtype fp32), or strengths nearer to 1.")
    unit, fix = images.to_unit(x_H.float()), COLOR_FIXES[color_fix]
    return images.to_image(unit if fix is None else fix(unit, images.to_tensor(prepared).to(unit)))


def _pictures(image: Picture | Sequence[Picture]) -> list[Image.Image]:
    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, str | os.PathLike):
        raise TypeError(f"{str(image)!r} is a path; open it first: PIL.Image.open({str(image)!r}).")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"an array of {image.dtype} came; wanted uint8 [H, W, 3], or a tensor [3, H, W] in [0, 1].")
        return [Image.fromarray(x) for x in (image if image.ndim == 4 else [image])]
    if isinstance(image, Tensor):
        if not image.is_floating_point() or not (0 <= image.min() and image.max() <= 1):
            raise ValueError(f"a tensor of {image.dtype} outside [0, 1] came; wanted floats [3, H, W] in [0, 1].")
        return [images.to_image(x.expand(3, -1, -1)) for x in (image if image.ndim == 4 else [image])]
    return [picture for item in image for picture in _pictures(item)]


def _as_type(picture: Image.Image, output_type: str) -> Picture:
    if output_type == "pil":
        return picture
    levels = np.atleast_3d(np.asarray(picture)).astype(np.float32) / 255
    return levels if output_type == "np" else torch.from_numpy(levels).permute(2, 0, 1).contiguous()


def _check_pairs(lambdas: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    pairs = [(float(lambda_pix), float(lambda_sem)) for lambda_pix, lambda_sem in lambdas]
    for pair in pairs:
        if not all(map(math.isfinite, pair)):
            raise ValueError(f"(lambda_pix, lambda_sem) is {pair}; both must be finite numbers, usually from 0 to 1.5.")
    return pairs


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


# --- bringing base and adapters together -----------------------------------------------------------------------------


def _find_adapters(folder: Path, adapters: str | os.PathLike | None) -> tuple[Adapter, Adapter | None]:
    if adapters is None and not (folder / "adapters").is_dir():
        raise CheckpointError(f"{folder} comes without adapters; give `adapters`: a folder, a hub id or pisa_sr.pkl.")
    return load_adapters(folder / "adapters" if adapters is None else adapters)


def _check_trained_on(adapter: Adapter, unet_config: dict[str, Any]) -> None:
    """Name the other base, where the sizes tell; `merged` checks every tensor anyway."""
    for key, what in (("cross_attention_dim", "cross-attention size"), ("in_channels", "latent channels")):
        trained, came = adapter.base.get(key), unet_config.get(key)
        if trained is not None and trained != came:
            known = f", this is {BASES[came]}" if key == "cross_attention_dim" and came in BASES else ""
            raise ModelError(
                f"the {adapter.name} adapter was trained on a base of {what} {trained}, this base has {came}{known}; "
                "give the base it was trained on (the published adapters': SD-2.1-base)."
            )


def _merge_both(
    unet: UNet2DConditionModel, pix: Adapter, sem: Adapter | None, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """(unet with both, unet with pix). The float32 base is used up; without a semantic adapter both are one module."""
    if sem is None:
        unet = merge_in_place(unet, [pix], dtype)
        return unet, unet
    unet_pix = merged(unet, [pix], dtype)
    return merge_in_place(unet, [pix, sem], dtype), unet_pix

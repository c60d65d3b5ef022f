"""Find models in ComfyUI's folders, and let its memory manager move their networks."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management as manager
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from torch import nn

from pisasr.method.layers import set_memory_format
from pisasr.pipeline import PiSASRPipeline, usual_dtype

EMBEDDED = "embedded"
OWN = "the base's own"
DTYPES = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

T = TypeVar("T")

folder_paths.add_model_folder_path("pisasr", str(Path(folder_paths.models_dir) / "pisasr"))


def bases() -> dict[str, Path | None]:
    """Bases by name: the embedded model, and folders in models/pisasr and models/diffusers.

    A base is a folder in diffusers' layout, or one of adapters that names its base.
    """
    found = {path.name: path for path in _entries("diffusers", "pisasr") if _is_base(path)}
    return {EMBEDDED: None, **dict(sorted(found.items()))}


def adapters() -> dict[str, Path | None]:
    """Adapters by name: the base's own, and folders and published .pkl files in models/pisasr."""
    found = {path.name: path for path in _entries("pisasr") if _has_adapters(path)}
    return {OWN: None, **dict(sorted(found.items()))}


def _entries(*kinds: str) -> Iterator[Path]:
    """The contents of ComfyUI's folders of these kinds; the first folder's come last and win."""
    for kind in kinds:
        for folder in map(Path, reversed(folder_paths.get_folder_paths(kind))):
            if folder.is_dir():
                yield from folder.iterdir()


def _is_base(path: Path) -> bool:
    has_unet = (path / "unet" / "config.json").is_file()
    names_base = (path / "model_index.json").is_file() and (path / "adapters").is_dir()
    return has_unet or names_base


def _has_adapters(path: Path) -> bool:
    places = path / "pix.safetensors", path / "adapters" / "pix.safetensors"
    return path.suffix == ".pkl" or any(place.is_file() for place in places)


class ComfyPipeline(PiSASRPipeline):
    """A pipeline that computes on ComfyUI's device, whose weights ComfyUI moves."""

    @property
    def _execution_device(self) -> torch.device:
        return manager.get_torch_device()


class PiSASRNetwork(nn.Module):  # ComfyUI's log shows this name
    """A network whose attributes ComfyUI's patchers may write, `device` too."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class WholePatcher(ModelPatcher):
    """Load and unload all or nothing: only ComfyUI's own layers work with parts left behind."""

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, **options: Any
    ) -> float:
        return super().partially_load(device_to, 2 * self.model_size(), **options)

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, **options: Any
    ) -> float:
        return 0  # nothing freed: ComfyUI then unloads it whole


class Model:
    """A pipeline, and the patchers by which ComfyUI's memory manager holds its networks."""

    def __init__(self, pipe: ComfyPipeline):
        self.pipe = pipe
        here, away = manager.get_torch_device(), manager.unet_offload_device()
        networks = (pipe.text_encoder, pipe.unet_pix, pipe.unet, pipe.vae)
        self._patchers: dict[nn.Module, WholePatcher] = {
            network: WholePatcher(PiSASRNetwork(network), here, away)
            for network in networks
            if network is not None
        }

    def on_device(self, pixels: float, vae_alone: bool = False) -> ComfyPipeline:
        """The pipeline with its networks loaded, and room for a result of so many pixels.

        The room is for the VAE's widest maps, three times its first width a pixel; a VAE without
        convolutions has none.
        """
        vae = self.pipe.vae
        widths = getattr(vae.config, "block_out_channels", (0,))
        networks = [vae] if vae_alone else list(self._patchers)
        manager.load_models_gpu(
            [self._patchers[network] for network in networks],
            memory_required=3 * widths[0] * pixels * vae.dtype.itemsize,
        )
        for network in networks:
            set_memory_format(network)
        return self.pipe


class Progress:
    """ComfyUI's progress bar over pictures and their tiles; raises where the user interrupts."""

    def __init__(self, pictures: int):
        self._bar, self._done = ProgressBar(pictures), 0
        self.on_tile(0, 1)

    def on_tile(self, done: int, total: int) -> None:
        """Show how many tiles of the current picture are done."""
        manager.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(self._done + done / total)

    def each(self, pictures: Sequence[T]) -> Iterator[T]:
        """Yield the pictures, counting those that are done."""
        for picture in pictures:
            yield picture
            self._done += 1
            self.on_tile(0, 1)


def load(base: str = EMBEDDED, adapter: str = OWN, dtype: str = "auto") -> Model:
    """Load a model by the names of `bases`, `adapters` and `DTYPES`.

    "auto" is float16 where ComfyUI would use it, else `usual_dtype` of the device.
    """
    device = manager.get_torch_device()
    chosen = DTYPES[dtype] or usual_dtype(device.type)
    if dtype == "auto" and chosen == torch.float16 and not manager.should_use_fp16(device):
        chosen = torch.float32
    folder, files = bases()[base], adapters()[adapter]
    return Model(ComfyPipeline.from_pretrained(folder, adapters=files, torch_dtype=chosen))


@lru_cache(maxsize=1)
def embedded() -> Model:
    """The embedded model, loaded once, for Upscale without a connected model."""
    return load()

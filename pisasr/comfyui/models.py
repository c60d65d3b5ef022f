"""Infer, in ComfyUI, beside the nodes: models as ComfyUI finds them, moves them, watches them and
stops them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management as manager
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from torch import Tensor, nn

from pisasr.method.layers import lay_out
from pisasr.models.bases import read_reference
from pisasr.pipeline import Looked, PiSASRPipeline, usual_dtype

EMBEDDED = "embedded"
OWN = "the base's own"
DTYPES = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

T = TypeVar("T")

folder_paths.add_model_folder_path("pisasr", str(Path(folder_paths.models_dir) / "pisasr"))


def bases() -> dict[str, Path | None]:
    """What can be loaded as a base, by name: the embedded model, and folders in models/pisasr and
    models/diffusers.

    A base is a folder in diffusers' layout, or what `save_pretrained` wrote, of adapters alone too.
    """
    found = {path.name: path for path in _entries("diffusers", "pisasr") if _is_base(path)}
    return {EMBEDDED: None, **dict(sorted(found.items()))}


def adapters() -> dict[str, Path | None]:
    """Adapters by name: those that lie beside the base, and folders and published .pkl files in
    models/pisasr.
    """
    found = {path.name: path for path in _entries("pisasr") if _holds_adapters(path)}
    return {OWN: None, **dict(sorted(found.items()))}


def _entries(*kinds: str) -> Iterator[Path]:
    """What lies in ComfyUI's folders of these kinds; of one name, the first folder's comes last and
    so counts.
    """
    folders = [
        Path(folder) for kind in kinds for folder in reversed(folder_paths.get_folder_paths(kind))
    ]
    return (path for folder in folders if folder.is_dir() for path in folder.iterdir())


def _is_base(path: Path) -> bool:
    return path.is_dir() and (
        (path / "unet" / "config.json").is_file() or read_reference(path) is not None
    )


def _holds_adapters(path: Path) -> bool:
    return path.suffix == ".pkl" or any(
        (folder / "pix.safetensors").is_file() for folder in (path, path / "adapters")
    )


@dataclass
class Bar:
    """What a pipeline counts its tiles on."""

    total: int
    watch: Callable[[float], None]
    n: int = 0

    def update(self, tiles: int) -> None:
        self.n += tiles
        self.watch(self.n / self.total)

    def close(self) -> None:
        """Nothing to put away."""


class ComfyPipeline(PiSASRPipeline):
    """The pipeline, computing where ComfyUI does. Others move its weights; `watch` hears which part
    of a picture is done, and may raise to stop it.
    """

    watch: Callable[[float], None] = staticmethod(lambda part: None)

    @property
    def _execution_device(self) -> torch.device:
        return manager.get_torch_device()

    def progress_bar(self, iterable: Any = None, total: int = 0) -> Bar:
        return Bar(total, self.watch)


class PiSASRNetwork(nn.Module):  # so ComfyUI's log names it
    """A network as ComfyUI's patchers want it: they write their notes on it, `device` too, which
    diffusers forbids.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class WholePatcher(ModelPatcher):
    """It loads and unloads all or nothing: ComfyUI's own layers fetch what was left behind, others
    don't.
    """

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, **options: Any
    ) -> float:
        return super().partially_load(device_to, 2 * self.model_size(), **options)

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, **options: Any
    ) -> float:
        return 0  # nothing was freed, and so it is unloaded whole


class Model:
    """A pipeline, and the patchers by which ComfyUI's memory manager holds its networks."""

    def __init__(self, pipe: ComfyPipeline):
        self.pipe = pipe
        here, away = manager.get_torch_device(), manager.unet_offload_device()
        self._patchers: dict[
            nn.Module, WholePatcher
        ] = {  # without a semantic adapter, both UNets are one
            network: WholePatcher(PiSASRNetwork(network), here, away)
            for network in (pipe.text_encoder, pipe.unet_pix, pipe.unet, pipe.vae)
        }

    def for_looking(self, pixels: float) -> ComfyPipeline:
        """The pipeline with all networks on the device, and room there for a picture that will have
        so many pixels.
        """
        return self._with(list(self._patchers), pixels)

    def for_mixing(self, pixels: float) -> ComfyPipeline:
        """The same, of the VAE alone."""
        return self._with([self.pipe.vae], pixels)

    def _with(self, networks: list[nn.Module], pixels: float) -> ComfyPipeline:
        wanted = [self._patchers[network] for network in networks]
        manager.load_models_gpu(wanted, memory_required=working_memory(self.pipe.vae, pixels))
        for network in networks:
            lay_out(network)
        return self.pipe

    def one_by_one(self, pictures: Sequence[T]) -> Iterator[T]:
        """The pictures in turn; ComfyUI hears how far it is, and can stop before each and after
        each of their tiles.
        """
        bar = ProgressBar(len(pictures))

        def watch(done: float) -> None:
            manager.throw_exception_if_processing_interrupted()
            bar.update_absolute(done)

        for i, picture in enumerate(pictures):
            watch(i)
            self.pipe.watch = lambda part, i=i: watch(i + part)  # type: ignore[misc]
            yield picture
        watch(len(pictures))


def working_memory(vae: Any, pixels: float) -> float:
    """Bytes that the VAE holds at most of a picture so large, beside its bands: two maps (see
    `vae_tiling`).

    Three times the decoder's last width: what comes into its last block and what goes out. The
    embedded model's VAE has no such maps.
    """
    widths = getattr(vae.config, "block_out_channels", None)
    return 3 * widths[0] * pixels * vae.dtype.itemsize if widths else 0.0


def load(base: str = EMBEDDED, adapter: str = OWN, dtype: str = "auto") -> Model:
    """A model by the names of `bases`, `adapters` and `DTYPES`, its weights where ComfyUI keeps
    what it doesn't use.

    "auto" is float16 where ComfyUI would use it, bfloat16 on a CPU that multiplies it natively,
    else float32.
    """
    wanted = DTYPES[dtype] or _usual_dtype(manager.get_torch_device())
    return Model(
        ComfyPipeline.from_pretrained(
            bases()[base], adapters=adapters()[adapter], torch_dtype=wanted
        )
    )


@lru_cache(maxsize=1)
def embedded() -> Model:
    """The embedded model, once: what is upscaled with where none is connected."""
    return load()


def _usual_dtype(device: torch.device) -> torch.dtype:
    usual = usual_dtype(device.type)
    return (
        torch.float32 if usual == torch.float16 and not manager.should_use_fp16(device) else usual
    )


def moved(looked: Looked, device: torch.device) -> Looked:
    """The same look with its tensors on a device; what came is left as it is."""
    values = ((name, getattr(looked, name)) for name in ("z_L", "eps_pix", "eps_pisa", "given"))
    there: dict[str, Any] = {
        name: value.to(device) for name, value in values if isinstance(value, Tensor)
    }
    return replace(looked, **there)

"""Infer, before anything is done: how pictures are to be repaired, checked."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pisasr.method import color
from pisasr.method.tiling import check_plan

COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "adain": color.adain,
    "wavelet": color.wavelet,
    "none": None,
}
TILE_PX = 768  # latent tiles in image pixels: the published 96 latent pixels of an eightfold VAE
VAE_TILE_PX = 512
OUTPUT_TYPES = ("pil", "np", "pt", "latent", "uint16")

ColorFix = Literal["adain", "wavelet", "none"]
OutputType = Literal["pil", "np", "pt", "latent", "uint16"]
Tiling = Literal["even", "published"]
Generators = torch.Generator | int | Sequence[torch.Generator | int] | None


@dataclass(frozen=True)
class Options:
    """How pictures are repaired, checked: what `PiSASRPipeline.__call__` explains, beside pictures
    and strengths.
    """

    upscale: float = 4
    process_size: int = 512
    color_fix: ColorFix | None = None
    tile_size: int | None = None
    tile_overlap: int | None = None
    tiling: Tiling | None = None
    vae_tile_size: int | None = None
    batch_size: int = 1
    prompt: str | Sequence[str] = ""
    posterior: Literal["mean", "sample"] = "mean"
    generator: Generators = None
    output_type: OutputType = "pil"

    def __post_init__(self) -> None:
        for name in ("process_size", "batch_size", "tile_size", "tile_overlap", "vae_tile_size"):
            wanted: Any = int if name in ("process_size", "batch_size") else int | None
            if not isinstance(size := getattr(self, name), wanted) or isinstance(size, bool):
                raise TypeError(f"{name} is {size!r}; it must be a whole number.")
        if isinstance(self.upscale, bool) or not isinstance(self.upscale, int | float | np.number):
            raise TypeError(f"upscale is {self.upscale!r}; it must be a number.")
        check_prompt(self.prompt)
        if not 1 <= (upscale := as_float(self.upscale)) < math.inf:
            raise ValueError(f"upscale is {upscale:g}; it must be a finite number from 1 up.")
        for name in ("process_size", "vae_tile_size", "batch_size"):
            if (size := getattr(self, name)) is not None and not 1 <= size < 2**31:
                raise ValueError(
                    f"{name} is {as_float(size):g}; it must be a whole number from 1 to 2^31 - 1."
                )
        if self.color_fix is not None:
            check_choice("color_fix", self.color_fix, COLOR_FIXES)
        if self.tiling is not None:
            check_choice("tiling", self.tiling, ("even", "published"))
        check_choice("posterior", self.posterior, ("mean", "sample"))
        check_choice("output_type", self.output_type, OUTPUT_TYPES)

    @property
    def evenly(self) -> bool:
        """Whether tiles are of an even grid; where a plan is not named, an overlap asks for the
        published one.
        """
        return (self.tiling or ("published" if self.tile_overlap is not None else "even")) == "even"

    def tile_plan(self, factor: int) -> tuple[int, int]:
        """(tile, overlap) in latent pixels of a VAE of this factor."""
        tile = TILE_PX // factor if self.tile_size is None else self.tile_size
        usual = tile // 12 if self.evenly else tile // 3
        overlap = usual if self.tile_overlap is None else self.tile_overlap
        check_plan(tile, overlap)
        return tile, overlap


def generators_for(generator: Any, count: int) -> list[torch.Generator | None]:
    """One generator for each of `count` pictures: a seed anew each time, a torch.Generator as it
    is, a list in turn.
    """
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise ValueError(
                f"{count} pictures came with {len(generator)} generators; give one, or one for each."
            )
        return [fresh for one in generator for fresh in generators_for(one, 1)]
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if isinstance(generator, bool | np.bool_) or not isinstance(generator, int | np.integer):
        raise TypeError(
            f"generator is {generator!r}; it must be a seed, a torch.Generator, or a list of these."
        )
    if not 0 <= generator < 2**63:
        raise ValueError(f"generator is {generator}; a seed is a whole number from 0 to 2^63 - 1.")
    return [torch.Generator().manual_seed(int(generator)) for _ in range(count)]


def as_float(number: Any) -> float:
    """float(number); of a whole number beyond all floats, infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def check_prompt(prompt: Any) -> None:
    """TypeError where it is neither a text nor one for each picture, ValueError where a text holds
    broken bytes.
    """
    words: Any = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"prompt is {prompt!r}; it must be a text, or one for each picture.")
    if any(
        "\ud800" <= letter <= "\udfff" for word in words for letter in word
    ):  # what stands for such a byte
        raise ValueError(f"prompt is {prompt!r}; it must be text in UTF-8.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """ValueError where a named value is none of the choices."""
    if value not in list(choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")

"""The settings of inference, each written once: the command line and the pipeline read them all.

A new setting is one field of `Options` and the place that uses it: `_predict` and what it calls, or
`_finish`, in pisasr/pipeline.py. The page and the nodes show some, with the defaults given here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the command line reads this before it knows whether torch is needed
    import torch

TILE_PX = 768  # a UNet tile in image pixels: the published 96 latent pixels of an eightfold VAE
VAE_TILE_PX = 512

ColorFix = Literal["adain", "wavelet", "none"]
OutputType = Literal["pil", "np", "pt", "latent", "uint16"]
Tiling = Literal["even", "published"]


def setting(
    default: Any,
    help: str,
    kind: type = str,
    least: float | None = None,
    choices: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    group: str | None = "picture",
) -> Any:
    """A field of `Options`. A default of None means what the help says.

    least: of a number. aliases: further names on the command line, as published. group: of the
    command line's help; None keeps a setting from it.
    """
    about = {"help": help, "kind": kind, "least": least, "choices": choices}
    return field(default=default, metadata={**about, "aliases": tuple(aliases), "group": group})


def memory(help: str, least: int = 1, alias: str = "") -> Any:
    """A whole number for how big pictures are cut."""
    return setting(None, help, int, least, None, (alias,) if alias else (), "memory")


@dataclass(frozen=True)
class Options:
    """How pictures are repaired. TypeError or ValueError, one line, for what makes no sense."""

    upscale: float = setting(4, "any factor from 1 up (default: 4)", float, least=1)
    process_size: int | None = setting(
        None,
        "enlarge smaller pictures until the result's short side has so many pixels (default: the "
        "model's own, 512 for Stable Diffusion)",
        int,
        least=1,
    )
    color_fix: ColorFix | None = setting(
        None,
        "how the result gets the input's colors (default: the model's own way)",
        choices=("adain", "wavelet", "none"),
        aliases=("--align_method",),
    )
    prompt: str = setting("", "what the picture shows (default: nothing)")
    generator: "torch.Generator | int | None" = setting(
        None,
        "a seed or torch.Generator: sample the VAE's posterior (default: mean)",
        int,
        least=0,
        group=None,
    )
    tile_size: int | None = memory(
        "UNet tile in latent pixels (default: the model's own, 768 px for Stable Diffusion)",
        alias="--latent_tiled_size",
    )
    tile_overlap: int | None = memory(
        "in latent pixels; means --tiling published (default: the model's own, or a third there, a "
        "twelfth else)",
        least=0,
        alias="--latent_tiled_overlap",
    )
    tiling: Tiling | None = setting(
        None,
        "an even grid of tiles (default), or as published, nearly twice the work",
        choices=("even", "published"),
        group="memory",
    )
    vae_tile_size: int | None = memory(
        "VAE tile in pixels of the picture; up to 1024 px the same result (default: 512)",
        alias="--vae_encoder_tiled_size",
    )
    batch_size: int = setting(
        1, "tiles at once; changes results by rounding (default: 1)", int, least=1, group="memory"
    )
    output_type: OutputType = setting(
        "pil",
        "pil: 8 bits; np [H, W, C], pt [C, H, W]: float32 in [0, 1]; uint16 [H, W, C]; latent: "
        "z_H [c, h, w], scaled, of the padded picture",
        choices=("pil", "np", "pt", "latent", "uint16"),
        group=None,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                _check(each.name, value, **each.metadata)
        # Broken bytes of a command line stand as surrogates.
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt):
            raise ValueError(f"prompt is {self.prompt!r}; it must be text in UTF-8.")
        if self.tile_size is not None:
            self.tile_plan(factor=1)

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Options":
        """The options that a caller named. TypeError, one line, for an unknown name."""
        known = [each.name for each in fields(cls)]
        if unknown := sorted(options.keys() - set(known)):
            raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}.")
        return cls(**options)

    @property
    def evenly(self) -> bool:
        """Whether tiles form an even grid; naming an overlap means the published plan."""
        return (self.tiling or ("even" if self.tile_overlap is None else "published")) == "even"

    def tile_plan(self, factor: int, unet: Any = None) -> tuple[int, int]:
        """(tile, overlap) in latent pixels, the UNet's own if any. ValueError unless they fit."""
        tile = self.tile_size or int(getattr(unet, "tile", TILE_PX // factor))
        usual: int = tile // 12 if self.evenly else tile // 3
        usual = min(getattr(unet, "tile_overlap", usual), tile // 3)
        overlap = usual if self.tile_overlap is None else self.tile_overlap
        if overlap >= tile:
            raise ValueError(
                f"tile_overlap is {overlap}, tile_size {tile}; the overlap must be below the tile."
            )
        return tile, overlap

    def make_generator(self) -> "torch.Generator | None":
        """The generator; of a seed a new one."""
        import torch

        if self.generator is None or isinstance(self.generator, torch.Generator):
            return self.generator
        return torch.Generator().manual_seed(self.generator)


def _check(name: str, value: Any, kind: type, least: float | None, choices: Any, **_: Any) -> None:
    """Refuse a value of another kind, below the least, or none of the choices."""
    if choices is not None:
        if value not in list(choices):
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
        return
    if kind is str:
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; it must be a text.")
        return
    if name == "generator" and hasattr(value, "manual_seed"):
        return
    numbers: Any = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, numbers):
        wanted = "a whole number" if kind is int else "a number"
        raise TypeError(f"{name} is {value!r}; it must be {wanted}.")
    least = -math.inf if least is None else least
    if not least <= value < (2**63 if kind is int else math.inf):
        raise ValueError(f"{name} is {value}; it must be from {least:g} up.")

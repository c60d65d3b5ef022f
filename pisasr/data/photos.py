"""Photos to training pairs: choose, crop, mirror, degrade, with chance tied to the sample and to nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pisasr.data.degradation import DegradationRecipe, degrade, sample_generator
from pisasr.errors import PisasrError
from pisasr.images import open_image, split, to_signed

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def list_photos(sources: list[str]) -> list[Path]:
    """All photos of some folders (searched recursively) and path lists (text files, one path a line)."""
    photos: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            photos += sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif source.is_file():
            lines = source.read_text().splitlines()
            photos += [source.parent / line.strip() for line in lines if line.strip()]
        else:
            raise PisasrError(f"data.photos: {source} does not exist; wanted a folder of photos or a list of paths.")
    if not photos:
        raise PisasrError(f"data.photos: no photos in {', '.join(sources)} (looked for {', '.join(sorted(SUFFIXES))}).")
    return photos


@dataclass
class Photos(Dataset):
    """Pairs made on the fly. Asked for (epoch, index), not for an index: the same key gives the same pair, whichever
    worker or process asks, and however often training was interrupted before.

    A pair: {"x_H", "x_L": [3, crop_px, crop_px] in [-1, 1], "caption": str, "seed": int}. x_L is degraded to a quarter
    of the size and enlarged again by bicubic interpolation, as inference enlarges its input. The seed is for whatever
    else is drawn for this sample.
    """

    photos: list[Path]
    crop_px: int
    recipe: DegradationRecipe
    seed: int
    caption: str = ""
    keep_in_memory: bool = False
    _kept: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | str]:
        epoch, index = key
        generator = sample_generator(self.seed, epoch, index)
        path = self.photos[index]
        x_H = random_crop(self._read(path), self.crop_px, generator, path)
        x_L = degrade(x_H[None].float() / 255, self.recipe, generator)
        x_L = torch.nn.functional.interpolate(x_L, size=x_H.shape[1:], mode="bicubic", antialias=True)
        # "antialias" picks the kernel that Pillow, and so inference, enlarges with; its result is eight bits too.
        x_L = (x_L.clamp(0, 1) * 255).round() / 255
        seed = int(torch.randint(2**31, (), generator=generator))
        return {"x_H": x_H.float() / 127.5 - 1, "x_L": x_L[0] * 2 - 1, "caption": self._caption_of(path), "seed": seed}

    def _read(self, path: Path) -> Tensor:
        if path in self._kept:
            return self._kept[path]
        rgb, _, _ = split(open_image(path))
        pixels = ((to_signed(rgb)[0] + 1) * 127.5).round().byte()
        if self.keep_in_memory:
            self._kept[path] = pixels
        return pixels

    def _caption_of(self, path: Path) -> str:
        sidecar = path.with_suffix(".txt")
        return sidecar.read_text().strip() if sidecar.is_file() else self.caption


def random_crop(photo: Tensor, size: int, generator: torch.Generator, path: Path) -> Tensor:
    """A random size x size piece of [3, H, W], mirrored half of the time."""
    height, width = photo.shape[1:]
    if min(height, width) < size:
        raise PisasrError(f"{path} is {width}x{height}; wanted at least data.crop_px={size} on each side.")
    top, left, mirror = (
        int(torch.randint(high, (), generator=generator)) for high in (height - size + 1, width - size + 1, 2)
    )
    crop = photo[:, top : top + size, left : left + size]
    return crop.flip(2) if mirror else crop


@dataclass
class KeyedBatches(Sampler):
    """Endless batches of (epoch, index), every epoch in an order of its own; starts anywhere.

    The order depends on the seed alone. Batch b of process `rank` holds its share of the global batch b, so that
    `world` processes together see what one process would.
    """

    length: int
    batch_size: int  # of this process
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0  # global batches to pass over

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self.start * self.batch_size * self.world + self.rank * self.batch_size
        epoch, order = -1, torch.empty(0)
        while True:
            batch = []
            for place in range(position, position + self.batch_size):
                if place // self.length != epoch:
                    epoch = place // self.length
                    order = torch.randperm(self.length, generator=sample_generator(self.seed, epoch, self.length))
                batch.append((epoch, int(order[place % self.length])))
            yield batch
            position += self.batch_size * self.world

"""Make training pairs x_H, x_L of photos; the same key gives the same pair on any worker."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pisasr.data.degradation import DegradationRecipe, degrade_one, sample_generator
from pisasr.errors import PisasrError, UsageError
from pisasr.pictures.folders import EXTENSIONS, warn_of_foreign
from pisasr.pictures.images import open_image

log = logging.getLogger(__name__)

ATTEMPTS = 16  # photos tried for one sample before training stops
KEPT_BYTES = 2**29  # of decoded photos, per worker: a small set is decoded once


# --- which photos ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """A photo of a training set."""

    path: Path
    source: str  # the name of the folder or list that it comes from
    lq: Path | None = None  # its low-quality version, where that is given


def list_photos(sources: Sequence[str], mix: Mapping[str, float] | None = None) -> list[Photo]:
    """List the photos of folders (searched recursively) and text files (a path a line).

    A folder with hq/ and lq/ in it holds pairs of equal names. mix: a weight for each source by
    name; a source of weight 0 is left out.
    """
    photos: list[Photo] = []
    for source in map(Path, sources):
        if (source / "hq").is_dir() and (source / "lq").is_dir():
            photos += _list_pairs(source)
        elif source.is_dir():
            files = sorted(source.rglob("*"))
            warn_of_foreign(source, files)
            photos += [Photo(path, source.resolve().name) for path in files if _is_photo(path)]
        elif source.is_file():
            photos += [Photo(path, source.stem) for path in read_list(source)]
        else:
            raise UsageError(f"data.photos: {source} is neither a folder nor a list of paths.")
    if mix:
        names = sorted({photo.source for photo in photos})
        if set(names) != set(mix):
            raise UsageError(
                f"data.mix has weights for {', '.join(mix)}; expected {', '.join(names)}."
            )
        photos = [photo for photo in photos if mix[photo.source] > 0]
    if not photos:
        raise UsageError(f"data.photos: no photos in {', '.join(sources)}.")
    return photos


def read_list(file: Path) -> list[Path]:
    """Read the photos that a text file names, a path a line, relative to its folder."""
    content = file.read_bytes()
    if b"\0" in content:
        raise UsageError(f"data.photos: {file} is no text; expected a folder or a list of paths.")
    lines = map(str.strip, content.decode(errors="surrogateescape").splitlines())
    return [file.parent / line for line in lines if line]


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _list_pairs(folder: Path) -> list[Photo]:
    hq, lq = (
        {path.stem: path for path in sorted((folder / side).iterdir()) if _is_photo(path)}
        for side in ("hq", "lq")
    )
    if strays := sorted(hq.keys() ^ lq.keys()):
        raise UsageError(
            f"data.photos: {len(strays)} pictures are in only one of {folder}/hq and {folder}/lq, "
            f"like {strays[0]}."
        )
    return [Photo(path, folder.resolve().name, lq[stem]) for stem, path in hq.items()]


def read_caption(photo: Path) -> str:
    """Read the caption in PHOTO.txt, as one line; empty without one."""
    file = photo.with_suffix(".txt")
    return " ".join(file.read_text("utf-8", "replace").split()) if file.is_file() else ""


# --- pairs ----------------------------------------------------------------------------------------


@dataclass
class Photos(Dataset):
    """Pairs by (epoch, index): the same key gives the same pair, whichever worker or process reads
    it, and however often training was interrupted before.

    A pair: {"x_H", "x_L": [3, crop_px, crop_px] in [-1, 1], "caption": str, "seed": int}. x_L is
    degraded to 1 / scale of the size, or cut out of the photo's given lq, and enlarged again by
    bicubic interpolation, as inference enlarges its input. The seed is for all else that is drawn
    for this sample.

    A photo that can't be used (unreadable, gone, too small) is logged, and replaced by another one,
    drawn for this key alone.
    """

    photos: list[Photo]
    crop_px: int
    recipe: DegradationRecipe
    seed: int
    caption: str = ""  # for photos without one of their own
    _kept: dict[Path, list[Tensor]] = field(default_factory=dict, repr=False)
    _kept_bytes: int = 0

    def __len__(self) -> int:
        return len(self.photos)

    def check_usable(self) -> None:
        """Raise UsageError if not one photo can be used; stops at the first that can."""
        first = ""
        for photo in self.photos:
            try:
                self._read(photo)
                return
            except (PisasrError, OSError) as error:
                first = first or f"{photo.path}: {error}"
        raise UsageError(f"data.photos: none of {len(self)} photos can be used, like {first}.")

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        photo, levels = self._find_usable(epoch, index)
        generator = sample_generator(self.seed, epoch, index)
        x_H, *given = random_crop(levels, self.crop_px, generator)
        if given:
            x_L = given[0].float() / 255
        else:
            x_L = degrade_one(x_H.float() / 255, self.recipe, generator, by_place=True)
        return {
            "x_H": x_H.float() / 127.5 - 1,
            "x_L": enlarge(x_L, self.crop_px),
            "caption": read_caption(photo.path) or self.caption,
            "seed": int(torch.randint(2**31, (), generator=generator)),
        }

    def _find_usable(self, epoch: int, index: int) -> tuple[Photo, list[Tensor]]:
        generator = sample_generator(self.seed, epoch, -1 - index)  # negative: no sample's own
        for _ in range(ATTEMPTS):
            photo = self.photos[index]
            try:
                return photo, self._read(photo)
            except (PisasrError, OSError) as error:
                reason = f"{photo.path} can't be used: {error}"
                log.warning("%s; another photo takes its place", reason)
            index = int(torch.randint(len(self.photos), (), generator=generator))
        raise PisasrError(f"{ATTEMPTS} photos in a row can't be used; the last: {reason}.")

    def _read(self, photo: Photo) -> list[Tensor]:
        """Decode a photo and, of a pair, its lq: uint8 [3, H, W]. Raises PisasrError if they don't
        fit each other or crop_px.
        """
        if photo.path in self._kept:
            return self._kept[photo.path]
        files = [photo.path, photo.lq] if photo.lq else [photo.path]
        pictures = [open_image(file).convert("RGB") for file in files]
        width, height = pictures[0].size
        if min(width, height) < self.crop_px:
            raise PisasrError(
                f"{width}x{height} is smaller than data.crop_px={self.crop_px} on a side"
            )
        small = (width // self.recipe.scale, height // self.recipe.scale)
        if pictures[1:] and pictures[1].size != small:
            raise PisasrError(f"{photo.lq} is {pictures[1].size}; expected {small}")
        levels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
        size = sum(picture.numel() for picture in levels)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[photo.path] = levels
            self._kept_bytes += size
        return levels


def enlarge(x_L: Tensor, side: int) -> Tensor:
    """Enlarge x_L [3, h, w] in [0, 1] to side x side in [-1, 1]: Pillow's bicubic, eight bits."""
    x = torch.nn.functional.interpolate(x_L[None], (side, side), mode="bicubic", antialias=True)[0]
    return (x.clamp(0, 1) * 255).round() / 127.5 - 1


def random_crop(pictures: list[Tensor], size: int, generator: torch.Generator) -> list[Tensor]:
    """Cut the same random piece out of every picture of one scene, mirrored half of the time.

    pictures [3, H, W], the first as large as any: size x size of its pixels, and of a smaller one,
    in proportion, fewer. The piece begins where the smaller one's pixels do.
    """
    height, width = pictures[0].shape[1:]
    step = height // min(picture.shape[1] for picture in pictures)
    rows, columns = (height - size) // step + 1, (width - size) // step + 1
    row, column, mirror = (
        int(torch.randint(high, (), generator=generator)) for high in (rows, columns, 2)
    )
    pieces = []
    for picture in pictures:
        ratio = height // picture.shape[1]
        top, left, side = row * step // ratio, column * step // ratio, size // ratio
        piece = picture[:, top : top + side, left : left + side]
        # Contiguous: as decoded, channels come last.
        pieces.append((piece.flip(2) if mirror else piece).contiguous())
    return pieces


# --- in which order -------------------------------------------------------------------------------


def share_out(photos: Sequence[Photo], mix: Mapping[str, float]) -> list[tuple[list[int], int]]:
    """Return (the places of its photos, its samples an epoch) for each source, in mix's order.

    An epoch has as many samples as there are photos, divided by weight, rounded, and at least one
    for each source. Without a mix all photos are one source.
    """
    if not mix:
        return [(list(range(len(photos))), len(photos))]
    members = {name: [i for i, photo in enumerate(photos) if photo.source == name] for name in mix}
    members = {name: places for name, places in members.items() if places}
    total = sum(mix[name] for name in members)
    exact = {name: mix[name] / total * len(photos) for name in members}
    counts = {name: max(1, int(value)) for name, value in exact.items()}
    left = max(0, len(photos) - sum(counts.values()))
    for name in sorted(exact, key=lambda name: int(exact[name]) - exact[name])[:left]:
        counts[name] += 1
    return [(members[name], counts[name]) for name in members]


@dataclass
class KeyedBatches(Sampler):
    """Endless batches of (epoch, index), every epoch in an order of its own; starts anywhere.

    The order depends on the seed and the shares alone. Batch b of process `rank` is its share of
    the global batch b, so that `world` processes together see what one process would.

    With `shares` (`share_out`) every source has rounds of its own, all its photos once a round, and
    the key's epoch is the source's round: a small source has other crops every time.
    """

    length: int
    batch_size: int  # of this process
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0  # global batches to pass over
    shares: list[tuple[list[int], int]] | None = None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shares = self.shares or [(list(range(self.length)), self.length)]
        samples = sum(count for _, count in shares)
        position = self.start * self.batch_size * self.world + self.rank * self.batch_size
        epoch, keys = -1, []
        while True:
            batch = []
            for place in range(position, position + self.batch_size):
                if place // samples != epoch:
                    epoch = place // samples
                    keys = self._order(shares, epoch)
                batch.append(keys[place % samples])
            yield batch
            position += self.batch_size * self.world

    def _order(self, shares: list[tuple[list[int], int]], epoch: int) -> list[tuple[int, int]]:
        keys: list[tuple[int, int]] = []
        for number, (places, count) in enumerate(shares):
            for draw in range(epoch * count, (epoch + 1) * count):
                turn, place = divmod(draw, len(places))
                if count % len(places):  # whole rounds are shuffled below
                    if place == 0 or draw == epoch * count:
                        order = self._shuffle(len(places), turn, self.length + 1 + number)
                    place = order[place]
                keys.append((turn, places[place]))
        return [keys[i] for i in self._shuffle(len(keys), epoch, self.length)]

    def _shuffle(self, length: int, epoch: int, purpose: int) -> list[int]:
        # `purpose` is beyond the indices of samples, so that it shares no draw with any.
        generator = sample_generator(self.seed, epoch, purpose)
        return torch.randperm(length, generator=generator).tolist()

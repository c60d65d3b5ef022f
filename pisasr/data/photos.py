"""Stop one of training, HQ photo -> (x_L, x_H): choose, crop, mirror, degrade, with chance tied to
the sample alone.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pisasr.data.degradation import DegradationRecipe, degrade_one, sample_generator
from pisasr.data.sources import Photo, PhotoPair, read_list, read_manifest, read_sidecar
from pisasr.errors import PisasrError, UsageError
from pisasr.pictures.folders import EXTENSIONS, warn_of_foreign
from pisasr.pictures.images import open_image, split

log = logging.getLogger(__name__)

ATTEMPTS = (
    16  # photos asked for one sample before training stops: by then nearly all of them are bad
)


# --- which photos ---------------------------------------------------------------------------------


def list_photos(sources: Sequence[str]) -> list[Path]:
    """The files of `choose_photos`, all of them."""
    return [photo.path for photo in choose_photos(sources)]


def choose_photos(
    sources: Sequence[str], hq_fraction: float = 1.0, mix: Mapping[str, float] | None = None
) -> list[Photo]:
    """All photos of some folders (searched recursively), path lists (a path a line) and manifests
    (.jsonl).

    A folder with hq/ and lq/ in it holds pairs, and with teacher/ what another method made of lq;
    names are the same. `hq_fraction` keeps this share of them, the best by their manifest's score.
    `mix`, where given, has a weight for each source by name; a source of weight 0 is left out.
    """
    photos: list[Photo] = []
    for source in map(Path, sources):
        name = source.resolve().name
        if (source / "hq").is_dir() and (source / "lq").is_dir():
            photos += _pairs_in(source, name)
        elif source.is_dir():
            there = sorted(source.rglob("*"))
            warn_of_foreign(source, there)
            photos += [Photo(path, name) for path in there if path.suffix.lower() in EXTENSIONS]
        elif source.is_file() and source.suffix == ".jsonl":
            photos += [_from_row(row, source) for row in read_manifest(source)]
        elif source.is_file():
            photos += [Photo(path, source.stem) for path in read_list(source)]
        else:
            raise UsageError(
                f"data.photos: {source} does not exist; wanted a folder of photos, a list of paths or a manifest."
            )
    if mix:
        photos = _with_weight(photos, mix)
    if hq_fraction < 1:
        photos = keep_best(photos, hq_fraction)
    if not photos:
        raise UsageError(
            f"data.photos: no photos in {', '.join(sources)} (looked for {', '.join(EXTENSIONS)})."
        )
    return photos


def _pairs_in(folder: Path, name: str) -> list[Photo]:
    there = {side: sorted((folder / side).glob("*")) for side in ("hq", "lq", "teacher")}
    for side, files in there.items():
        warn_of_foreign(folder / side, files)
    sides = {
        side: {p.stem: p for p in files if p.suffix.lower() in EXTENSIONS}
        for side, files in there.items()
    }
    needed = ("lq", "teacher") if (folder / "teacher").is_dir() else ("lq",)
    for side in needed:
        if without := sorted(sides["hq"].keys() ^ sides[side].keys()):
            raise UsageError(
                f"data.photos: {folder} holds pairs, but {len(without)} of its pictures are only in one of hq and "
                f"{side}, like {without[0]}; take them out, or make the rest."
            )
    return [
        Photo(path, name, pair=PhotoPair(sides["lq"][stem], sides["teacher"].get(stem)))
        for stem, path in sides["hq"].items()
    ]


def _from_row(row: dict, manifest: Path) -> Photo:
    score = row.get("score")
    return Photo(
        path=manifest.parent / row["path"],
        source=str(row.get("source") or manifest.stem),
        caption=row.get("caption") or None,
        score=score if isinstance(score, (int, float)) else None,
    )


def _with_weight(photos: list[Photo], mix: Mapping[str, float]) -> list[Photo]:
    names = sorted({photo.source for photo in photos})
    if set(names) != set(mix):
        raise UsageError(
            f"data.mix has weights for {', '.join(mix)}; wanted one for each of {', '.join(names)}."
        )
    return [photo for photo in photos if mix[photo.source] > 0]


def keep_best(photos: list[Photo], fraction: float) -> list[Photo]:
    """The best-scored share of the photos, at least one, in their order; of equal ones the
    first.
    """
    if without := next((photo for photo in photos if photo.score is None), None):
        raise UsageError(
            f"data.hq_fraction={fraction:g} needs a score for every photo, {without.path} has none; "
            "make a manifest with scripts/prepare_data.py and name it in data.photos."
        )
    best = sorted(range(len(photos)), key=lambda i: -(photos[i].score or 0))[
        : max(1, round(fraction * len(photos)))
    ]
    return [photos[i] for i in sorted(best)]


def count_captions(photos: Iterable[Photo]) -> int:
    """How many photos have a caption, in PHOTO.txt or in the manifest. Looks into each folder
    once.
    """
    names: dict[Path, set[str]] = {}
    for folder in {photo.path.parent for photo in photos}:
        names[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sum(
        bool(photo.caption) or f"{photo.path.stem}.txt" in names[photo.path.parent]
        for photo in photos
    )


# --- pairs ----------------------------------------------------------------------------------------


@dataclass
class Photos(Dataset):
    """Pairs made on the fly. Asked for (epoch, index), not for an index: the same key gives the
    same pair, whichever worker or process asks, and however often training was interrupted before.

    A pair: {"x_H", "x_L": [3, crop_px, crop_px] in [-1, 1], "caption": str, "seed": int, "photo":
    str, "failed": str}. x_L is degraded to 1 / scale of the size and enlarged again by bicubic
    interpolation, as inference enlarges its input. The seed is for whatever else is drawn for this
    sample.

    A photo in `pairs` has its x_L given: both are cut at the same place. If all have a teacher's
    picture, samples have it too, as "x_T" like x_H.

    A photo that can't be used (unreadable, gone, too small) is replaced by another one, drawn for
    this key alone; "failed" tells `BadPhotos` so, as JSON {path: reason}, and is "" where all went
    well.
    """

    photos: list[Path]
    crop_px: int
    recipe: DegradationRecipe
    seed: int
    caption: str = ""  # for photos without one of their own
    keep_in_memory: bool = False
    captions: Mapping[Path, str] = field(
        default_factory=dict
    )  # from a manifest; PHOTO.txt goes before it
    pairs: Mapping[Path, PhotoPair] = field(default_factory=dict)
    _kept: dict[Path, list[Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.photos)

    @cached_property
    def taught(self) -> bool:
        """Whether every photo has a teacher's picture."""
        return all(path in self.pairs and self.pairs[path].teacher for path in self.photos)

    def check_usable(self) -> None:
        """UsageError where not one photo can be used; looks no further than the first that can."""
        first = ""
        for path in self.photos:
            try:
                self._read(path)
            except (PisasrError, OSError) as error:
                first = first or f"{path}: {error}"
            else:
                return
        raise UsageError(
            f"data.photos: none of {len(self.photos)} photos can be used, like {first}."
        )

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        path, levels, failed = self._find_usable(epoch, index)
        generator = sample_generator(self.seed, epoch, index)
        x_H, *given = random_crop(levels, self.crop_px, generator)
        x_L = (
            given[0].float() / 255
            if given
            else degrade_one(x_H.float() / 255, self.recipe, generator, by_place=True)
        )
        return {
            "x_H": to_range(x_H),
            "x_L": enlarge(x_L, self.crop_px),
            **({"x_T": to_range(given[1])} if self.taught else {}),
            "caption": read_sidecar(path) or self.captions.get(path) or self.caption,
            "seed": int(torch.randint(2**31, (), generator=generator)),
            "photo": str(path),
            "failed": json.dumps(failed) if failed else "",
        }

    def _find_usable(self, epoch: int, index: int) -> tuple[Path, list[Tensor], dict[str, str]]:
        """The photo of this key or, when it fails, the first of its replacements that doesn't; and
        what failed.
        """
        failed: dict[str, str] = {}
        generator = sample_generator(self.seed, epoch, -1 - index)  # negative: no sample's own
        for _ in range(ATTEMPTS):
            path = self.photos[index]
            try:
                return path, self._read(path), failed
            except (PisasrError, OSError) as error:
                failed[str(path)] = str(error)
            index = int(torch.randint(len(self.photos), (), generator=generator))
        raise PisasrError(
            f"{ATTEMPTS} photos in a row can't be used, like {path}: {failed[str(path)]}."
        )

    def _read(self, path: Path) -> list[Tensor]:
        """Levels of 255, uint8 [3, H, W]: the photo and, of a pair, lq and the teacher's picture.
        PisasrError if they don't fit each other or crop_px."""
        if path in self._kept:
            return self._kept[path]
        pair = self.pairs.get(path)
        files = [path, *filter(None, (pair.lq, pair.teacher))] if pair else [path]
        pictures = [split(open_image(file))[0] for file in files]
        width, height = pictures[0].size
        if min(width, height) < self.crop_px:
            raise PisasrError(
                f"it is {width}x{height}; wanted at least data.crop_px={self.crop_px} on each side"
            )
        wanted = [
            (width, height),
            (width // self.recipe.scale, height // self.recipe.scale),
            (width, height),
        ]
        for file, picture, size in zip(files, pictures, wanted, strict=False):
            if picture.size != size:
                raise PisasrError(
                    f"{file} is {'x'.join(map(str, picture.size))}; wanted {'x'.join(map(str, size))}"
                )
        levels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
        if self.keep_in_memory:
            self._kept[path] = levels
        return levels


def to_range(levels: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return levels.float() / 127.5 - 1


def enlarge(x_L: Tensor, side: int) -> Tensor:
    """x_L [3, h, w] in [0, 1] at side x side, in [-1, 1]: bicubic as Pillow's, and eight bits, as
    in inference.
    """
    x_L = torch.nn.functional.interpolate(
        x_L[None], size=(side, side), mode="bicubic", antialias=True
    )[0]
    return (x_L.clamp(0, 1) * 255).round() / 127.5 - 1


def random_crop(pictures: list[Tensor], size: int, generator: torch.Generator) -> list[Tensor]:
    """The same random piece of every picture of one scene, mirrored half of the time.

    pictures [3, H, W], of which the first is as large as any: size x size of its pixels, and of a
    smaller one, in proportion, fewer. With a smaller one among them the piece begins where its
    pixels do.
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
        pieces.append(
            (piece.flip(2) if mirror else piece).contiguous()
        )  # as decoded, colours come last
    return pieces


@dataclass
class BadPhotos:
    """Counts the photos that failed, names each once in the log, and stops training when they are
    too many.

    It belongs into the main process; workers send what failed with their samples.
    """

    total: int  # photos of the training set
    max_fraction: float  # of them; one is always forgiven, unless this is 0
    paths: set[str] = field(default_factory=set)

    def note(self, failed: Iterable[str]) -> None:
        """Take the "failed" of a batch. PisasrError once there are more bad photos than allowed."""
        for path, reason in (item for told in failed if told for item in json.loads(told).items()):
            if path not in self.paths:
                self.paths.add(path)
                log.warning("%s can't be used, another photo takes its place: %s", path, reason)
        allowed = max(1, int(self.max_fraction * self.total)) if self.max_fraction else 0
        if len(self.paths) > allowed:
            raise PisasrError(
                f"{len(self.paths)} of {self.total} photos can't be used, data.max_bad_fraction={self.max_fraction:g} "
                f"allows {allowed}; mend the set (scripts/prepare_data.py names the bad ones) or raise it."
            )


# --- in which order -------------------------------------------------------------------------------


def share_out(photos: Sequence[Photo], mix: Mapping[str, float]) -> list[tuple[list[int], int]]:
    """How many samples of an epoch come from each source: [(the places of its photos, its
    samples)], in mix's order.

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

    The order depends on the seed and the shares alone. Batch b of process `rank` holds its share of
    the global batch b, so that `world` processes together see what one process would.

    With `shares` (`share_out`) every source is gone through in rounds of its own, all its photos
    once a round, and the key's epoch is the source's round: a small source that comes up more often
    has other crops every time.
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
        """The keys of one epoch of the whole, shuffled."""
        keys: list[tuple[int, int]] = []
        for number, (places, count) in enumerate(shares):
            for draw in range(epoch * count, (epoch + 1) * count):
                turn, place = divmod(draw, len(places))
                if count % len(
                    places
                ):  # whole rounds need no order inside: they are shuffled below
                    if place == 0 or draw == epoch * count:
                        order = self._shuffle(len(places), turn, self.length + 1 + number)
                    place = order[place]
                keys.append((turn, places[place]))
        return [keys[i] for i in self._shuffle(len(keys), epoch, self.length)]

    def _shuffle(self, length: int, epoch: int, purpose: int) -> list[int]:
        """A permutation; `purpose` is beyond the indices of samples, so that it shares no chance
        with any.
        """
        return torch.randperm(
            length, generator=sample_generator(self.seed, epoch, purpose)
        ).tolist()

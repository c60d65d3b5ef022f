"""Infer, turned by hand, first half: the desk on which pictures lie open. All that the page does,
without the page.

file -> look (encode, both UNet passes, once) -> open on the desk -> show at any strengths -> HQ
file
"""

import base64
import binascii
import io
import secrets
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from pisasr.errors import PisasrError
from pisasr.evaluation.rules import EXAMPLE, Choice, parse_rule, pick
from pisasr.evaluation.scoring import load_scorers, score_each
from pisasr.options import Options
from pisasr.pictures.frames import plan_frame
from pisasr.pictures.images import Picture, eight_bits, join, open_image, open_picture
from pisasr.pictures.maps import check_proportions
from pisasr.pictures.metadata import Metadata, made_with
from pisasr.pipeline import Looked, PiSASRPipeline

CORNERS = (
    (0.0, 0.0),
    (1.0, 0.0),
    (0.0, 1.0),
    (1.0, 1.0),
)  # what a preview is mixed from, in the order of viewer.js
PREVIEW_PX = 768  # the longer side of what is mixed while a knob moves
GRID = (0.0, 0.5, 1.0, 1.5)  # both strengths' candidates for `choose`, as in the page's sheet
MAX_MASK_BYTES = 8 * 2**20

Step = Callable[[int, int], None]  # (done, all)


@dataclass(frozen=True)
class Limits:
    """What the desk takes. Pixels of an input and of a result; bytes held for all users; seconds a
    picture may lie.
    """

    input_pixels: int = 16_000_000
    output_pixels: int = 64_000_000
    held_bytes: int = 2 * 2**30
    idle_s: float = 3600


@dataclass(frozen=True)
class Wish:
    """What is settled before a picture is looked at. long_side, in pixels of the result, rules over
    upscale.

    working_size: the most that the model works on, in megapixels of the result, as for the
    pipeline; None is no limit.
    """

    upscale: float = 4
    long_side: int | None = None
    prompt: str = ""
    working_size: float | None = None

    def factor(self, size: tuple[int, int]) -> float:
        """By how much a picture of this (width, height) is enlarged; PisasrError where that would
        be a reduction.
        """
        if self.long_side is None:
            return self.upscale
        if self.long_side < max(size):
            raise PisasrError(
                f"the picture is {max(size)} px long, {self.long_side} px are asked for; ask for more"
            )
        return self.long_side / max(size)


@dataclass(frozen=True)
class Finish:
    """What happens behind the decoder, as for the pipeline: which colours, and whether the photo is
    held to.
    """

    color_fix: Any = None
    consistent: bool = False


@dataclass(frozen=True)
class Strengths:
    """What the knobs say. mask [h, w] in [0, 1], of the picture's proportions: the place where the
    other pair rules.

    feather: how softly the place ends, the standard deviation of a blur in pixels of the result.
    """

    pix: float = 1.0
    sem: float = 1.0
    inside_pix: float = 1.0
    inside_sem: float = 1.0
    feather: float = 0.0
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        numbers = {"lambda_pix": self.pix, "lambda_sem": self.sem, "inside_pix": self.inside_pix}
        for name, given in (
            numbers | {"inside_sem": self.inside_sem, "feather": self.feather}
        ).items():
            number: Any = given  # a script may send anything
            if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
                raise PisasrError(f"{name} is {number!r}; it must be a finite number")

    def lambdas(self, width: int) -> tuple[Any, Any]:
        """(lambda_pix, lambda_sem) as the pipeline takes them: numbers, or maps [h, w]. width: of
        the result.

        PisasrError where the edge is softer than the picture is long: far beyond, Pillow's blur
        ends the process.
        """
        if (
            self.mask is None
            or not self.mask.any()
            or (self.pix, self.sem) == (self.inside_pix, self.inside_sem)
        ):
            return self.pix, self.sem
        place = self.mask
        radius = self.feather * place.shape[1] / width
        if not 0 <= radius <= max(place.shape):
            raise PisasrError(
                f"feather is {self.feather}; it must be from 0 to the result's longer side, in pixels"
            )
        if radius > 0:
            levels = Image.fromarray(np.rint(place * 255).astype(np.uint8))
            place = np.asarray(levels.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
        outside = 1 - place
        return (
            outside * self.pix + place * self.inside_pix,
            outside * self.sem + place * self.inside_sem,
        )

    @property
    def told(self) -> dict[str, Any]:
        """For a file's metadata."""
        told = {"lambda_pix": self.pix, "lambda_sem": self.sem}
        if self.mask is None:
            return told
        return told | {
            "inside_pix": self.inside_pix,
            "inside_sem": self.inside_sem,
            "feather": self.feather,
        }

    @property
    def words(self) -> str:
        """For a file's name: pix1_sem0.7, with a mark where a place has its own."""
        return f"pix{self.pix:.3g}_sem{self.sem:.3g}" + ("_mask" if self.mask is not None else "")


@dataclass
class Opened:
    """One picture on the desk. path: where it came from; folder: its own files, gone when it
    leaves; result: what was shown last, and how.
    """

    key: str
    path: Path
    picture: Picture
    wish: Wish
    looked: Looked
    size: tuple[int, int]
    folder: TemporaryDirectory
    result: Image.Image | None = None
    strengths: Strengths = field(default_factory=Strengths)
    finish: Finish = Finish()

    def save(self, image: Image.Image, name: str, **options: Any) -> Path:
        """A picture for the browser, in its folder: PNG unless the options say otherwise."""
        path = Path(self.folder.name, name)
        image.save(path, **{"format": "PNG", "compress_level": 1, **options})
        return path

    @property
    def held_bytes(self) -> int:
        """What it keeps in memory: latents, the picture as it came and as it was padded, a result
        in colour.
        """
        tensors = [value for value in vars(self.looked).values() if hasattr(value, "nbytes")]
        return (
            self.picture.pixels.nbytes
            + sum(tensor.nbytes for tensor in tensors)
            + 3 * self.size[0] * self.size[1]
        )


class Store:
    """key -> what is open, bounded in bytes and in idle seconds; the one unused for longest leaves
    first.

    Keys can't be guessed, and no user is handed another's. Safe among threads.
    """

    def __init__(self, held_bytes: int, idle_s: float, clock: Callable[[], float] = time.monotonic):
        self._held_bytes, self._idle_s, self._clock = held_bytes, idle_s, clock
        self._open: OrderedDict[str, tuple[float, Opened]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, opened: Opened) -> None:
        """Lay a picture on the desk, and clear away what is too old or too much; the newest always
        stays.
        """
        with self._lock:
            now = self._clock()
            self._open[opened.key] = now, opened
            held = sum(one.held_bytes for _, one in self._open.values())
            for key, (used, one) in list(self._open.items())[:-1]:
                if held > self._held_bytes or now - used > self._idle_s:
                    held -= one.held_bytes
                    self._clear(key)

    def get(self, key: str | None) -> Opened:
        """What lies under a key; PisasrError where nothing does, any more."""
        with self._lock:
            if key is None:
                raise PisasrError("no picture is open; drop one first")
            if key in self._open and self._clock() - self._open[key][0] > self._idle_s:
                self._clear(key)
            if key not in self._open:
                raise PisasrError("this picture was put away to make room; drop it again")
            opened = self._open[key][1]
            self._open[key] = self._clock(), opened
            self._open.move_to_end(key)
            return opened

    def find(self, key: str | None) -> Opened | None:
        """What lies under a key, None where nothing does."""
        try:
            return self.get(key)
        except PisasrError:
            return None

    def drop(self, key: str | None) -> None:
        """Put a picture away; nothing happens where it is gone already."""
        with self._lock:
            if key is not None and key in self._open:
                self._clear(key)

    def __len__(self) -> int:
        return len(self._open)

    def _clear(self, key: str) -> None:
        self._open.pop(key)[1].folder.cleanup()


class Bar:
    """A progress bar that nobody sees: it tells `step`."""

    def __init__(self, total: int, step: Step):
        self.n, self.total, self.step = 0, total, step

    def update(self, count: int) -> None:
        """Some more are done."""
        self.n += count
        self.step(self.n, self.total)

    def close(self) -> None:
        """All are done."""


class Desk:
    """The model, one piece of work at a time, and the pictures that lie open. All methods may be
    called by any thread.

    weights: of metrics, as for `load_scorers`. takes_prompts: whether words mean something to the
    model. process_size: as for the pipeline, the short side up to which small pictures are enlarged
    first. Raises PisasrError, ValueError and out of memory, which `errors.explain` turns into a
    line.
    """

    def __init__(
        self,
        pipe: PiSASRPipeline,
        limits: Limits = Limits(),
        weights: Path | None = None,
        takes_prompts: bool = True,
        process_size: int = 512,
    ):
        self.pipe, self.limits, self.weights = pipe, limits, weights
        self.takes_prompts, self.process_size = takes_prompts, process_size
        self.store = Store(limits.held_bytes, limits.idle_s)
        self._device = threading.Lock()

    def read(self, path: str | Path) -> Picture:
        """A file as a picture, within the limits; ImageError, one line, for anything else."""
        return open_picture(path, self.limits.input_pixels)

    def forecast(self, size: tuple[int, int], wish: Wish) -> str:
        """One line, before any work: what comes out, in how many tiles, and how much memory that
        takes.
        """
        options = self._options(wish, self._factor(size, wish))
        forecast, output = (
            self.pipe.plan(size, **options),
            plan_frame(*size, options["upscale"]).output,
        )
        result = f"{output[0]} × {output[1]} px"
        return f"{size[0]} × {size[1]} → {result}; the model sees {forecast} of memory"

    def open(
        self, path: str | Path, wish: Wish, step: Step | None = None, former: Opened | None = None
    ) -> Opened:
        """Encode a picture and make both predictions, once; it lies on the desk until it is dropped
        or too old.

        step: told (done, all) of the UNet's tiles, where there are several. former: what lies open
        so far; if it is the same picture with the same wish, it need not be looked at again.
        """
        if former is not None and (former.path, former.wish) == (Path(path), wish):
            picture, looked = former.picture, former.looked
            factor = wish.factor(picture.size)
        else:
            picture = self.read(path)
            factor = self._factor(picture.size, wish)
            with self._device, self._watched(step):
                looked = self.pipe.look(picture, **self._options(wish, factor))
        width, height = picture.size
        size = round(width * factor), round(height * factor)
        folder = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        opened = Opened(secrets.token_urlsafe(16), Path(path), picture, wish, looked, size, folder)
        self.store.put(opened)
        return opened

    def show(self, opened: Opened, strengths: Strengths, finish: Finish = Finish()) -> Image.Image:
        """The exact picture at these strengths: mixed and decoded, no UNet. It is what a download
        holds.
        """
        result = self._mix(opened, strengths.lambdas(opened.size[0]), finish)
        opened.result, opened.strengths, opened.finish = result, strengths, finish
        return result

    def deep(self, opened: Opened) -> np.ndarray:
        """What was shown last, in sixteen bits: uint16 [H, W, C]. One decode more."""
        return self._mix(opened, opened.strengths.lambdas(opened.size[0]), opened.finish, "uint16")

    def corners(self, opened: Opened, finish: Finish = Finish()) -> Iterator[Image.Image]:
        """The results at CORNERS, no larger than a preview."""
        for pair in CORNERS:
            result = self._mix(opened, pair, finish).convert("RGB")
            result.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BOX)
            yield result

    def choose(
        self,
        opened: Opened,
        finish: Finish = Finish(),
        rule: str = EXAMPLE,
        step: Step | None = None,
    ) -> Choice:
        """The pair of GRID that a rule calls best for this picture; PisasrError where its metrics
        can't be had.
        """
        wanted = parse_rule(rule)
        scorers, missing = load_scorers(wanted.metrics, weights=self.weights)
        if missing:
            raise PisasrError("; ".join(f"no {name} here: {why}" for name, why in missing.items()))
        pairs = [(pix, sem) for pix in GRID for sem in GRID]

        def results() -> Iterator[Image.Image]:
            for done, pair in enumerate(pairs):
                if step is not None:
                    step(done, len(pairs))
                yield self._mix(opened, pair, finish)

        return pick(wanted, score_each(pairs, results(), opened.picture, scorers))[0]

    def repair(
        self,
        picture: Picture,
        strengths: Strengths,
        wish: Wish,
        finish: Finish = Finish(),
        bits: int = 8,
    ) -> Image.Image | np.ndarray:
        """One picture from end to end, nothing of it kept; of 16 bits as uint16 [H, W, C]."""
        factor = self._factor(picture.size, wish)
        pix, sem = strengths.lambdas(round(factor * picture.size[0]))
        options = self._options(wish, factor) | asdict(finish)
        with self._device:
            return self.pipe(
                picture, pix, sem, output_type="uint16" if bits == 16 else "pil", **options
            ).images[0]

    @contextmanager
    def _watched(self, step: Step | None) -> Iterator[None]:
        """Let the pipeline's progress bar, in the block, be one that tells `step`."""
        if step is not None:
            self.pipe.progress_bar = lambda total: Bar(total, step)
        try:
            yield
        finally:
            if step is not None:
                del self.pipe.progress_bar

    def metadata(
        self,
        picture: Picture,
        strengths: Strengths,
        wish: Wish,
        finish: Finish = Finish(),
        keep: bool = False,
    ) -> Metadata:
        """What a result's file tells: model, strengths and settings; keep: and what the input's
        file told.
        """
        factor = wish.factor(picture.size)
        told = strengths.told | {
            "upscale": factor,
            "prompt": wish.prompt,
            "working_size": wish.working_size,
        }
        return Metadata(
            made_with(self.pipe.identity, told | asdict(finish)), picture.exif if keep else None
        )

    def _mix(
        self, opened: Opened, lambdas: tuple[Any, Any], finish: Finish, output_type: Any = "pil"
    ) -> Any:
        with self._device:
            return self.pipe.mix(opened.looked, *lambdas, output_type=output_type, **asdict(finish))

    def _options(self, wish: Wish, factor: float) -> dict[str, Any]:
        settings = {
            "process_size": self.process_size,
            "working_size": wish.working_size,
            "prompt": wish.prompt,
        }
        return {"upscale": factor, **settings}

    def _factor(self, size: tuple[int, int], wish: Wish) -> float:
        factor = wish.factor(size)
        Options(upscale=factor)  # a script may ask for anything
        pixels, most = factor * size[0] * (factor * size[1]), self.limits.output_pixels
        if pixels > most:
            raise PisasrError(
                f"the result would have {pixels / 1e6:.0f} million pixels, this page makes up to {most / 1e6:.0f}; "
                "choose a smaller size, or use `pisasr infer`"
            )
        return factor


def input_image(picture: Picture) -> Image.Image:
    """The input as a browser can show it, at eight bits."""
    return eight_bits(join(picture.pixels, picture))


def read_mask(text: str) -> np.ndarray | None:
    """A mask as the browser sends it, a grey PNG in a data URL: [h, w] in [0, 1], None for an empty
    text.

    PisasrError, one line, for anything else: what comes from a browser may have been written by
    anybody.
    """
    if not text:
        return None
    head, _, data = text.partition(",")
    if head != "data:image/png;base64" or len(data) > MAX_MASK_BYTES:
        raise PisasrError("the painted place did not arrive as a PNG; clear it and paint again")
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]
        ) as image:
            if image.width * image.height > PREVIEW_PX**2:
                raise PisasrError(
                    f"a mask of {image.width}x{image.height} came, {PREVIEW_PX} px a side are the most"
                )
            return np.asarray(image.convert("L"), np.float32) / 255
    except (binascii.Error, OSError, ValueError, SyntaxError):
        raise PisasrError("the painted place arrived broken; clear it and paint again") from None


def mask_image(path: str | Path, limits: Limits, picture: Picture) -> Image.Image:
    """A mask from a file, grey, no larger than a preview; white is the place. ImageError as for any
    picture, ValueError where it is of other proportions than the picture whose mask it is.
    """
    image = open_image(path, limits.input_pixels).convert("L")
    check_proportions("mask", np.asarray(image), picture.size)
    image.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BOX)
    return image


# --- many pictures --------------------------------------------------------------------------------


def pack(folder: Path, target: Path) -> Path:
    """All finished files of a folder as one zip; pictures are compressed already, so it only
    gathers them.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(
            folder.glob("[!.]*")
        ):  # a name that begins with a dot is still being written
            archive.write(path, path.name)
    return target

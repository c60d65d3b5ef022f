"""Open pictures, predict what is looked at, mix it at any strengths: the page without the page."""

import base64
import binascii
import io
import math
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pisasr.errors import PisasrError, explain
from pisasr.options import Options
from pisasr.pictures.frames import finish, plan_frame, prepare
from pisasr.pictures.images import Picture, as_image, eight_bits, join, open_picture, to_levels
from pisasr.pictures.metadata import Metadata, made_with
from pisasr.pictures.saving import save_image
from pisasr.pipeline import PiSASRPipeline, Prediction

FACTORS = (4, 3, 2, 1)  # the first one whose result fits is chosen for a photo
MAX_INPUT_PIXELS, MAX_OUTPUT_PIXELS = 50_500_000, 64_000_000
MAX_STRENGTH = 1.5
MAX_HELD_BYTES = 2 * 2**30  # of open pictures, for all users
MAX_MASK_BYTES = 8 * 2**20
IDLE_S = 3600  # after so many seconds, pictures and files are deleted
FORMATS = {"PNG": ".png", "PNG16": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}

CELL = 8  # pixels of the photo: what is done is noted for squares of this side
SMALL_PX = 1024  # the longer side of the small picture that stands for the whole
# In pixels that the model works on. A box of what is seen is with its margins at most 4.2 pictures
# of 512 x 512, and of a view of 900 x 600 at 4 times 3.8; half the margin would make that 2.9, and
# double what lies beyond it moves the embedded model's result by: 0.4 levels on average.
SEEN_PX, REST_PX, MARGIN_PX, AT_ONCE_PX = (960, 640), (1024, 1024), 128, 3 * 512**2
ONE = 64  # a level in the planes' whole numbers
OF_THE_PIPELINE = ("lambda_pix", "lambda_sem", "upscale", "color_fix", "prompt")  # settings
PREDICTED = ("upscale", "color_fix", "prompt", "model")  # settings that a prediction depends on

Mask = np.ndarray | None  # [h, w] in [0, 1], over the whole picture


class Box(NamedTuple):
    """A rectangle: columns x .. x + w, rows y .. y + h."""

    x: int
    y: int
    w: int
    h: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its (rows, columns)."""
        return slice(self.y, self.y + self.h), slice(self.x, self.x + self.w)

    def times(self, factor: int) -> "Box":
        """The same place in a picture enlarged by a factor."""
        return Box(*(factor * number for number in self))

    def over(self, side: int) -> "Box":
        """The squares of this side that it touches, in such squares."""
        x, y = self.x // side, self.y // side
        return Box(x, y, -(-(self.x + self.w) // side) - x, -(-(self.y + self.h) // side) - y)

    def meet(self, other: "Box") -> "Box":
        """What two boxes share; of no size where that is nothing."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        w = min(self.x + self.w, other.x + other.w) - x
        h = min(self.y + self.h, other.y + other.h) - y
        return Box(x, y, max(w, 0), max(h, 0))


@dataclass(frozen=True)
class Settings:
    """Everything that a user chooses for a picture, checked.

    inside_pix, inside_sem: the strengths inside a mask. feather: the width of its edge, for
    viewer.js. upscale: None is the largest of FACTORS that fits. model: the name of a folder, ""
    for the model that the page was started with. PNG16 has sixteen bits a channel.
    """

    lambda_pix: float = 1.0
    lambda_sem: float = 1.0
    inside_pix: float = 1.0
    inside_sem: float = 0.0
    feather: float = 8.0
    upscale: float | None = None
    color_fix: Any = Options.color_fix
    prompt: str = ""
    model: str = ""
    format: str = "PNG"
    keep_exif: bool = False

    def __post_init__(self) -> None:
        for name in ("lambda_pix", "lambda_sem", "inside_pix", "inside_sem"):
            number: Any = getattr(self, name)
            if not isinstance(number, int | float) or not 0 <= number <= MAX_STRENGTH:
                raise PisasrError(f"{name} is {number!r}; it must be from 0 to {MAX_STRENGTH}")
        if self.format not in FORMATS:
            raise PisasrError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        upscale = 1 if self.upscale is None else self.upscale
        Options(upscale=upscale, color_fix=self.color_fix, prompt=self.prompt)

    def fitted(self, size: tuple[int, int]) -> "Settings":
        """The same with a factor for a picture of this size; PisasrError where it doesn't fit."""
        if self.upscale is None:
            fits = (f for f in FACTORS if f * f * size[0] * size[1] <= MAX_OUTPUT_PIXELS)
            return replace(self, upscale=next(fits, 1))
        if (made := self.upscale * size[0] * (self.upscale * size[1])) > MAX_OUTPUT_PIXELS:
            words = f"{made / 1e6:.0f} million pixels, the limit is {MAX_OUTPUT_PIXELS / 1e6:g}"
            raise PisasrError(f"the result would have {words}; choose a smaller factor")
        return self

    def strengths(self, mask: Mask) -> tuple[Any, Any]:
        """(lambda_pix, lambda_sem): numbers, or maps [h, w] where a mask in [0, 1] counts."""
        outside, inside = (self.lambda_pix, self.lambda_sem), (self.inside_pix, self.inside_sem)
        if mask is None or not mask.any() or outside == inside:
            return outside
        pix, sem = (a + mask * (b - a) for a, b in zip(outside, inside, strict=True))
        return pix, sem

    def file_name(self, stem: str, masked: bool = False) -> str:
        """The name of a saved result: photo_pix1_sem0.7.png."""
        parts = [stem, f"pix{self.lambda_pix:.3g}", f"sem{self.lambda_sem:.3g}"]
        parts += ["mask"] * masked + ["16bit"] * (self.format == "PNG16")
        return "_".join(parts) + FORMATS[self.format]


class Turns:
    """Lend the device to one thread at a time, in the order in which they ask."""

    def __init__(self) -> None:
        self._changed, self._next, self._served = threading.Condition(), 0, 0
        self.is_closed = False  # work ends at its next tile

    def __enter__(self) -> None:
        with self._changed:
            mine, self._next = self._next, self._next + 1
            self._changed.wait_for(lambda: mine == self._served)

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()

    def is_idle(self) -> bool:
        """Tell whether nobody has it and nobody waits."""
        return self._next == self._served


@dataclass
class Job:
    """Somebody's wish: news for them, and whether they still want it."""

    device: Turns
    news: deque[dict[str, Any]] = field(default_factory=deque)
    is_stopped: bool = False
    is_over: bool = False

    def on_tile(self, done: int = 0, total: int = 0) -> None:
        """Let others have a turn between two tiles; CancelledError if nobody waits."""
        self.device.__exit__()
        self.device.__enter__()
        if self.is_stopped or self.device.is_closed:
            raise CancelledError("stopped")


@dataclass
class OpenPicture:
    """A photo at its settings, and what is known of its result.

    planes int16 [2, H, W, 3] in 1/64 of a level: a result is the enlarged photo + lambda_pix *
    planes[0] + lambda_sem * planes[1]. small [3, h, w, 3]: photo and planes by the mean of `step`
    pixels a side. done: of each cell of the photo. mixes: whether the sum is the result; of other
    bases it stands in while a knob moves, and `part`, what is seen or the whole, is decoded.
    working: the factor that the model works at. least: a photo with a side below is not cut.
    """

    name: str
    picture: Picture
    settings: Settings
    pipe: PiSASRPipeline
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    boxes: list[Box] = field(default_factory=list)  # of the result, that are done
    part: tuple[Box, Box, Prediction] | None = None  # its box of the photo, with margin, predicted
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        (width, height), config = self.picture.size, self.pipe.config
        f = self.factor = int(self.settings.upscale or 1)
        self.asked = {"upscale": f, "prompt": self.settings.prompt}  # of the pipeline
        color_fix = self.settings.color_fix or config.color_fix
        self.mixes = getattr(self.pipe.vae, "is_linear", False) and color_fix != "adain"
        self.working = config.native_upscale or f
        self.least = int(config.process_size // self.working)
        self.photo = Box(0, 0, width, height)
        self.size = wide, high = width * f, height * f  # of the result
        self.planes = np.zeros((2, high, wide, 3), np.int16)  # takes memory where it is written
        self.cells = self.photo.over(CELL)
        self.done = np.zeros(self.cells[:1:-1], bool)
        self.step = -(-max(self.size) // SMALL_PX)
        *_, w, h = Box(0, 0, wide, high).over(self.step)
        self.small = np.zeros((3, h, w, 3), np.int16)
        photo = eight_bits(self.picture.pixels).resize((w, h), Image.Resampling.BOX)
        self.small[0] = np.asarray(photo, np.int16) * ONE
        self.margin = -(-int(MARGIN_PX / self.working) // CELL) * CELL  # around a box, of the photo
        # Predicted as one, where that is no more work than a box with its margins.
        work = width * height * self.working**2
        self.is_small = min(width, height) < self.least or work <= AT_ONCE_PX

    def is_whole(self) -> bool:
        """Tell whether all of the result can be saved."""
        return bool(self.done.all()) if self.mixes else (self.part or [None])[0] == self.photo

    def held_bytes(self) -> int:
        """Memory of the photo and of what is done."""
        tensors = sum(tensor.nbytes for tensor in self.part[2].tensors) if self.part else 0
        made = 12 * int(self.done.sum()) * (CELL * self.factor) ** 2
        return self.picture.pixels.nbytes + self.small.nbytes + made + tensors

    def to_do(self, view: Box | None = None) -> list[Box]:
        """Boxes of cells that cover what is missing of a view of the result, the middle first.

        They are few and of a size. Without a view, of all. Of a base that doesn't mix what is seen
        is one box, as large as they may be.
        """
        sides = SEEN_PX if view else REST_PX
        wide, high = (max(int(px / self.working) // CELL, 1) for px in sides)
        if self.is_small or self.is_whole():
            return [] if self.is_whole() else [self.cells]
        seen = self.cells if view is None else self.cells.meet(view.over(CELL * self.factor))
        if view is not None and not self.mixes:
            w, h = min(seen.w, wide), min(seen.h, high)
            box = Box(seen.x + (seen.w - w) // 2, seen.y + (seen.h - h) // 2, w, h)
            is_there = self.part and self.part[0] == box.times(CELL).meet(self.photo)
            return [] if is_there or w * h == 0 else [box]
        x, y, w, h = seen = self.missing(seen)
        across, down = -(-w // wide), -(-h // high)
        edges = [(x + w * i // across, x + w * (i + 1) // across) for i in range(across)]
        tiers = [(y + h * i // down, y + h * (i + 1) // down) for i in range(down)]
        boxes = (Box(a, b, end - a, low - b) for b, low in tiers for a, end in edges)
        found = [box for box in map(self.missing, boxes) if box.w]
        middle = x + w / 2, y + h / 2
        return sorted(found, key=lambda b: math.dist((b.x + b.w / 2, b.y + b.h / 2), middle))

    def missing(self, box: Box) -> Box:
        """The part of a box of cells that holds what of it is not done; empty where all is."""
        todo = ~self.done[box.slices]
        if not todo.any():
            return Box(box.x, box.y, 0, 0)
        (x, right), (y, low) = (np.flatnonzero(todo.any(axis))[[0, -1]].tolist() for axis in (0, 1))
        return Box(box.x + x, box.y + y, right + 1 - x, low + 1 - y)

    def around(self, box: Box, margin: int) -> Box:
        """A box of the photo with a margin, in the photo, and no side below `least`."""
        *_, width, height = self.photo
        if min(width, height) < self.least:
            return self.photo
        grown = Box(box.x - margin, box.y - margin, box.w + 2 * margin, box.h + 2 * margin)
        x, y, w, h = grown.meet(self.photo)
        w, h = max(w, self.least), max(h, self.least)
        return Box(min(x, width - w), min(y, height - h), w, h)

    def write(self, box: Box, planes: np.ndarray) -> None:
        """Put planes [2, h, w, 3] to a box of the photo, where none are: what is seen stays."""
        made, k, side = box.times(self.factor), self.step, CELL * self.factor
        cells = box.over(CELL).slices
        todo = (~self.done[cells]).repeat(side, 0).repeat(side, 1)[: made.h, : made.w]
        self.planes[:, *made.slices][:, todo] = planes[:, todo]
        touched = made.over(k)
        parts = self.read(touched.times(k))
        padding = ((0, 0), (0, -parts.shape[1] % k), (0, -parts.shape[2] % k), (0, 0))
        blocks = np.pad(parts, padding, mode="edge").reshape(3, touched.h, k, touched.w, k, 3)
        self.small[:, *touched.slices] = np.rint(blocks.mean(axis=(2, 4)))
        self.boxes.append(made)
        self.done[cells] = True

    def read(self, box: Box) -> np.ndarray:
        """The enlarged photo and both planes, int16 [3, h, w, 3], of a box of the result."""
        box, f = box.meet(Box(0, 0, *self.size)), self.factor
        outer = self.around(box.over(f), CELL)
        cut = Box(box.x - outer.x * f, box.y - outer.y * f, box.w, box.h).slices
        return np.stack([self.enlarged(outer)[cut], *self.planes[:, *box.slices]])

    def enlarged(self, box: Box) -> np.ndarray:
        """A box of the photo as the result's colors are matched to it: int16 [h, w, 3]."""
        native, least = self.pipe.config.native_upscale, int(self.least * self.working)
        frame = plan_frame(box.w, box.h, self.factor, least, native_upscale=native)
        pixels = prepare(self.picture.pixels[box.slices], frame)
        unit = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels
        return np.rint(finish(unit, frame) * (255 * ONE)).astype(np.int16)

    def mix(self, settings: Settings, mask: Mask, box: Box) -> np.ndarray:
        """The result in levels, float64 [h, w, 3] in [0, 255]: what viewer.js computes."""
        photo, by_pix, by_sem = self.read(box).astype(np.float64)
        place = None if mask is None else sample(mask, self.size, box)[..., None]
        pix, sem = settings.strengths(place)
        return ((photo + pix * by_pix + sem * by_sem) / ONE).clip(0, 255)


def sample(mask: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """A mask [h, w] over a picture of this size at the pixels of a box, bilinear, as viewer.js."""
    for axis, (start, count) in enumerate(((box.y, box.h), (box.x, box.w))):
        cells = np.arange(mask.shape[axis])
        at = (np.arange(start, start + count) + 0.5) * len(cells) / size[1 - axis] - 0.5
        mask = np.apply_along_axis(partial(np.interp, at, cells), axis, mask)
    return mask


class Store:
    """Open pictures by keys that can't be guessed, bounded in bytes. Safe among threads.

    The least recently used leaves first, and those that nobody has asked for in IDLE_S.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES):
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._pictures: dict[str, OpenPicture] = {}

    def put(self, opened: OpenPicture) -> None:
        """Add a picture, or name it the last used, and drop what is too much but for this."""
        with self._lock:
            self._pictures.pop(opened.key, None)
            held, opened.used = opened.held_bytes(), time.monotonic()
            for key, one in reversed(list(self._pictures.items())):
                held += one.held_bytes()
                if held > self._max_bytes or opened.used - one.used > IDLE_S:
                    del self._pictures[key]
            self._pictures[opened.key] = opened

    def get(self, key: str) -> OpenPicture:
        """The picture of a key; PisasrError where there is none any more."""
        if (opened := self._pictures.get(key)) is None:
            raise PisasrError("the picture is not open any more; open it again")
        self.put(opened)
        return opened

    def drop(self, key: str) -> None:
        """Close a picture, if it is open."""
        self._pictures.pop(key, None)


class Session:
    """Models and the pictures that are open, for all users; one thing is computed at a time.

    others: names of further models, and what loads them. All methods may be called by any thread.
    They raise PisasrError, ValueError, TypeError and out of memory.
    """

    def __init__(
        self,
        pipe: PiSASRPipeline,
        others: Sequence[str] = (),
        load: Callable[[str], PiSASRPipeline] | None = None,
    ):
        self.pipe, self.others = pipe, tuple(others)
        self._load, self._loaded = load, ("", pipe)
        self.store, self.device = Store(), Turns()
        self.seconds_per_px: float | None = None  # of what the model works on, measured
        self._temporary = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)

    def model(self, name: str) -> PiSASRPipeline:
        """The model of a name; of the others one is held at a time."""
        if name and name not in self.others:
            raise PisasrError(f"there is no model {name!r}; there are {', '.join(self.others)}")
        if name and self._loaded[0] != name:
            with self.device:
                if self._loaded[0] != name and self._load is not None:
                    self._loaded = name, self._load(name)
        return self._loaded[1] if name else self.pipe

    def result_folder(self) -> Path:
        """A folder for results; others that have idled too long are deleted."""
        for other in self.folder.glob("result-*"):
            if time.time() - other.stat().st_mtime > IDLE_S:
                shutil.rmtree(other, ignore_errors=True)
        return Path(mkdtemp(prefix="result-", dir=self.folder))

    def close(self, patience_s: float = 10) -> bool:
        """Stop all work between two tiles; tell whether the device came to rest."""
        end, self.device.is_closed = time.monotonic() + patience_s, True
        while time.monotonic() < end and not self.device.is_idle():
            time.sleep(0.05)
        self._temporary.cleanup()
        return self.device.is_idle()

    # --- one picture ------------------------------------------------------------------------------

    def open(self, photo: str | Path | Picture, settings: Settings, name: str) -> OpenPicture:
        """Open a photo at its settings; nothing is predicted yet."""
        picture = photo if isinstance(photo, Picture) else open_picture(photo, MAX_INPUT_PIXELS)
        settings = settings.fitted(picture.size)
        if settings.upscale != int(settings.upscale or 1):
            raise PisasrError(f"upscale is {settings.upscale}; on the page it is a whole number")
        opened = OpenPicture(name, picture, settings, self.model(settings.model))
        self.store.put(opened)
        return opened

    def start(self, opened: OpenPicture, view: Box, whole: bool = False) -> Job:
        """Begin `look` in a thread of its own."""
        job = Job(self.device)

        def run() -> None:
            try:
                self.look(opened, view, whole, job)
            except Exception as error:
                job.news.append({"error": explain(error)})
            job.is_over = True

        threading.Thread(target=run, daemon=True).start()
        return job

    def look(self, opened: OpenPicture, view: Box, whole: bool, job: Job) -> None:
        """Predict what is missing of a view of the result, from its middle on; and of the whole.

        The job's news have the box that is done and the state of the whole.
        """
        wanted = opened.to_do(view.meet(Box(0, 0, *opened.size)))
        wanted += opened.to_do() if whole and opened.mixes else []
        for cells in wanted:
            with self.device:
                job.on_tile()
                if opened.mixes and (cells := opened.missing(cells)).w == 0:
                    continue  # done by another job meanwhile
                box = self._predict(opened, cells, job)
            self.store.get(opened.key)  # it may be closed meanwhile, or have grown too large
            job.news.append({"box": box, **self.state(opened)})
        if whole and not opened.is_whole():
            started = time.perf_counter()

            def on_tile(done: int, total: int) -> None:
                left_s = (time.perf_counter() - started) / done * (total - done)
                job.news.append({"left_s": left_s, "part": done / total, "whole": False})
                job.on_tile()

            with self.device:
                made = opened.pipe.predict(Picture(opened.picture.pixels), on_tile, **opened.asked)
                opened.part = opened.photo, opened.photo, made
        job.news.append(self.state(opened))

    def state(self, opened: OpenPicture) -> dict[str, Any]:
        """How far the whole is, and how many seconds it takes yet; None if not known yet."""
        seen = [opened.around(cells.times(CELL), opened.margin) for cells in opened.to_do()]
        px = sum(box.w * box.h for box in seen) * opened.working**2
        seconds = self.seconds_per_px and self.seconds_per_px * px
        return {"left_s": seconds, "part": float(opened.done.mean()), "whole": opened.is_whole()}

    def _predict(self, opened: OpenPicture, cells: Box, job: Job) -> Box:
        """Predict these cells in their surroundings and write their planes. For who has a turn."""
        inner = cells.times(CELL).meet(opened.photo)
        outer = opened.around(inner, opened.margin)
        started = time.perf_counter()
        piece, settings = Picture(opened.picture.pixels[outer.slices]), opened.settings
        part = inner, outer, opened.pipe.predict(piece, job.on_tile, **opened.asked)
        at = [replace(settings, lambda_pix=1, lambda_sem=sem) for sem in (0, 1)]
        pix, full = (self._decode(opened, part, pair, None) for pair in at)
        if opened.picture.is_gray:
            pix, full = (join(p, Picture(p, is_gray=True)).repeat(3, axis=-1) for p in (pix, full))
        pix, full = (np.rint(p * (255 * ONE)).astype(np.int16) for p in (pix, full))
        box = inner.times(opened.factor)
        opened.write(inner, np.stack([pix - opened.read(box)[0], full - pix]))
        if not opened.mixes:
            opened.part = part
        spent = time.perf_counter() - started  # with what others had between the tiles
        self.seconds_per_px = spent / (outer.w * outer.h * opened.working**2)
        return box

    def _decode(self, opened: OpenPicture, part: Any, settings: Settings, mask: Mask) -> Any:
        """Decode a predicted part of the photo: float32 [h, w, 3]. For who has a turn."""
        inner, outer, prediction = part
        place = None if mask is None else sample(mask, opened.picture.size, outer)
        options: dict[str, Any] = {"output_type": "np", "color_fix": opened.settings.color_fix}
        made: Any = opened.pipe.decode(prediction, *settings.strengths(place), **options)
        cut = Box(inner.x - outer.x, inner.y - outer.y, inner.w, inner.h).times(opened.factor)
        return made[cut.slices]

    def exact(self, opened: OpenPicture, settings: Settings, mask: Mask) -> tuple[Box, Any]:
        """Decode what is seen of a picture that doesn't mix: its box of the result, uint8."""
        part: Any = opened.part  # since a look has made it
        with self.device:
            made = self._decode(opened, part, settings, mask)
        return part[0].times(opened.factor), to_levels(made, 8)

    def save(self, opened: OpenPicture, settings: Settings, mask: Mask, target: Path) -> None:
        """Write the whole result at these strengths; PisasrError if it isn't predicted."""
        if not opened.is_whole():
            raise PisasrError("the whole picture is not made yet; wait for it")
        opened_at: Any = {name: getattr(opened.settings, name) for name in PREDICTED}
        settings = replace(settings, **opened_at)  # the page may be ahead of its picture
        deep, (wide, high) = settings.format == "PNG16", opened.size
        if opened.mixes:
            made: Any = np.empty((high, wide, 3), np.float32 if deep else np.uint8)
            for y in range(0, high, 256):
                box = Box(0, y, wide, min(256, high - y))
                levels = opened.mix(settings, mask, box)
                made[box.slices] = levels / 255 if deep else np.rint(levels)
        else:
            with self.device:
                made = self._decode(opened, opened.part, settings, mask)
            made = made if deep else to_levels(made, 8)
        made = join(made, opened.picture)
        result = to_levels(made, 16) if deep else as_image(made)
        inside = () if mask is None else ("inside_pix", "inside_sem")
        self._save(result, target, opened.picture, settings, *inside)

    # --- a file from end to end -------------------------------------------------------------------

    def repair_file(self, path: str | Path, target: Path, settings: Settings, job: Job) -> None:
        """Repair a file into another, without keeping anything."""
        picture = open_picture(path, MAX_INPUT_PIXELS)
        settings = settings.fitted(picture.size)
        options: dict[str, Any] = {name: getattr(settings, name) for name in OF_THE_PIPELINE}
        options["output_type"] = "uint16" if settings.format == "PNG16" else "pil"
        pipe = self.model(settings.model)
        with self.device:
            output = pipe(picture, on_tile=job.on_tile, **options)
        self._save(output.images[0], target, picture, settings)

    def _save(self, made: Any, path: Path, photo: Picture, settings: Settings, *more: str) -> None:
        """Write a result with the settings that made it, and the input's EXIF where wanted."""
        identity, names = self.model(settings.model).identity, (*OF_THE_PIPELINE, *more)
        words = made_with(identity, {name: getattr(settings, name) for name in names})
        save_image(made, path, Metadata(words, photo.exif if settings.keep_exif else None))


def read_mask(text: str) -> np.ndarray | None:
    """Read a mask [h, w] from a gray PNG in a data URL, None from ""; else PisasrError."""
    head, _, data = text[:MAX_MASK_BYTES].partition(",")
    with suppress(binascii.Error, OSError, ValueError, SyntaxError):
        file = io.BytesIO(base64.b64decode(data, validate=True))
        with Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height <= SMALL_PX**2 and head == "data:image/png;base64":
                return np.asarray(image.convert("L"), np.float64) / 255
    if not text:
        return None
    raise PisasrError("the painted place is no small PNG; clear it and paint again")

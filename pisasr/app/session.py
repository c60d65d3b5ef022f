"""Open pictures, keep them, decode them at any strengths: what the page does, without the page."""

import base64
import binascii
import io
import secrets
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from pisasr.errors import PisasrError
from pisasr.options import Options
from pisasr.pictures.images import Picture, eight_bits, join, open_picture
from pisasr.pictures.metadata import Metadata, made_with
from pisasr.pictures.saving import save_image
from pisasr.pipeline import PiSASRPipeline, Prediction

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))  # of the preview, in viewer.js's order
PREVIEW_PX = 768  # the longer side of what the browser mixes while a knob moves
MAX_MASK_BYTES = 8 * 2**20
FORMATS = {"PNG": ".png", "PNG16": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}


@dataclass(frozen=True)
class Limits:
    """Pixels of an input and of a result; bytes held for all users; seconds until forgotten."""

    input_pixels: int = 16_000_000
    output_pixels: int = 64_000_000
    held_bytes: int = 2 * 2**30
    idle_s: float = 3600


@dataclass(frozen=True)
class Settings:
    """Everything that a user chooses for a picture, checked.

    inside_pix, inside_sem: the strengths inside a mask. feather: standard deviation of the blur of
    the mask's edge, in pixels of the result. PNG16 has sixteen bits a channel.
    """

    lambda_pix: float = 1.0
    lambda_sem: float = 1.0
    inside_pix: float = 1.0
    inside_sem: float = 0.0
    feather: float = 8.0
    upscale: float = Options.upscale
    color_fix: Any = Options.color_fix
    prompt: str = ""
    format: str = "PNG"
    keep_exif: bool = False

    def __post_init__(self) -> None:
        for name in ("lambda_pix", "lambda_sem", "inside_pix", "inside_sem", "feather"):
            number: Any = getattr(self, name)
            if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
                raise PisasrError(f"{name} is {number!r}; it must be a finite number")
        if self.format not in FORMATS:
            raise PisasrError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        Options(upscale=self.upscale, color_fix=self.color_fix, prompt=self.prompt)

    @classmethod
    def read(cls, values: Any) -> "Settings":
        """Settings from a JSON object; PisasrError where it has other names."""
        names = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values or () if name not in names]
        if unknown or not isinstance(values, dict):
            wrong = f"settings have no {unknown[0]!r}" if unknown else "settings are no object"
            raise PisasrError(f"{wrong}; they are {', '.join(names)}")
        return cls(**values)

    @property
    def suffix(self) -> str:
        """The ending of a file of this format."""
        return FORMATS[self.format]

    @property
    def output_type(self) -> Any:
        """What the pipeline returns for this format."""
        return "uint16" if self.format == "PNG16" else "pil"

    def strengths(self, mask: np.ndarray | None, width: int) -> tuple[Any, Any]:
        """(lambda_pix, lambda_sem) for the pipeline: numbers, or maps [h, w] where a mask counts.

        mask: [h, w] in [0, 1]. width: of the result. PisasrError where the feather is longer than
        the picture: far beyond, Pillow's blur ends the process.
        """
        outside = self.lambda_pix, self.lambda_sem
        inside = self.inside_pix, self.inside_sem
        if mask is None or not mask.any() or outside == inside:
            return outside
        radius = self.feather * mask.shape[1] / width
        if not 0 <= radius <= max(mask.shape):
            raise PisasrError(
                f"feather is {self.feather}; it must be from 0 to the result's longer side, in px"
            )
        if radius > 0:
            levels = Image.fromarray(np.rint(mask * 255).astype(np.uint8))
            mask = np.asarray(levels.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
        pix, sem = ((1 - mask) * a + mask * b for a, b in zip(outside, inside, strict=True))
        return pix, sem

    def file_name(self, stem: str, masked: bool = False) -> str:
        """The name of a saved result: photo_pix1_sem0.7.png."""
        parts = [stem, f"pix{self.lambda_pix:.3g}", f"sem{self.lambda_sem:.3g}"]
        parts += ["mask"] * masked + ["16bit"] * (self.format == "PNG16")
        return "_".join(parts) + self.suffix


@dataclass
class OpenPicture:
    """A picture, its prediction, and the last result with the settings that made it."""

    key: str
    path: Path
    picture: Picture
    settings: Settings
    prediction: Prediction
    size: tuple[int, int]
    folder: Path  # of files for the browser
    mask: np.ndarray | None = None
    result: Image.Image | None = None
    is_ready: bool = False  # for moving knobs: the corners are there

    def fits(self, path: str | Path, settings: Settings, *names: str) -> bool:
        """Whether the prediction serves this file at these settings, and those named are equal."""
        names = ("upscale", "prompt", *names)
        same = all(getattr(self.settings, name) == getattr(settings, name) for name in names)
        return same and self.path == Path(path)

    @property
    def held_bytes(self) -> int:
        """Memory of the latents, the input and a result."""
        latents = sum(tensor.nbytes for tensor in self.prediction.tensors)
        return self.picture.pixels.nbytes + latents + 3 * self.size[0] * self.size[1]


class Store:
    """Open pictures by keys that can't be guessed, bounded in bytes and idle seconds.

    The least recently used leaves first, with its files. Safe among threads.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._pictures: OrderedDict[str, tuple[float, OpenPicture]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, opened: OpenPicture) -> None:
        """Add a picture, and drop what is too old or too much; the newest always stays."""
        with self._lock:
            now = self._clock()
            self._pictures[opened.key] = now, opened
            held = sum(one.held_bytes for _, one in self._pictures.values())
            for key, (used, one) in list(self._pictures.items())[:-1]:
                if held > self._limits.held_bytes or now - used > self._limits.idle_s:
                    held -= one.held_bytes
                    self._remove(key)

    def find(self, key: str | None) -> OpenPicture | None:
        """The picture of a key; None where there is none any more."""
        with self._lock:
            used, opened = self._pictures.get(key or "", (0.0, None))
            if opened is None:
                return None
            now = self._clock()
            if now - used > self._limits.idle_s:
                self._remove(opened.key)
                return None
            self._pictures[opened.key] = now, opened
            self._pictures.move_to_end(opened.key)
            return opened

    def get(self, key: str | None) -> OpenPicture:
        """The picture of a key; PisasrError where there is none any more."""
        if key is None:
            raise PisasrError("no picture is open; drop one first")
        if (opened := self.find(key)) is None:
            raise PisasrError("this picture was closed to make room; drop it again")
        return opened

    def drop(self, key: str | None) -> None:
        """Close a picture, if it is open."""
        with self._lock:
            if key in self._pictures:
                self._remove(key)

    def __len__(self) -> int:
        return len(self._pictures)

    def _remove(self, key: str) -> None:
        shutil.rmtree(self._pictures.pop(key)[1].folder, ignore_errors=True)


class Session:
    """A model and the pictures that are open, for all users; one picture is computed at a time.

    takes_prompts: whether the model hears words. process_size: as for the pipeline. All methods may
    be called by any thread. They raise PisasrError, ValueError, TypeError and out of memory.
    """

    def __init__(
        self,
        pipe: PiSASRPipeline,
        limits: Limits = Limits(),
        takes_prompts: bool = True,
        process_size: int = Options.process_size,
    ):
        self.pipe, self.limits, self.takes_prompts = pipe, limits, takes_prompts
        self.process_size = process_size
        self.store = Store(limits)
        self._folder = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        self._device = threading.Lock()

    def read(self, path: str | Path) -> Picture:
        """Read a file within the limits; ImageError for anything else."""
        return open_picture(path, self.limits.input_pixels)

    def new_folder(self) -> Path:
        """A folder for files that a browser will be given, deleted with the session."""
        folder = Path(self._folder.name, secrets.token_hex(8))
        folder.mkdir()
        return folder

    def open(
        self, path: str | Path, settings: Settings, former: OpenPicture | None = None
    ) -> OpenPicture:
        """Encode a picture and make both predictions, once.

        former: what is open so far; its prediction serves where picture, size and prompt are equal.
        """
        if former is not None and former.fits(path, settings):
            picture, prediction = former.picture, former.prediction
        else:
            picture = self.read(path)
            self._check_size(picture, settings)
            with self._device:
                prediction = self.pipe.predict(picture, **self._options(settings))
        width, height = (round(settings.upscale * side) for side in picture.size)
        key, folder = secrets.token_urlsafe(16), self.new_folder()
        opened = OpenPicture(
            key, Path(path), picture, settings, prediction, (width, height), folder
        )
        self.store.put(opened)
        return opened

    def show(
        self, opened: OpenPicture, settings: Settings, mask: np.ndarray | None = None
    ) -> Image.Image:
        """Decode at these strengths, without a pass of the UNet; kept as what a download holds."""
        opened.result = self._decode(opened, settings.strengths(mask, opened.size[0]), settings)
        opened.settings, opened.mask = settings, mask
        return opened.result

    def corners(self, opened: OpenPicture) -> Iterator[Image.Image]:
        """The results at CORNERS, no larger than a preview."""
        for pair in CORNERS:
            result = self._decode(opened, pair, opened.settings).convert("RGB")
            result.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BOX)
            yield result

    def download(self, opened: OpenPicture, format: str, keep_exif: bool) -> Path:
        """Write what was shown last as a file of a format."""
        if opened.result is None:
            raise PisasrError("nothing is shown yet; wait for the picture")
        settings = replace(opened.settings, format=format, keep_exif=keep_exif)
        result: Any = opened.result
        if settings.output_type != "pil":
            pair = settings.strengths(opened.mask, opened.size[0])
            result = self._decode(opened, pair, settings, settings.output_type)
        masked = opened.mask is not None
        path = opened.folder / settings.file_name(opened.path.stem, masked)
        self.save(result, path, opened.picture, settings, masked)
        return path

    def repair(self, picture: Picture, settings: Settings) -> Any:
        """Repair a picture from end to end; uint16 [H, W, C] for PNG16, else a PIL image."""
        self._check_size(picture, settings)
        pair = settings.lambda_pix, settings.lambda_sem
        options = self._options(settings) | {"color_fix": settings.color_fix}
        with self._device:
            return self.pipe(picture, *pair, output_type=settings.output_type, **options).images[0]

    def save(
        self, result: Any, path: Path, picture: Picture, settings: Settings, masked: bool = False
    ) -> None:
        """Write a result with the settings that made it, and the input's EXIF where wanted."""
        names = ["lambda_pix", "lambda_sem", "upscale", "color_fix", "prompt"]
        names += ["inside_pix", "inside_sem", "feather"] if masked else []
        made = made_with(self.pipe.identity, {name: getattr(settings, name) for name in names})
        save_image(result, path, Metadata(made, picture.exif if settings.keep_exif else None))

    def _decode(
        self,
        opened: OpenPicture,
        pair: tuple[Any, Any],
        settings: Settings,
        output_type: Any = "pil",
    ) -> Any:
        options = {"color_fix": settings.color_fix, "output_type": output_type}
        with self._device:
            return self.pipe.decode(opened.prediction, *pair, **options)

    def _options(self, settings: Settings) -> dict[str, Any]:
        options = {"upscale": settings.upscale, "prompt": settings.prompt}
        return options | {"process_size": self.process_size}

    def _check_size(self, picture: Picture, settings: Settings) -> None:
        width, height = picture.size
        pixels = settings.upscale * width * (settings.upscale * height)
        most = self.limits.output_pixels
        if pixels > most:
            raise PisasrError(
                f"the result would have {pixels / 1e6:.0f} million pixels, the most here are "
                f"{most / 1e6:.0f}; choose a smaller size, or use `pisasr infer`"
            )


def input_image(picture: Picture) -> Image.Image:
    """The input as a browser can show it, at eight bits."""
    return eight_bits(join(picture.pixels, picture))


def read_mask(text: str) -> np.ndarray | None:
    """A mask from the browser, a grey PNG in a data URL: [h, w] in [0, 1], None for an empty text.

    PisasrError for anything else: the sender may be anybody.
    """
    if not text:
        return None
    head, _, data = text.partition(",")
    if head != "data:image/png;base64" or len(data) > MAX_MASK_BYTES:
        raise PisasrError("the painted place is no small PNG; clear it and paint again")
    try:
        file = io.BytesIO(base64.b64decode(data, validate=True))
        with Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > PREVIEW_PX**2:
                raise PisasrError(f"a mask has at most {PREVIEW_PX} px a side")
            return np.asarray(image.convert("L"), np.float32) / 255
    except (binascii.Error, OSError, ValueError, SyntaxError):
        raise PisasrError("the painted place arrived broken; clear it and paint again") from None

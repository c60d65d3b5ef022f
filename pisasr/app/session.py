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
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from pisasr.errors import PisasrError
from pisasr.options import Options
from pisasr.pictures.images import Picture, open_picture
from pisasr.pictures.metadata import Metadata, made_with
from pisasr.pictures.saving import save_image
from pisasr.pipeline import OnTile, PiSASRPipeline, Prediction

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))  # of the preview, in viewer.js's order
PREVIEW_PX = 768  # the longer side of what the browser mixes while a knob moves
MAX_INPUT_PIXELS, MAX_OUTPUT_PIXELS = 16_000_000, 64_000_000
MAX_HELD_BYTES = 2 * 2**30  # of open pictures, for all users
MAX_MASK_BYTES = 8 * 2**20
IDLE_S = 3600  # after so many seconds, pictures and files are deleted
FORMATS = {"PNG": ".png", "PNG16": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}


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
        if not isinstance(values, dict) or values.keys() - set(names):
            raise PisasrError(f"settings are {values!r:.80}; they have {', '.join(names)}")
        return cls(**values)

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
        return "_".join(parts) + FORMATS[self.format]


@dataclass
class OpenPicture:
    """A picture with the settings of its prediction, and the last result with its own."""

    key: str
    path: Path
    picture: Picture
    settings: Settings
    prediction: Prediction
    folder: Path  # of files for the browser
    result: Image.Image | None = None
    shown: Settings = Settings()
    mask: np.ndarray | None = None
    is_ready: bool = False  # for moving knobs: the corners are there

    def fits(self, path: str | Path, settings: Settings, *names: str) -> bool:
        """Whether the prediction serves this file at these settings, and those named are equal."""
        names = ("upscale", "prompt", *names)
        same = all(getattr(self.settings, name) == getattr(settings, name) for name in names)
        return same and self.path == Path(path)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the result."""
        return self.prediction.frame.output

    @property
    def held_bytes(self) -> int:
        """Memory of the latents, the input and a result."""
        held = sum(tensor.nbytes for tensor in self.prediction.tensors)
        return held + self.picture.pixels.nbytes + 3 * self.size[0] * self.size[1]


class Store:
    """Open pictures by keys that can't be guessed, bounded in bytes. Safe among threads.

    The least recently used leaves first, with its files; gradio drops those of idle users.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES):
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, OpenPicture] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, opened: OpenPicture) -> None:
        """Add a picture, and drop what is too much; the newest always stays."""
        with self._lock:
            self._pictures[opened.key] = opened
            held = sum(one.held_bytes for one in self._pictures.values())
            while held > self._max_bytes and len(self._pictures) > 1:
                oldest = next(iter(self._pictures))
                held -= self._pictures[oldest].held_bytes
                self._remove(oldest)

    def find(self, key: str | None) -> OpenPicture | None:
        """The picture of a key; None where there is none any more."""
        with self._lock:
            if key is None or key not in self._pictures:
                return None
            self._pictures.move_to_end(key)
            return self._pictures[key]

    def get(self, key: str | None) -> OpenPicture:
        """The picture of a key; PisasrError where there is none any more."""
        if (opened := self.find(key)) is None:
            raise PisasrError("no picture is open, or not any more; drop one")
        return opened

    def drop(self, key: str | None) -> None:
        """Close a picture, if it is open."""
        with self._lock:
            if key is not None and key in self._pictures:
                self._remove(key)

    def _remove(self, key: str) -> None:
        shutil.rmtree(self._pictures.pop(key).folder, ignore_errors=True)


class Session:
    """A model and the pictures that are open, for all users; one picture is computed at a time.

    takes_prompts: whether the model hears words. process_size: as for the pipeline. All methods may
    be called by any thread. They raise PisasrError, ValueError, TypeError and out of memory.
    """

    def __init__(
        self,
        pipe: PiSASRPipeline,
        takes_prompts: bool = True,
        process_size: int | None = Options.process_size,
    ):
        self.pipe, self.takes_prompts, self.process_size = pipe, takes_prompts, process_size
        self.store = Store()
        self._folder = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        self._device = threading.Lock()

    def result_folder(self) -> Path:
        """A folder for results; others that have idled too long are deleted."""
        for other in Path(self._folder.name).glob("result-*"):
            if time.time() - other.stat().st_mtime > IDLE_S:
                shutil.rmtree(other, ignore_errors=True)
        return Path(mkdtemp(prefix="result-", dir=self._folder.name))

    def open(
        self,
        path: str | Path,
        settings: Settings,
        former: OpenPicture | None = None,
        on_tile: OnTile | None = None,
    ) -> OpenPicture:
        """Encode a picture and make both predictions, once.

        former: what is open so far; its prediction serves where picture, size and prompt are equal.
        on_tile: as for the pipeline.
        """
        if former is not None and former.fits(path, settings):
            picture, prediction = former.picture, former.prediction
        else:
            picture = open_picture(path, MAX_INPUT_PIXELS)
            self._check_size(picture, settings)
            with self._device:
                prediction = self.pipe.predict(picture, on_tile, **self._options(settings))
        key, folder = secrets.token_urlsafe(16), Path(mkdtemp(dir=self._folder.name))
        opened = OpenPicture(key, Path(path), picture, settings, prediction, folder)
        self.store.put(opened)
        return opened

    def show(self, opened: OpenPicture, settings: Settings, mask: Any = None) -> Image.Image:
        """Decode at these strengths, without a pass of the UNet; kept as what a download holds."""
        opened.result = self._decode(opened, settings.strengths(mask, opened.size[0]), settings)
        predicted = opened.settings  # the page may be ahead of its picture
        fixed: Any = {"upscale": predicted.upscale, "prompt": predicted.prompt}
        opened.shown, opened.mask = replace(settings, **fixed), mask
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
        settings = replace(opened.shown, format=format, keep_exif=keep_exif)
        result: Any = opened.result
        if format == "PNG16":
            pair = settings.strengths(opened.mask, opened.size[0])
            result = self._decode(opened, pair, settings, "uint16")
        masked = opened.mask is not None
        path = opened.folder / settings.file_name(opened.path.stem, masked)
        self._save(result, path, opened.picture, settings, masked)
        return path

    def repair_file(self, path: str | Path, target: Path, settings: Settings) -> None:
        """Repair a file from end to end into another, without keeping anything."""
        picture = open_picture(path, MAX_INPUT_PIXELS)
        self._check_size(picture, settings)
        options = self._options(settings) | {"color_fix": settings.color_fix}
        options["output_type"] = "uint16" if settings.format == "PNG16" else "pil"
        with self._device:
            output = self.pipe(picture, settings.lambda_pix, settings.lambda_sem, **options)
        self._save(output.images[0], target, picture, settings)

    def _save(
        self, result: Any, path: Path, picture: Picture, settings: Settings, masked: bool = False
    ) -> None:
        """Write a result with the settings that made it, and the input's EXIF where wanted."""
        names = ["lambda_pix", "lambda_sem", "upscale", "color_fix", "prompt"]
        names += ["inside_pix", "inside_sem", "feather"] if masked else []
        made = made_with(self.pipe.identity, {name: getattr(settings, name) for name in names})
        save_image(result, path, Metadata(made, picture.exif if settings.keep_exif else None))

    def _decode(
        self, opened: OpenPicture, pair: tuple[Any, Any], settings: Settings, kind: Any = "pil"
    ) -> Any:
        options = {"color_fix": settings.color_fix, "output_type": kind}
        with self._device:
            return self.pipe.decode(opened.prediction, *pair, **options)

    def _options(self, settings: Settings) -> dict[str, Any]:
        options = {"upscale": settings.upscale, "prompt": settings.prompt}
        return options | {"process_size": self.process_size}

    @staticmethod
    def _check_size(picture: Picture, settings: Settings) -> None:
        width, height = picture.size
        pixels = settings.upscale * width * (settings.upscale * height)
        if pixels > MAX_OUTPUT_PIXELS:
            raise PisasrError(f"the result would have {pixels / 1e6:.0f} million pixels; make less")


def read_mask(text: str) -> np.ndarray | None:
    """A mask from the browser, a gray PNG in a data URL: [h, w] in [0, 1], None for an empty text.

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

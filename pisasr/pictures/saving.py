"""Infer, last stop: a picture becomes a file, whole or not at all, which tells what was done where
that is wanted.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

import pisasr
from pisasr.errors import ImageError
from pisasr.files import temporary_name, write_whole

SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 6, "compress_type": zlib.Z_RLE}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
}
LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)  # of EXIF: the camera's settings, the place
MOST_EXIF = 65_533  # bytes of a JPEG's segment
SRGB_DATE = (1999, 1, 1, 0, 0, 0)  # of the standard, IEC 61966-2-1


@dataclass(frozen=True)
class Metadata:
    """What a file tells beside its picture.

    software: what made it and how, one line of ASCII (`made_with`); it becomes EXIF's Software, and
    PNG's. exif: what the input's file told, as `Picture` has it, the place included; None is
    nothing. A caption in it is left alone.
    """

    software: str
    exif: bytes | None = None


def made_with(model: str, settings: Mapping[str, Any]) -> str:
    """`pisasr 0.1.0 (model=embedded, lambda_pix=1, lambda_sem=0.7, upscale=4)`, in ASCII whatever
    the settings hold.

    Settings without a value (None, "", False) are left out.
    """
    told = {"model": model} | {
        name: value
        for name, value in settings.items()
        if value not in (None, "") and value is not False
    }
    words = (
        f"{name}={value:.15g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in told.items()
    )
    line = f"pisasr {pisasr.__version__} ({', '.join(words)})"
    return line.encode("unicode_escape").decode("ascii")


def save_image(
    image: Image.Image | np.ndarray, path: str | os.PathLike, metadata: Metadata | None = None
) -> None:
    """Write a picture so that `path` holds all of it or nothing: a temporary name first, then a
    rename.

    The extension names the format: png, tif, bmp and webp without loss, jpg at quality 95. uint16
    [H, W, C] becomes a PNG of sixteen bits. Without `metadata` the file holds the picture alone.
    With it, all formats but bmp hold EXIF of an upright picture of this size, and colour an sRGB
    profile. Not the input's: the model knows sRGB alone, and what lay beyond it was clipped on the
    way in, so a wider profile would promise colours that are gone.

    Raises ImageError where the format cannot hold the picture, OSError where the disk cannot.

    PNGs are deflated by zlib's run-length strategy, for a quarter of the time of its usual one (114
    ms a megapixel against 477, photos repaired by the embedded model on a busy machine) and about
    the same bytes (photos +0.7 %, a sheet -0.5 %, a line drawing +13 %, sixteen bits -2 %). Level 1
    takes as long and gives 11 % more.
    """
    path = Path(path)
    if isinstance(image, np.ndarray):
        if path.suffix.lower() != ".png":
            raise ImageError(f"sixteen bits are written as PNG, not as '{path.suffix}'; write .png")
        write_whole(path, _png_16(image, metadata))
        return
    format_name, options = _options_for(image, path)
    if metadata is not None and format_name != "BMP":
        options = options | _told(metadata, image, format_name)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            image.save(file, format=format_name, **options)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _options_for(image: Image.Image, path: Path) -> tuple[str, dict]:
    suffix = path.suffix.lower()
    if suffix not in SAVE_OPTIONS:
        raise ImageError(
            f"cannot write '{path.suffix}' files; use one of {', '.join(SAVE_OPTIONS)}"
        )
    format_name, options = SAVE_OPTIONS[suffix]
    longest = LONGEST_SIDE.get(format_name)
    if longest and max(image.size) > longest:
        raise ImageError(
            f"{image.width}x{image.height} is too large for {format_name} (side <= {longest}); write .png"
        )
    if format_name == "JPEG" and "A" in image.getbands():
        raise ImageError("JPEG holds no transparency; write .png")
    return format_name, options


def _told(metadata: Metadata, image: Image.Image, format_name: str) -> dict[str, Any]:
    """What Pillow's `save` is told beside the format's own options."""
    exif = _exif(metadata, image.size)
    options: dict[str, Any] = (
        {"tiffinfo": exif} if format_name == "TIFF" else {"exif": exif_bytes(exif)}
    )
    if format_name == "JPEG" and (length := len(options["exif"])) > MOST_EXIF:
        raise ImageError(
            f"EXIF data of {length} bytes is more than a JPEG holds ({MOST_EXIF}); write .png"
        )
    if "R" in image.getbands():  # grey wants a profile of greys
        options["icc_profile"] = _srgb_profile()
    if format_name == "TIFF":
        options["compression"] = (
            "raw"  # libtiff, which deflates for Pillow, refuses EXIF's own directories
        )
    if format_name == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Software", metadata.software)
    return options


def _exif(metadata: Metadata, size: tuple[int, int]) -> dict[int, Any]:
    """EXIF of an upright sRGB picture of this (width, height), with what the input told."""
    came = Image.Exif()
    if metadata.exif:
        came.load(metadata.exif)
    exif: dict[int, Any] = {
        **dict(came),
        **{part: told for part in PARTS if (told := came.get_ifd(part))},
    }
    base = ExifTags.Base
    measures = {base.ColorSpace: 1, base.ExifImageWidth: size[0], base.ExifImageHeight: size[1]}
    exif[ExifTags.IFD.Exif] = {**came.get_ifd(ExifTags.IFD.Exif), **measures}
    exif[base.Orientation] = 1
    exif[base.Software] = metadata.software
    return _latin(exif)


class _Latin(str):
    """Words of EXIF, which Pillow reads as Latin-1 whatever they are, and writes as ASCII: here as
    they were.
    """

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1", "replace")


def _latin(told: Any) -> Any:
    if isinstance(told, dict):
        return {tag: _latin(value) for tag, value in told.items()}
    return _Latin(told) if isinstance(told, str) else told


def exif_bytes(told: dict[int, Any]) -> bytes:
    """EXIF as a block of bytes: values by their tags, of a part of it (PARTS) a dictionary of
    such.
    """
    exif = Image.Exif()
    exif.update(_latin(told))
    return exif.tobytes()


@cache
def _srgb_profile() -> bytes:
    """Little CMS' own sRGB, dated by the standard and not by today: the same bytes every day."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", *SRGB_DATE)
    return bytes(profile)


def _png_16(pixels: np.ndarray, metadata: Metadata | None = None) -> bytes:
    """uint16 [H, W, C] as a PNG file (RFC 2083), which Pillow can't write: filter Sub in every row,
    then deflate.
    """
    height, width, channels = pixels.shape
    levels = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    rows = np.ones(
        (height, 1 + levels.shape[1]), np.uint8
    )  # each row starts with its filter's number
    rows[:, 1:] = levels
    rows[:, 1 + 2 * channels :] -= levels[:, : -2 * channels]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    deflate = zlib.compressobj(6, strategy=zlib.Z_RLE)
    chunks: Iterable[tuple[bytes, bytes]] = (
        (b"IHDR", head),
        (b"sRGB", b"\0"),
        *_png_told(metadata, (width, height)),
        (b"IDAT", deflate.compress(rows.tobytes()) + deflate.flush()),
        (b"IEND", b""),
    )
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _png_told(metadata: Metadata | None, size: tuple[int, int]) -> list[tuple[bytes, bytes]]:
    if metadata is None:
        return []
    exif = exif_bytes(_exif(metadata, size)).removeprefix(b"Exif\0\0")
    return [(b"tEXt", b"Software\0" + metadata.software.encode()), (b"eXIf", exif)]

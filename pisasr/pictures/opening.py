"""Open a picture's file, or say in one line why it can't be read. Doesn't need torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pisasr.errors import ImageError, PisasrError, safe_text
from pisasr.pictures.folders import cannot_open

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # for others Pillow would even start Ghostscript
HEIC = (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf")  # from the fifth byte on
MAX_PIXELS = 64_000_000  # of an input, before it is decoded


@contextmanager
def opened(path: Path, max_pixels: int | None = None) -> Iterator[Any]:
    """Open a picture with Pillow, not decoded yet; all that fails, also inside, is ImageError."""
    if reason := cannot_open(path):
        raise ImageError(reason)
    try:
        # A file and not its name, by which Pillow would map a TIFF that lies on its side wrongly.
        with path.open("rb") as file, Image.open(file, formats=_formats(path)) as image:
            pixels = image.width * image.height
            if max_pixels and pixels > max_pixels:
                raise ImageError(
                    f"{image.width}x{image.height} is {pixels / 1e6:.3g} million pixels, the limit"
                    f" is {max_pixels / 1e6:g}; make it smaller"
                )
            _check_tiff(image)
            yield image
    except PisasrError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image (PNG, JPEG, WebP, TIFF or BMP) that can be read") from None
    except FileNotFoundError:
        raise ImageError("the file is gone") from None
    except PermissionError:
        raise ImageError("no permission to read the file") from None
    except Exception as error:  # decoders raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"broken picture: {reason}") from None


def _formats(path: Path) -> tuple[str, ...]:
    """What Pillow may take a file for: HEIC, a phone's own, by its first bytes and pillow-heif."""
    with path.open("rb") as file:
        if not file.read(12)[4:].startswith(HEIC):
            return READABLE
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError("HEIC needs pillow-heif: pip install pillow-heif") from None
    register_heif_opener()
    return ("HEIF",)


def is_deep(image: Any) -> bool:
    """Tell whether a picture that is not decoded yet has sixteen bits a channel."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) == 16
    return any(";16" in str(tile.args) for tile in image.tile)


def read_picture(path: Path) -> np.ndarray:
    """Read the file's own 8-bit values as uint8 [H, W, 3] RGB, upright.

    Profiles are not applied and alpha is dropped: published scores compare the stored numbers.
    Sixteen bits are refused, because no protocol names a way to round them. Raises ImageError.
    """
    try:
        with opened(path) as image:
            if is_deep(image):
                raise ImageError("it has 16 bits a channel; save it as an 8-bit PNG to score it")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError as error:
        raise ImageError(f"{safe_text(path.name)} cannot be read: {error}") from None


def _check_tiff(image: Any) -> None:
    """Refuse TIFFs that Pillow reads wrongly, or whose white is not known."""
    if image.format != "TIFF":
        return
    bits, kind = max(image.tag_v2.get(258, (1,))), max(image.tag_v2.get(339, (1,)))
    color = image.tag_v2.get(262)
    is_raw_ycbcr = color == 6 and all(tile.codec_name == "raw" for tile in image.tile)
    if bits not in (1, 2, 4, 8, 16) or kind != 1 or is_raw_ycbcr or (bits == 16 and color == 0):
        raise ImageError("a TIFF of a kind that is not read; save it as PNG of 8 or 16 bits")

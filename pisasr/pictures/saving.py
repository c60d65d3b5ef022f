"""Save a picture as a file, whole or not at all."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from pisasr.errors import ImageError
from pisasr.files import replacing
from pisasr.pictures.metadata import Metadata, exif_bytes, exif_for

# Run-length deflate takes a quarter of the time of zlib's usual strategy for about the same bytes.
PNG_OPTIONS = {"compress_level": 6, "compress_type": zlib.Z_RLE}
SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", PNG_OPTIONS),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
}
LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}


def save_image(
    image: Image.Image | np.ndarray, path: str | os.PathLike, metadata: Metadata | None = None
) -> None:
    """Write a picture in the format of the name's ending: png, tif, bmp, webp without loss, jpg.

    uint16 [H, W, C] becomes a PNG of sixteen bits. With `metadata` all formats but bmp hold EXIF of
    an upright sRGB picture of this size. Raises ImageError where the format can't hold the picture,
    OSError where the disk can't.
    """
    path = Path(path)
    if isinstance(image, np.ndarray):
        if path.suffix.lower() != ".png":
            raise ImageError(f"sixteen bits are written as PNG, not as '{path.suffix}'; write .png")
        with replacing(path) as temporary:
            temporary.write_bytes(_encode_deep(image, metadata))
        return
    format_name, options = _options_for(image, path)
    if metadata is not None and format_name != "BMP":
        options = options | _metadata_options(metadata, image, format_name)
    with replacing(path) as temporary, temporary.open("wb") as file:
        image.save(file, format=format_name, **options)


def _options_for(image: Image.Image, path: Path) -> tuple[str, dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in SAVE_OPTIONS:
        raise ImageError(
            f"cannot write '{path.suffix}' files; use one of {', '.join(SAVE_OPTIONS)}"
        )
    format_name, options = SAVE_OPTIONS[suffix]
    longest = LONGEST_SIDE.get(format_name)
    if longest and max(image.size) > longest:
        raise ImageError(
            f"{image.width}x{image.height} is too large for {format_name} (side <= {longest});"
            " write .png"
        )
    if format_name == "JPEG" and "A" in image.getbands():
        raise ImageError("JPEG holds no transparency; write .png")
    return format_name, options


def _metadata_options(metadata: Metadata, image: Image.Image, format_name: str) -> dict[str, Any]:
    """Options of Pillow's `save` beside the format's own."""
    exif = exif_for(metadata, image.size)
    if format_name == "TIFF":  # libtiff, which deflates, refuses EXIF's own directories
        return {"tiffinfo": exif, "compression": "raw"}
    content = exif_bytes(exif)
    if format_name != "PNG":
        return {"exif": content}
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", metadata.software)
    return {"exif": content, "pnginfo": text}


def _encode_deep(pixels: np.ndarray, metadata: Metadata | None) -> bytes:
    """uint16 [H, W, C] as a PNG file, which Pillow can't write."""
    import pyvips

    color = "grey16" if pixels.shape[-1] < 3 else "rgb16"
    image = pyvips.Image.new_from_array(pixels).copy(interpretation=color)
    if metadata is not None:
        exif = exif_bytes(exif_for(metadata, (image.width, image.height)))
        image.set_type(pyvips.GValue.blob_type, "exif-data", exif)
        image.set_type(pyvips.GValue.gstr_type, "png-comment-0-Software", metadata.software)
    keep = "none" if metadata is None else "all"
    return image.pngsave_buffer(compression=6, filter="sub", bitdepth=16, keep=keep)

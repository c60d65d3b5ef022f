"""Before a picture is read, by whichever command: its file is opened, or one line says why it can't
be.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import (  # noqa: F401  each plugin makes itself known
    BmpImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pisasr.errors import ImageError, PisasrError, safe_text
from pisasr.pictures.folders import STRANGERS, cannot_open

READABLE = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "BMP",
)  # no other decoder is tried: Pillow would start Ghostscript for one
MAX_OUTPUT_PIXELS = 2**31  # of a result: 64 million at 4x and room beyond
MAGIC = {
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
}


@contextmanager
def opened(path: Path, max_pixels: int = MAX_OUTPUT_PIXELS) -> Iterator[Any]:
    """A picture's file as Pillow has it, not decoded yet; a fault in here or in the block becomes
    an ImageError.

    Unlike PIL.Image.open this tries READABLE alone and goes by our limit on pixels: Pillow's own is
    a global, which threads share and which ends at 179 million.
    """
    if reason := cannot_open(path):
        raise ImageError(reason)
    try:
        with path.open("rb") as file:
            image = _recognise(file, str(path))
            _check_pixels(image, max_pixels)
            yield image
    except PisasrError:
        raise
    except FileNotFoundError:
        raise ImageError("the file is gone") from None
    except PermissionError:
        raise ImageError("no permission to read the file") from None
    except Exception as error:  # a decoder fed with rubbish raises whatever it likes
        raise ImageError(
            f"broken picture: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def read_picture(path: Path) -> np.ndarray:
    """The file's own 8-bit values as uint8 [H, W, 3] RGB, upright; ImageError when it cannot be
    decoded whole.

    Colour profiles are not applied and alpha is dropped: published scores compare the stored
    numbers. Sixteen-bit pictures are refused, because rounding them to eight bits here would be a
    step that no protocol names.
    """
    try:
        with opened(path) as image:
            check_kind(image)
            if image.mode.startswith(("I", "F")) or is_deep(image):
                raise ImageError(
                    "it has more than 8 bits per channel; save it as an 8-bit PNG to score it"
                )
            load(image)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError as error:
        raise ImageError(f"{safe_text(path.name)} cannot be read: {error}") from None


class _Png(PngImagePlugin.PngImageFile):
    """A PNG whose texts may be longer than Pillow unpacks (a limit against bombs): such a text is
    passed over.
    """

    @property
    def png(self) -> Any:
        """What reads its chunks."""
        return self._stream

    @png.setter
    def png(self, stream: Any) -> None:
        def patient(chunk: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
            def read(pos: int, length: int) -> bytes:
                try:
                    return chunk(pos, length)
                except ValueError as error:
                    if "MAX_TEXT_CHUNK" not in str(error):
                        raise
                stream.fp.seek(pos)
                return ImageFile._safe_read(stream.fp, length)

            return read

        if stream is not None:
            stream.chunk_zTXt, stream.chunk_iTXt = (
                patient(stream.chunk_zTXt),
                patient(stream.chunk_iTXt),
            )
        self._stream = stream


def is_deep(image: Any) -> bool:
    """Whether a picture that is not loaded has sixteen bits a channel."""
    return any(";16" in str(tile.args) for tile in image.tile)


def check_kind(image: Any) -> None:
    """Refuse, before it is loaded, a TIFF that Pillow reads as something else than it is."""
    if image.format != "TIFF":
        return
    depths, signed = image.tag_v2.get(258, ()), image.tag_v2.get(339, (1,))[0] == 2
    if len(depths) > 1 and max(depths) > 8 and not is_deep(image):
        raise ImageError(
            f"a TIFF of {max(depths)} bits in separate planes is not read; save it interleaved, or as PNG"
        )
    if image.mode == "L" and signed:
        raise ImageError("a TIFF of signed 8-bit levels is not read; save it unsigned, or as PNG")
    if image.mode == "F" and image.tag_v2.get(262) == 0:
        raise ImageError(
            "a TIFF of floats whose zero is white is not read; save it with black at zero, or as PNG"
        )


def load(image: Any) -> None:
    """Decode a picture. By its name Pillow would map a file, in the turned size where a TIFF lies
    on its side.
    """
    name, image.filename = image.filename, ""
    image.load()
    image.filename = name


def _recognise(file: IO[bytes], name: str) -> Any:
    start = file.read(16)
    for kind in READABLE:
        factory, accepts = Image.OPEN[kind]
        factory = _Png if kind == "PNG" else factory
        file.seek(0)
        if accepts is not None and accepts(start) is not True:
            continue
        try:
            return factory(file, name)
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as Pillow does: it is not of this kind, whatever its first bytes say
    raise ImageError(_describe_stranger(start))


def _describe_stranger(start: bytes) -> str:
    name = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        name = {b"avif": "AVIF", b"avis": "AVIF"}.get(start[8:12], "HEIC")
    if start[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF of a kind that is not read (floats in colour, CMYK with alpha, say); save it as PNG"
    return STRANGERS.format(name) if name else "not an image (PNG, JPEG, WebP, TIFF or BMP)"


def _check_pixels(image: Any, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError("the picture has no pixels")
    if pixels > max_pixels:
        raise ImageError(
            f"{image.width}x{image.height} is {pixels / 1e6:.3g} million pixels, the limit is {max_pixels / 1e6:g};"
            " raise it with --max_input_pixels"
        )

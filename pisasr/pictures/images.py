"""Files <-> pictures <-> tensors: everything that changes a range, a size or a file format.

A file becomes an upright 8-bit sRGB PIL picture (`open_image`), the picture splits into colour and alpha (`split`), the
colour is brought to the size the model works at (`plan_frame`, `prepare`, `pad`) and to [-1, 1] (`to_signed`); the way
back is `crop`, `to_unit`, `to_image`, `finish`, `join`, `save_image`.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from pisasr.errors import ImageError
from pisasr.files import temporary_name

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 64_000_000  # of an input, before it is decoded
MAX_OUTPUT_PIXELS = 2**31  # of a result: 64 million at 4x and room beyond
MAX_SIDE = 4096  # of a small picture once it is enlarged for the model
MIN_SIDE = 64  # what a strip too long to be enlarged is padded to
SAVE_OPTIONS = {
    ".png": ("PNG", {"compress_level": 6}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
}
LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
}


# --- from a file -----------------------------------------------------------------------------------------------------


def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as a person sees it: upright, 8-bit, sRGB; mode L, LA, RGB or RGBA.

    The content decides, not the extension; PNG, JPEG, WebP, TIFF and BMP are read, nothing else is even tried. The size
    is checked before a pixel is decoded. EXIF orientation is applied. An ICC profile is converted to sRGB and let go.
    Sixteen-bit grey and float pictures are scaled, not clipped; sixteen-bit colour comes at eight bits. Of an animation
    the first frame is taken. What a person may want to know of all this is in `image.info["notices"]`, a list of lines.

    Raises ImageError, one line, for whatever is wrong with the file.
    """
    path = Path(path)
    _check_file(path)
    try:
        with _our_pixel_cap(), Image.open(path, formats=READABLE) as image:
            _check_pixels(image, max_pixels)
            notices = _oddities(path, image)
            # Pillow gives 16-bit grey with alpha as RGBA.
            is_grey = image.mode == "RGBA" and any(str(tile.args).startswith("LA") for tile in image.tile)
            image.load()
            is_png, icc = image.format == "PNG", image.info.get("icc_profile")
            image = _orient(image, notices)
            image = _to_srgb(image, icc, notices)
            image = _to_eight_bits(image, notices, is_png)
            image = image.convert("LA") if is_grey else image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_describe_stranger(path)) from None
    except FileNotFoundError:
        raise ImageError("the file is gone") from None
    except PermissionError:
        raise ImageError("no permission to read the file") from None
    except Exception as error:  # a decoder fed with rubbish raises whatever it likes
        raise ImageError(f"broken picture: {_one_line(error)}") from None
    image.info = {"notices": notices}
    return image


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")
    if status.st_size == 0:
        raise ImageError("empty file")


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError("the picture has no pixels")
    if pixels > max_pixels:
        raise ImageError(
            f"{image.width}x{image.height} is {pixels / 1e6:.1f} million pixels, the limit is {max_pixels / 1e6:g};"
            " raise it with --max_input_pixels"
        )


@contextmanager
def _our_pixel_cap() -> Iterator[None]:
    """Let `_check_pixels` rule alone: Pillow's own limit only warns up to 179 million pixels."""
    pillow_cap, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and TIFF tags; what matters is raised
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_cap


def _oddities(path: Path, image: Image.Image) -> list[str]:
    """What is not taken over as it is, seen from the header."""
    notices = []
    named = SAVE_OPTIONS.get(path.suffix.lower(), (None,))[0]
    if named and named != image.format.replace("MPO", "JPEG"):
        notices.append(f"a {image.format} picture, despite its name")
    # A phone's JPEG may carry a second picture for depth (MPO): not an animation, nothing to report.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        notices.append(f"{image.n_frames} frames, only the first is used")
    if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile.args) for tile in image.tile):
        notices.append("16 bits a channel, read at 8")
    return notices


def _orient(image: Image.Image, notices: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        notices.append("EXIF data is damaged, orientation unknown")
        return image


def _to_srgb(image: Image.Image, icc: bytes | None, notices: list[str]) -> Image.Image:
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if not icc:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        return _convert_colors(image, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append("its colour profile cannot be used, colours taken as sRGB")
        return image


def _convert_colors(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Take colours through `profile` to sRGB; alpha and greyness stay. More than 8 bits of grey are left alone."""
    if image.mode.startswith(("I", "F")):
        return image
    image = _from_palette(image)
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    grey = image.mode in ("1", "L", "LA")
    colors = image.convert("L") if grey else image.convert("RGB") if image.mode != "CMYK" else image
    colors = ImageCms.profileToProfile(colors, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return join(colors, alpha, grey)


def _to_eight_bits(image: Image.Image, notices: list[str], is_png: bool = False) -> Image.Image:
    # Older Pillows open a 16-bit grey PNG as mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
        return _scale_levels(image, 65_535)
    if image.mode in ("I", "F"):
        return _scale_levels(image, _guess_white(image, notices))
    image = _from_palette(image)
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if image.mode == "La":
        return image.convert("LA")
    if image.mode in ("RGBa", "PA"):
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_palette(image: Image.Image) -> Image.Image:
    """Palette and colour-key pictures as plain ones; a palette of greys gives a grey picture."""
    transparent = "transparency" in image.info
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        grey = bool((palette == palette[:, :1]).all())
        image = image.convert("RGBA" if transparent or image.mode == "PA" else "RGB")
        return image.convert("LA" if image.mode == "RGBA" else "L") if grey else image
    if transparent and image.mode in ("L", "RGB"):
        return image.convert("LA" if image.mode == "L" else "RGBA")
    return image


def _guess_white(image: Image.Image, notices: list[str]) -> float:
    """What means white in an integer or float picture: the file does not say, so the next usual maximum."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageError("the picture holds values that are not numbers (nan or inf)")
    brightest = float(values.max())
    usual = (1.0, 255.0, 65_535.0, 2.0**31 - 1) if image.mode == "F" else (255.0, 65_535.0, 2.0**31 - 1)
    white = next((level for level in usual if brightest <= level), brightest)
    notices.append(f"{'float' if image.mode == 'F' else 'integer'} pixels, {white:g} taken as white")
    return white


def _scale_levels(image: Image.Image, white: float) -> Image.Image:
    levels = np.asarray(image).astype(np.float64) * (255.0 / white)
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _describe_stranger(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    name = next((name for magic, name in OTHER_FORMATS.items() if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        name = {b"avif": "AVIF", b"avis": "AVIF"}.get(start[8:12], "HEIC")
    readable = "PNG, JPEG, WebP, TIFF or BMP"
    return f"{name} is not read here; convert it to {readable} first" if name else f"not an image ({readable})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- colour and alpha ------------------------------------------------------------------------------------------------


def split(image: Image.Image) -> tuple[Image.Image, Image.Image | None, bool]:
    """A picture as (RGB picture for the model, alpha or None, was it grey). Any PIL mode is taken."""
    image = _to_eight_bits(image, [])
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    return image.convert("RGB"), alpha, image.mode in ("L", "LA")


def join(rgb: Image.Image, alpha: Image.Image | None, is_grey: bool) -> Image.Image:
    """The inverse of `split`: grey again if it was, alpha brought to the size of `rgb` (bicubic) and put back."""
    image = rgb.convert("L") if is_grey else rgb
    if alpha is None:
        return image
    if alpha.size != image.size:
        alpha = alpha.resize(image.size, Image.Resampling.BICUBIC)
    image = image.copy()
    image.putalpha(alpha)
    return image


# --- sizes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The sizes one picture passes through, each (width, height) in pixels.

    source -> enlarged (only small pictures change) -> content = upscale * enlarged -> padded, which the model sees ->
    content again -> output = round(upscale * source).
    """

    source: tuple[int, int]
    enlarged: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]
    output: tuple[int, int]


def plan_frame(
    width: int,
    height: int,
    upscale: float = 4,
    process_size: int = 512,
    multiple: int = 8,
    max_side: int = MAX_SIDE,
) -> Frame:
    """How a picture of width x height reaches the model and comes out at exactly round(upscale * side).

    As published, a side below process_size // upscale enlarges the picture until its short side has that length,
    because the model saw nothing smaller in training. Here this stops where the long side of what the model sees would
    exceed `max_side`; a strip that is still thin is padded to min(process_size, 64). Sides are padded up to a
    `multiple`, where the published code squeezes them down to one.
    """
    if upscale < 1:
        raise ValueError(f"upscale is {upscale}; it must be 1 or more")
    if (width * upscale) * (height * upscale) > MAX_OUTPUT_PIXELS:
        raise ValueError(
            f"{width}x{height} enlarged {upscale:g} times is more than {MAX_OUTPUT_PIXELS / 1e9:.1f} billion pixels, "
            "beyond what a PNG is good for; choose a smaller --upscale"
        )
    enlarged = _enlarge(width, height, upscale, process_size, max_side)
    content = _scale(enlarged, upscale)
    least = min(process_size, MIN_SIDE)
    padded = tuple(-(-max(side, least) // multiple) * multiple for side in content)
    return Frame((width, height), enlarged, content, padded, _scale((width, height), upscale))


def _scale(size: tuple[int, int], upscale: float) -> tuple[int, int]:
    return round(upscale * size[0]), round(upscale * size[1])


def _enlarge(width: int, height: int, upscale: float, process_size: int, max_side: int) -> tuple[int, int]:
    short, long = min(width, height), max(width, height)
    wanted = int(process_size // upscale)
    if short >= wanted:
        return width, height
    # Whole numbers throughout: int(wanted / short * side), as published, can lose the last pixel to float rounding.
    if wanted * long // short * upscale <= max_side:
        return wanted * width // short, wanted * height // short
    longest = max(int(max_side // upscale), long)
    return max(longest * width // long, width), max(longest * height // long, height)


def prepare(rgb: Image.Image, frame: Frame) -> Image.Image:
    """The low-quality picture at the size of the result (frame.content): bicubic, in two steps if it is small.

    This is what the model repairs, and whose colours the result is matched to.
    """
    if rgb.size != frame.source:
        raise ValueError(f"the picture is {rgb.size}, the frame was planned for {frame.source}")
    for size in (frame.enlarged, frame.content):
        if rgb.size != size:
            rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return rgb


def pad(image: Image.Image, frame: Frame) -> Image.Image:
    """Continue the picture to the right and below by its mirror image, up to frame.padded."""
    right, below = frame.padded[0] - image.width, frame.padded[1] - image.height
    if not right and not below:
        return image
    # numpy mirrors again and again where the margin is wider than the picture, and repeats a single row or column.
    return Image.fromarray(np.pad(np.asarray(image), ((0, below), (0, right), (0, 0)), mode="reflect"))


def crop(x: Tensor, frame: Frame) -> Tensor:
    """[..., H, W] of frame.padded without the margin that `pad` added."""
    width, height = frame.content
    return x[..., :height, :width]


def finish(image: Image.Image, frame: Frame) -> Image.Image:
    """The restored picture (frame.content) at frame.output: bicubic where it was enlarged first, else as it is."""
    return image if image.size == frame.output else image.resize(frame.output, Image.Resampling.BICUBIC)


# --- ranges ----------------------------------------------------------------------------------------------------------


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [1, 3, H, W] in [0, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255


def to_signed(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [1, 3, H, W] in [-1, 1], the range of x_L and x_H."""
    return to_tensor(image) * 2 - 1


def to_unit(x: Tensor) -> Tensor:
    """x in [-1, 1] to [0, 1], clamped: a decoder overshoots."""
    return (x.clamp(-1, 1) + 1) / 2


def to_image(unit: Tensor) -> Image.Image:
    """One picture [3, H, W] or [1, 3, H, W] in [0, 1] to RGB. Rounded; published: truncated, half a level darker."""
    pixels = unit.detach().squeeze(0) if unit.ndim == 4 else unit.detach()
    levels = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


# --- to a file -------------------------------------------------------------------------------------------------------


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture so that `path` holds all of it or nothing: a temporary name first, then a rename.

    The extension names the format: png, tif, bmp and webp without loss, jpg at quality 95. Raises ImageError where the
    format cannot hold the picture, OSError where the disk cannot.
    """
    path = Path(path)
    format_name, options = _options_for(image, path)
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
        raise ImageError(f"cannot write '{path.suffix}' files; use one of {', '.join(SAVE_OPTIONS)}")
    format_name, options = SAVE_OPTIONS[suffix]
    longest = LONGEST_SIDE.get(format_name)
    if longest and max(image.size) > longest:
        raise ImageError(f"{image.width}x{image.height} is too large for {format_name} (side <= {longest}); write .png")
    if format_name == "JPEG" and "A" in image.getbands():
        raise ImageError("JPEG holds no transparency; write .png")
    return format_name, options

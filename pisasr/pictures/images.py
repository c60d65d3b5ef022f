"""Infer, first stop and last but one: file -> picture <-> tensor. All that changes a range or a
size.

The way in: a file becomes an upright sRGB `Picture` of 8 or 16 bits (`open_picture`; `open_image`
for Pillow's 8 bits), its colour is brought to the size that the model works at (`plan_frame`,
`prepare`, `pad`) and to a device (`to_batch`). The way back: `crop`, `to_unit`, `from_batch`,
`finish`, `join`; `saving` writes it. Eight-bit levels take Pillow's way, as published; deeper ones
are floats throughout and are rounded once, where they are written.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps
from torch import Tensor

from pisasr.errors import ImageError
from pisasr.pictures.opening import MAX_OUTPUT_PIXELS, check_kind, is_deep, load, opened
from pisasr.pictures.saving import PARTS, SAVE_OPTIONS, exif_bytes

MAX_PIXELS = 64_000_000  # of an input, before it is decoded
MAX_SIDE = 4096  # of a small picture once it is enlarged for the model
MIN_SIDE = 64  # what a strip too long to be enlarged is padded to

# Of EXIF, what describes the photo and not the file that held it, and is true of the repaired one
# too. Left behind are the thumbnail, the orientation (it was applied) and the maker's notes, whose
# places count from where they stood.
EXIF_KEPT = {
    *(
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.DateTime,
    ),
    *(
        ExifTags.Base.XResolution,
        ExifTags.Base.YResolution,
        ExifTags.Base.ResolutionUnit,
        ExifTags.Base.Rating,
    ),
    *(
        ExifTags.Base.Artist,
        ExifTags.Base.Copyright,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
    ),
    *(ExifTags.Base.XPAuthor, ExifTags.Base.XPKeywords, ExifTags.Base.XPSubject),
}
EXIF_LEFT = {ExifTags.Base.MakerNote, ExifTags.IFD.Interop}
UNUSABLE = "its colour profile cannot be used, colours taken as sRGB"


# --- from a file ----------------------------------------------------------------------------------


@dataclass
class Picture:
    """One picture in memory, upright and in sRGB.

    pixels [H, W, 3]: uint8 levels, or float32 in [0, 1] where there is more to hold. alpha [H, W],
    of the same kind, or None. is_grey: its three channels were one. notices: lines for the person
    whose picture it is. exif: what its file tells about the photo, place included (GPS), for who
    asks that it be kept (`saving.Metadata`); None if nothing.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    is_grey: bool = False
    notices: list[str] = field(default_factory=list)
    exif: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def is_special(self) -> bool:
        """Whether it is more, or less, than three channels of colour."""
        return self.is_grey or self.alpha is not None


def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as a person sees it: upright, 8-bit, sRGB; mode L, LA, RGB or RGBA.

    The content decides, not the extension; PNG, JPEG, WebP, TIFF and BMP are read, nothing else is
    even tried. The size is checked before a pixel is decoded. EXIF orientation is applied. An ICC
    profile is converted to sRGB and let go. Sixteen-bit grey and float pictures are scaled, not
    clipped; sixteen-bit colour comes at eight bits. Of an animation the first frame is taken. What
    a person may want to know of all this is in `image.info["notices"]`, a list of lines.

    Raises ImageError, one line, for whatever is wrong with the file.
    """
    with _reading(Path(path), max_pixels) as (image, notices):
        image, power, _ = _seen(image, notices)
        image = _bent(_to_eight_bits(image, notices), power)
    image.info = {"notices": notices}
    return image


def open_picture(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Picture:
    """Like `open_image`, but sixteen-bit and float pictures keep what they hold.

    Not so, with a notice, where an ICC profile has to be applied (Pillow knows it at eight bits
    alone), and for grey with alpha.
    """
    path = Path(path)
    with _reading(path, max_pixels) as (image, notices):
        colour = image.mode in ("RGB", "RGBA") and not _holds_grey(image)
        if not (colour and is_deep(image)) or _needs_conversion(image, notices):
            return _from_image(*_seen(image, notices), notices)
        power, key, exif = (
            _power_to_srgb(image, notices),
            image.info.get("transparency"),
            _read_exif(image, notices),
        )
        image.load()
        high = np.asarray(_orient(image, notices))
    with _reading(path, max_pixels) as (image, _):
        image.tile = [_other_byte(tile) for tile in image.tile]
        image.load()
        low = np.asarray(_orient(image, []))
    picture = _from_array(_with_key(high.astype(np.uint16) << 8 | low, key), notices)
    return replace(picture, pixels=picture.pixels**power, exif=exif)


@contextmanager
def _reading(path: Path, max_pixels: int) -> Iterator[tuple[Any, list[str]]]:
    """A file as `opened` gives it, and the notices so far. A fault in the block becomes
    ImageError.
    """
    with opened(path, max_pixels) as image:
        yield image, _oddities(path, image)


def _seen(image: Any, notices: list[str]) -> tuple[Any, float, bytes | None]:
    """A picture of Pillow's in sRGB but for a power of its levels (`_power_to_srgb`), that power,
    and its EXIF.

    It is as deep as Pillow has it. One that comes from a file is upright, too; of a copy nobody
    knows whether it was turned since, or cut out.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return _to_srgb(image, notices), _power_to_srgb(image, notices), None
    is_grey = _holds_grey(image)
    if image.tile:
        check_kind(image)
        _as_stored(image, notices)
    exif = _read_exif(image, notices)
    load(image)
    power = _power_to_srgb(image, notices)
    image = _to_srgb(_orient(_in_full_range(image), notices), notices)
    return image.convert("LA") if is_grey else image, power, exif


def _holds_grey(image: Any) -> bool:
    """Whether it is 16-bit grey with alpha, which Pillow gives as RGBA; of a picture that is not
    loaded.
    """
    return image.mode == "RGBA" and any(str(tile.args).startswith("LA") for tile in image.tile)


def _as_stored(image: Any, notices: list[str]) -> None:
    """Put right, before it is loaded, what Pillow takes for something else, and note what it leaves
    out.

    Pillow 12 takes each TIFF in YCbCr for one that libtiff turns into RGB; without compression
    nobody does. The key of a PNG's transparency comes in the file's own levels, and the picture in
    eight bits.
    """
    if (
        image.format == "TIFF"
        and image.tag_v2.get(262) == 6
        and all(tile.codec_name == "raw" for tile in image.tile)
    ):
        image._mode = "YCbCr"
        image.tile = [tile._replace(args=("YCbCr", *tile.args[1:])) for tile in image.tile]
    key = image.info.get("transparency")
    if image.mode in ("RGB", "RGBA", "LA", "CMYK") and is_deep(image):
        notices.append("16 bits a channel, read at 8")
        if key is not None:
            image.info["transparency"] = tuple(level >> 8 for level in key)
    elif key is not None and (step := {"L;2": 85, "L;4": 17}.get(image.tile[0].args)):
        image.info["transparency"] = step * key


def _in_full_range(image: Any) -> Any:
    """A TIFF's grey of more than eight bits from black at 0 to white at its most, which Pillow
    leaves to its caller.
    """
    if image.format != "TIFF":
        return image
    bits, zero_is_white = image.tag_v2.get(258), image.tag_v2.get(262) == 0
    if image.mode.startswith("I;16") and (zero_is_white or bits == (12,)):
        levels: Any = np.asarray(image).astype(np.uint16)
        levels = levels << 4 | levels >> 8 if bits == (12,) else levels
        return Image.fromarray(65_535 - levels if zero_is_white else levels)
    if image.mode == "I" and bits == (32,) and image.tag_v2.get(339, (1,)) == (1,):
        levels = np.asarray(image).view(np.uint32)
        return Image.fromarray((levels >> 16).astype(np.uint16)) if levels.max() >= 2**31 else image
    return image


def _with_key(levels: np.ndarray, key: Any) -> np.ndarray:
    """Sixteen bits [H, W, C], and alpha where a PNG names one level, or colour, that is clear."""
    if key is None:
        return levels
    opaque = (levels != np.array(key)).any(axis=-1, keepdims=True)
    return np.concatenate([levels, 65_535 * opaque.astype(np.uint16)], axis=-1)


def _other_byte(tile: Any) -> Any:
    """A tile whose decoder takes the low byte of each sixteen bits where it took the high one.

    Pillow holds eight bits of colour and lets the file's byte order say which eight; the other
    order gives the rest.
    """

    def swapped(word: Any) -> Any:
        if not isinstance(word, str):
            return word
        head, deep, order = word.partition(";16")
        return (
            word
            if not deep
            else head
            + deep
            + {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[order]
        )

    args = tile.args
    return tile._replace(args=swapped(args) if isinstance(args, str) else tuple(map(swapped, args)))


def _oddities(path: Path, image: Any) -> list[str]:
    """What is not taken over as it is, seen from the header."""
    notices = []
    named = SAVE_OPTIONS.get(path.suffix.lower(), ("",))[0]
    if named and named != image.format.replace("MPO", "JPEG"):
        notices.append(f"a {image.format} picture, despite its name")
    # A phone's JPEG may carry a second picture for depth (MPO): not an animation, nothing to
    # report.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        # Pillow would count a TIFF's by reading them all, again and again.
        count = "several" if image.format == "TIFF" else image.n_frames
        notices.append(f"{count} frames, only the first is used")
    return notices


def _orient(image: Image.Image, notices: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        notices.append("EXIF data is damaged, orientation unknown")
        return image


def _read_exif(image: Any, notices: list[str]) -> bytes | None:
    """What EXIF_KEPT names, and all of the camera's settings and the place; of a picture that is
    about to be loaded.
    """
    try:
        found = image.getexif()
    except Exception:
        return None  # `_orient` will tell
    try:
        kept: dict[int, Any] = {tag: value for tag, value in found.items() if tag in EXIF_KEPT}
        for part in PARTS:
            if told := {
                tag: value for tag, value in found.get_ifd(part).items() if tag not in EXIF_LEFT
            }:
                kept[part] = told
        return exif_bytes(kept) if kept else None
    except Exception:
        notices.append("EXIF data is damaged and can't be kept")
        return None


def _to_srgb(image: Any, notices: list[str]) -> Image.Image:
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _through(image, lab)
    if not _needs_conversion(image, notices):
        return image
    try:
        return _convert_colors(image, ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"])))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append(UNUSABLE)
        return image


def _power_to_srgb(image: Any, notices: list[str]) -> float:
    """Which power of a PNG's levels are sRGB's, by its gAMA chunk; 1 where it has none, or better
    word of its colours.

    The inverse of sRGB's curve is taken for a power of 2.2, as the PNG specification has it.
    """
    gamma = image.info.get("gamma")
    if gamma is None or {"srgb", "icc_profile"} & image.info.keys():
        return 1.0
    if not 0.1 <= gamma <= 10:
        notices.append(f"its gamma of {gamma:g} cannot be used, colours taken as sRGB")
        return 1.0
    power = 1 / (2.2 * gamma)
    if abs(power - 1) < 0.01:
        return 1.0
    notices.append(f"gamma {gamma:g}, brought to sRGB")
    return power


def _bent(image: Image.Image, power: float) -> Image.Image:
    """Eight-bit levels of colour, or grey, to a power; alpha stays."""
    if power == 1:
        return image
    curve = [round(255 * (level / 255) ** power) for level in range(256)]
    table = [level for band in image.getbands() for level in (range(256) if band == "A" else curve)]
    return image.point(table)


def _needs_conversion(image: Any, notices: list[str]) -> bool:
    """Whether a profile says that the colours are not sRGB's; a broken one says nothing, which is
    noted.
    """
    if image.mode.startswith(("I", "F")) or not (icc := image.info.get("icc_profile")):
        return False  # more than eight bits of grey are left alone
    try:
        return not _is_srgb(icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append(UNUSABLE)
        return False


@lru_cache(maxsize=16)
def _is_srgb(icc: bytes) -> bool:
    """Whether a profile's colours are sRGB's, within two levels; a linear one may bear the same
    name.
    """
    profile = ImageCms.ImageCmsProfile(BytesIO(icc))
    mode = {"RGB ": "RGB", "GRAY": "L"}.get(profile.profile.xcolor_space)
    if mode is None:
        return False
    levels = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), axis=-1)
    colours = Image.fromarray(levels.reshape(1, -1, 3)).convert(mode)
    given, seen = (
        np.asarray(each).astype(int)
        for each in (colours.convert("RGB"), _through(colours, profile))
    )
    return bool(np.abs(seen - given).max() <= 2)


def _through(image: Any, profile: Any) -> Any:
    return ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def _convert_colors(image: Any, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Take colours through `profile` to sRGB; alpha and greyness stay."""
    image = _from_palette(image)
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    grey = image.mode in ("1", "L", "LA")
    colors = image.convert("L") if grey else image.convert("RGB") if image.mode != "CMYK" else image
    colors = _through(colors, profile)
    colors = colors.convert("L") if grey else colors
    if alpha is not None:
        colors.putalpha(alpha)
    return colors


def _to_eight_bits(image: Image.Image, notices: list[str]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        picture = _from_image(image, 1.0, None, notices)
        return eight_bits(join(picture.pixels, picture))
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
    if transparent and image.mode in ("1", "L", "RGB"):
        return image.convert("RGBA" if image.mode == "RGB" else "LA")
    return image


def _guess_white(image: Image.Image, notices: list[str]) -> float:
    """What means white in an integer or float picture, which the file does not say: the next usual
    maximum.

    A few highlights above it, up to sixteen times, are clipped: floats of light have them, and
    resampling makes some. Where all is far below the next usual maximum, its own brightest is
    white, as of a sensor of twelve bits.
    """
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageError("the picture holds values that are not numbers (nan or inf)")
    brightest, most = float(values.max()), float(np.percentile(values, 99))
    usual = (
        (1.0, 255.0, 65_535.0, 2.0**31 - 1) if image.mode == "F" else (255.0, 65_535.0, 2.0**31 - 1)
    )
    white = next((level for level in usual if most <= level and brightest <= 16 * level), brightest)
    if white != usual[0] and brightest < white / 10:
        white = brightest
    told = [f"{'float' if image.mode == 'F' else 'integer'} pixels, {white:g} taken as white"]
    told += [f"brighter ones, up to {brightest:g}, clipped"] if brightest > white else []
    told += ["negative ones taken as black"] if values.min() < 0 else []
    notices.append(", ".join(told))
    return white


# --- in memory ------------------------------------------------------------------------------------


def pictures_of(given: Any) -> list[Picture]:
    """What people hand over, as pictures: PIL images of any mode, arrays, tensors, `Picture`s, and
    lists of these.

    PIL's are brought to sRGB by the profile or the gamma that they carry; one that is as
    PIL.Image.open gave it is turned upright, too, as `open_picture` has it. Arrays are [H, W], [H,
    W, C] or [B, H, W, C], tensors [C, H, W] or [B, C, H, W], of 1 (grey), 3, or with alpha 2 or 4
    channels: uint8, uint16, or floats in [0, 1], which are taken as they are. TypeError or
    ValueError for others.
    """
    if isinstance(given, Picture):
        return [given]
    if isinstance(given, Image.Image):
        notices: list[str] = []
        return [_from_image(*_seen(given, notices), notices)]
    if isinstance(given, str | os.PathLike):
        raise TypeError(f"{str(given)!r} is a path; open it first: PIL.Image.open({str(given)!r}).")
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()
        given = np.moveaxis(given, -3, -1) if given.ndim > 2 else given
    if isinstance(given, np.ndarray):
        return [_from_array(one) for one in (given if given.ndim == 4 else [given])]
    if not isinstance(given, Iterable):
        raise TypeError(
            f"{given!r} came; wanted a PIL picture, an array, a tensor, or a list of such."
        )
    return [picture for item in given for picture in pictures_of(item)]


def _from_image(
    image: Image.Image, power: float, exif: bytes | None, notices: list[str]
) -> Picture:
    """What `_seen` gave; modes of more than eight bits keep them."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode.startswith("I;16"):
            values = _with_key(values.astype(np.uint16)[..., None], image.info.get("transparency"))
        else:
            values = (values / _guess_white(image, notices)).clip(0, 1).astype(np.float32)
        picture = _from_array(values, notices)
        return replace(picture, pixels=picture.pixels**power, exif=exif)
    image = _bent(_to_eight_bits(image, notices), power)
    rgb, alpha, is_grey = split(image)
    return Picture(
        np.asarray(rgb), None if alpha is None else np.asarray(alpha), is_grey, notices, exif
    )


def _from_array(array: np.ndarray, notices: list[str] | None = None) -> Picture:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"an array of shape {list(array.shape)} came; wanted [H, W, C] with 1 to 4 channels."
        )
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / 65_535
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # nan is neither
            raise ValueError(
                f"floats from {array.min():g} to {array.max():g} came; wanted values in [0, 1] (divide levels by 255)."
            )
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise TypeError(f"pixels of {array.dtype} came; wanted uint8, uint16, or floats in [0, 1].")
    channels = array.shape[-1]
    alpha = array[..., -1] if channels in (2, 4) else None
    pixels = array[..., :3] if channels > 2 else array[..., :1].repeat(3, axis=-1)
    return Picture(np.ascontiguousarray(pixels), alpha, channels < 3, notices or [])


def split(image: Image.Image) -> tuple[Image.Image, Image.Image | None, bool]:
    """A picture as (RGB picture for the model, alpha or None, was it grey). Any PIL mode is taken,
    at eight bits.
    """
    image = _to_eight_bits(image, [])
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    return image.convert("RGB"), alpha, image.mode in ("L", "LA")


def join(pixels: np.ndarray, picture: Picture) -> np.ndarray:
    """[H, W, 3] as [H, W, C]: one channel if `picture` was grey, and its alpha, brought to this
    size (bicubic).
    """
    if picture.is_grey:
        pixels = _grey(pixels)
    if picture.alpha is None:
        return pixels
    alpha = _levels_like(pixels, resize(picture.alpha, (pixels.shape[1], pixels.shape[0])))
    return np.concatenate([pixels, alpha[..., None]], axis=-1)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Luma by ITU-R BT.601, as Pillow's mode L has it. [H, W, 3] -> [H, W, 1]."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]


def _levels_like(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Alpha in the kind of the pixels: the two differ where an 8-bit input has a float result, or
    the reverse.
    """
    if alpha.dtype == pixels.dtype:
        return alpha
    return alpha.astype(np.float32) / 255 if pixels.dtype == np.float32 else to_levels(alpha, 8)


def to_levels(values: np.ndarray, bits: int) -> np.ndarray:
    """Floats in [0, 1] as rounded levels, uint8 or uint16."""
    return np.rint(values * (2**bits - 1)).astype({8: np.uint8, 16: np.uint16}[bits])


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as a PIL picture, L, LA, RGB or RGBA by its channels."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def eight_bits(picture: Any) -> Image.Image:
    """A result as an 8-bit picture to look at or to score: PIL as it is, arrays [H, W, C]
    rounded.
    """
    if isinstance(picture, Image.Image):
        return picture
    white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}.get(picture.dtype, 1)
    return as_image(picture if white == 255 else to_levels(picture / np.float64(white), 8))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] or [H, W, 3] at another (width, height), by Pillow's bicubic filter; floats stay
    floats in [0, 1].
    """
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if pixels.ndim == 3:
        return np.stack([resize(channel, size) for channel in np.moveaxis(pixels, -1, 0)], axis=-1)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


# --- sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The sizes one picture passes through, each (width, height) in pixels.

    source -> enlarged (small pictures) -> content =
    upscale * enlarged -> padded, which the model sees -> content again -> output = round(upscale *
    source).
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
    native_upscale: float | None = None,
) -> Frame:
    """How a picture of width x height reaches the model and comes out at exactly round(upscale *
    side).

    As published, a side below process_size // upscale enlarges the picture until its short side has
    that length, because the model saw nothing smaller in training. Here this stops where the long
    side of what the model sees would exceed `max_side`; a strip that is still thin is padded to
    min(process_size, 64). Sides are padded up to a `multiple`, where the published code squeezes
    them down to one.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels came; it must have one at least")
    if upscale < 1:
        raise ValueError(f"upscale is {upscale}; it must be 1 or more")
    if (width * upscale) * (height * upscale) > MAX_OUTPUT_PIXELS:
        raise ValueError(
            f"{width}x{height} enlarged {upscale:g} times is more than {MAX_OUTPUT_PIXELS / 1e9:.1f} billion pixels, "
            "beyond what a PNG is good for; choose a smaller --upscale"
        )
    working = native_upscale or upscale
    enlarged = _enlarge(width, height, working, process_size, max_side)
    content = _scale(enlarged, working)
    least = min(process_size, MIN_SIDE)
    padded_width, padded_height = (-(-max(side, least) // multiple) * multiple for side in content)
    return Frame(
        (width, height),
        enlarged,
        content,
        (padded_width, padded_height),
        _scale((width, height), upscale),
    )


def _scale(size: tuple[int, int], upscale: float) -> tuple[int, int]:
    return round(upscale * size[0]), round(upscale * size[1])


def _enlarge(
    width: int, height: int, upscale: float, process_size: int, max_side: int
) -> tuple[int, int]:
    short, long = min(width, height), max(width, height)
    wanted = int(process_size // upscale)
    if short >= wanted:
        return width, height
    # Whole numbers throughout: int(wanted / short * side), as published, can lose the last pixel to
    # float rounding.
    if wanted * long // short * upscale <= max_side:
        return wanted * width // short, wanted * height // short
    longest = max(int(max_side // upscale), long)
    return max(longest * width // long, width), max(longest * height // long, height)


def prepare(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """The low-quality picture [H, W, 3] as the model repairs it (frame.content): bicubic, twice if
    frame.enlarged says.

    Its colours are what the result is matched to.
    """
    if (pixels.shape[1], pixels.shape[0]) != frame.source:
        came = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(
            f"the picture is {came}, the frame was planned for {frame.source[0]}x{frame.source[1]}"
        )
    for size in (frame.enlarged, frame.content):
        pixels = resize(pixels, size)
    return pixels


def pad(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Continue [H, W, 3] to the right and below by its mirror image, up to frame.padded."""
    right, below = frame.padded[0] - pixels.shape[1], frame.padded[1] - pixels.shape[0]
    if not right and not below:
        return pixels
    # numpy mirrors again and again where the margin is wider than the picture, and repeats a single
    # row or column.
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="reflect")


def crop(x: Tensor, frame: Frame) -> Tensor:
    """[..., H, W] of frame.padded without the margin that `pad` added."""
    width, height = frame.content
    return x[..., :height, :width]


def finish(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """The restored picture (frame.content) at frame.output: bicubic where the two differ, else as
    it is.
    """
    return resize(pixels, frame.output)


# --- ranges ---------------------------------------------------------------------------------------


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [1, 3, H, W] in [0, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255


def to_batch(pixels: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Pictures [H, W, 3] of one size as [B, 3, H, W] on the device: levels as bytes, floats as they
    are.
    """
    return torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2).contiguous()


def from_levels(x: Tensor) -> Tensor:
    """What `to_batch` gave, as float32 in [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def from_batch(unit: Tensor, bits: int | None = None) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] as [B, H, W, 3] on the host: float32, or levels of 8 or 16 bits,
    rounded on the device.

    Rounded; published: truncated, half a level darker.
    """
    x = unit.detach().float().clamp(0, 1).permute(0, 2, 3, 1)
    if bits is not None:
        x = x.mul(2**bits - 1).round()
        x = x.to(torch.uint8) if bits == 8 else x.to(torch.int32).to(torch.uint16)
    return x.contiguous().cpu().numpy()


def to_signed(unit: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], what a model sees."""
    return torch.add(
        unit.new_tensor(-1.0), unit, alpha=2
    )  # in one step: of a big picture, each costs a copy


def to_unit(x: Tensor) -> Tensor:
    """x in [-1, 1] to [0, 1], clamped: a decoder overshoots."""
    return x.clamp(-1, 1).add_(1).div_(2)


def to_image(unit: Tensor) -> Image.Image:
    """One picture [3, H, W] or [1, 3, H, W] in [0, 1] to RGB. Rounded; published: truncated, half a
    level darker.
    """
    pixels = unit.detach().squeeze(0) if unit.ndim == 4 else unit.detach()
    levels = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())

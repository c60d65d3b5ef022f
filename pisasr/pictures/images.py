"""Files, PIL pictures, arrays and tensors to `Picture`, and its pixels to tensors and back.

`open_picture` reads a file; `pictures_of` takes what is in memory. Levels of 8 bits are resized by
Pillow, as published; of 16 bits they are floats throughout and rounded once, where they are saved.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps
from torch import Tensor

from pisasr.pictures.frames import resize
from pisasr.pictures.metadata import read_exif
from pisasr.pictures.opening import MAX_PIXELS, is_deep, opened
from pisasr.pictures.saving import SAVE_OPTIONS

PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
UNUSABLE = "its color profile cannot be used, colors taken as sRGB"


@dataclass
class Picture:
    """One picture in memory, upright and in sRGB.

    pixels [H, W, 3]: uint8 levels, or float32 in [0, 1] where there were more. alpha [H, W]: of the
    same kind, or None. is_gray: its three channels were one. notices: lines for the user. exif:
    what the file says about the photo, with the place; None if nothing.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    is_gray: bool = False
    notices: list[str] = field(default_factory=list)
    exif: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as in Pillow."""
        return self.pixels.shape[1], self.pixels.shape[0]


# --- from a file ----------------------------------------------------------------------------------


def open_picture(path: str | os.PathLike, max_pixels: int | None = MAX_PIXELS) -> Picture:
    """Read PNG, JPEG, WebP, TIFF or BMP, by content and not by name, upright and in sRGB.

    The size is checked before a pixel is decoded. Orientation and an ICC profile are applied; of an
    animation the first frame is taken. Raises ImageError, one line, for whatever is wrong.
    """
    path = Path(path)
    with opened(path, max_pixels) as image:
        notices = _oddities(path, image)
        if not is_deep(image):
            return _from_image(image, notices)
        exif = read_exif(image, notices)
        has_profile = image.mode in ("RGB", "RGBA") and _needs_conversion(image, notices)
        picture = _from_array(_decode_deep(path, has_profile))
    return Picture(picture.pixels, picture.alpha, picture.is_gray, notices, exif)


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read a file like `open_picture`, as a PIL picture of 8 bits: L, LA, RGB or RGBA.

    Its info["notices"] are lines for the user.
    """
    picture = open_picture(path)
    image = eight_bits(join(picture.pixels, picture))
    image.info = {"notices": picture.notices}
    return image


def _decode_deep(path: Path, has_profile: bool) -> np.ndarray:
    """Decode sixteen bits a channel, of which Pillow gives eight: uint16 [H, W, C], upright."""
    import pyvips

    image = pyvips.Image.new_from_buffer(path.read_bytes(), "", fail_on="error").autorot()
    if has_profile:
        image = image.icc_transform("srgb", embedded=True, depth=16)
    elif image.interpretation not in ("grey16", "rgb16"):
        image = image.colourspace("rgb16")
    return image.numpy().astype(np.uint16).reshape(image.height, image.width, image.bands)


def _oddities(path: Path, image: Any) -> list[str]:
    """Say what of a file is not taken as it is, by its header."""
    notices = []
    named = SAVE_OPTIONS.get(path.suffix.lower(), ("",))[0]
    if named and named != image.format.replace("MPO", "JPEG"):
        notices.append(f"a {image.format} picture, despite its name")
    # A phone's JPEG with a second picture for depth (MPO) is no animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notices.append("several frames, only the first is used")
    return notices


# --- from memory ----------------------------------------------------------------------------------


def pictures_of(given: Any) -> list[Picture]:
    """Take PIL pictures of any mode, arrays, tensors, `Picture`s, and lists of these.

    PIL's are converted to sRGB by the profile that they carry; as PIL.Image.open gave them they are
    turned upright, too. Arrays are [H, W], [H, W, C] or [B, H, W, C], tensors [C, H, W] or
    [B, C, H, W], of 1 (gray), 3, or with alpha 2 or 4 channels: uint8, uint16, or floats in [0, 1],
    taken as sRGB. Raises TypeError or ValueError for others.
    """
    if isinstance(given, Picture):
        return [given]
    if isinstance(given, Image.Image):
        return [_from_image(given, [])]
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


def _from_array(array: np.ndarray) -> Picture:
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
                f"floats from {array.min():g} to {array.max():g} came; wanted values in [0, 1]"
                " (divide levels by 255)."
            )
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise TypeError(f"pixels of {array.dtype} came; wanted uint8, uint16, or floats in [0, 1].")
    channels = array.shape[-1]
    alpha = array[..., -1] if channels in (2, 4) else None
    pixels = array[..., :3] if channels > 2 else array[..., :1].repeat(3, axis=-1)
    return Picture(np.ascontiguousarray(pixels), alpha, channels < 3)


def _from_image(image: Any, notices: list[str]) -> Picture:
    exif = read_exif(image, notices) if isinstance(image, ImageFile.ImageFile) else None
    if isinstance(image, ImageFile.ImageFile):  # of a copy it isn't known whether it was turned
        image = _orient(image, notices)
    if image.mode.startswith("I;16"):
        picture = _from_array(np.asarray(image).astype(np.uint16))
        return Picture(picture.pixels, None, True, notices, exif)
    if image.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {image.mode} came; wanted 8 or 16 bits a channel.")
    image = _to_srgb(image, notices)
    alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    return Picture(np.asarray(image.convert("RGB")), alpha, image.mode[0] == "L", notices, exif)


def _orient(image: Image.Image, notices: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError):
        notices.append("EXIF data is damaged, orientation unknown")
        return image


def _to_srgb(image: Image.Image, notices: list[str]) -> Image.Image:
    """Convert any 8-bit mode to L, LA, RGB or RGBA, in sRGB."""
    if image.mode == "LAB":
        return _through(image, ImageCms.createProfile("LAB"))
    icc = image.info.get("icc_profile") if _needs_conversion(image, notices) else None
    plain = image if image.mode == "CMYK" and icc else _plain(image)
    if icc is None:
        return plain
    try:
        colors = plain.convert("RGB") if plain.mode == "RGBA" else plain
        colors = _through(
            colors.convert("L") if colors.mode == "LA" else colors,
            ImageCms.ImageCmsProfile(BytesIO(icc)),
        )
    except PROFILE_ERRORS:
        notices.append(UNUSABLE)
        return _plain(image)
    if plain.mode[0] == "L":
        colors = colors.convert("L")
    if "A" in plain.getbands():
        colors.putalpha(plain.getchannel("A"))
    return colors


def _plain(image: Image.Image) -> Image.Image:
    """Convert to L, LA, RGB or RGBA; a palette of grays is gray, a color key becomes alpha."""
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        is_gray = bool((palette == palette[:, :1]).all())
    alpha = "A" if image.has_transparency_data else ""
    if is_gray and image.mode in ("P", "PA"):
        image = image.convert("RGB" + alpha)
    return image.convert(("L" if is_gray else "RGB") + alpha)


def _needs_conversion(image: Any, notices: list[str]) -> bool:
    """Tell whether a profile says that the colors are not sRGB; note a broken one."""
    icc = image.info.get("icc_profile")
    try:
        return bool(icc) and not _is_srgb(icc)
    except PROFILE_ERRORS:
        notices.append(UNUSABLE)
        return False


@lru_cache(maxsize=16)
def _is_srgb(icc: bytes) -> bool:
    """Tell whether a profile is sRGB's within two levels; a linear one may bear the same name."""
    profile = ImageCms.ImageCmsProfile(BytesIO(icc))
    mode = {"RGB ": "RGB", "GRAY": "L"}.get(profile.profile.xcolor_space)
    if mode is None:
        return False
    levels = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), axis=-1)
    colors = Image.fromarray(levels.reshape(1, -1, 3)).convert(mode)
    given = np.asarray(colors.convert("RGB")).astype(int)
    seen = np.asarray(_through(colors, profile)).astype(int)
    return bool(np.abs(seen - given).max() <= 2)


def _through(image: Image.Image, profile: Any) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None  # noqa: S101  it is None where it converts in place
    return converted


# --- parts and depths -----------------------------------------------------------------------------


def join(pixels: np.ndarray, picture: Picture) -> np.ndarray:
    """[H, W, 3] as [H, W, C]: one channel if `picture` was gray, and its alpha at this size."""
    if picture.is_gray:
        pixels = _luma(pixels)
    if picture.alpha is None:
        return pixels
    alpha = resize(picture.alpha, (pixels.shape[1], pixels.shape[0]))
    if alpha.dtype != pixels.dtype:  # an 8-bit input with a float result, or the reverse
        is_float = pixels.dtype == np.float32
        alpha = alpha.astype(np.float32) / 255 if is_float else to_levels(alpha, 8)
    return np.concatenate([pixels, alpha[..., None]], axis=-1)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """Luma by ITU-R BT.601, as Pillow's mode L has it. [H, W, 3] -> [H, W, 1]."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]


def to_levels(values: np.ndarray, bits: int) -> np.ndarray:
    """Round floats in [0, 1] to levels, uint8 or uint16."""
    return np.rint(values * (2**bits - 1)).astype({8: np.uint8, 16: np.uint16}[bits])


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as a PIL picture, L, LA, RGB or RGBA by its channels."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def eight_bits(picture: Any) -> Image.Image:
    """Round a result to 8 bits: [H, W, C] of uint8, uint16 or floats in [0, 1]; PIL as it is."""
    if isinstance(picture, Image.Image):
        return picture
    white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}.get(picture.dtype, 1)
    return as_image(picture if white == 255 else to_levels(picture / np.float64(white), 8))


# --- tensors --------------------------------------------------------------------------------------


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [1, 3, H, W] in [0, 1]."""
    return from_levels(to_batch([np.array(image.convert("RGB"))]))


def to_batch(pixels: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Pictures [H, W, 3] of one size as [B, 3, H, W] on the device: bytes, or floats."""
    batch = np.empty((len(pixels), 3, *pixels[0].shape[:2]), pixels[0].dtype)
    for place, picture in zip(batch, pixels, strict=True):
        place[:] = np.moveaxis(picture, -1, 0)
    return torch.from_numpy(batch).to(device)


def from_levels(x: Tensor) -> Tensor:
    """What `to_batch` gave, as float32 in [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def from_batch(unit: Tensor, bits: int | None = None) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] as [B, H, W, 3] on the host: float32, or levels of 8 or 16 bits.

    Rounded on the device; published: truncated, half a level darker.
    """
    x = unit.detach().float().clamp(0, 1).permute(0, 2, 3, 1)
    if bits is not None:
        x = x.mul_(2**bits - 1).round_()
        x = x.to(torch.uint8) if bits == 8 else x.to(torch.int32).to(torch.uint16)
    return x.contiguous().cpu().numpy()


def to_signed(unit: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], what a model takes."""
    return torch.add(unit.new_tensor(-1.0), unit, alpha=2)  # in one step: each costs a copy


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped: a decoder overshoots."""
    return x.clamp(-1, 1).add_(1).div_(2)


def to_image(unit: Tensor) -> Image.Image:
    """One picture [3, H, W] or [1, 3, H, W] in [0, 1] as RGB, rounded as `from_batch`."""
    return as_image(from_batch(unit if unit.ndim == 4 else unit[None], 8)[0])

"""What a picture's file says beside its pixels: the photo's EXIF, and how the result was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

import pisasr

# Of EXIF, what describes the photo and not its file. Left behind are the thumbnail, the orientation
# (it was applied) and the maker's notes, whose offsets count from where they stood.
KEPT = """ImageDescription Make Model DateTime XResolution YResolution ResolutionUnit Rating Artist
    Copyright XPTitle XPComment XPAuthor XPKeywords XPSubject"""
EXIF_KEPT = {getattr(ExifTags.Base, name) for name in KEPT.split()}
EXIF_LEFT = {ExifTags.Base.MakerNote, ExifTags.IFD.Interop}
PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)  # the camera's settings, the place


@dataclass(frozen=True)
class Metadata:
    """What a file says: software, one line of ASCII (`made_with`); exif, as `Picture` has it."""

    software: str
    exif: bytes | None = None


def made_with(model: str, settings: Mapping[str, Any]) -> str:
    """`pisasr 0.1.0 (model=embedded, lambda_pix=1)`, without settings that have no value."""
    given = {"model": model} | {
        name: value
        for name, value in settings.items()
        if value not in (None, "") and value is not False
    }
    words = (
        f"{name}={value:.15g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in given.items()
    )
    line = f"pisasr {pisasr.__version__} ({', '.join(words)})"
    return line.encode("unicode_escape").decode("ascii")


def read_exif(image: Any, notices: list[str]) -> bytes | None:
    """Read EXIF_KEPT, the camera's settings and the place; None if there is nothing."""
    try:
        found = image.getexif()
        kept: dict[int, Any] = {tag: value for tag, value in found.items() if tag in EXIF_KEPT}
        for part in PARTS:
            values = found.get_ifd(part).items()
            if values := {tag: value for tag, value in values if tag not in EXIF_LEFT}:
                kept[part] = values
        return exif_bytes(kept) if kept else None
    except Exception:  # Pillow raises many kinds for damaged tags
        notices.append("EXIF data is damaged and can't be kept")
        return None


def exif_for(metadata: Metadata, size: tuple[int, int]) -> dict[int, Any]:
    """EXIF of an upright sRGB picture of this (width, height), with what the input's file said."""
    given = Image.Exif()
    if metadata.exif:
        given.load(metadata.exif)
    base = ExifTags.Base
    parts = {part: given.get_ifd(part) for part in PARTS}
    measures: dict[int, Any] = {
        base.ColorSpace: 1,
        base.ExifImageWidth: size[0],
        base.ExifImageHeight: size[1],
    }
    parts[ExifTags.IFD.Exif] = {**parts[ExifTags.IFD.Exif], **measures}
    own: dict[int, Any] = {base.Orientation: 1, base.Software: metadata.software}
    return _as_latin({**given, **{part: values for part, values in parts.items() if values}, **own})


def exif_bytes(values: dict[int, Any]) -> bytes:
    """EXIF as a block of bytes: values by their tags, of each of PARTS a dictionary of such."""
    exif = Image.Exif()
    exif.update(_as_latin(values))
    return exif.tobytes()


class _Latin(str):
    """Text of EXIF, which Pillow reads as Latin-1 whatever it is, and would write as ASCII."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1", "replace")


def _as_latin(value: Any) -> Any:
    if isinstance(value, dict):
        return {tag: _as_latin(one) for tag, one in value.items()}
    return _Latin(value) if isinstance(value, str) else value

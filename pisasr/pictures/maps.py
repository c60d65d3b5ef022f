"""Strengths by place: from a map over the picture to one over its latent."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pisasr.errors import ImageError, UserNotice, safe_text
from pisasr.pictures.folders import EXTENSIONS
from pisasr.pictures.frames import Frame
from pisasr.pictures.images import open_picture

Map = np.ndarray | Tensor
UNUSUAL = 3.0  # a strength beyond this is not what a model was trained for


def check_strength(name: str, given: Any) -> float | np.ndarray:
    """Check a strength: a number, or a map as floats [H, W]; a map of one value is that number.

    A map is a floating array or tensor of any size in the picture's proportions, with the strength
    at each place. Warns (UserNotice) beyond UNUSUAL. Raises TypeError or ValueError, one line
    that begins with `name`, for all else.
    """
    strength = _read_strength(name, given)
    farthest = max(np.max(strength), np.min(strength), key=abs)
    if abs(farthest) > UNUSUAL:
        notice = f"{name} is {farthest:g}; the model knows strengths near 1, results may be odd"
        warnings.warn(notice, UserNotice, stacklevel=3)
    return strength


def _read_strength(name: str, given: Any) -> float | np.ndarray:
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype in (torch.float16, torch.bfloat16) else given).numpy()
    if not isinstance(given, np.ndarray) or given.ndim == 0:
        return _read_number(name, given)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(
            f"{name} is an array of shape {list(given.shape)}; a map of strengths is [H, W]."
        )
    if not np.issubdtype(given.dtype, np.floating):
        raise TypeError(f"{name} is a map of {given.dtype}; give the strength at each place.")
    if not np.isfinite(given).all():
        raise ValueError(f"{name} is a map that holds nan or inf; give finite numbers.")
    return float(given[0, 0]) if (given == given[0, 0]).all() else given


def _read_number(name: str, given: Any) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} is {given!r}; it must be a number, or a map of floats [H, W]."
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be a finite number, usually from 0 to 1.5.")
    return number


def check_proportions(name: str, given: Any, size: tuple[int, int]) -> None:
    """Raise ValueError if a map isn't in the proportions of (width, height), to a pixel."""
    shape: tuple[int, ...] = tuple(getattr(given, "shape", ()))
    if len(shape) != 2:
        return
    (height, width), (wide, high) = shape, size
    if min(abs(height - width * high / wide), abs(width - height * wide / high)) > 1:
        raise ValueError(
            f"{name} is a map of {width}x{height}, the picture is {wide}x{high}; give a map in its"
            " proportions."
        )


def find_map(place: Path, name: Path) -> Path | None:
    """Find the map of an input: `place`, or the picture of the same stem in that folder, if any.

    Raises ImageError if several are there.
    """
    if not place.is_dir():
        return place
    found = sorted(
        file
        for file in (place / name).parent.glob("*")
        if file.stem == name.stem and file.suffix.lower() in EXTENSIONS
    )
    if len(found) > 1:
        raise ImageError(f"{safe_text(name)} has several maps in {safe_text(place)}; keep one")
    return found[0] if found else None


def read_map(path: Path, white: float) -> np.ndarray:
    """Read a gray picture of 8 or 16 bits as strengths [H, W]: white is `white`, black 0.

    Raises ImageError for other pictures.
    """
    try:
        picture = open_picture(path)
    except ImageError as error:
        raise ImageError(f"the map {safe_text(path)}: {error}") from None
    top = 1 if picture.pixels.dtype == np.float32 else 255
    levels = picture.pixels / top
    is_opaque = picture.alpha is None or (picture.alpha == top).all()
    if not is_opaque or (levels != levels[..., :1]).any():
        raise ImageError(f"the map {safe_text(path)} has colors or transparency; a map is gray")
    return levels[..., 0].astype(np.float64) * white


def to_latent(strength: np.ndarray, frame: Frame, factor: int) -> Tensor:
    """A map [H, W] over frame.source as one over the latent: float32 [h, w], frame.padded / factor.

    Each latent pixel has the mean of what it covers, by area; the map goes where the picture goes,
    stretched to frame.content and mirrored in the margin. It is rounded once: what covers one value
    alone has that value exactly.
    """
    levels = strength.astype(np.float32).astype(np.float64)
    down, across = (
        _coverage(cells, frame.content[axis], frame.padded[axis], factor)
        for cells, axis in zip(strength.shape, (1, 0), strict=True)
    )
    return torch.from_numpy((down @ levels @ across.T).astype(np.float32))


def _coverage(cells: int, content: int, padded: int, factor: int) -> np.ndarray:
    """[padded / factor, cells]: the part of each latent pixel on each cell, along one axis."""
    seen = np.pad(np.arange(content), (0, padded - content), mode="reflect").reshape(-1, factor)
    edges = np.linspace(0, content, cells + 1)
    parts = (np.minimum(p + 1, edges[1:]) - np.maximum(p, edges[:-1]) for p in seen.T[..., None])
    return sum(np.maximum(part, 0) for part in parts) / factor

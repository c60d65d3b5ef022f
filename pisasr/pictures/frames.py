"""The sizes a picture passes through on its way to the model and back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

MAX_SIDE = 4096  # of a small picture once it is enlarged for the model
MIN_SIDE = 64  # what a strip too long to be enlarged is padded to
MAX_OUTPUT_PIXELS = 2**31  # of a result: 64 million at 4x and room beyond


@dataclass(frozen=True)
class Frame:
    """The sizes one picture passes through, each (width, height) in pixels.

    source -> enlarged (small pictures) -> content = upscale * enlarged -> padded, the model's input
    -> content again -> output = round(upscale * source).
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
    native_upscale: float | None = None,
) -> Frame:
    """Plan the sizes from width x height to exactly round(upscale * side). Raises ValueError.

    As published, a side below process_size // upscale enlarges the picture until its short side has
    that length, because the model saw nothing smaller in training. Here this stops where the
    model's input would exceed MAX_SIDE; a strip that is still thin is padded to min(process_size,
    64). Sides are padded up to a `multiple`, where the published code squeezes them down to one.
    native_upscale: what the model works at in place of `upscale`; the result is resized.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels came; it must have one at least")
    if (width * upscale) * (height * upscale) > MAX_OUTPUT_PIXELS:
        raise ValueError(
            f"{width}x{height} enlarged {upscale:g} times is more than"
            f" {MAX_OUTPUT_PIXELS / 1e9:.1f} billion pixels; choose a smaller --upscale"
        )
    working = native_upscale or upscale
    enlarged = _enlarge(width, height, working, process_size)
    content = _scale(enlarged, working)
    least = min(process_size, MIN_SIDE)
    padded_width, padded_height = (-(-max(side, least) // multiple) * multiple for side in content)
    output = _scale((width, height), upscale)
    return Frame((width, height), enlarged, content, (padded_width, padded_height), output)


def _scale(size: tuple[int, int], upscale: float) -> tuple[int, int]:
    return round(upscale * size[0]), round(upscale * size[1])


def _enlarge(width: int, height: int, upscale: float, process_size: int) -> tuple[int, int]:
    short, long = min(width, height), max(width, height)
    wanted = int(process_size // upscale)
    if short >= wanted:
        return width, height
    # Whole numbers: int(wanted / short * side), as published, can lose a pixel to float rounding.
    if wanted * long // short * upscale <= MAX_SIDE:
        return wanted * width // short, wanted * height // short
    longest = max(int(MAX_SIDE // upscale), long)
    return max(longest * width // long, width), max(longest * height // long, height)


def resize(pixels: np.ndarray, size: tuple[int, int], clip: bool = True) -> np.ndarray:
    """Resize [H, W] or [H, W, 3] to (width, height), bicubic as Pillow; clip: floats to [0, 1]."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if pixels.ndim == 3:
        return np.stack([resize(one, size, clip) for one in np.moveaxis(pixels, -1, 0)], axis=-1)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return resized.clip(0, 1) if clip else resized


def prepare(pixels: np.ndarray, frame: Frame, clip: bool = True) -> np.ndarray:
    """Resize the picture [H, W, 3] to frame.content, by way of frame.enlarged; clip as `resize`."""
    return resize(resize(pixels, frame.enlarged), frame.content, clip)


def pad(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Continue [H, W, 3] to the right and below by its mirror image, up to frame.padded."""
    right, below = frame.padded[0] - pixels.shape[1], frame.padded[1] - pixels.shape[0]
    if right == below == 0:
        return pixels
    # numpy mirrors again and again where the margin is wider than the picture.
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="reflect")


def crop(x: Tensor, frame: Frame) -> Tensor:
    """Cut [..., H, W] of frame.padded to frame.content."""
    width, height = frame.content
    return x[..., :height, :width]


def finish(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Resize the restored picture from frame.content to frame.output."""
    return resize(pixels, frame.output)

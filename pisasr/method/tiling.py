"""Infer, from z_L to eps: a latent too big for one UNet pass, predicted tile by tile and blended back."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """One crop of a map: rows top .. top + height, columns left .. left + width."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, z: Tensor) -> Tensor:
        """The view of z [..., h, w] under this tile."""
        return z[..., self.top : self.top + self.height, self.left : self.left + self.width]


def check_plan(tile: int, overlap: int) -> None:
    """Refuse, in one line, a plan that could never cover a map."""
    if tile < 1:
        raise ValueError(f"tile size must be at least 1, got {tile}; give a positive number.")
    if overlap < 0:
        raise ValueError(f"tile overlap must not be negative, got {overlap}; give 0 or more.")
    if overlap >= tile:
        raise ValueError(f"tile overlap must be below the tile size, got overlap {overlap}, tile {tile}; lower it.")


def needs_tiling(h: int, w: int, tile: int) -> bool:
    """Whether [h, w] is more than one tile can hold. By area, as published: 8 x 100 fits a tile of 32 whole."""
    return h * w > tile * tile


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: every tile - overlap, the last one pulled back to end at `size`.

    An axis no longer than the tile is one tile at 0, whatever the overlap.
    """
    check_plan(tile, overlap)
    if size <= tile:
        return [0]
    last = size - tile
    return [*range(0, last, tile - overlap), last]


def tile_grid(h: int, w: int, tile: int, overlap: int) -> list[Tile]:
    """All tiles of an [h, w] map, row by row.

    Each axis is cut by itself: a side shorter than the tile is taken whole and the other keeps its full tile, so a
    thin strip costs few long tiles. (The published code shrank the tile to a square of the short side, and crashed.)
    """
    return [
        Tile(top, left, min(tile, h), min(tile, w))
        for top in tile_starts(h, tile, overlap)
        for left in tile_starts(w, tile, overlap)
    ]


def count_tiles(h: int, w: int, tile: int | None, overlap: int) -> int:
    """How often `blend_tiles` looks at an [h, w] map; None cuts nothing."""
    return len(tile_grid(h, w, tile, overlap)) if tile is not None and needs_tiling(h, w, tile) else 1


def gaussian_weight(tile_h: int, tile_w: int) -> Tensor:
    """How much each position of a tile is trusted: most in the middle, least at the rim. [tile_h, tile_w], float64.

        g(i) = exp(-(i - (T - 1) / 2)^2 / (2 * 0.01 * T^2)) / sqrt(2 * pi * 0.01)

    on each axis with its own length T (the published tile weights; the constant cancels in the blend). Corners are
    near 1e-11 of the middle: too small for half precision, so blend in float32 at least.
    """

    def bell(length: int) -> Tensor:
        distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        return torch.exp(-distance.square() / (0.02 * length**2)) / (0.02 * torch.pi) ** 0.5

    return torch.outer(bell(tile_h), bell(tile_w))


def batched(items: Sequence[Tile], count: int) -> Iterator[list[Tile]]:
    """The items in lists of `count`, the last one shorter. (itertools has it from Python 3.12 on.)"""
    rest = iter(items)
    while together := list(islice(rest, count)):
        yield together


def blend_tiles(fn: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int, batch_size: int = 1) -> Tensor:
    """fn(z), computed tile by tile: at each position the Gaussian-weighted mean of the tiles that saw it.

    z [B, c, h, w]; fn maps crops [n, c, th, tw] to [n, k, th, tw], and the result is [B, k, h, w]. Crops are of one
    shape and go to fn together, as many as `batch_size` allows, but always those of one place for all B. A z that fits
    one tile (`needs_tiling`) goes to fn whole and comes back untouched.
    Sums run in float32 (float64 for float64 predictions); the result has the dtype of the predictions.
    Raises ValueError for overlap >= tile or a tile below 1, and for a prediction of another size than its crop.
    """
    check_plan(tile, overlap)
    count, _, h, w = z.shape
    if not needs_tiling(h, w, tile):
        return fn(z)

    places = tile_grid(h, w, tile, overlap)
    weight = gaussian_weight(places[0].height, places[0].width)
    total = torch.zeros(h, w, dtype=weight.dtype)
    blended: Tensor | None = None
    for together in batched(places, max(1, batch_size // count)):
        prediction = fn(torch.cat([place.crop(z) for place in together]))
        _check_same_size(prediction, places[0])
        if blended is None:
            blended = _empty_sum(prediction, count, h, w)
        for place, part in zip(together, prediction.split(count), strict=True):
            place.crop(blended).add_(part * weight.to(blended))
            place.crop(total).add_(weight)
    assert blended is not None
    return (blended / total.to(blended)).to(prediction.dtype)


def _empty_sum(part: Tensor, count: int, h: int, w: int) -> Tensor:
    return part.new_zeros(count, part.shape[1], h, w, dtype=torch.promote_types(part.dtype, torch.float32))


def _check_same_size(part: Tensor, place: Tile) -> None:
    if tuple(part.shape[-2:]) != (place.height, place.width):
        wanted, came = f"{place.height} x {place.width}", " x ".join(map(str, part.shape[-2:]))
        raise ValueError(f"a tile's prediction must be as big as its crop, {wanted}; got {came}..")

"""Predict a latent that is too big for one UNet pass tile by tile, and blend the tiles."""

from collections.abc import Callable, Sequence
from itertools import pairwise
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


def needs_tiling(h: int, w: int, tile: int) -> bool:
    """Whether [h, w] is more than one tile holds. By area, as published: 8 x 100 fits one of 32."""
    return h * w > tile * tile


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where published tiles begin along an axis: every tile - overlap, the last pulled back to end
    at `size`. An axis no longer than the tile is one tile.
    """
    if size <= tile:
        return [0]
    last = size - tile
    return [*range(0, last, tile - overlap), last]


def even_axis(size: int, tile: int, overlap: int, multiple: int) -> tuple[int, list[int]]:
    """(length, starts) of the fewest tiles that cover an axis evenly, the outer ones at its ends.

    No tile is longer than `tile`, neighbors share `overlap` at least, and the length is a multiple
    of `multiple` where it can be. An axis no longer than the tile is one tile.
    """
    if size <= tile:
        return size, [0]
    count = -(-(size - overlap) // (tile - overlap))
    length = -(-(size + (count - 1) * overlap) // count)
    length = min(-(-length // multiple) * multiple, tile)
    return length, [(size - length) * i // (count - 1) for i in range(count)]


def tile_grid(h: int, w: int, tile: int, overlap: int, even: int | None = None) -> list[Tile]:
    """All tiles of an [h, w] map, row by row, all of one shape.

    even: an even grid (`even_axis`), sides multiples of it; None: the published plan
    (`tile_starts`). Each axis is cut by itself, so a thin strip costs few long tiles. (The code as
    published shrank the tile to a square of the short side, and crashed.)
    """
    if even is None:
        height, tops = min(tile, h), tile_starts(h, tile, overlap)
        width, lefts = min(tile, w), tile_starts(w, tile, overlap)
    else:
        height, tops = even_axis(h, tile, overlap, even)
        width, lefts = even_axis(w, tile, overlap, even)
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def count_tiles(h: int, w: int, tile: int | None, overlap: int, even: int | None = None) -> int:
    """How many tiles `blend_tiles` makes of an [h, w] map; tile None cuts nothing."""
    if tile is None or not needs_tiling(h, w, tile):
        return 1
    return len(tile_grid(h, w, tile, overlap, even))


def ramp_weight(places: Sequence[Tile]) -> Tensor:
    """Weights of an even grid's tile: 1, but sin^2 to nearly 0 at the rim over the overlaps.

    [tile_h, tile_w], float64.
    """

    def ramp(length: int, starts: set[int]) -> Tensor:
        gaps = [after - before for before, after in pairwise(sorted(starts))]
        overlap = max(length - max(gaps, default=length), 1)
        near = torch.arange(length, dtype=torch.float64) + 0.5
        near = torch.minimum(near, near.flip(0)) / overlap
        return torch.sin(near.clamp(max=1) * torch.pi / 2).square()

    tops, lefts = {place.top for place in places}, {place.left for place in places}
    return torch.outer(ramp(places[0].height, tops), ramp(places[0].width, lefts))


def gaussian_weight(tile_h: int, tile_w: int) -> Tensor:
    """The published weights of a tile, most in the middle: [tile_h, tile_w], float64.

        g(i) = exp(-(i - (T - 1) / 2)^2 / (2 * 0.01 * T^2)) / sqrt(2 * pi * 0.01)

    on each axis with its own length T (the constant cancels in the blend). Corners are near 1e-11
    of the middle: too small for half precision, so blend in float32 at least.
    """

    def bell(length: int) -> Tensor:
        distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        return torch.exp(-distance.square() / (0.02 * length**2)) / (0.02 * torch.pi) ** 0.5

    return torch.outer(bell(tile_h), bell(tile_w))


def blend_tiles(
    fn: Callable[[Tensor], Tensor],
    z: Tensor,
    tile: int,
    overlap: int,
    batch_size: int = 1,
    even: int | None = None,
) -> Tensor:
    """Compute fn(z) tile by tile: at each position the weighted mean of the tiles there.

    z [B, c, h, w]; fn maps crops [n, c, th, tw] to [n, k, th, tw], and the result is [B, k, h, w].
    Crops go to fn together, as many as `batch_size` allows, but always those of one place for all
    B. A z that fits one tile (`needs_tiling`) goes to fn whole. Sums run in float32 (float64 for
    float64 predictions); the result has the dtype of the predictions.
    """
    count, _, h, w = z.shape
    if not needs_tiling(h, w, tile):
        return fn(z)

    places = tile_grid(h, w, tile, overlap, even)
    height, width = places[0].height, places[0].width
    weight = gaussian_weight(height, width) if even is None else ramp_weight(places)
    total = torch.zeros(h, w, dtype=weight.dtype)
    blended: Tensor | None = None
    step = max(1, batch_size // count)
    for first in range(0, len(places), step):
        together = places[first : first + step]
        prediction = fn(torch.cat([place.crop(z) for place in together]))
        if blended is None:
            dtype = torch.promote_types(prediction.dtype, torch.float32)
            blended = prediction.new_zeros(count, prediction.shape[1], h, w, dtype=dtype)
        for place, part in zip(together, prediction.split(count), strict=True):
            place.crop(blended).add_(part * weight.to(blended))
            place.crop(total).add_(weight)
    assert blended is not None
    return blended.div_(total.to(blended)).to(prediction.dtype)

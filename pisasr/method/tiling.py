"""Infer, from z_L to eps: a latent too big for one UNet pass, predicted tile by tile and blended
back.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
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
        raise ValueError(
            f"tile overlap must be below the tile size, got overlap {overlap}, tile {tile}; lower it."
        )


def needs_tiling(h: int, w: int, tile: int) -> bool:
    """Whether [h, w] is more than one tile can hold. By area, as published: 8 x 100 fits a tile of
    32 whole.
    """
    return h * w > tile * tile


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: every tile - overlap, the last one pulled back to end at
    `size`.

    An axis no longer than the tile is one tile at 0, whatever the overlap.
    """
    check_plan(tile, overlap)
    if size <= tile:
        return [0]
    last = size - tile
    return [*range(0, last, tile - overlap), last]


def even_axis(size: int, tile: int, overlap: int, multiple: int) -> tuple[int, list[int]]:
    """(length, starts) of the fewest tiles that cover an axis evenly, the outer ones at its ends.

    No tile is longer than `tile`, neighbours share `overlap` at least, and the length is a multiple
    of `multiple` where it can be. An axis no longer than the tile is one tile.
    """
    check_plan(tile, overlap)
    if size <= tile:
        return size, [0]
    count = -(-(size - overlap) // (tile - overlap))
    length = -(-(size + (count - 1) * overlap) // count)
    length = min(-(-length // multiple) * multiple, tile)
    return length, [(size - length) * i // (count - 1) for i in range(count)]


def tile_grid(h: int, w: int, tile: int, overlap: int, even: int | None = None) -> list[Tile]:
    """All tiles of an [h, w] map, row by row, all of one shape.

    even: tiles of an even grid (`even_axis`), sides multiples of it; None: the published plan
    (`tile_starts`). Each axis is cut by itself: a side shorter than the tile is taken whole and the
    other keeps its full tile, so a thin strip costs few long tiles. (The published code shrank the
    tile to a square of the short side, and crashed.)
    """
    if even is None:
        (height, tops), (width, lefts) = (
            (min(tile, side), tile_starts(side, tile, overlap)) for side in (h, w)
        )
    else:
        (height, tops), (width, lefts) = (even_axis(side, tile, overlap, even) for side in (h, w))
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def count_tiles(h: int, w: int, tile: int | None, overlap: int, even: int | None = None) -> int:
    """How often `blend_tiles` looks at an [h, w] map; None cuts nothing."""
    return (
        len(tile_grid(h, w, tile, overlap, even))
        if tile is not None and needs_tiling(h, w, tile)
        else 1
    )


def ramp_weight(places: Sequence[Tile]) -> Tensor:
    """How much each position of an even grid's tile is trusted: fully, but in the overlaps, where
    it falls as a cosine does, sin^2, to nearly nothing at the rim. [tile_h, tile_w], float64."""

    def ramp(length: int, starts: set[int]) -> Tensor:
        gaps = [after - before for before, after in pairwise(sorted(starts))]
        overlap = max(length - max(gaps, default=length), 1)
        near = torch.arange(length, dtype=torch.float64) + 0.5
        near = torch.minimum(near, near.flip(0)) / overlap
        return torch.sin(near.clamp(max=1) * torch.pi / 2).square()

    tops, lefts = {place.top for place in places}, {place.left for place in places}
    return torch.outer(ramp(places[0].height, tops), ramp(places[0].width, lefts))


def gaussian_weight(tile_h: int, tile_w: int) -> Tensor:
    """How much each position of a tile is trusted: most in the middle, least at the rim. [tile_h,
    tile_w], float64.

        g(i) = exp(-(i - (T - 1) / 2)^2 / (2 * 0.01 * T^2)) / sqrt(2 * pi * 0.01)

    on each axis with its own length T (the published tile weights; the constant cancels in the
    blend). Corners are near 1e-11 of the middle: too small for half precision, so blend in float32
    at least.
    """

    def bell(length: int) -> Tensor:
        distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        return torch.exp(-distance.square() / (0.02 * length**2)) / (0.02 * torch.pi) ** 0.5

    return torch.outer(bell(tile_h), bell(tile_w))


def batched(items: Sequence[Tile], count: int) -> Iterator[list[Tile]]:
    """The items in lists of `count`, the last one shorter. (itertools has it from Python 3.12
    on.)
    """
    rest = iter(items)
    while together := list(islice(rest, count)):
        yield together


def blend_tiles(
    fn: Callable[[Tensor], Tensor],
    z: Tensor,
    tile: int,
    overlap: int,
    batch_size: int = 1,
    even: int | None = None,
) -> Tensor:
    """fn(z), computed tile by tile: at each position the weighted mean of the tiles that saw it.

    Published tiles (even None) are weighted by a Gaussian, those of an even grid by ramps over
    their overlaps.

    z [B, c, h, w]; fn maps crops [n, c, th, tw] to [n, k, th, tw], and the result is [B, k, h, w].
    Crops are of one shape and go to fn together, as many as `batch_size` allows, but always those
    of one place for all B. A z that fits one tile (`needs_tiling`) goes to fn whole and comes back
    untouched. Sums run in float32 (float64 for float64 predictions); the result has the dtype of
    the predictions. Raises ValueError for overlap >= tile or a tile below 1, and for a prediction
    of another size than its crop.
    """
    check_plan(tile, overlap)
    count, _, h, w = z.shape
    if not needs_tiling(h, w, tile):
        return fn(z)

    places = tile_grid(h, w, tile, overlap, even)
    weight = (
        gaussian_weight(places[0].height, places[0].width) if even is None else ramp_weight(places)
    )
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
    return blended.div_(total.to(blended)).to(prediction.dtype)


def _empty_sum(part: Tensor, count: int, h: int, w: int) -> Tensor:
    return part.new_zeros(
        count, part.shape[1], h, w, dtype=torch.promote_types(part.dtype, torch.float32)
    )


def _check_same_size(part: Tensor, place: Tile) -> None:
    if tuple(part.shape[-2:]) != (place.height, place.width):
        wanted, came = f"{place.height} x {place.width}", " x ".join(map(str, part.shape[-2:]))
        raise ValueError(f"a tile's prediction must be as big as its crop, {wanted}; got {came}..")

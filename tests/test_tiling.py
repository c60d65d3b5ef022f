"""Latent tiling covers everything once, changes nothing by itself, and plans as published."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pisasr.method.tiling import (
    blend_tiles,
    count_tiles,
    even_axis,
    gaussian_weight,
    needs_tiling,
    tile_grid,
    tile_starts,
)


@st.composite
def plans(draw):
    tile = draw(st.integers(1, 9))
    return draw(st.integers(1, 30)), draw(st.integers(1, 30)), tile, draw(st.integers(0, tile - 1))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_identity_in_identity_out_at_any_size(plan):
    h, w, tile, overlap = plan
    z = torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(h * w))
    same = blend_tiles(lambda crop: crop, z, tile, overlap)
    torch.testing.assert_close(same, z, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_tiles_cover_every_position_and_stay_inside(plan):
    h, w, tile, overlap = plan
    seen = torch.zeros(h, w)
    grid = tile_grid(h, w, tile, overlap)
    for place in grid:
        assert place.crop(seen).shape == (min(tile, h), min(tile, w))
        place.crop(seen).add_(1)
    assert seen.min() >= 1 and len(set(grid)) == len(grid)


@pytest.mark.parametrize(
    ("pictures", "batch_size", "sizes"),
    [(1, 1, [1] * 4), (1, 3, [3, 1]), (2, 1, [2] * 4), (2, 5, [4, 4]), (1, 9, [4])],
)
def test_each_tile_is_looked_at_once_and_in_batches(pictures, batch_size, sizes):
    crops = []

    def predict(crop):
        crops.append(crop.shape)  # a picture keeps its place
        return crop * torch.arange(len(crop)).remainder(pictures).add(1).view(-1, 1, 1, 1)

    z = torch.randn(pictures, 4, 24, 20)
    blended = blend_tiles(predict, z, 16, 4, batch_size)
    assert crops == [(size, 4, 16, 16) for size in sizes] and count_tiles(24, 20, 16, 4) == 4
    torch.testing.assert_close(blended, z * torch.arange(1, pictures + 1).view(-1, 1, 1, 1))


def test_one_tile_is_no_tiling():
    z = torch.randn(2, 4, 8, 100)
    assert not needs_tiling(8, 100, 32)
    assert blend_tiles(lambda crop: crop, z, 32, 8) is z


@pytest.mark.parametrize(
    ("h", "w", "tiles"), [(1, 200, 17), (200, 1, 17), (3, 40, 3), (5, 120, 10)]
)
def test_thin_maps_take_the_short_side_whole(h, w, tiles):
    # Tile 16, overlap 4: short sides of 1, 3 and 5 lie below the tile, some below the overlap too.
    z = torch.randn(1, 1, h, w)
    if needs_tiling(h, w, 8):
        torch.testing.assert_close(blend_tiles(lambda crop: crop, z, 8, 4), z)
    grid = tile_grid(h, w, 16, 4)
    assert len(grid) == tiles
    assert {min(place.height, place.width) for place in grid} == {min(h, w)}


def test_last_tile_is_pulled_back():
    assert tile_starts(36, 16, 4) == [0, 12, 20]
    assert tile_starts(28, 16, 4) == [0, 12]
    assert tile_starts(29, 16, 4) == [0, 12, 13]
    assert tile_starts(16, 16, 15) == tile_starts(3, 16, 15) == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_result_has_the_dtype_of_the_predictions(dtype):
    z = torch.rand(1, 1, 12, 30).to(dtype)
    blended = blend_tiles(lambda crop: crop, z, 8, 3)
    assert blended.dtype == dtype
    torch.testing.assert_close(blended, z)


def test_weights_are_the_published_ones(parity):
    for name, published in load_file(parity / "tensors" / "tile_weights.safetensors").items():
        ours = gaussian_weight(*2 * [int(name.removeprefix("w"))]).to(published)
        torch.testing.assert_close(ours, published, rtol=1e-6, atol=0)


def test_plan_has_as_many_tiles_as_published(parity):
    for case in json.loads((parity / "index.json").read_text())["eval_cases"]:
        (h, w), options = case["latent_hw"], case["options"]
        tile, overlap = options["latent_tiled_size"], options["latent_tiled_overlap"]
        tiles = len(tile_grid(h, w, tile, overlap)) if needs_tiling(h, w, tile) else 1
        assert tiles * (1 if options["default"] else 2) == case["unet_calls"], case["name"]


@given(st.integers(1, 700), st.integers(4, 100), st.integers(0, 12), st.sampled_from([1, 4, 8]))
def test_an_even_grid_covers_an_axis_with_equal_tiles(size, tile, overlap, multiple):
    overlap = min(overlap, tile - 1)
    length, starts = even_axis(size, tile, overlap, multiple)
    assert length <= tile and starts[0] == 0 and starts[-1] + length == size
    steps = [after - before for before, after in pairwise(starts)]
    assert all(0 < step <= length - overlap for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1
    assert len(starts) in (1, -(-(size - overlap) // (tile - overlap)))  # no more than needed


@pytest.mark.parametrize("side", [1024, 1536, 2048, 3000, 4096, 8192])
def test_an_even_grid_wastes_less_than_a_third(side):
    latent = side // 8
    grid = tile_grid(latent, latent, 96, 8, even=4)
    published = tile_grid(latent, latent, 96, 32)
    work = sum(tile.height * tile.width for tile in grid) / latent**2
    assert work <= 1.3 < 1.7 < sum(tile.height * tile.width for tile in published) / latent**2


@pytest.mark.parametrize(("h", "w"), [(24, 20), (50, 7), (33, 61)])
def test_blending_an_even_grid_keeps_what_every_tile_agrees_on(h, w):
    z = torch.randn(2, 3, h, w)
    same = blend_tiles(lambda crop: crop, z, 12, 3, 2, even=4)
    torch.testing.assert_close(same, z, rtol=1e-5, atol=1e-6)


def test_an_even_grid_goes_over_from_tile_to_tile_smoothly():
    """Tiles that disagree by one: no step between neighbours is larger than the ramp's own."""
    values, z = iter(range(2)), torch.zeros(1, 1, 16, 24)
    blended = blend_tiles(lambda crop: torch.full_like(crop, next(values)), z, 16, 8, even=8)
    assert blended[..., :8].eq(0).all() and blended[..., 16:].eq(1).all()
    assert 0 < blended.diff(dim=-1).max() < torch.pi / 16 + 0.01

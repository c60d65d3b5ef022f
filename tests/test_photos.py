"""Training pairs: the same key, the same pair; aligned; every photo once an epoch."""

import itertools

import pytest
import torch
from PIL import Image

from pisasr.data.degradation import DegradationRecipe
from pisasr.data.photos import KeyedBatches, Photos, list_photos
from pisasr.errors import PisasrError


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        pixels = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "1.txt").write_text("a field\n")
    return tmp_path


def photos(folder, **options):
    return Photos(list_photos([str(folder)]), **{"crop_px": 64, "recipe": DegradationRecipe(), "seed": 7, **options})


def test_a_key_gives_the_same_pair_whatever_came_before(folder):
    first, second = photos(folder), photos(folder, keep_in_memory=True)
    for key in ((4, 2), (0, 0)):
        second[key]
    one, other = first[(0, 2)], second[(0, 2)]
    assert torch.equal(one["x_L"], other["x_L"]) and torch.equal(one["x_H"], other["x_H"])
    assert one["seed"] == other["seed"]
    assert not torch.equal(one["x_L"], first[(1, 2)]["x_L"])


def test_a_pair_has_one_size_and_range(folder):
    pair = photos(folder)[(0, 0)]
    for name in ("x_H", "x_L"):
        assert pair[name].shape == (3, 64, 64) and pair[name].min() >= -1 and pair[name].max() <= 1


def test_a_pair_is_aligned(tmp_path):
    """A clean reduction of a smooth picture, enlarged again, lies on the picture."""
    ramp = torch.arange(96).repeat(96, 1).mul(2).byte()
    Image.fromarray(torch.stack([ramp, ramp.T.contiguous(), ramp], -1).numpy()).save(tmp_path / "ramp.png")
    pair = photos(tmp_path, recipe=DegradationRecipe(prob_clean=1.0))[(0, 0)]
    inner = slice(8, -8)
    assert (pair["x_L"] - pair["x_H"])[:, inner, inner].abs().max() < 3 / 127.5


def test_captions_come_from_beside_the_photo(folder):
    assert [photos(folder, caption="a photo")[(0, i)]["caption"] for i in range(3)] == ["a photo", "a field", "a photo"]


def test_a_photo_too_small_is_named(folder):
    with pytest.raises(PisasrError, match="0.png is 90x70; wanted at least data.crop_px=80"):
        photos(folder, crop_px=80)[(0, 0)]


def test_lists_and_folders(folder, tmp_path):
    listing = folder / "list.txt"
    listing.write_text("2.png\n\n0.png\n")
    assert [p.name for p in list_photos([str(listing)])] == ["2.png", "0.png"]
    with pytest.raises(PisasrError, match="does not exist"):
        list_photos([str(tmp_path / "nowhere")])


def test_every_photo_once_an_epoch_in_another_order():
    keys = list(itertools.chain(*itertools.islice(KeyedBatches(length=7, batch_size=2, seed=1), 7)))
    epochs = [[index for epoch, index in keys if epoch == e] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7)) and epochs[0] != epochs[1]


def test_starting_later_passes_over_exactly_what_was_seen():
    whole = list(itertools.islice(KeyedBatches(length=5, batch_size=3, seed=1), 6))
    assert list(itertools.islice(KeyedBatches(length=5, batch_size=3, seed=1, start=4), 2)) == whole[4:]


def test_two_processes_see_together_what_one_would():
    one = list(itertools.islice(KeyedBatches(length=5, batch_size=4, seed=1), 3))
    ranks = [
        list(itertools.islice(KeyedBatches(length=5, batch_size=2, seed=1, rank=r, world=2), 3)) for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one

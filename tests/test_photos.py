"""Training pairs: the same key, the same pair; aligned; every photo once an epoch."""

import itertools
import logging
from collections import Counter

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pisasr.data.degradation import DegradationRecipe
from pisasr.data.photos import KeyedBatches, Photo, Photos, list_photos, share_out
from pisasr.errors import PisasrError


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write_noise(tmp_path / f"{i}.png", i)
    (tmp_path / "1.txt").write_text("a field\n")
    return tmp_path


def write_noise(path, seed, height=70, width=90):
    shape = (height, width, 3)
    pixels = torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    Image.fromarray(pixels.numpy()).save(path)


def photos(folder, **options):
    options = {"crop_px": 64, "recipe": DegradationRecipe(), "seed": 7, **options}
    return Photos(list_photos([str(folder)]), **options)


def test_a_key_gives_the_same_pair_whatever_came_before(folder):
    first, second = photos(folder), photos(folder)
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
        assert pair[name].is_contiguous(), "another order in memory rounds otherwise"


def test_a_pair_is_aligned(tmp_path):
    """A clean reduction of a smooth picture, enlarged again, lies on the picture."""
    ramp = torch.arange(96).repeat(96, 1).mul(2).byte()
    Image.fromarray(torch.stack([ramp, ramp.T.contiguous(), ramp], -1).numpy()).save(
        tmp_path / "ramp.png"
    )
    pair = photos(tmp_path, recipe=DegradationRecipe(prob_clean=1.0))[(0, 0)]
    inner = slice(8, -8)
    assert (pair["x_L"] - pair["x_H"])[:, inner, inner].abs().max() < 3 / 127.5


def test_captions_come_from_beside_the_photo(folder):
    pairs = photos(folder, caption="a photo")
    assert [pairs[(0, i)]["caption"] for i in range(3)] == ["a photo", "a field", "a photo"]


def test_lists_and_folders(folder, tmp_path):
    listing = folder / "list.txt"
    listing.write_text("2.png\n\n0.png\n")
    assert list_photos([str(listing)]) == [
        Photo(folder / "2.png", "list"),
        Photo(folder / "0.png", "list"),
    ]
    for name, reason in (("nowhere", "neither a folder nor a list"), ("0.png", "is no text")):
        with pytest.raises(PisasrError, match=reason):
            list_photos([str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PisasrError, match="no photos in"):
        list_photos([str(tmp_path / "empty")])


def test_photos_of_a_kind_that_is_not_read_are_told(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "b.HEIC").touch()
    with pytest.warns(UserWarning, match="1 .heic files, which are not read"):
        assert all(photo.path.suffix == ".png" for photo in list_photos([str(folder)]))


def test_a_mix_names_every_source(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_noise(tmp_path / name / "0.png", 0)
    sources = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(PisasrError, match="weights for a, c; expected a, b"):
        list_photos(sources, mix={"a": 1, "c": 2})
    assert {photo.source for photo in list_photos(sources, mix={"a": 0, "b": 2})} == {"b"}


@pytest.fixture
def bad_folder(folder):
    """Three good photos and five that can't be used."""
    (folder / "3.png").write_text("no picture")
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    write_noise(folder / "5.png", 5, height=60)
    Image.new("L", (1, 1)).save(folder / "6.png")
    (folder / "7.png").symlink_to(folder / "gone.png")
    return folder


def test_a_bad_photo_is_named_and_replaced_the_same_way_every_time(bad_folder, caplog):
    caplog.set_level(logging.WARNING)
    first, again = photos(bad_folder), photos(bad_folder)
    for index in range(3, 8):
        caplog.clear()
        one, other = first[(0, index)], again[(0, index)]
        assert torch.equal(one["x_L"], other["x_L"]) and torch.equal(one["x_H"], other["x_H"])
        assert f"{index}.png can't be used" in caplog.text and one["x_H"].shape == (3, 64, 64)
    crops = [first[(epoch, 3)]["x_H"] for epoch in range(4)]
    assert not all(torch.equal(crops[0], crop) for crop in crops[1:]), (
        "another epoch, another replacement or crop"
    )


def test_good_photos_do_not_notice_bad_ones(bad_folder):
    before = photos(bad_folder)[(2, 1)]
    (bad_folder / "3.png").unlink()
    write_noise(bad_folder / "3.png", 3)
    assert torch.equal(before["x_L"], photos(bad_folder)[(2, 1)]["x_L"])


def test_workers_change_no_replacement(bad_folder):
    def seen(workers):
        data = photos(bad_folder)
        loader = DataLoader(
            data, batch_sampler=KeyedBatches(len(data), 4, seed=1), num_workers=workers
        )
        return list(itertools.islice(loader, 3))

    for one, other in zip(seen(0), seen(2), strict=True):
        assert torch.equal(one["x_L"], other["x_L"]) and torch.equal(one["seed"], other["seed"])


def test_nothing_but_bad_photos_ends_it(tmp_path):
    write_noise(tmp_path / "a.png", 0, height=30)
    with pytest.raises(PisasrError, match="16 photos in a row can't be used; .*a.png.*90x30"):
        photos(tmp_path)[(0, 0)]
    with pytest.raises(PisasrError, match="none of 1 photos can be used"):
        photos(tmp_path).check_usable()


def test_a_gray_photo_is_as_good_as_any(tmp_path):
    Image.new("L", (70, 70), 90).save(tmp_path / "a.png")
    assert photos(tmp_path)[(0, 0)]["x_H"].shape == (3, 64, 64)


def test_every_photo_once_an_epoch_in_another_order():
    keys = list(itertools.chain(*itertools.islice(KeyedBatches(length=7, batch_size=2, seed=1), 7)))
    epochs = [[index for epoch, index in keys if epoch == e] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7)) and epochs[0] != epochs[1]


MIXED = [Photo(None, "big")] * 10 + [Photo(None, "small")] * 3
WEIGHTS = {"small": 2.0, "big": 1.0}


@pytest.mark.parametrize("shares", [None, share_out(MIXED, WEIGHTS)], ids=["alike", "mixed"])
def test_starting_later_passes_over_exactly_what_was_seen(shares):
    whole = list(itertools.islice(KeyedBatches(length=13, batch_size=3, seed=1, shares=shares), 20))
    for start in (1, 4, 13):
        later = KeyedBatches(length=13, batch_size=3, seed=1, start=start, shares=shares)
        assert list(itertools.islice(later, 20 - start)) == whole[start:]


@pytest.mark.parametrize("shares", [None, share_out(MIXED, WEIGHTS)], ids=["alike", "mixed"])
def test_two_processes_see_together_what_one_would(shares):
    one = list(itertools.islice(KeyedBatches(length=13, batch_size=4, seed=1, shares=shares), 9))
    ranks = [
        list(
            itertools.islice(
                KeyedBatches(length=13, batch_size=2, seed=1, rank=r, world=2, shares=shares), 9
            )
        )
        for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one


def test_a_mix_gives_every_source_its_share_and_every_photo_its_turn():
    batches = KeyedBatches(length=13, batch_size=13, seed=1, shares=share_out(MIXED, WEIGHTS))
    keys = list(itertools.chain(*itertools.islice(batches, 30)))
    assert len(set(keys)) == len(keys), "no key comes twice, so no crop does"
    counts = Counter(index for _, index in keys)
    small = sum(counts[i] for i in range(10, 13))
    assert small == 30 * 9 and sum(counts.values()) - small == 30 * 4
    assert {counts[i] for i in range(10, 13)} == {90} and {counts[i] for i in range(10)} == {12}


def test_shares_are_rounded_and_nobody_is_left_out():
    assert [count for _, count in share_out(MIXED, {"big": 1000, "small": 1})] == [12, 1]
    assert [count for _, count in share_out(MIXED, {"big": 1, "small": 1})] == [7, 6]
    tiny = [Photo(None, name) for name in "aabcd"]
    counts = [count for _, count in share_out(tiny, {"a": 1000, "b": 1, "c": 1, "d": 1})]
    assert counts == [4, 1, 1, 1]
    assert share_out(MIXED, {}) == [(list(range(13)), 13)]


def test_a_mix_by_numbers_of_photos_is_no_mix():
    plain = KeyedBatches(length=13, batch_size=13, seed=1)
    even = KeyedBatches(
        length=13, batch_size=13, seed=1, shares=share_out(MIXED, {"big": 10, "small": 3})
    )
    assert list(itertools.islice(plain, 3)) == list(itertools.islice(even, 3))


@pytest.fixture
def pairs(tmp_path):
    """Three scenes whose every square of 4 px has one level, a pixel of lq."""
    folder = tmp_path / "pairs"
    for i in range(3):
        chance = torch.Generator().manual_seed(i)
        small = torch.randint(0, 250, (20, 24, 3), generator=chance, dtype=torch.uint8)
        large = small.repeat_interleave(4, 0).repeat_interleave(4, 1)
        for side, levels in (("hq", large), ("lq", small)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels.numpy()).save(folder / side / f"{i}.png")
    return folder


def test_given_pairs_are_cut_at_the_same_place_and_never_degraded(pairs):
    corners = set()
    for key in itertools.product(range(8), range(3)):
        sample = photos(pairs, crop_px=32)[key]
        x_H = (sample["x_H"] + 1) * 127.5
        middles = ((sample["x_L"] + 1) * 127.5)[:, 1:-1:4, 1:-1:4]
        small = torch.nn.functional.avg_pool2d(x_H, 4)
        enlarged = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
        assert torch.equal(enlarged, x_H), "on the grid of lq's pixels"
        assert (middles - small).abs().mean() < 30, "noise of another place is 80 levels away"
        corners.add(tuple(x_H[:, 0, 0].tolist()))
    assert len(corners) > 10


def test_pairs_that_do_not_fit_are_told(pairs, caplog):
    write_noise(pairs / "lq" / "1.png", 0, height=21, width=24)
    photos(pairs, crop_px=32)[(0, 1)]
    assert "(24, 21); expected (24, 20)" in caplog.text
    (pairs / "lq" / "2.png").unlink()
    with pytest.raises(PisasrError, match="1 pictures are in only one of .*, like 2"):
        list_photos([str(pairs)])

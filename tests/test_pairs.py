"""Results belong to true pictures by name, and what does not fit is said."""

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation.pairs import pair_folders


def fill(folder, names, size=(16, 12)):
    folder.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        Image.new("RGB", size, (level, level, level)).save(folder / name)
    return folder


def test_order_never_pairs(tmp_path):
    hq, sr = fill(tmp_path / "hq", ["b.png", "c.png"]), fill(tmp_path / "sr", ["a.png", "b.png"])
    pairing = pair_folders({"ours": sr}, hq)
    assert [example.name for example in pairing.examples] == ["b.png"]
    assert pairing.problems == [
        "--sr ours has 2 pictures, --hr has 2; missing from --sr ours: c.png",
        "--sr ours has 2 pictures, --hr has 2; only in --sr ours: a.png",
    ]


def test_an_example_needs_every_method(tmp_path):
    hq = fill(tmp_path / "hq", ["a.png", "b.png"])
    whole, part = (
        fill(tmp_path / "whole", ["a.png", "b.png"]),
        fill(tmp_path / "part", ["b_out.png"]),
    )
    pairing = pair_folders({"whole": whole, "part": part}, hq)
    assert [example.name for example in pairing.examples] == ["b.png"]
    assert pairing.examples[0].sr == {"whole": whole / "b.png", "part": part / "b_out.png"}
    assert len(pairing.problems) == 1 and "missing from --sr part: a.png" in pairing.problems[0]


def test_another_size_is_named(tmp_path):
    hq, sr = fill(tmp_path / "hq", ["a.png"]), fill(tmp_path / "sr", ["a.png"], size=(16, 13))
    pairing = pair_folders({"ours": sr}, hq)
    assert pairing.examples == []
    assert pairing.problems == ["--sr ours: a.png is 16x13, in --hr it is 16x12"]


def test_the_input_may_have_its_own_size_but_must_be_there(tmp_path):
    hq, sr = fill(tmp_path / "hq", ["a.png", "b.png"]), fill(tmp_path / "sr", ["a.png", "b.png"])
    lq = fill(tmp_path / "lq", ["a_LR4.png"], size=(4, 3))
    pairing = pair_folders({"ours": sr}, hq, lq)
    assert [example.lq for example in pairing.examples] == [lq / "a_LR4.png"]
    assert "missing from --lr: b.png" in pairing.problems[0]


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no picture"]
)
def test_unreadable_files_are_named(tmp_path, damage):
    hq, sr = fill(tmp_path / "hq", ["a.png"]), tmp_path / "sr"
    sr.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sr / "a.png")
    (sr / "a.png").write_bytes(damage((sr / "a.png").read_bytes()))
    pairing = pair_folders({"ours": sr}, hq)
    assert pairing.examples == []
    assert len(pairing.problems) == 1 and pairing.problems[0].startswith(
        "--sr ours: a.png cannot be read"
    )
    assert "\n" not in pairing.problems[0]


def test_without_true_pictures_the_first_method_leads(tmp_path):
    a, b = fill(tmp_path / "a", ["x.png"]), fill(tmp_path / "b", ["x.png", "y.png"])
    pairing = pair_folders({"a": a, "b": b})
    assert [example.name for example in pairing.examples] == ["x.png"]
    assert "only in --sr b: y.png" in pairing.problems[0]

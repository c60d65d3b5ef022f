"""Pictures belong together by name, and what does not fit is said."""

import os

import numpy as np
import pytest
from PIL import Image

from pisasr.errors import ImageError, OverlapError, PisasrError, UserNotice
from pisasr.pictures.folders import find_inputs, free_name, list_pictures, match_names
from pisasr.pictures.opening import read_picture


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name)
    return folder


def names_of(inputs, status="ready"):
    return [each.name.as_posix() for each in inputs if each.status == status]


def test_endings_are_disregarded_only_where_names_differ():
    assert match_names(["0801"], ["0801x4"]) == {"0801": "0801x4"}
    assert match_names(["Canon_1_HR"], ["Canon_1_LR4_out"]) == {"Canon_1_HR": "Canon_1_LR4_out"}
    assert match_names(["a", "a_sr"], ["a_sr", "a"]) == {"a": "a", "a_sr": "a_sr"}
    assert match_names(["photo"], ["photograph", "hoto"]) == {}
    assert match_names(["a"], ["a_x2", "a_x4"]) == {}


def test_folders_that_cannot_be_listed(tmp_path):
    with pytest.raises(PisasrError, match="is not a folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(PisasrError, match="holds no picture"):
        list_pictures(tmp_path)
    fill(tmp_path, "a.png", "a.bmp")
    with pytest.raises(PisasrError, match="several files named a;"):
        list_pictures(tmp_path)


def test_foreign_pictures_are_named(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "b.heic").write_bytes(b"x")
    with pytest.warns(UserNotice, match="1 .heic files"):
        assert list(list_pictures(tmp_path)) == ["a"]
    found = find_inputs([str(tmp_path)], tmp_path / "out")
    assert names_of(found) == ["a.png"] and names_of(found, "skipped") == ["b.heic"]


def test_files_folders_and_globs_stand_for_pictures_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "in/a.png", "in/sub/b.JPG", "in/.c.png", "in/out/d.png"))
    (tmp_path / "in/notes.txt").touch()
    out = tmp_path / "in/out"
    assert names_of(find_inputs(["in"], out)) == ["a.png"]
    assert names_of(find_inputs(["in"], out, recursive=True)) == ["a.png", "sub/b.JPG"]
    assert names_of(find_inputs(["in/**/*"], out)) == ["a.png", "sub/b.JPG"]
    assert names_of(find_inputs(["in/a.png", "in", "./in/*.png"], out)) == ["a.png"]
    assert names_of(find_inputs(["in/out/d.png"], out)) == ["d.png"]
    found = find_inputs(["none.png", "no*.png"], out)
    assert names_of(found, "failed") == ["none.png", "no*.png"]


def test_links_are_not_followed_into_loops_and_pipes_are_not_waited_for(tmp_path):
    fill(tmp_path, "in/a.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/dead.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "in/pipe.png")
    found = find_inputs([str(tmp_path / "in")], tmp_path / "out", recursive=True)
    assert names_of(found) == ["a.png"]
    assert names_of(found, "skipped") == ["dead.png", "pipe.png"]


def test_the_input_folder_is_not_the_output(tmp_path):
    fill(tmp_path, "a.png")
    with pytest.raises(OverlapError):
        find_inputs([str(tmp_path)], tmp_path)


def test_names_that_meet_are_numbered_without_regard_to_case(tmp_path):
    taken: set[str] = set()
    names = [free_name(tmp_path / name, taken, ".png").name for name in ("a", "A", "a", "b")]
    assert names == ["a.png", "A-2.png", "a-3.png", "b.png"]


def test_stored_values_are_read_as_they_are(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), values[..., :3])
    Image.fromarray(values[..., 0]).save(tmp_path / "gray.png")
    gray = np.repeat(values[..., :1], 3, axis=2)
    assert np.array_equal(read_picture(tmp_path / "gray.png"), gray)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="deep.png cannot be read: it has 16 bits"):
        read_picture(tmp_path / "deep.png")

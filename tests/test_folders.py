"""Pictures belong together by name, and whatever does not fit is said."""

import os

import numpy as np
import pytest
from PIL import Image

from pisasr.errors import ImageError, PisasrError
from pisasr.pictures.folders import list_pictures, match_names
from pisasr.pictures.opening import read_picture


def fill(folder, names, size=(16, 12)):
    folder.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        Image.new("RGB", size, (level, level, level)).save(folder / name)
    return folder


def test_endings_are_disregarded_only_where_names_differ():
    assert match_names(["0801"], ["0801x4"]) == {"0801": "0801x4"}
    assert match_names(["Canon_001_HR"], ["Canon_001_LR4_out"]) == {
        "Canon_001_HR": "Canon_001_LR4_out"
    }
    assert match_names(["a", "a_sr"], ["a_sr", "a"]) == {"a": "a", "a_sr": "a_sr"}
    assert match_names(["photo"], ["photograph", "hoto"]) == {}


def test_an_ambiguous_name_is_matched_with_nothing():
    assert match_names(["a"], ["a_x2", "a_x4"]) == {}


def test_own_endings_replace_the_known_ones():
    assert match_names(["a"], ["a-mine"], suffix="-mine") == {"a": "a-mine"}
    assert match_names(["a"], ["a_sr"], suffix="-mine") == {}


def test_folders_that_cannot_be_listed(tmp_path):
    with pytest.raises(PisasrError, match="is not a folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(PisasrError, match="holds no picture"):
        list_pictures(tmp_path)
    fill(tmp_path, ["a.png", "a.bmp"])
    with pytest.raises(PisasrError, match="several files named a;"):
        list_pictures(tmp_path)


def test_stored_values_are_read_as_they_are(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), values[..., :3])
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(
        read_picture(tmp_path / "grey.png"), np.repeat(values[..., :1], 3, axis=2)
    )


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.png")


def test_a_pipe_and_a_device_are_no_pictures_and_nobody_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(ImageError, match=f"{name} cannot be read: not a regular file"):
            read_picture(tmp_path / name)


def test_a_format_that_another_program_would_read_is_not_even_tried(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript; a picture's name does not make a program of it one."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(
        EpsImagePlugin,
        "Ghostscript",
        lambda *args, **options: pytest.fail("Ghostscript was started"),
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a.png cannot be read"):
        read_picture(tmp_path / "a.png")

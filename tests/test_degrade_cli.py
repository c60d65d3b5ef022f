"""scripts/degrade.py: a fixed folder of low-quality pictures, and whether it still is that
folder.
"""

import json
from pathlib import Path

import degrade
import numpy as np
import pytest
from PIL import Image


def run(*arguments: object) -> int:
    return degrade.main(list(map(str, arguments)))


@pytest.fixture
def photos(tmp_path) -> Path:
    """a.png and more/b.bmp: the same picture, 71 x 50."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    picture = coarse.resize((71, 50), Image.Resampling.BICUBIC)
    picture.save(folder / "a.png")
    picture.save(folder / "more" / "b.bmp")
    return folder


@pytest.fixture
def pairs(photos, tmp_path) -> tuple[Path, Path]:
    """The folders of low-quality pictures and of what they were made of."""
    lq, hq = tmp_path / "lq", tmp_path / "hq"
    assert run("--input", photos, "--output", lq, "--hq_output", hq, "--crop", 45, "--seed", 7) == 0
    return lq, hq


def test_pairs_depend_on_name_and_seed(photos, pairs, tmp_path, capsys):
    lq, hq = pairs
    a, b = (Image.open(lq / name) for name in ("a.png", "more/b.png"))
    assert a.size == b.size == (11, 11) and Image.open(hq / "a.png").size == (44, 44)
    assert a.tobytes() != b.tobytes()
    assert run("--input", photos, "--output", tmp_path / "other", "--crop", 45, "--seed", 8) == 0
    assert Image.open(tmp_path / "other" / "a.png").tobytes() != a.tobytes()

    (photos / "a.png").unlink()
    (photos / "broken.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert run("--input", photos, "--output", tmp_path / "again", "--crop", 45, "--seed", 7) == 3
    errors = capsys.readouterr().err
    assert "broken.png" in errors and len(errors.splitlines()) == 1
    assert (tmp_path / "again" / "more" / "b.png").read_bytes() == (
        lq / "more" / "b.png"
    ).read_bytes()


def test_manifest_says_how_and_what(pairs):
    manifest = json.loads((pairs[0] / "manifest.json").read_text())
    assert manifest["seed"] == 7 and [entry["name"] for entry in manifest["pictures"]] == [
        "a.png",
        "more/b.png",
    ]
    assert manifest["recipe"]["scale"] == 4 and manifest["versions"].keys() == {"torch", "pillow"}


def test_manifest_is_whole_or_the_one_before(pairs, photos, monkeypatch):
    manifest = pairs[0] / "manifest.json"
    before = manifest.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run("--input", photos, "--output", pairs[0], "--crop", 45, "--seed", 8) == 1
    assert manifest.read_text() == before
    assert not list(pairs[0].glob(".pisasr-*"))


def test_a_picture_that_cannot_be_written_costs_itself_alone(photos, tmp_path, capsys):
    """A folder stands where one of the two pictures belongs."""
    (tmp_path / "lq" / "a.png" / "in the way").mkdir(parents=True)
    assert run("--input", photos, "--output", tmp_path / "lq") == 3
    assert "a.png" in capsys.readouterr().err
    entries = json.loads((tmp_path / "lq" / "manifest.json").read_text())["pictures"]
    assert [entry["name"] for entry in entries] == ["more/b.png"]


def test_a_folder_as_it_was_written_is_verified(pairs, capsys):
    lq, hq = pairs
    assert run("--verify", lq / "manifest.json") == 0
    assert run("--verify", lq / "manifest.json", "--hq_output", hq) == 0
    moved = lq.rename(lq.with_name("moved"))
    assert run("--verify", moved / "manifest.json", "--output", moved) == 0
    assert capsys.readouterr().err == ""


def test_verify_lists_what_is_missing_changed_or_added(pairs, capsys):
    lq, hq = pairs
    (lq / "more" / "b.png").unlink()
    changed = bytearray((lq / "a.png").read_bytes())
    changed[-1] ^= 1
    (lq / "a.png").write_bytes(changed)
    (lq / "c\x1b.png").write_bytes(b"new")
    (hq / "a.png").unlink()
    capsys.readouterr()
    assert run("--verify", lq / "manifest.json", "--hq_output", hq) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"{lq / 'a.png'}: not the picture of the manifest",
        f"{lq / 'c'}\\x1b.png: not in the manifest",
        f"{lq / 'more' / 'b.png'}: missing",
        f"{hq / 'a.png'}: missing",
    ]


def test_verify_leaves_the_other_folder_out(photos, tmp_path):
    """Where the good pictures lie below the low-quality ones."""
    lq = tmp_path / "lq"
    assert run("--input", photos, "--output", lq, "--hq_output", lq / "hq") == 0
    assert run("--verify", lq / "manifest.json", "--hq_output", lq / "hq") == 0
    assert run("--verify", lq / "manifest.json") == 3


@pytest.mark.parametrize(
    "content",
    [None, "no json", "[]", '{"pictures": [{"name": "a.png"}]}', '{"pictures": 3}', "[" * 100_000],
)
def test_verify_wants_a_manifest(tmp_path, content, capsys):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    assert run("--verify", path) == 1
    error = capsys.readouterr().err
    assert "manifest.json" in error and len(error.splitlines()) == 1


def test_leftovers_of_dead_runs_are_removed(photos, tmp_path):
    for folder in ("lq", "lq/more", "hq"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f".pisasr-{2**30}-0badcafe.tmp").touch()
    assert (
        run(
            "--input",
            photos / "more",
            "--output",
            tmp_path / "lq" / "more",
            "--hq_output",
            tmp_path / "hq",
        )
        == 0
    )
    assert len(list(tmp_path.rglob("*.tmp"))) == 1  # lq/ is not written to
    assert run("--input", photos, "--output", tmp_path / "lq") == 0
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "arguments", [(), ("--input", "a"), ("--output", "b"), ("--verify", "m", "--input", "a")]
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_photo_is_never_written_over(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run("--input", tmp_path, "--output", tmp_path / "lq", "--hq_output", tmp_path) == 2
    assert "a.png is one of the photos" in capsys.readouterr().err

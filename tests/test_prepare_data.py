"""From photos to a manifest: what is found, what is dropped and why, what a second run does
again.
"""

import csv
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.data import prepare
from pisasr.data.photos import choose_photos
from pisasr.data.prepare import find_near_duplicates, perceptual_hash
from pisasr.data.sources import find_photos
from pisasr.errors import INTERRUPTED
from pisasr.files import Journal

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def scene(seed, width=160, height=120):
    """A picture with soft and hard edges that no other seed has."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = small.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(12):
        x, y = random.integers(0, width), random.integers(0, height)
        size = tuple(random.integers(5, 50, 2))
        picture.paste(
            tuple(random.integers(0, 256, 3).tolist()), (x, y, x + int(size[0]), y + int(size[1]))
        )
    return picture


@pytest.fixture
def photos(tmp_path):
    """Two good photos, and one of everything that is to be dropped."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    scene(1).save(folder / "a.png")
    scene(2).save(folder / "more" / "b.png")
    scene(1).save(folder / "more" / "copy.png")
    scene(2).convert("L").save(folder / "more" / "a_grey_b.jpg", quality=20)
    scene(3, 90, 60).save(folder / "small.png")
    Image.new("L", (1, 1)).save(folder / "dot.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no photo")
    return folder


def run(main, photos, output, *options):
    return main(["--input", str(photos), "--output", str(output), "--min_side", "100", *options])


def rows_of(path):
    return Journal(path).rows()


def files_of(output):
    return {
        name: (output / name).read_bytes()
        for name in ("manifest.jsonl", "dropped.jsonl", "summary.json")
    }


def test_good_photos_stay_and_the_others_are_named(main, photos, tmp_path, capsys):
    output = tmp_path / "set"
    assert run(main, photos, output) == 3, "some could not be read"
    rows = rows_of(output / "manifest.jsonl")
    assert [row["path"] for row in rows] == ["../photos/a.png", "../photos/more/b.png"]
    assert all(
        0 < row["score"] < 1 and len(row["sha256"]) == 64 and row["source"] == "photos"
        for row in rows
    )
    assert (rows[0]["width"], rows[0]["height"], rows[0]["licence"], rows[0]["caption"]) == (
        160,
        120,
        None,
        None,
    )
    reasons = {Path(row["path"]).name: row["reason"] for row in rows_of(output / "dropped.jsonl")}
    assert reasons.pop("broken.png").startswith("unreadable: broken picture")
    assert reasons == {
        "copy.png": "exact duplicate: of ../photos/a.png",
        "dot.png": "too small: 1x1, wanted 100 px a side",
        "empty.jpg": "unreadable: empty file",
        "a_grey_b.jpg": "near duplicate: of ../photos/more/b.png",
        "small.png": "too small: 90x60, wanted 100 px a side",
    }
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["found"], summary["kept"]) == (8, 2)
    assert summary["dropped"] == {
        "exact duplicate": 1,
        "near duplicate": 1,
        "too small": 2,
        "unreadable": 2,
    }
    told = capsys.readouterr()
    assert (
        "2 of 8 photos kept (1 exact duplicate, 1 near duplicate, 2 too small, 2 unreadable)"
        in told.out
    )
    assert len(told.err.splitlines()) == 2 and not list(output.glob(".pisasr-*"))


def test_training_takes_the_manifest(main, photos, tmp_path):
    run(main, photos, tmp_path / "set")
    chosen = choose_photos([str(tmp_path / "set" / "manifest.jsonl")], hq_fraction=0.5)
    assert len(chosen) == 1 and all(photo.path.is_file() and photo.score for photo in chosen)


def test_processes_change_nothing(main, photos, tmp_path):
    assert (
        run(main, photos, tmp_path / "one")
        == run(main, photos, tmp_path / "two", "--workers", "2")
        == 3
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_second_run_measures_only_what_is_new(main, photos, tmp_path, monkeypatch):
    output, seen = tmp_path / "set", []
    original = prepare.measure_photo
    monkeypatch.setattr(
        prepare,
        "measure_photo",
        lambda path, known: (seen.append(path.name), original(path, known))[1],
    )
    run(main, photos, output)
    before = files_of(output)
    assert len(seen) == 8
    with (output / "measured.jsonl").open("a") as file:
        file.write('{"path": "killed whi')
    seen.clear()
    run(main, photos, output)
    assert seen == ["broken.png", "empty.jpg"], "what could not be read is tried again"
    assert files_of(output) == before
    seen.clear()
    scene(4).save(photos / "a.png")
    scene(5).save(photos / "new.png")
    run(main, photos, output)
    assert seen == ["a.png", "broken.png", "empty.jpg", "new.png"]
    assert "new.png" in (output / "manifest.jsonl").read_text() and files_of(output) != before


def test_an_interrupted_run_goes_on_and_ends_the_same(main, photos, tmp_path, monkeypatch):
    original, seen = prepare.measure_photo, []

    def stop_at_the_fourth(path, known):
        seen.append(path.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(path, known)

    monkeypatch.setattr(prepare, "measure_photo", stop_at_the_fourth)
    assert run(main, photos, tmp_path / "cut") == INTERRUPTED
    assert not (tmp_path / "cut" / "manifest.jsonl").exists()
    run(main, photos, tmp_path / "cut")
    run(main, photos, tmp_path / "whole")
    assert len(seen) == 4 + 6 + 8 and files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_touched_photo_is_hashed_and_not_measured_again(photos, monkeypatch):
    known = prepare.measure_photo(photos / "a.png")
    os.utime(photos / "a.png", (1, 1))
    monkeypatch.setattr(prepare, "open_image", None)
    again = prepare.measure_photo(photos / "a.png", known)
    assert again["mtime_ns"] == 10**9 and again["blur"] == known["blur"]


def die_of_b(path, known):
    if path.name == "b.png":
        os._exit(1)
    return prepare.measure_photo(path, known)


@pytest.mark.slow
def test_a_reader_that_dies_costs_one_photo(photos):
    tasks = [(path, None) for path in sorted(photos.rglob("*.png"))]
    rows = list(prepare.map_photos(tasks, workers=2, measure=die_of_b))
    assert [row["path"] for row in rows] == [str(path) for path, _ in tasks]
    assert [row.get("error") for row in rows if row["path"].endswith("b.png")] == [
        "its reader died of it"
    ]
    assert sum("width" in row for row in rows) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "nowhere", "--output", "o"], 1, "nowhere does not exist; wanted a folder"),
        (["--input", "empty", "--output", "o"], 1, "empty: no photos there"),
        (["--output", "o"], 2, "--input to make a manifest, or --caption"),
        (
            ["--input", "photos", "--output", "o", "--licence", "CC0"],
            2,
            "wants SOURCE=TEXT; got 'CC0'",
        ),
        (
            ["--input", "photos", "--output", "o", "--licence", "x=CC0"],
            1,
            "x: no such source; there are photos",
        ),
        (
            ["--input", "photos", "--output", "o", "--min_side", "0"],
            2,
            "is not a whole number from 1",
        ),
        (
            ["--input", "photos", "--output", "photos/a.png"],
            1,
            "cannot write to photos/a.png: it is a file",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    main, photos, tmp_path, monkeypatch, capsys, arguments, code, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    try:
        assert main(arguments) == code
    except SystemExit as error:
        assert error.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_paths_are_right_from_behind_a_link(main, photos, tmp_path, monkeypatch):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(photos)
    run(main, ".", tmp_path / "link")
    assert all(
        photo.path.is_file() for photo in choose_photos([str(tmp_path / "link" / "manifest.jsonl")])
    )


# --- where photos lie -----------------------------------------------------------------------------


def lay_out(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        scene(1, 40, 40).save(root / path)
    return root


def names(source, output="nowhere"):
    found, left_out = find_photos(str(source), "s", Path(output))
    return [f.path.relative_to(source).as_posix() for f in found], [
        p.path.relative_to(source).as_posix() for p in left_out
    ]


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        (["0001000/0000001.png", "0001000/0000002.png", "0002000/0001001.png"], []),
        (["00000/00000.png", "00000/00001.png", "01000/01000.png"], []),
        (
            ["DIV2K_train_HR/0001.png"],
            ["DIV2K_train_LR_bicubic/X2/0001x2.png", "DIV2K_valid_HR/0801.png"],
        ),
        (
            ["DIV2K_train_HR/0001.png"],
            ["DIV2K_train_LR_unknown/X4/0001x4.png", "DIV2K_train_LR_mild/0001x4m.png"],
        ),
        (
            ["Flickr2K_HR/000001.png"],
            ["Flickr2K_LR_bicubic/X4/000001x4.png", "Flickr2K_LR_unknown/X2/1.png"],
        ),
        (["HR/1.png"], ["X2/1.png", "X4/1.png", "LR_bicubic/1.png", "unknown/1.png", "lr/1.png"]),
        (["train/0001000/1.png"], ["val1/HR/val/2.png", "val1/X2/val/2.png"]),
        (["X2/holiday.png", "test/street.png", "unknown/place.png"], []),
    ],
    ids=["lsdir", "ffhq", "div2k", "div2k_other", "flickr2k", "pairs", "lsdir_val", "only_names"],
)
def test_full_size_pictures_are_taken_and_reduced_ones_never(tmp_path, taken, left):
    found, folders = names(lay_out(tmp_path, *taken, *left))
    assert found == sorted(taken)
    assert sorted(folders) == sorted({path.split("/")[0] for path in left})


@pytest.mark.parametrize("named", ["D_train_LR_bicubic", "D_train_LR_bicubic/X4", "pairs/X4"])
def test_reduced_pictures_are_refused_when_they_are_named(main, tmp_path, capsys, named):
    lay_out(tmp_path, "D_train_LR_bicubic/X4/1.png", "pairs/HR/1.png", "pairs/X4/1.png")
    assert main(["--input", str(tmp_path / named), "--output", str(tmp_path / "o")]) == 1
    assert "holds reduced pictures; wanted the full-size" in capsys.readouterr().err


def test_held_out_pictures_are_taken_when_they_are_named(tmp_path):
    assert names(lay_out(tmp_path, "DIV2K_valid_HR/0801.png") / "DIV2K_valid_HR")[0] == ["0801.png"]


def test_links_in_circles_hidden_files_and_the_output_are_passed_over(tmp_path):
    lay_out(tmp_path, "a/1.png", "a/.hidden.png", ".b/1.png", "out/photos/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert names(tmp_path, tmp_path / "out")[0] == ["a/1.png"]


def test_a_list_names_paths_beside_itself(tmp_path):
    lay_out(tmp_path, "p/1.png")
    (tmp_path / "list.txt").write_text(f"p/1.png\n\n{tmp_path}/gone.png\n")
    found, _ = find_photos(str(tmp_path / "list.txt"), "list", tmp_path / "o")
    assert [f.path for f in found] == [tmp_path / "p/1.png", tmp_path / "gone.png"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_imagefolders_metadata_brings_captions_and_licences(tmp_path, kind):
    lay_out(tmp_path, "train/1.png", "train/sub/2.png", "train/3.png")
    rows = [
        {"file_name": "1.png", "text": "a  field\n", "license": "CC0"},
        {"file_name": "sub/2.png", "text": "", "license": ""},
    ]
    with (tmp_path / "train" / f"metadata.{kind}").open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "LICENSE").write_text("\nMIT\nand so on\n")
    (tmp_path / "train" / "3.txt").write_text("a road")
    found, _ = find_photos(str(tmp_path), "s", tmp_path / "o")
    told = {f.path.name: (f.caption, f.licence) for f in found}
    assert told == {"1.png": ("a field", "CC0"), "2.png": (None, "MIT"), "3.png": ("a road", "MIT")}


def test_what_is_no_metadata_is_told_and_the_photos_are_taken(tmp_path):
    lay_out(tmp_path, "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"name": "1.png"}\n')
    found, left_out = find_photos(str(tmp_path), "s", tmp_path / "o")
    assert len(found) == 1 and "wanted a file_name column" in left_out[0].reason


def test_the_licence_given_comes_first_and_captions_stay(main, tmp_path):
    lay_out(tmp_path, "a/1.png", "b/1.png")
    scene(7, 40, 40).save(tmp_path / "b/1.png")
    (tmp_path / "a" / "LICENSE").write_text("MIT")
    arguments = [
        "--input",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--output",
        str(tmp_path / "o"),
        "--min_side",
        "32",
    ]
    assert main([*arguments, "--licence", "b=CC BY 4.0"]) == 0
    manifest = tmp_path / "o" / "manifest.jsonl"
    rows = rows_of(manifest)
    assert [(row["source"], row["licence"]) for row in rows] == [("a", "MIT"), ("b", "CC BY 4.0")]
    manifest.write_text(
        "".join(json.dumps({**row, "caption": f"seen in {row['source']}"}) + "\n" for row in rows)
    )
    (tmp_path / "b" / "1.txt").write_text("by hand")
    assert main(arguments) == 0
    assert [row["caption"] for row in rows_of(manifest)] == ["seen in a", "by hand"]
    first, second = manifest.read_text().splitlines()
    manifest.write_text(f'{first}\n{second[:20]}\n{{"path": "x", "sha256": [1], "caption": 5}}\n')
    assert main(arguments) == 0
    assert [row["caption"] for row in rows_of(manifest)] == ["seen in a", "by hand"]


@pytest.mark.parametrize(
    "wrong", [{"bytes": None}, {"width": "x"}, {"hash": "zz"}, {"sha256": 3}, {"blur": []}]
)
def test_a_damaged_row_is_measured_again(main, photos, tmp_path, wrong):
    run(main, photos, tmp_path / "set")
    before, journal = files_of(tmp_path / "set"), tmp_path / "set" / "measured.jsonl"
    rows = rows_of(journal)
    assert any(wrong.keys() <= row.keys() for row in rows)
    journal.write_text("".join(json.dumps({**row, **wrong}) + "\n" for row in rows))
    run(main, photos, tmp_path / "set")
    assert files_of(tmp_path / "set") == before


def test_sources_of_one_name_are_told_apart(main, tmp_path):
    lay_out(tmp_path, "a/HR/1.png", "b/HR/1.png")
    scene(7, 40, 40).save(tmp_path / "b/HR/1.png")
    sources = [str(tmp_path / "a" / "HR"), str(tmp_path / "b" / "HR")]
    assert main(["--input", *sources, "--output", str(tmp_path / "o"), "--min_side", "32"]) == 0
    assert [row["source"] for row in rows_of(tmp_path / "o" / "manifest.jsonl")] == sources


# --- duplicates -----------------------------------------------------------------------------------


def test_a_copy_at_another_size_quality_or_light_is_the_same_and_a_mirrored_one_is_not(tmp_path):
    picture = scene(11, 320, 240)
    picture.save(tmp_path / "a.jpg", quality=20)
    copies = [
        Image.open(tmp_path / "a.jpg"),
        picture.resize((150, 113), Image.Resampling.LANCZOS),
        picture.point(lambda level: min(255, level + 20)),
        picture.crop((3, 2, 318, 238)),
        picture.convert("L"),
    ]
    others = [
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.rotate(180),
        scene(12, 320, 240),
    ]
    hashes = [perceptual_hash(p) for p in (picture, *copies, *others)]
    assert find_near_duplicates(hashes) == {i: 0 for i in range(1, 6)}


def test_many_photos_are_compared_in_little_time():
    """Eight thousand: 32 million pairs, of which next to none are looked at."""
    random = np.random.default_rng(0)
    hashes = [int.from_bytes(random.bytes(32), "big") for _ in range(8_000)]
    near = []
    for i in range(50):
        flips = random.choice(256, 16, replace=False)
        near.append(hashes[i] ^ sum(1 << int(bit) for bit in flips))
    assert find_near_duplicates([*hashes, *near]) == {8_000 + i: i for i in range(50)}


def test_pipes_and_devices_are_told_and_nobody_waits_for_them(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    for name in ("good.txt", "LICENSE", "metadata.jsonl"):
        os.mkfifo(folder / name)
    found, _ = find_photos(str(folder), "photos", tmp_path / "out")
    rows = {photo.path.name: prepare.measure_photo(photo.path) for photo in found}
    assert rows["pipe.png"]["error"] == rows["endless.png"]["error"] == "not a regular file"
    assert rows["good.png"]["width"] == 8 and all(
        photo.caption is photo.licence is None for photo in found
    )

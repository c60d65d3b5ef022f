"""`pisasr evaluate`: what it writes and refuses; an absent metric costs its own column."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from pisasr.commands.evaluate import evaluate
from pisasr.evaluation import metrics as metrics_module
from pisasr.evaluation.metrics import Metric
from pisasr.evaluation.pairs import pair_folders


@pytest.fixture
def folders(tmp_path):
    """Three true pictures, and two methods: one repeats them exactly, one is off by ten levels."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        hq = rng.integers(0, 240, (24, 20, 3), dtype=np.uint8)
        for folder, picture in {"hq": hq, "same": hq, "brighter": hq + np.uint8(10)}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / name)
    return tmp_path


@pytest.fixture
def brightness(monkeypatch):
    """A row more in the table: what somebody adds who adds a metric."""
    row = Metric("Brightness", True, None, 1, "mean of all levels", score=lambda sr: sr.mean())
    monkeypatch.setitem(metrics_module.METRICS, "brightness", row)


def run(folders, *options, sr=("brighter",), metrics=("psnr", "ssim")):
    words = ["--sr", *(str(folders / name) for name in sr), "--hq", str(folders / "hq")]
    return evaluate([*words, "--metrics", *metrics, "--output", str(folders / "out"), *options])


def read_out(folders):
    with open(folders / "out" / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((folders / "out" / "summary.json").read_text())
    return rows, summary, (folders / "out" / "table.md").read_text()


def test_a_row_per_method_and_picture_and_means_with_their_recipe(folders):
    assert run(folders, "--border", "2", sr=("same", "brighter")) == 0
    rows, summary, table = read_out(folders)
    assert [(row["method"], row["name"]) for row in rows] == [
        (method, name) for method in ("same", "brighter") for name in ("a.png", "b.png", "c.png")
    ]
    scores = [float(row["psnr"]) for row in rows if row["method"] == "brighter"]
    assert summary["methods"]["brighter"]["psnr"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["border_px"] == 2 and summary["pictures"] == 3
    assert "**80.00**" in table and f"{np.mean(scores):.2f}" in table
    assert "BT.601" in table and "a border of 2 px" in table


def test_a_border_is_left_out(folders):
    for path in (folders / "same").iterdir():
        picture = np.array(Image.open(path))
        picture[:3] = picture[-3:] = picture[:, :3] = picture[:, -3:] = 0
        Image.fromarray(picture).save(path)
    means = []
    for border in ("2", "3"):
        assert run(folders, "--border", border, sr=("same",)) == 0
        means.append(read_out(folders)[1]["methods"]["same"]["psnr"]["mean"])
    assert means[0] < 40 and means[1] == pytest.approx(80)


def test_nan_is_shown_and_never_averaged(folders):
    for folder in ("hq", "brighter"):
        with Image.open(folders / folder / "b.png") as picture:
            picture.crop((0, 0, 8, 8)).save(folders / folder / "b.png")
    assert run(folders) == 0
    rows, summary, table = read_out(folders)
    assert rows[1]["ssim"] == "nan"
    assert summary["methods"]["brighter"]["ssim"] == {"mean": None, "without": ["b.png"]}
    assert "no SSIM for b.png" in table


def test_gaps_are_refused_and_on_request_recorded(folders, capsys):
    (folders / "brighter" / "b.png").unlink()
    assert run(folders, sr=("same", "brighter")) == 3
    assert "missing from --sr brighter: b.png" in capsys.readouterr().err
    assert not (folders / "out").exists()
    assert run(folders, "--allow_missing", sr=("same", "brighter")) == 0
    rows, summary, table = read_out(folders)
    assert len(rows) == 4 and summary["pictures"] == 2
    assert "missing from --sr brighter: b.png" in summary["left_out"][0]
    assert "missing from --sr brighter: b.png" in table


def test_a_metric_that_can_not_be_had_costs_its_own_column(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert run(folders, metrics=("psnr", "musiq", "fid")) == 0
    rows, summary, table = read_out(folders)
    assert list(rows[0]) == ["method", "name", "psnr"]
    assert set(summary["not_available"]) == {"musiq", "fid"} and table.count("| n/a") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("pip install" in line for line in errors)
    assert run(folders, metrics=("musiq",)) == 1, "nothing could be computed"


def test_a_metric_without_its_pictures_is_said(folders, capsys):
    assert run(folders, metrics=("psnr", "psnr_lq")) == 0
    assert "psnr_lq: n/a" in capsys.readouterr().err
    words = ["--sr", str(folders / "same"), "--output", str(folders / "out")]
    assert evaluate([*words, "--metrics", "psnr"]) == 1
    assert "--hq" in capsys.readouterr().err


def test_a_new_row_is_a_new_column_everywhere(folders, brightness):
    lq = ("--lq", str(folders / "hq"))
    assert run(folders, *lq, sr=("same", "brighter"), metrics=("psnr", "brightness")) == 0
    rows, summary, table = read_out(folders)
    assert float(rows[3]["brightness"]) == pytest.approx(float(rows[0]["brightness"]) + 10)
    assert "Brightness ↑" in table and "mean of all levels" in table
    made = {path.name for path in (folders / "out").iterdir()}
    assert made == {"per_image.csv", "summary.json", "table.md", "plot.png", "sheet.png"}
    assert run(folders, metrics=("psnr",)) == 0
    left = {path.name for path in (folders / "out").iterdir()}
    assert left == made - {"plot.png"}, "an earlier run's plot is gone"


def test_a_metric_that_fails_on_a_picture_is_nan_and_said(folders, monkeypatch):
    def fail(*_):
        raise RuntimeError("too small")

    for name, needs in (("failing", None), ("failing_set", "hq_set")):
        row = Metric(name, True, needs, 1, "", score=fail)
        monkeypatch.setitem(metrics_module.METRICS, name, row)
    assert run(folders, metrics=("psnr", "failing", "failing_set")) == 0
    _, summary, table = read_out(folders)
    assert summary["methods"]["brighter"]["failing"]["mean"] is None
    assert "brighter, a.png: failing failed (RuntimeError: too small)" in table
    assert "brighter: failing_set failed (RuntimeError: too small)" in table


def test_without_matplotlib_the_table_is_written_and_the_plot_is_a_line(
    folders, brightness, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(folders, metrics=("psnr", "brightness")) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert (folders / "out" / "table.md").is_file() and not (folders / "out" / "plot.png").exists()


def test_a_grid_of_strengths_is_scored_like_any_methods(folders, brightness):
    pairs = [f"pix{pix}_sem{sem}" for pix in (0, 1) for sem in (0.5, 1)]
    for pair in pairs:
        shutil.copytree(folders / "brighter", folders / pair)
    assert run(folders, sr=pairs, metrics=("psnr", "brightness")) == 0
    assert list(read_out(folders)[1]["methods"]) == pairs
    assert (folders / "out" / "plot.png").is_file()


def test_a_method_is_named_before_its_folder(folders):
    assert run(folders, "--sr", f"ours={folders / 'same'}", sr=("brighter",)) == 0
    assert list(read_out(folders)[1]["methods"]) == ["brighter", "ours"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sr", "a"], "--output"),
        (["--output", "o"], "--sr"),
        (["--sr", "a", "--output", "o", "--border", "-1"], "--border: '-1' is not a whole number"),
        (["--sr", "x=a", "x=b", "--output", "o"], "name of its own"),
        (["--sr", "a", "--output", "a"], "is a folder of pictures"),
    ],
)
def test_wrong_usage(words, complaint, capsys):
    with pytest.raises(SystemExit) as leaving:
        evaluate(words)
    assert leaving.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_one_line(folders, capsys):
    assert run(folders, sr=("nowhere",)) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_files_are_paired_by_name_with_endings_disregarded_and_not_by_order(folders):
    assert run(folders) == 0
    before = [float(row["psnr"]) for row in read_out(folders)[0]]
    a, b, spare = (folders / "brighter" / name for name in ("a_x4.png", "b_sr.png", "spare"))
    (folders / "brighter" / "a.png").rename(spare)
    (folders / "brighter" / "b.png").rename(a), spare.rename(b)
    assert run(folders) == 0
    after = [float(row["psnr"]) for row in read_out(folders)[0]]
    assert before[0] - after[0] > 5 and before[1] - after[1] > 5 and before[2] == after[2]


def test_without_true_pictures_the_first_method_leads(folders):
    (folders / "same" / "c.png").unlink()
    examples, problems = pair_folders({"a": folders / "same", "b": folders / "brighter"})
    assert [example.name for example in examples] == ["a.png", "b.png"]
    assert problems == ["only in --sr b, not in --sr a: c.png"]


@pytest.mark.parametrize("damage", ["another size", "corrupt"])
def test_what_does_not_fit_is_refused_by_name(folders, damage, capsys):
    path = folders / "brighter" / "b.png"
    if damage == "corrupt":
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.open(path).crop((0, 0, 20, 23)).save(path)
    assert run(folders) == 3
    assert "--sr brighter: b.png" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_inputs_of_another_shape_are_refused(folders, capsys):
    shutil.copytree(folders / "hq", folders / "lq")
    Image.open(folders / "lq" / "b.png").resize((5, 9)).save(folders / "lq" / "b.png")
    assert run(folders, "--lq", str(folders / "lq")) == 3
    assert "--lq: b.png is 5x9, in --hq it is 20x24" in capsys.readouterr().err


def test_the_published_names_of_options_stay(folders):
    sr, hq = str(folders / "same"), str(folders / "hq")
    words = ["--sr", sr, "--hr", hq, "--lr", hq]
    assert evaluate([*words, "--metrics", "psnr-lq", "--output", str(folders / "out")]) == 1
    assert evaluate([*words, "--metrics", "psnr_lq", "--output", str(folders / "out")]) == 0

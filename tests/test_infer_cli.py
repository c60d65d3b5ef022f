"""Promises of `pisasr infer`: published commands run, no file ends a batch, no result is lost,
mistakes cost one line.

Most tests put a stub in place of the model; the last ones run a tiny one.
"""

import errno
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pisasr import errors, files
from pisasr.commands import batch
from pisasr.commands import infer as command
from pisasr.commands.main import main
from pisasr.pictures import images, saving

ROOT = Path(__file__).resolve().parents[1]


class StubPipeline:
    """Enlarges by PIL, remembers what it was asked for each picture, and colours one pixel by its
    seed.
    """

    def __init__(self):
        self.calls, self.batches = [], []

    def __call__(self, pictures, lambda_pix, lambda_sem, generator, **settings):
        self.batches.append(len(pictures))
        each = zip(pictures, generator, strict=True)
        return SimpleNamespace(
            images=[self.one(p, lambda_pix, lambda_sem, seed, **settings) for p, seed in each]
        )

    def one(self, picture, lambda_pix, lambda_sem, generator, **settings):
        image = images.as_image(images.join(picture.pixels, picture))
        self.calls.append(
            SimpleNamespace(pair=(lambda_pix, lambda_sem), seed=generator, **settings)
        )
        size = round(settings["upscale"] * image.width), round(settings["upscale"] * image.height)
        result = image.resize(size)
        result.putpixel(
            (0, 0),
            (generator % 256,) * len(image.getbands()) if image.mode != "L" else generator % 256,
        )
        return result

    def look(self, image, **options):
        return image, options

    def mix(self, looked, lambda_pix, lambda_sem, **options):
        image, others = looked
        return self.one(image, lambda_pix, lambda_sem, **others, **options)


@pytest.fixture
def stub(monkeypatch):
    pipe = StubPipeline()
    monkeypatch.setattr(command, "load_pipeline", lambda args: pipe)
    return pipe


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with an empty folder `in`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    return tmp_path


def draw(name: str | Path, color=(200, 100, 50), size=(6, 5)) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def infer(*words) -> int:
    return main(["infer", *map(str, words)])


def rows(folder: str = "out") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "report.jsonl").read_text().splitlines()]


def outputs(folder: str = "out") -> list[str]:
    files = (
        path
        for path in Path(folder).rglob("*")
        if path.is_file() and not path.match("report*.jsonl")
    )
    return sorted(str(path.relative_to(folder)) for path in files)


def usage_error(capsys, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        infer(*words)
    assert caught.value.code == errors.WRONG_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


# --- options --------------------------------------------------------------------------------------


def test_published_command_runs_unchanged(here, stub):
    draw("in/a.png")
    words = (
        "--pretrained_model_path preset/models/stable-diffusion-2-1-base --pretrained_path preset/models/pisa_sr.pkl "
        "--process_size 64 --upscale 4 --input_image in --output_dir experiments/test --align_method nofix "
        "--lambda_pix 1.0 --lambda_sem 1.0 --latent_tiled_size 96 --latent_tiled_overlap 32 --seed 42 "
        "--vae_encoder_tiled_size 1024 --vae_decoder_tiled_size 224 --mixed_precision fp16 --default"
    )
    assert infer(*words.split()) == errors.OK
    assert outputs("experiments/test") == ["a.png"]
    (call,) = stub.calls
    assert (call.process_size, call.upscale, call.color_fix) == (64, 4, "none")
    assert (call.tile_size, call.tile_overlap, call.vae_tile_size) == (96, 32, 1024)


def test_aliases_mean_the_same():
    parser = command.infer_parser()
    ours = "--input a --output b --pretrained_model m --adapters k --color_fix wavelet --tile_size 9 --tile_overlap 2"
    theirs = (
        "-i a -o b --pretrained_model_path m --pretrained_path k --align_method wavelet --latent_tiled_size 9"
        " --latent_tiled_overlap 2"
    )
    assert parser.parse_args(ours.split()) == parser.parse_args(theirs.split())


def test_hyphens_and_negative_numbers_are_understood(here, stub):
    draw("in/-a.png")
    strengths = ["--lambda-pix", "-0.5", "--lambda-sem=-1e-3"]
    assert infer("--input=in/-a.png", "-o", "out", *strengths, "--color-fix", "none") == 0
    assert stub.calls[0].pair == (-0.5, -0.001)
    assert infer("-i", "in", "-o", "out", "--lambda-grid", "-0.5,0", "-1") == 0
    assert [call.pair for call in stub.calls[1:]] == [(-0.5, -1.0), (0.0, -1.0)]
    assert infer("-i", "in", "-o", "out", "--lambda-grid", "-0.2:0.1:0.1", "1:-1:-2") == 0
    assert [call.pair for call in stub.calls[3:]] == [
        (p, s) for p in (-0.2, -0.1, 0.0, 0.1) for s in (1.0, -1.0)
    ]
    assert Path("out/-a/pix-0.1_sem1.png").is_file()


def test_default_is_one_one(here, stub):
    draw("in/a.png")
    assert infer("-i", "in", "-o", "out", "--lambda_pix", "0.3", "--default") == 0
    assert stub.calls[0].pair == (1.0, 1.0)


@pytest.mark.parametrize(
    "words",
    [
        ["--lambda_pix", "nan"],
        ["--lambda_sem", "inf"],
        ["--lambda_sem", "1,0"],
        ["--lambda_pix", ""],
        ["--lambda_grid", "0,1", "0,x"],
        ["--lambda_grid", "0,1"],
        ["--lambda_grid", "0:1", "0,1"],
        ["--lambda_grid", "0,1", "0:1:-0.5"],
        ["--upscale", "0.5"],
        ["--upscale", "nan"],
        ["--process_size", "0"],
        ["--tile_size", "0"],
        ["--tile_size", "8", "--tile_overlap", "8"],
        ["--tile_overlap", "-1"],
        ["--color_fix", "rainbow"],
        ["--dtype", "int8"],
        ["--existing", "maybe"],
        ["--seed", "x"],
        ["--default", "--lambda_grid", "0,1", "0,1"],
        ["--lambda_grid", "0,1", "0,1", "--lambda_pix", "0.5"],
        ["--unknown"],
    ],
)
def test_wrong_usage_names_the_option(here, stub, capsys, words):
    draw("in/a.png")
    said = usage_error(capsys, "-i", "in", "-o", "out", *words)
    assert words[0] in said
    assert not stub.calls and not Path("out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "infer --help",
        "infer --lambda_pix nan",
        "infer -i none",
        "convert -h",
        "app -h",
        "app --host 0.0.0.0",
    ],
)
def test_quick_answers_do_not_wait_for_torch(words):
    code = (
        "import sys, pisasr.commands.main\n"
        "try: pisasr.commands.main.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = os.times()
    result = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=ROOT, capture_output=True, text=True
    )
    after = os.times()
    assert result.returncode == 0, result.stderr
    # Its processor time: on a busy machine the clock on the wall measures the others.
    assert (
        after.children_user - before.children_user + after.children_system - before.children_system
        < 1
    )


# --- inputs ---------------------------------------------------------------------------------------


def test_files_folders_and_globs(here, stub):
    for name in (
        "in/a.png",
        "in/b.JPG",
        "in/deep/c.webp",
        "in/.hid.png",
        "more/x1.tif",
        "more/x2.bmp",
        "more/y.png",
    ):
        draw(name)
    Path("in/notes.txt").write_text("no picture")
    Path("in/folder.png").mkdir()
    assert infer("-i", "in", "more/x*", "-o", "out") == 0
    assert outputs() == ["a.png", "b.png", "x1.png", "x2.png"]
    assert {row["status"] for row in rows()} == {"ok"} and len(rows()) == 4


def test_recursive_keeps_the_tree(here, stub):
    for name in ("in/a.png", "in/one/a.png", "in/two/a.jpg", "in/two/a.png", "in/folder.png/a.png"):
        draw(name)
    assert infer("-i", "in", "-o", "out", "--recursive") == 0
    assert outputs() == ["a.png", "folder.png/a.png", "one/a.png", "two/a.jpg.png", "two/a.png.png"]


def test_globs_keep_the_tree_below_their_fixed_part(here, stub):
    draw("in/one/a.png"), draw("in/two/a.png")
    assert infer("-i", "in/**/*.png", "-o", "out") == 0
    assert outputs() == ["one/a.png", "two/a.png"]


def test_same_names_do_not_overwrite_each_other(here, stub):
    colors = {
        "in/a.png": (255, 0, 0),
        "in/A.jpg": (0, 255, 0),
        "b/a.png": (0, 0, 255),
        "c/a.png": (9, 9, 9),
    }
    for name, color in colors.items():
        draw(name, color)
    assert infer("-i", *colors, "-o", "out") == 0
    assert len(outputs()) == 4
    for row in rows():
        wanted = Image.open(row["input"]).getpixel((3, 3))
        assert np.abs(np.subtract(Image.open(row["output"]).getpixel((9, 9)), wanted)).max() <= 2


def test_one_file_named_twice_is_restored_once(here, stub):
    draw("in/a.png")
    assert infer("-i", "in", "in/a.png", "./in/*.png", "-o", "out") == 0
    assert len(stub.calls) == 1


def test_output_inside_input_is_not_read_again(here, stub):
    draw("in/a.png")
    for _ in range(2):
        assert infer("-i", "in", "-o", "in/out", "--recursive") == 0
        assert infer("-i", "in/**/*.png", "-o", "in/out") == 0
        assert outputs("in/out") == ["a.png"]


def test_inputs_are_never_written_over(here, stub, capsys):
    path = draw("in/a.png")
    before = path.read_bytes()
    for words in (
        ["-i", "in", "-o", "in"],
        ["-i", path, "-o", "in"],
        ["-i", "in/*.png", "-o", "in"],
    ):
        assert infer(*words) == errors.WRONG_USAGE
        assert "choose another --output" in capsys.readouterr().err
    draw("in/b.jpg")
    assert infer("-i", "in/*.jpg", "-o", "in") == 0  # b.png is nobody's input
    assert path.read_bytes() == before and not stub.calls[1:]


def test_pipes_loops_and_devices_are_skipped(here, stub):
    draw("in/a.png")
    os.mkfifo("in/pipe.png")
    Path("in/loop.png").symlink_to("loop.png")
    Path("in/dead.png").symlink_to("nowhere.png")
    Path("in/zero.png").symlink_to("/dev/zero")
    Path("in/again").symlink_to("..")
    assert infer("-i", "in", "-o", "out", "--recursive") == 0
    assert outputs() == ["a.png"]
    assert (
        sorted(row["status"] for row in rows()) == ["ok"] + ["skipped"] * 5
    )  # the link to a folder is told, too
    assert all(
        row["reason"] and row["output"] is None for row in rows() if row["status"] == "skipped"
    )


@pytest.mark.parametrize(
    "words", [["nowhere"], ["in"], ["in/*.png"], ["nowhere.png", "in"], ["in/pipe.png"]]
)
def test_nothing_to_do_is_told_before_anything_loads(here, monkeypatch, capsys, words):
    monkeypatch.setattr(command, "load_pipeline", lambda args: pytest.fail("the model was loaded"))
    os.mkfifo("in/pipe.png")
    Path("in/notes.txt").touch()
    assert infer("-i", *words, "-o", "out") == errors.NOTHING_STARTED
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words[0] in error


@pytest.mark.parametrize("empty", ["in/x*.png", "hollow"])
def test_what_holds_no_picture_is_told_and_the_others_go_on(here, stub, capsys, empty):
    draw("in/a.png")
    Path("hollow").mkdir()
    assert infer("-i", empty, "in", "-o", "out") == errors.SOME_FAILED
    assert outputs() == ["a.png"]
    assert [(row["input"], row["status"]) for row in rows()] == [
        (empty, "failed"),
        ("in/a.png", "ok"),
    ]
    assert f"{empty}: no pictures there" in capsys.readouterr().err


ODD_NAMES = [
    "späce ünï.png",
    "😀.png",
    "-a.png",
    "[red].png",
    "new\nline.png",
    "x" * 251 + ".png",
    "a.b.png",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(here, stub, capsys, name):
    draw(Path("in") / name)
    assert infer("-i", "in", "-o", "out") == 0
    assert outputs() == [name]
    assert capsys.readouterr().out.count("\n") == 2


def test_undecodable_names(here, stub):
    draw("a.png").rename(os.fsdecode(b"in/\xff\xfe.png"))
    assert infer("-i", "in", "-o", "out") == 0
    assert os.listdir(b"out") and rows()[0]["status"] == "ok"


# --- outputs --------------------------------------------------------------------------------------


def test_bad_files_cost_one_line_each(here, stub, capsys):
    for number in range(7):
        draw(f"in/good{number}.png")
    Path("in/empty.png").touch()
    Path("in/text.jpg").write_text("not a picture")
    Path("in/cut.png").write_bytes(draw("whole.png", size=(90, 90)).read_bytes()[:150])
    assert infer("-i", "in", "in/gone.png", "-o", "out") == errors.SOME_FAILED
    report = {Path(row["input"]).name: row for row in rows()}
    assert len(report) == 11 and len(outputs()) == 7
    failed = {name for name, row in report.items() if row["status"] == "failed"}
    assert failed == {"empty.png", "text.jpg", "cut.png", "gone.png"}
    assert all(report[name]["reason"] and report[name]["output"] is None for name in failed)
    assert set(report["good0.png"]) == {"input", "output", "status", "reason", "seconds"}
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 4 and "7 restored, 4 failed" in shown.out


def test_a_failing_model_costs_one_picture(here, stub, monkeypatch, capsys):
    draw("in/a.png"), draw("in/b.png")

    def explode(pictures, names, seeds):
        raise (
            MemoryError
            if not stub.calls.append(0) and len(stub.calls) == 1
            else RuntimeError("two\nlines")
        )

    monkeypatch.setattr(command, "_restorer", lambda *_: explode)
    assert infer("-i", "in", "-o", "out") == errors.SOME_FAILED
    assert [row["reason"] for row in rows()] == [
        "out of memory; try a smaller --tile_size and --vae_tile_size",
        "RuntimeError: two lines",
    ]
    assert not outputs() and "Traceback" not in capsys.readouterr().err
    assert infer("-i", "in", "-o", "out", "--debug") == errors.SOME_FAILED
    assert "Traceback" in capsys.readouterr().err


def test_the_pixel_cap(here, stub):
    draw("in/a.png", size=(6, 5)), draw("in/b.png", size=(7, 5))
    assert infer("-i", "in", "-o", "out", "--max_input_pixels", 30) == errors.SOME_FAILED
    assert outputs() == ["a.png"]


def test_existing_outputs(here, stub, capsys):
    draw("in/a.png"), draw("in/b.png"), draw("in/c.png")
    assert infer("-i", "in/a.png", "in/b.png", "-o", "out") == 0
    Path("out/b.png").write_bytes(Path("out/b.png").read_bytes()[:60])  # as a full disk leaves it
    kept = os.stat("out/a.png").st_mtime_ns
    assert infer("-i", "in", "-o", "out", "--existing", "skip") == 0
    assert [row["status"] for row in rows()] == ["skipped", "ok", "ok"]
    assert (
        rows()[0]["output"] == str(Path("out/a.png")) and os.stat("out/a.png").st_mtime_ns == kept
    )
    assert infer("-i", "in", "-o", "out", "--existing", "error") == errors.SOME_FAILED
    assert {row["status"] for row in rows()} == {"failed"} and os.stat(
        "out/a.png"
    ).st_mtime_ns == kept
    assert infer("-i", "in", "-o", "out") == 0
    assert os.stat("out/a.png").st_mtime_ns != kept


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_output_that_cannot_be_is_told_before_the_model_loads(here, monkeypatch, capsys, output):
    monkeypatch.setattr(command, "load_pipeline", lambda args: pytest.fail("the model was loaded"))
    draw("in/a.png")
    Path("file").touch()
    assert infer("-i", "in", "-o", output) == errors.NOTHING_STARTED
    assert "--output" in capsys.readouterr().err


def test_a_model_that_does_not_load_is_one_line(here, monkeypatch, capsys):
    def refuse(args):
        raise errors.PisasrError("no model folder at x")

    monkeypatch.setattr(command, "load_pipeline", refuse)
    draw("in/a.png")
    assert infer("-i", "in", "-o", "out") == errors.NOTHING_STARTED
    assert capsys.readouterr().err == "pisasr: no model folder at x\n"


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_batch(here, stub, monkeypatch, reason):
    count = 3 * batch.HANDS
    for number in range(count):
        draw(f"in/{number:02}.png")

    def save(image, path, metadata):
        raise OSError(reason, "No space left on device")

    monkeypatch.setattr(saving, "save_image", save)
    assert infer("-i", "in", "-o", "out") == errors.SOME_FAILED
    assert (
        len(stub.calls) <= batch.HANDS + 2
    )  # what may wait for the disk, what is written, what is in hand
    assert [row["status"] for row in rows()] == ["failed"] * count
    assert (
        rows()[0]["reason"].startswith("No space")
        and rows()[-1]["reason"] == "not started: the disk is full"
    )


def test_interrupting_keeps_what_is_done(here, stub, monkeypatch):
    draw("in/a.png"), draw("in/b.png")

    def interrupted(pictures, names, seeds):
        if stub.calls:
            raise KeyboardInterrupt
        return [batch.Made(stub(pictures, 1, 1, generator=seeds, upscale=1).images)]

    def save_slowly(image, path, metadata, save=saving.save_image):
        time.sleep(0.2)  # so that the interruption comes while it is written
        save(image, path, metadata)

    monkeypatch.setattr(command, "_restorer", lambda *_: interrupted)
    monkeypatch.setattr(saving, "save_image", save_slowly)
    assert infer("-i", "in", "-o", "out") == errors.INTERRUPTED
    assert outputs() == ["a.png"] and [row["status"] for row in rows()] == ["ok"]


def test_interrupting_does_not_wait_for_what_was_not_begun(here, stub, monkeypatch):
    for name in "abcd":
        draw(f"in/{name}.png")
    read = []
    monkeypatch.setattr(
        images,
        "open_picture",
        lambda path, cap, load=images.open_picture: read.append(path) or load(path, cap),
    )
    monkeypatch.setattr(
        command,
        "_restorer",
        lambda *_: lambda pictures, names, seeds: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert infer("-i", "in", "-o", "out") == errors.INTERRUPTED
    assert len(read) <= 2 and not outputs() and not rows()


def test_reading_computing_and_writing_overlap(here, stub, monkeypatch):
    """The second picture is computed only when the third was read, and while the first is still
    being written.
    """
    for name in "abc":
        draw(f"in/{name}.png")
    third_is_read, second_is_made = threading.Event(), threading.Event()

    def open_picture(path, cap, load=images.open_picture):
        if path.name == "c.png":
            third_is_read.set()
        return load(path, cap)

    def save(image, path, metadata, save=saving.save_image):
        assert path.name != "a.png" or second_is_made.wait(20)
        save(image, path, metadata)

    def restore(pictures, names, seeds):
        if stub.calls:
            assert third_is_read.wait(20)
            second_is_made.set()
        return [batch.Made(stub(pictures, 1, 1, generator=seeds, upscale=1).images)]

    monkeypatch.setattr(images, "open_picture", open_picture)
    monkeypatch.setattr(saving, "save_image", save)
    monkeypatch.setattr(command, "_restorer", lambda *_: restore)
    assert infer("-i", "in", "-o", "out") == 0
    assert outputs() == ["a.png", "b.png", "c.png"] and [
        Path(row["input"]).stem for row in rows()
    ] == [*"abc"]


@pytest.mark.parametrize("most", ["HANDS", "WAITING_BYTES"])
def test_what_waits_for_a_slow_disk_is_bounded(here, stub, monkeypatch, most):
    """Results are made no faster than they are written, by their number and by their bytes."""
    for number in range(12):
        draw(f"in/{number:02}.png", size=(16, 16))
    monkeypatch.setattr(batch, most, {"HANDS": 2, "WAITING_BYTES": 2 * 3 * 64 * 64}[most])
    written, ahead = [], []

    def save(image, path, metadata, save=saving.save_image):
        time.sleep(0.01)
        ahead.append(len(stub.calls) - len(written))
        save(image, path, metadata)
        written.append(path)

    monkeypatch.setattr(saving, "save_image", save)
    assert infer("-i", "in", "-o", "out") == 0
    assert (
        len(outputs()) == 12 and max(ahead) <= 4
    )  # two wait, one may be written already and not told, one is made


# --- batches --------------------------------------------------------------------------------------


def test_small_neighbours_of_one_size_go_together_when_asked(here, stub):
    sizes = [(6, 5)] * 5 + [(5, 6), (6, 5)] + [(200, 200)] * 2
    for number, size in enumerate(sizes):
        draw(f"in/{number}.png", size=size)
    Path("in/2a.png").touch()  # it can't be read, and parts nobody from the rows' order
    assert infer("-i", "in", "-o", "alone") == errors.SOME_FAILED
    assert stub.batches == [1] * 9
    assert infer("-i", "in", "-o", "out", "--batch_size", 3) == errors.SOME_FAILED
    assert stub.batches[9:] == [3, 2, 1, 1, 1, 1]
    assert [Path(row["input"]).stem for row in rows()] == ["0", "1", "2", "2a", *"345678"]
    assert [call.seed for call in stub.calls[:9]] == [call.seed for call in stub.calls[9:]]
    for name in outputs():
        assert Path("out", name).read_bytes() == Path("alone", name).read_bytes()


def test_one_picture_that_fails_costs_its_batch_nothing(here, stub, monkeypatch):
    for number in range(4):
        draw(f"in/{number}.png", (50 * number, 0, 0))
    whole = StubPipeline.one

    def one(self, picture, *strengths, **options):
        if picture.pixels[0, 0, 0] == 100:
            raise errors.PisasrError("nan")
        return whole(self, picture, *strengths, **options)

    monkeypatch.setattr(StubPipeline, "one", one)
    assert infer("-i", "in", "-o", "out", "--batch_size", 4) == errors.SOME_FAILED
    assert outputs() == ["0.png", "1.png", "3.png"] and [row["reason"] for row in rows()] == [
        "",
        "",
        "nan",
        "",
    ]
    assert stub.batches == [4, 1, 1, 1, 1]


# --- several processes ----------------------------------------------------------------------------


def test_shards_do_every_picture_once_under_the_names_of_one_run(here, stub):
    for name in ("in/a.png", "in/a.jpg", "b/a.png", "in/c.png", "in/d.png"):
        draw(name)
    Path("in/e.png").touch()
    words = ["-i", "in", "b", "-o"]
    assert infer(*words, "whole") == errors.SOME_FAILED
    codes = [infer(*words, "out", "--shard", f"{index}/3") for index in (1, 2, 3)]
    assert sorted(codes) == [0, 0, errors.SOME_FAILED] and outputs("whole") == outputs()
    shares = [
        [json.loads(line) for line in Path(f"out/report.{i}of3.jsonl").read_text().splitlines()]
        for i in (1, 2, 3)
    ]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sorted(row["input"] for share in shares for row in share) == sorted(
        row["input"] for row in rows("whole")
    )
    assert not Path("out/report.jsonl").exists()
    for name in outputs():
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_more_shards_than_pictures_leave_some_without_work_or_model(here, stub, monkeypatch):
    draw("in/a.png")
    monkeypatch.setattr(command, "load_pipeline", lambda args: pytest.fail("the model was loaded"))
    assert infer("-i", "in", "-o", "out", "--shard", "2/2") == 0
    assert Path("out/report.2of2.jsonl").read_bytes() == b"" and not outputs()


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shares_that_are_none_are_refused(here, stub, capsys, share):
    draw("in/a.png")
    assert "--shard" in usage_error(capsys, "-i", "in", "-o", "out", f"--shard={share}")


def test_processes_of_a_shard_share_its_share():
    parts = [
        batch.share_of(batch.Shard(i, 3), batch.Shard(j, 2)).of(range(20))
        for i in (1, 2, 3)
        for j in (1, 2)
    ]
    assert sorted(number for part in parts for number in part) == list(range(20))


def test_a_shard_leaves_what_other_machines_are_writing(here, stub):
    draw("in/a.png"), draw("in/b.png")
    Path("out").mkdir()
    mine, theirs = (files.temporary_name(Path(f"out/{name}.png")) for name in "ab")
    dead = [
        path.with_name(path.name.replace(str(os.getpid()), str(2**30))) for path in (mine, theirs)
    ]
    for path in dead:
        path.touch()
    assert infer("-i", "in", "-o", "out", "--shard", "1/2") == 0
    assert outputs() == [dead[1].name, "a.png"]


def test_a_killed_shard_is_completed_by_a_rerun(here, stub, monkeypatch):
    for name in "abcdef":
        draw(f"in/{name}.png")
    assert infer("-i", "in", "-o", "whole") == 0

    class Killed(BaseException):
        """As a kill: nobody catches it."""

    def killed(pictures, names, seeds):
        if len(stub.calls) == 7:
            raise Killed
        return [batch.Made(stub(pictures, 1, 1, generator=seeds, upscale=4).images)]

    words = ["-i", "in", "-o", "out", "--existing", "skip", "--shard"]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(command, "_restorer", lambda *_: killed)
        infer(*words, "1/2")
    assert outputs() == ["a.png"]
    assert infer(*words, "2/2") == 0 and infer(*words, "1/2") == 0
    again = [
        json.loads(line)["status"]
        for line in Path("out/report.1of2.jsonl").read_text().splitlines()
    ]
    assert again == ["skipped", "ok", "ok"] and outputs() == outputs("whole")
    for name in outputs():
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_leftovers_of_dead_runs_are_removed(here, stub):
    draw("in/a.png")
    Path("out").mkdir()
    for owner in (2**30, os.getppid()):
        Path(f"out/.pisasr-{owner}-0badcafe.tmp").touch()
    assert infer("-i", "in", "-o", "out") == 0
    assert outputs() == [f".pisasr-{os.getppid()}-0badcafe.tmp", "a.png"]


def test_results_do_not_depend_on_company_or_place(here, stub):
    draw("in/a.png"), draw("in/b.png"), draw("elsewhere/b.png")
    assert infer("-i", "in", "-o", "out") == 0
    assert infer("-i", "elsewhere/b.png", "-o", "alone") == 0
    assert infer("-i", "elsewhere/b.png", "-o", "other", "--seed", 7) == 0
    assert Path("out/b.png").read_bytes() == Path("alone/b.png").read_bytes()
    assert len({call.seed for call in stub.calls}) == 3 and stub.calls[1].seed == stub.calls[2].seed


def test_quiet_says_only_what_failed(here, stub, capsys):
    draw("in/a.png")
    Path("in/b.png").touch()
    assert infer("-i", "in", "-o", "out", "--quiet") == errors.SOME_FAILED
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1


def test_notices_reach_the_report(here, stub):
    draw("in/a.jpg").rename("in/a.png")
    assert infer("-i", "in", "-o", "out") == 0
    assert "JPEG" in rows()[0]["reason"] and rows()[0]["status"] == "ok"


def test_short_memory_is_a_line_without_a_place_in_the_code(here, stub, monkeypatch, capsys):
    own = stub.one

    def short(*args, **settings):
        warnings.warn("out of memory; going on with less", errors.MemoryShort, stacklevel=1)
        return own(*args, **settings)

    monkeypatch.setattr(stub, "one", short)
    draw("in/a.png"), draw("in/b.png")
    assert infer("-i", "in", "-o", "out") == 0
    assert set(capsys.readouterr().err.splitlines()) == {"out of memory; going on with less"}


# --- the lambda grid ------------------------------------------------------------------------------


def test_lambda_grid_writes_every_picture_and_a_sheet(here, stub):
    draw("in/a.png"), draw("in/b.jpg")
    assert infer("-i", "in", "-o", "out", "--lambda_grid", "0,0.5,1.0,1", "0,1.5") == 0
    names = [f"pix{pix}_sem{sem}.png" for pix in ("0", "0.5", "1") for sem in ("0", "1.5")]
    assert outputs() == sorted(f"{stem}/{name}" for stem in "ab" for name in [*names, "grid.png"])
    assert [call.pair for call in stub.calls[:6]] == [
        (p, s) for p in (0.0, 0.5, 1.0) for s in (0.0, 1.5)
    ]
    assert [row["output"] for row in rows()] == [
        str(Path("out/a/grid.png")),
        str(Path("out/b/grid.png")),
    ]


def test_a_picture_called_like_a_file_of_another_s_grid_has_a_place_of_its_own(here, stub):
    (
        draw("in/x.png"),
        draw("in/x/grid.png.jpg"),
        draw("in/x/pix0_sem0.png.jpg"),
        draw("in/grid.png"),
        draw("in/grid.jpg"),
    )
    assert infer("-i", "in", "-o", "out", "--recursive", "--lambda_grid", "0", "0") == 0
    places = ["grid.jpg", "grid.png", "x", "x/grid.png-2", "x/pix0_sem0.png-2"]
    assert outputs() == sorted(
        f"{place}/{name}.png" for place in places for name in ("grid", "pix0_sem0")
    )


# --- with a model ---------------------------------------------------------------------------------


def run(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "infer.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_script_from_file_to_file(here, base_folder):
    draw("in/a.png", size=(13, 9))
    Image.new("LA", (5, 8), (90, 120)).save("in/b.png")
    Path("in/c.png").touch()
    words = [
        "-i",
        "in",
        "--pretrained_model",
        base_folder,
        "--process_size",
        32,
        "--upscale",
        2.5,
        "--dtype",
        "fp16",
    ]
    result = run(*words, "-o", "out", "--device", "cpu")
    assert result.returncode == errors.SOME_FAILED, result.stderr
    assert [(row["status"]) for row in rows()] == ["ok", "ok", "failed"]
    assert Image.open("out/a.png").size == (round(2.5 * 13), round(2.5 * 9))
    assert (Image.open("out/b.png").mode, Image.open("out/b.png").size) == (
        "LA",
        (round(2.5 * 5), 20),
    )
    assert "fp32" in result.stderr and "Traceback" not in result.stderr


def test_two_processes_share_a_folder_and_write_the_bytes_of_one(here, base_folder):
    """And a picture that fails ends neither process: launchers stop all when one leaves with
    another code than 0.
    """
    for number in range(5):
        draw(f"in/{number}.png", (40 * number, 200, 9), (12, 10))
    Path("in/1a.png").touch()
    common = [
        "-i",
        "in",
        "--pretrained_model",
        base_folder,
        "--process_size",
        16,
        "--upscale",
        2,
        "--device",
        "cpu",
    ]
    assert run(*common, "-o", "one").returncode == errors.SOME_FAILED
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    words = [*launcher, ROOT / "scripts" / "infer.py", *common, "-o", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    reports = [Path(f"two/report.{index}of2.jsonl").read_text().splitlines() for index in (1, 2)]
    assert [len(report) for report in reports] == [3, 3], result.stderr
    assert result.returncode and outputs("one") == outputs("two") == [
        f"{number}.png" for number in range(5)
    ]
    for name in outputs("one"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_what_is_not_used_is_not_imported_and_can_be_had_afterwards(here, base_folder):
    pytest.importorskip("torchvision")
    draw("in/a.png")
    code = (
        "import sys\n"
        "from pisasr.commands.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'scipy', 'torchvision', 'pisasr.evaluation.metrics', 'pisasr.training'} & set(sys.modules)\n"
        "import torchvision.transforms"
    )
    words = [
        "infer",
        "-i",
        "in",
        "-o",
        "out",
        "--pretrained_model",
        base_folder,
        "--process_size",
        "16",
    ]
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and outputs() == ["a.png"], result.stderr


def test_every_process_takes_the_gpu_of_its_own_number(monkeypatch):
    import torch

    from pisasr.commands.options import choose_device, choose_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (
        choose_device("auto") == choose_device("cuda") == "cuda:1" and choose_device("cpu") == "cpu"
    )
    assert choose_dtype("auto", "cuda:1") == torch.float16


def test_every_shape_comes_out_at_its_size(here, base_folder):
    sizes = [(1, 1), (2, 7), (1000, 2), (3, 90), (100, 40), (49, 53)]
    for size in sizes:
        draw(f"in/{size[0]}x{size[1]}.png", size=size)
    words = [
        "--pretrained_model",
        base_folder,
        "--process_size",
        32,
        "--upscale",
        1.5,
        "--device",
        "cpu",
    ]
    assert infer("-i", "in", "-o", "out", *words) == 0
    for w, h in sizes:
        assert Image.open(f"out/{w}x{h}.png").size == (round(1.5 * w), round(1.5 * h))


def test_runs_are_byte_identical_sampled_or_not(here, base_folder):
    draw("in/a.png", size=(12, 12)), draw("in/b.png", (10, 200, 30), (12, 10))
    common = [
        "--pretrained_model",
        base_folder,
        "--process_size",
        16,
        "--upscale",
        2,
        "--device",
        "cpu",
    ]
    for extra in ([], ["--posterior", "sample", "--seed", "5"]):
        assert infer("-i", "in/a.png", "in/b.png", "-o", "one", *common, *extra) == 0
        assert infer("-i", "in/b.png", "in/a.png", "-o", "two", *common, *extra) == 0
        for name in ("a.png", "b.png"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_grid_pictures_are_those_of_single_runs(here, base_folder):
    draw("in/a.png", size=(12, 12))
    common = [
        "-i",
        "in",
        "--pretrained_model",
        base_folder,
        "--process_size",
        16,
        "--upscale",
        2,
        "--device",
        "cpu",
    ]
    assert infer(*common, "-o", "grid", "--lambda_grid", "0,1", "0,0.5") == 0
    assert infer(*common, "-o", "one", "--lambda_pix", 1, "--lambda_sem", 0.5) == 0
    a, b = (
        np.asarray(Image.open(path)).astype(int) for path in ("grid/a/pix1_sem0.5.png", "one/a.png")
    )
    assert np.abs(a - b).max() <= 1


def test_what_only_the_model_can_refuse_is_still_usage(here, base_folder, capsys):
    import torch

    draw("in/a.png")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    for words, said in [(["--tile_overlap", "500"], "overlap"), (["--device", absent], "--device")]:
        assert (
            infer("-i", "in", "-o", "out", "--pretrained_model", base_folder, *words)
            == errors.WRONG_USAGE
        )
        assert said in capsys.readouterr().err


def test_published_commands_give_the_published_pictures(here, parity):
    """Every case with the posterior mean whose published sizes need no squeezing; truncated there,
    rounded here.
    """
    index = json.loads((parity / "index.json").read_text())
    chosen = ["default_adain", "adjust_p0.5_s1.5_wavelet", "tile_wide_adjust_adain"]
    for case in (case for case in index["eval_cases"] if case["name"] in chosen):
        options = dict(case["options"])
        words = ["--default"] if options.pop("default") else []
        words += [word for name, value in options.items() for word in (f"--{name}", value)]
        published = [
            "--pretrained_model_path",
            parity / "pipeline",
            "--pretrained_path",
            parity / "pisa_sr.pkl",
        ]
        words += ["--mixed_precision", "no", "--device", "cpu"]
        assert (
            infer(
                "--input_image",
                parity / case["input"],
                "--output_dir",
                case["name"],
                *published,
                *words,
            )
            == 0
        )
        (output,) = outputs(case["name"])
        pictures = (
            Image.open(path) for path in (Path(case["name"], output), parity / case["expected_png"])
        )
        ours, theirs = (np.asarray(picture).astype(int) for picture in pictures)
        assert np.abs(ours - theirs).max() <= 3 and np.abs(ours - theirs).mean() <= 0.6


def test_convert_writes_two_adapters(here, parity, capsys):
    assert main(["convert", str(parity / "pisa_sr.pkl"), "adapters"]) == 0
    assert outputs("adapters") == ["pix.safetensors", "sem.safetensors"]
    Path("bad.pkl").write_text("no checkpoint")
    assert main(["convert", "bad.pkl", "adapters"]) == errors.NOTHING_STARTED
    assert capsys.readouterr().err.count("\n") == 1


def deep_pixels(height: int = 5, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65_536, (height, width, 3), dtype=np.uint16)


def test_sixteen_bits_are_written_and_read_again(here, base_folder):
    saving.save_image(deep_pixels(), "in/a.png")
    common = ("-i", "in", "--pretrained_model", base_folder, "--process_size", 8, "--upscale", 2)
    assert infer(*common, "-o", "eight") == 0 and infer(*common, "-o", "deep", "--bits", 16) == 0
    eight, deep = images.open_picture("eight/a.png"), images.open_picture("deep/a.png")
    assert eight.pixels.dtype == np.uint8 and deep.pixels.dtype == np.float32
    assert np.abs(deep.pixels * 255 - eight.pixels).max() <= 0.51
    assert len(np.unique((deep.pixels * 65_535).round().astype(int) % 257)) > 50
    assert infer(*common, "-o", "grid", "--bits", 16, "--lambda_grid", "0,1", "1") == 0
    assert outputs("grid") == ["a/grid.png", "a/pix0_sem1.png", "a/pix1_sem1.png"]
    assert np.array_equal(images.open_picture("grid/a/pix1_sem1.png").pixels, deep.pixels)


# --- strengths by place ---------------------------------------------------------------------------


def draw_map(name: str | Path, levels: np.ndarray) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


def test_a_maps_white_is_the_strength_and_its_black_is_none(here, stub):
    draw("in/a.png", size=(6, 4))
    levels = np.array([[0, 51, 255], [255, 102, 0]], np.uint8)
    eight, deep = (
        draw_map("maps/a.png", levels),
        draw_map("maps/deep.png", levels.astype(np.uint16) * 257),
    )
    for file in (eight, deep):
        assert (
            infer("-i", "in/a.png", "-o", "out", "--lambda_sem", 1.5, "--lambda_sem_map", file)
            == errors.OK
        )
        lambda_pix, lambda_sem = stub.calls[-1].pair
        assert lambda_pix == 1 and rows()[0]["reason"] == ""
        np.testing.assert_allclose(lambda_sem, levels / 170, rtol=1e-6)


def test_of_a_folder_each_input_takes_the_map_of_its_name_or_the_number(here, stub):
    draw("in/a.jpg"), draw("in/more/b.png"), draw("in/c.png")
    (
        draw_map("maps/a.tif", np.full((5, 6), 255, np.uint8)),
        draw_map("maps/more/b.png", np.eye(5, 6, dtype=np.uint8)),
    )
    words = ("--recursive", "--batch_size", 4, "--lambda_pix_map", "maps", "--lambda_pix", 0.5)
    assert infer("-i", "in", "-o", "out", *words) == errors.OK
    by_name = {Path(row["input"]).stem: row["reason"] for row in rows()}
    assert by_name == {"a": "", "b": "", "c": "no map in maps, lambda_pix is 0.5 everywhere"}
    found = {
        Path(row["input"]).stem: call.pair[0] for row, call in zip(rows(), stub.calls, strict=True)
    }
    assert (
        (found["a"] == 0.5).all() and (found["b"] == np.eye(5, 6) / 510).all() and found["c"] == 0.5
    )
    assert stub.batches == [1, 1, 1]


def test_a_map_that_is_none_costs_its_picture_one_line(here, stub):
    for name in "abcd":
        draw(f"in/{name}.png")
    draw("maps/a.png", (9, 9, 8))
    Image.new("LA", (6, 5), (255, 0)).save("maps/b.png")
    Path("maps/c.png").write_text("no picture")
    Image.new("L", (6, 5)).save("maps/d.png"), Image.new("L", (6, 5)).save("maps/d.tif")
    assert infer("-i", "in", "-o", "out", "--lambda_sem_map", "maps") == errors.SOME_FAILED
    grey = "has colours or transparency; a map is grey, white where most is wanted"
    assert [row["reason"] for row in rows()] == [
        f"the map maps/a.png {grey}",
        f"the map maps/b.png {grey}",
        "the map maps/c.png: not an image (PNG, JPEG, WebP, TIFF or BMP)",
        "maps/d.png and maps/d.tif are both maps of d.png; keep one of them",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--lambda_sem_map", "m.png", "--lambda_grid", "0,1", "1"],
            "--lambda_grid sets it for the whole",
        ),
        (["--lambda_pix_map", "m.png", "--default"], "--default sets it for the whole"),
        (["--lambda_pix_map", "absent.png"], "--lambda_pix_map absent.png: no such file or folder"),
        (
            ["--bits", "16", "--format", "tif"],
            "--bits 16 is written as PNG alone, --format tif is not",
        ),
        (["--bits", "16", "--format", "same"], "--format same is not"),
    ],
)
def test_maps_and_formats_that_contradict_other_options_are_refused(
    here, stub, capsys, words, said
):
    draw("in/a.png"), draw("m.png")
    assert said in usage_error(capsys, "-i", "in", *words).splitlines()[-1]


def test_one_map_is_of_one_picture(here, stub, capsys):
    draw("in/a.png"), draw("in/b.png"), draw_map("m.png", np.eye(5, 6, dtype=np.uint8))
    assert infer("-i", "in", "-o", "out", "--lambda_pix_map", "m.png") == errors.WRONG_USAGE
    assert (
        "--lambda_pix_map is one file and 2 pictures came" in capsys.readouterr().err
        and not stub.calls
    )


def test_a_white_map_is_the_number_and_a_black_half_is_none(here, base_folder):
    draw_map("in/a.png", deep_pixels(8, 12).astype(np.uint8))
    common = (
        "-i",
        "in",
        "--pretrained_model",
        base_folder,
        "--process_size",
        8,
        "--upscale",
        2,
        "--color_fix",
        "none",
    )
    half = np.full((8, 12), 255, np.uint8)
    white = draw_map("white.png", half)
    half[:, :6] = 0
    for out, *words in (
        ("number", "--lambda_sem", 0.7),
        ("white", "--lambda_sem", 0.7, "--lambda_sem_map", white),
        ("half", "--lambda_sem", 0.7, "--lambda_sem_map", draw_map("half.png", half)),
    ):
        assert infer(*common, "-o", out, *words) == errors.OK
    number, same, different = (
        Path(out, "a.png").read_bytes() for out in ("number", "white", "half")
    )
    assert same == number != different
    assert (
        infer(*common, "-o", "odd", "--lambda_sem_map", draw_map("odd.png", half.T.copy()))
        == errors.SOME_FAILED
    )
    assert rows("odd")[0]["reason"].startswith(
        "lambda_sem is a map of 8x12, the picture is 12x8; give a map in its"
    )


# --- formats and what files tell ------------------------------------------------------------------


def test_results_have_the_format_asked_for_or_their_inputs(here, stub):
    for name in ("a.JPG", "b.webp", "c.tiff", "d.bmp", "e.png"):
        draw(f"in/{name}")
    for format_, wanted in (
        ("jpg", ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]),
        ("same", ["a.jpg", "b.webp", "c.tiff", "d.png", "e.png"]),
    ):
        assert infer("-i", "in", "-o", format_, "--format", format_) == errors.OK
        assert outputs(format_) == wanted
        for name in wanted:
            kind = {"jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "png": "PNG"}[name.split(".")[1]]
            assert Image.open(Path(format_, name)).format == kind
        assert [Path(row["output"]).name for row in rows(format_)] == wanted
    assert (
        infer("-i", "in/a.JPG", "-o", "grid", "--format", "webp", "--lambda_grid", "0,1", "1")
        == errors.OK
    )
    assert outputs("grid") == ["a/grid.webp", "a/pix0_sem1.webp", "a/pix1_sem1.webp"]


def software(path) -> str:
    return Image.open(path).getexif().get(0x0131, "")


def test_files_tell_what_made_them_and_where_they_were_taken_only_if_asked(here, base_folder):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x8825] = {1: "N"}
    Image.new("RGB", (6, 5), (200, 100, 50)).save("in/a.jpg", exif=exif)
    common = ("-i", "in", "--pretrained_model", base_folder, "--process_size", 8, "--upscale", 2)
    assert infer(*common, "-o", "plain", "--format", "jpg") == errors.OK
    assert not dict(Image.open("plain/a.jpg").getexif())
    assert (
        infer(*common, "-o", "told", "--format", "jpg", "--keep_metadata", "--lambda_sem", 0.7)
        == errors.OK
    )
    told = Image.open("told/a.jpg").getexif()
    assert told[0x010F] == "a camera" and told.get_ifd(0x8825)[1] == "N"
    line = software("told/a.jpg")
    assert (
        line.startswith("pisasr ")
        and f"model={base_folder.name}, adapters=" in line
        and str(base_folder) not in line
    )
    assert "lambda_pix=1, lambda_sem=0.7, upscale=2" in line
    words = ("--keep_metadata", "--lambda_grid", "0,1", "0.5", "--posterior", "sample", "--seed", 7)
    assert infer(*common, "-o", "grid", *words) == errors.OK
    assert "lambda_pix=0, lambda_sem=0.5," in software("grid/a/pix0_sem0.5.png")
    assert "lambda_pix=0/1, lambda_sem=0.5," in software(
        "grid/a/grid.png"
    ) and "seed=7" in software("grid/a/grid.png")
    mask = draw_map("mask.png", np.eye(5, 6, dtype=np.uint8) * 255)
    assert infer(*common, "-o", "map", "--keep_metadata", "--lambda_pix_map", mask) == errors.OK
    assert "lambda_pix=0..1 by a map, lambda_sem=1," in software("map/a.png")

"""`pisasr infer`: no file ends a batch, no result is lost, mistakes cost one line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pisasr import errors
from pisasr.commands import infer as command
from pisasr.commands.main import main
from pisasr.pictures import images, saving

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--process_size", 16, "--upscale", 2, "--device", "cpu", "--dtype", "fp32")


class StubPipeline:
    """Enlarges by PIL and remembers what it was called with."""

    model = SimpleNamespace(factor=8)
    identity, unet = "stub", None
    working_size = staticmethod(lambda *_, **options: (8, 8))

    def __init__(self):
        self.calls = []

    def __call__(self, picture, lambda_pix, lambda_sem, on_tile=None, **options):
        pair = lambda_pix, lambda_sem
        self.calls.append(SimpleNamespace(pair=pair, options=options))
        image = images.as_image(images.join(picture.pixels, picture))
        size = round(options["upscale"] * image.width), round(options["upscale"] * image.height)
        on_tile(1, 7)
        return SimpleNamespace(images=[image.resize(size)])


@pytest.fixture
def stub(monkeypatch):
    pipe = StubPipeline()
    monkeypatch.setattr(command, "load_model", lambda args: pipe)
    return pipe


@pytest.fixture
def tiny_model(monkeypatch, pipe):
    monkeypatch.setattr(command, "load_model", lambda args: pipe)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda args: pytest.fail("the model was loaded"))


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


def draw_noise(name: str | Path, size=(12, 10)) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(name))).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def infer(*words) -> int:
    return main(["infer", *map(str, words)])


def rows(folder: str = "out", name: str = "report.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(folder, name).read_text().splitlines()]


def outputs(folder: str = "out") -> list[str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return sorted(name for name in names if not name.startswith("report"))


def usage_error(capsys, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        infer(*words)
    assert caught.value.code == errors.WRONG_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_published_names_mean_the_same():
    parser = command.infer_parser()
    ours = (
        "--input a --output b --pretrained_model m --adapters k --color_fix wavelet --dtype fp16"
        " --tile_size 9 --tile_overlap 2 --vae_tile_size 512"
    )
    theirs = (
        "-i a -o b --pretrained_model_path m --pretrained_path k --align_method wavelet"
        " --mixed_precision fp16 --latent_tiled_size 9 --latent_tiled_overlap 2"
        " --vae_encoder_tiled_size 512"
    )
    assert parser.parse_args(ours.split()) == parser.parse_args(theirs.split())


def test_hyphens_and_negative_numbers_are_understood(here, stub):
    draw("in/-a.png")
    strengths = ["--lambda-pix", "-0.5", "--lambda-sem=-1e-3"]
    assert infer("--input=in/-a.png", "-o", "out", *strengths, "--color-fix", "none") == 0
    assert stub.calls[0].pair == (-0.5, -0.001)
    assert stub.calls[0].options["color_fix"] == "none"
    assert command.parse_strengths(" -0.2,0.5,1, 0.5") == [-0.2, 0.5, 1.0]


@pytest.mark.parametrize(
    "words",
    [
        ["--lambda_pix", "nan"],
        ["--lambda_sem", "1,0"],
        ["--lambda_grid", "0,1", "0,x"],
        ["--lambda_grid", "0,1"],
        ["--lambda_pix", "0.5", "--lambda_grid", "0,1", "0,1"],
        ["--lambda_pix_map", "in", "--lambda_grid", "0,1", "0,1"],
        ["--lambda_pix_map", "absent.png"],
        ["--upscale", "0.5"],
        ["--process_size", "0"],
        ["--tile_overlap", "-1"],
        ["--color_fix", "rainbow"],
        ["--dtype", "int8"],
        ["--existing", "maybe"],
        ["--seed", "x"],
        ["--bits", "16", "--format", "tif"],
        ["--unknown"],
    ],
)
def test_wrong_usage_names_the_option(here, no_model, capsys, words):
    draw("in/a.png")
    assert words[0] in usage_error(capsys, "-i", "in", "-o", "out", *words)
    assert not Path("out").exists()


def test_an_overlap_is_below_its_tile(here, stub, capsys):
    draw("in/a.png")
    said = usage_error(capsys, "-i", "in", "--tile_size", "8", "--tile_overlap", "8")
    assert "tile_overlap" in said
    assert infer("-i", "in", "-o", "out", "--tile_overlap", 96) == errors.WRONG_USAGE


def test_a_big_picture_says_what_it_takes(here, stub, capsys):
    draw("in/a.png")
    stub.working_size = lambda *_, **options: (16000, 12000)
    assert infer("-i", "in", "-o", "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a.png: working on 192 megapixels (16000 x 12000)"
    assert said[1].startswith("about ") and " minutes for 7 tiles, " in said[1]


def test_sub_folders_and_what_a_glob_leaves_open_are_kept(here, stub):
    for name in ("in/a.png", "in/one/a.png", "in/two/a.jpg", "in/two/a.png"):
        draw(name)
    assert infer("-i", "in", "-o", "out", "--recursive") == 0
    assert outputs() == ["a.png", "one/a.png", "two/a.jpg.png", "two/a.png.png"]
    assert infer("-i", "in/**/a.png", "-o", "glob") == 0
    assert outputs("glob") == ["a.png", "one/a.png", "two/a.png"]


def test_same_names_do_not_overwrite_each_other(here, stub):
    colors = {"in/a.png": (255, 0, 0), "in/A.jpg": (0, 255, 0), "b/a.png": (0, 0, 255)}
    for name, color in colors.items():
        draw(name, color)
    assert infer("-i", *colors, "-o", "out") == 0
    assert len(outputs()) == 3
    for row in rows():
        wanted = Image.open(row["input"]).getpixel((3, 3))
        result = Image.open(row["output"]).getpixel((9, 9))
        assert np.abs(np.subtract(result, wanted)).max() <= 2


def test_inputs_are_never_written_over_and_outputs_never_read(here, stub, capsys):
    path = draw("in/a.png")
    before = path.read_bytes()
    for given in ("in", path, "in/*.png"):
        assert infer("-i", given, "-o", "in") == errors.WRONG_USAGE
        assert "choose another --output" in capsys.readouterr().err
    assert path.read_bytes() == before and not stub.calls
    for _ in range(2):
        assert infer("-i", "in", "-o", "in/out", "--recursive") == 0
        assert outputs("in/out") == ["a.png"]


@pytest.mark.parametrize("words", [["nowhere"], ["in"], ["in/*.png"], ["in/pipe.png"], ["a\0b"]])
def test_nothing_to_do_is_said_before_anything_loads(here, no_model, capsys, words):
    os.mkfifo("in/pipe.png")
    assert infer("-i", *words, "-o", "out") == errors.NOTHING_STARTED
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["späce ünï.png", "[red].png", "new\nline.png", "\x1b[31mred.png", "x" * 251 + ".png"]
)
def test_odd_names_are_served_and_shown_on_one_line(here, stub, capsys, name):
    draw(Path("in") / name)
    draw("a.png").rename(os.fsdecode(b"in/\xff\xfe.png"))
    assert infer("-i", "in", "-o", "out") == 0
    assert name in outputs() and len(os.listdir(b"out")) == 3
    said = capsys.readouterr().out
    assert said.count("\n") == 3 and "\x1b" not in said


def test_bad_files_cost_one_line_each(here, stub, capsys):
    for number in range(3):
        draw(f"in/good{number}.png")
    draw("in/jpeg.jpg").rename("in/jpeg.png")
    Path("in/text.jpg").write_text("not a picture")
    Path("in/cut.png").write_bytes(draw("whole.png", size=(90, 90)).read_bytes()[:150])
    Path("in/dead.png").symlink_to("nowhere.png")
    assert infer("-i", "in", "in/gone.png", "none/*", "-o", "out") == errors.SOME_FAILED
    report = {Path(row["input"]).name: row for row in rows()}
    by_status = {name: row["status"] for name, row in report.items() if row["status"] != "ok"}
    failed = dict.fromkeys(["text.jpg", "cut.png", "gone.png", "*"], "failed")
    assert by_status == failed | {"dead.png": "skipped"}
    assert all(report[name]["reason"] and report[name]["output"] is None for name in by_status)
    assert set(report["good0.png"]) == {"input", "output", "status", "reason", "seconds"}
    assert "JPEG" in report["jpeg.png"]["reason"]
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 4 and "4 restored, 1 skipped, 4 failed" in printed.out


def test_a_failing_model_costs_one_picture(here, stub, monkeypatch, capsys):
    for name in "abc":
        draw(f"in/{name}.png")
    faults = iter([MemoryError(), RuntimeError("two\nlines")])
    restore = StubPipeline.__call__

    def explode(self, *args, **options):
        for fault in faults:
            raise fault
        return restore(self, *args, **options)

    monkeypatch.setattr(StubPipeline, "__call__", explode)
    assert infer("-i", "in", "-o", "out") == errors.SOME_FAILED
    reasons = [row["reason"] for row in rows()]
    assert "out of memory" in reasons[0] and reasons[1:] == ["RuntimeError: two lines", ""]
    assert outputs() == ["c.png"] and "Traceback" not in capsys.readouterr().err


def test_existing_outputs(here, stub):
    for name in "abc":
        draw(f"in/{name}.png")
    assert infer("-i", "in/a.png", "in/b.png", "-o", "out") == 0
    kept = os.stat("out/a.png").st_mtime_ns
    assert infer("-i", "in", "-o", "out", "--existing", "skip") == 0
    assert [row["status"] for row in rows()] == ["skipped", "skipped", "ok"]
    assert rows()[0]["output"] == str(Path("out/a.png"))
    assert infer("-i", "in", "-o", "out", "--existing", "error") == errors.SOME_FAILED
    assert {row["status"] for row in rows()} == {"failed"}
    assert os.stat("out/a.png").st_mtime_ns == kept
    assert infer("-i", "in", "-o", "out") == 0
    assert os.stat("out/a.png").st_mtime_ns != kept


@pytest.mark.parametrize("output", ["file", "file/below", "taken"])
def test_an_output_that_cannot_be_is_said_before_the_model_loads(here, no_model, capsys, output):
    draw("in/a.png")
    Path("file").touch()
    Path("taken/report.jsonl").mkdir(parents=True)
    assert infer("-i", "in", "-o", output) == errors.NOTHING_STARTED
    said = capsys.readouterr().err
    assert "--output" in said and said.count("\n") == 1


def test_a_model_that_does_not_load_is_one_line(here, capsys):
    draw("in/a.png")
    words = ("-i", "in", "-o", "out", "--pretrained_model", "./nowhere")
    assert infer(*words) == errors.NOTHING_STARTED
    assert "nowhere" in capsys.readouterr().err and not outputs()


def test_a_full_disk_ends_the_batch(here, stub, monkeypatch):
    for name in "abc":
        draw(f"in/{name}.png")

    def save(image, path, metadata):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "save_image", save)
    assert infer("-i", "in", "-o", "out") == errors.SOME_FAILED
    assert [row["status"] for row in rows()] == ["failed"] * 3 and len(stub.calls) == 1
    assert rows()[-1]["reason"] == "not started: the disk is full"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done_and_a_rerun_does_the_rest(here, stub, monkeypatch, number):
    for name in "abc":
        draw(f"in/{name}.png")
    restore = StubPipeline.__call__

    def interrupted(self, *args, **options):
        if len(self.calls) == 1:
            self.calls.append(None)
            os.kill(os.getpid(), number)
        return restore(self, *args, **options)

    monkeypatch.setattr(StubPipeline, "__call__", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert infer("-i", "in", "-o", "out") == errors.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert outputs() == ["a.png"] and [row["status"] for row in rows()] == ["ok"]
    assert infer("-i", "in", "-o", "out", "--existing", "skip") == 0
    assert [row["status"] for row in rows()] == ["skipped", "ok", "ok"]


def test_processes_do_every_picture_once_under_the_names_of_one_run(here, stub, monkeypatch):
    for name in ("in/a.png", "in/a.jpg", "b/a.png", "in/c.png", "in/d.png"):
        draw(name)
    words = ["-i", "in", "b", "-o"]
    assert infer(*words, "whole") == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert infer(*words, "out") == 0
    assert outputs("whole") == outputs() and len(stub.calls) == 10
    shares = [rows("out", f"report.{rank}of3.jsonl") for rank in (1, 2, 3)]
    assert [len(share) for share in shares] == [2, 2, 1]
    for name in outputs():
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_process_without_work_loads_no_model(here, no_model, monkeypatch):
    draw("in/a.png")
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1")
    assert infer("-i", "in", "-o", "out") == 0 and not outputs()


@pytest.mark.parametrize("rank", [None, "", "abc", "2", "-1"])
def test_half_a_launcher_is_usage(here, no_model, monkeypatch, capsys, rank):
    draw("in/a.png")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert infer("-i", "in", "-o", "out") == errors.WRONG_USAGE
    assert "RANK is" in capsys.readouterr().err


def test_results_have_the_chosen_format_or_their_inputs(here, stub):
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


def draw_map(name: str | Path, levels: np.ndarray) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(name)
    return Path(name)


def test_a_maps_white_is_the_strength_and_its_black_is_none(here, stub):
    draw("in/a.png", size=(6, 4))
    levels = np.array([[0, 51, 255], [255, 102, 0]], np.uint8)
    for file in (
        draw_map("maps/a.png", levels),
        draw_map("maps/deep.png", levels.astype(np.uint16) * 257),
    ):
        words = ("--lambda_sem", 1.5, "--lambda_sem_map", file)
        assert infer("-i", "in/a.png", "-o", "out", *words) == errors.OK
        lambda_pix, lambda_sem = stub.calls[-1].pair
        assert lambda_pix == 1
        np.testing.assert_allclose(lambda_sem, levels / 170, rtol=1e-6)


def test_each_input_takes_the_map_of_its_name_or_the_number(here, stub, capsys):
    for name in ("in/a.jpg", "in/c.png", "in/d.png", "in/e.png", "in/more/b.png"):
        draw(name)
    draw_map("maps/a.tif", np.full((5, 6), 255, np.uint8))
    draw_map("maps/more/b.png", np.eye(5, 6, dtype=np.uint8))
    draw("maps/d.png", (9, 9, 8))
    draw_map("maps/e.png", np.eye(5, 6, dtype=np.uint8))
    draw_map("maps/e.tif", np.eye(5, 6, dtype=np.uint8))
    words = ("--recursive", "--lambda_pix_map", "maps", "--lambda_pix", 0.5)
    assert infer("-i", "in", "-o", "out", *words) == errors.SOME_FAILED
    by_name = {Path(row["input"]).stem: row for row in rows()}
    assert {name: row["status"] for name, row in by_name.items() if name in "de"} == {
        "d": "failed",
        "e": "failed",
    }
    assert "lambda_pix is 0.5 everywhere" in by_name["c"]["reason"]
    a, c, b = (call.pair[0] for call in stub.calls)
    assert (a == 0.5).all() and (b == np.eye(5, 6) / 510).all() and c == 0.5
    assert infer("-i", "in", "--lambda_pix_map", "maps/a.tif") == errors.WRONG_USAGE
    assert "one file" in capsys.readouterr().err


@pytest.mark.slow  # PyTorch and diffusers are imported; `make demo` does the same
def test_the_command_goes_from_file_to_file(here, base_folder):
    draw("in/a.png", size=(13, 9))
    Image.new("LA", (5, 8), (90, 120)).save("in/b.png")
    Path("in/c.png").write_text("no picture")
    words = ["-i", "in", "-o", "out", "--pretrained_model", base_folder, "--process_size", "32"]
    words += ["--upscale", "2.5", "--device", "cpu", "--dtype", "fp16"]
    python = [sys.executable, ROOT / "scripts" / "infer.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*python, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == errors.SOME_FAILED, done.stderr
    assert [row["status"] for row in rows()] == ["ok", "ok", "failed"]
    assert Image.open("out/a.png").size == (round(2.5 * 13), round(2.5 * 9))
    gray = Image.open("out/b.png")
    assert (gray.mode, gray.size) == ("LA", (round(2.5 * 5), 20))
    assert "fp32" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_share_a_folder_and_write_the_bytes_of_one(here, base_folder):
    """A picture that fails ends neither process, though launchers stop all when one exits so."""
    for number in range(5):
        draw(f"in/{number}.png", (40 * number, 200, 9), (12, 10))
    Path("in/1a.png").write_text("no picture")
    common = ("-i", "in", "--pretrained_model", base_folder, *TINY)
    assert infer(*common, "-o", "one") == errors.SOME_FAILED
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*launcher, ROOT / "scripts" / "infer.py", *common, "-o", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert [len(rows("two", f"report.{rank}of2.jsonl")) for rank in (1, 2)] == [3, 3], done.stderr
    assert outputs("one") == outputs("two") == [f"{number}.png" for number in range(5)]
    for name in outputs("one"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_results_do_not_depend_on_order_or_company(here, tiny_model):
    draw_noise("in/a.png"), draw_noise("in/b.png")
    common = TINY
    for seed in ([], ["--seed", "5"]):
        assert infer("-i", "in/a.png", "in/b.png", "-o", "one", *common, *seed) == 0
        assert infer("-i", "in/b.png", "-o", "two", *common, *seed) == 0
        assert Path("one/b.png").read_bytes() == Path("two/b.png").read_bytes()
    sampled = Path("two/b.png").read_bytes()
    assert infer("-i", "in/b.png", "-o", "two", *common, "--seed", "6") == 0
    assert Path("two/b.png").read_bytes() != sampled


def test_a_grid_has_a_folder_for_each_pair_and_sheets(here, tiny_model):
    draw_noise("in/a.png"), draw_noise("in/deep/b.png")
    common = ("-i", "in", "--recursive", *TINY)
    assert infer(*common, "-o", "grid", "--lambda_grid", "0,1.0,1", "0,0.5") == 0
    folders = ["grid", *(f"pix{pix}_sem{sem}" for pix in "01" for sem in ("0", "0.5"))]
    names = ("a.png", "deep/b.png")
    assert outputs("grid") == sorted(f"{folder}/{name}" for folder in folders for name in names)
    assert rows("grid")[0]["output"] == str(Path("grid/grid/a.png"))
    assert infer(*common, "-o", "one", "--lambda_pix", 1, "--lambda_sem", 0.5) == 0
    one, same = (Path(folder, "a.png").read_bytes() for folder in ("one", "grid/pix1_sem0.5"))
    assert one == same


def test_sixteen_bits_are_written(here, tiny_model):
    pixels = np.random.default_rng(0).integers(0, 65_536, (5, 6, 3), dtype=np.uint16)
    saving.save_image(pixels, "in/a.png")
    common = ("-i", "in", *TINY, "--process_size", 8)
    assert infer(*common, "-o", "eight") == infer(*common, "-o", "deep", "--bits", 16) == 0
    eight, deep = (images.open_picture(f"{name}/a.png").pixels for name in ("eight", "deep"))
    assert eight.dtype == np.uint8 and deep.dtype == np.float32
    assert np.abs(deep * 255 - eight).max() <= 0.51
    assert len(np.unique((deep * 65_535).round().astype(int) % 257)) > 50


def test_a_white_map_is_the_number_and_a_black_half_is_none(here, tiny_model):
    draw_noise("in/a.png", (12, 8))
    common = ("-i", "in", *TINY, "--lambda_sem", 0.7)
    half = np.full((8, 12), 255, np.uint8)
    white = draw_map("white.png", half)
    half[:, :6] = 0
    assert infer(*common, "-o", "number") == 0
    assert infer(*common, "-o", "white", "--lambda_sem_map", white) == 0
    assert infer(*common, "-o", "half", "--lambda_sem_map", draw_map("half.png", half)) == 0
    number, same, other = (Path(out, "a.png").read_bytes() for out in ("number", "white", "half"))
    assert same == number != other
    turned = draw_map("turned.png", half.T.copy())
    assert infer(*common, "-o", "odd", "--lambda_sem_map", turned) == errors.SOME_FAILED
    assert "a map of 8x12, the picture is 12x8" in rows("odd")[0]["reason"]


def test_files_say_what_made_them_and_where_they_were_taken_only_if_wanted(here, tiny_model):
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "a camera", {1: "N"}
    Image.new("RGB", (6, 5), (200, 100, 50)).save("in/a.jpg", exif=exif)
    common = ("-i", "in", *TINY)
    assert infer(*common, "-o", "plain", "--format", "jpg") == errors.OK
    assert not dict(Image.open("plain/a.jpg").getexif())
    words = ("--format", "jpg", "--keep_metadata", "--lambda_sem", 0.7)
    assert infer(*common, "-o", "kept", *words) == errors.OK
    kept = Image.open("kept/a.jpg").getexif()
    assert kept[0x010F] == "a camera" and kept.get_ifd(0x8825)[1] == "N"
    assert "lambda_pix=1, lambda_sem=0.7," in kept[0x0131] and str(here) not in kept[0x0131]
    words = ("--keep_metadata", "--lambda_grid", "0,1", "0.5", "--seed", 7)
    assert infer(*common, "-o", "grid", *words) == errors.OK
    sheet = Image.open("grid/grid/a.png").getexif()[0x0131]
    assert "lambda_pix=0/1, lambda_sem=0.5," in sheet and "seed=7" in sheet


def test_published_commands_give_the_published_pictures(here, parity):
    """Cases whose published sizes need no squeezing; truncated there, rounded here."""
    index = json.loads((parity / "index.json").read_text())
    chosen = ["adjust_p0.5_s1.5_wavelet"]
    for case in (case for case in index["eval_cases"] if case["name"] in chosen):
        options = dict(case["options"])
        if options.pop("default"):  # both strengths at 1, whatever else is said
            options |= {"lambda_pix": 1, "lambda_sem": 1}
        options.pop("vae_decoder_tiled_size", None)
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        words += ["--pretrained_model_path", parity / "pipeline", "--pretrained_path"]
        words += [parity / "pisa_sr.pkl", "--mixed_precision", "fp32", "--device", "cpu"]
        files = ("--input_image", parity / case["input"], "--output_dir", case["name"])
        assert infer(*files, *words) == 0
        (output,) = outputs(case["name"])
        paths = Path(case["name"], output), parity / case["expected_png"]
        ours, theirs = (np.asarray(Image.open(path)).astype(int) for path in paths)
        assert np.abs(ours - theirs).max() <= 3 and np.abs(ours - theirs).mean() <= 0.6


def test_a_far_strength_is_one_line(here, tiny_model, capsys):
    draw("in/a.png"), draw("in/b.png")
    words = ("-i", "in", "-o", "out", *TINY)
    assert infer(*words, "--lambda_sem", 4) == 0
    assert capsys.readouterr().err.count("lambda_sem is 4; the model knows strengths near 1") == 1


def test_every_process_takes_the_gpu_of_its_own_number(monkeypatch):
    import torch

    from pisasr.commands.options import choose_device, choose_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == choose_device("cuda") == "cuda:1"
    assert choose_device("cpu") == "cpu" and choose_dtype("auto", "cuda:1") == torch.float16

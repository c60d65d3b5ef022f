"""What one command withstands, every command does: odd names, pipes, devices, loops, outputs that
can't be, signals.

infer has a stub in place of its model; evaluate scores PSNR: none needs a network.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pisasr import errors, signals
from pisasr.commands import batch
from pisasr.commands import infer as infer_module
from pisasr.commands.main import main
from pisasr.pictures.folders import Found, find_inputs, free_name

ROOT = Path(__file__).resolve().parents[1]


class Enlarges:
    """In place of the model."""

    def __call__(self, pictures, lambda_pix, lambda_sem, generator, **settings):
        return SimpleNamespace(images=[Image.fromarray(picture.pixels) for picture in pictures])

    def plan(self, size, **settings):
        return SimpleNamespace(tiles=1)


COMMANDS = {
    "infer": lambda given, output: main(["infer", "-i", given, "-o", output]),
    "evaluate": lambda given, output: main(["evaluate", "--sr", given, "--hr", given, "--metrics", "psnr", "--sheets", "0", "--output", output]),
}  # fmt: skip


@pytest.fixture(params=COMMANDS)
def run(request, tmp_path, monkeypatch, capsys):
    """run(GIVEN, OUTPUT) -> (exit code, what was said): no traceback, no raw escape code, in 20
    s.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(infer_module, "load_pipeline", lambda args: Enlarges())
    Path("in").mkdir()
    draw("in/a.png")

    def run(given: str = "in", output: str = "out") -> tuple[int, str]:
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
        signal.alarm(20)
        try:
            code = COMMANDS[request.param](given, output)
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.alarm(0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "\x1b" not in out + err
        return code, out + err

    run.name = request.param
    return run


def draw(path: str, size=(24, 20)) -> bytes:
    pixels = np.random.default_rng(len(path)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return Path(path).read_bytes()


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["new\nline.png", "\x1b[31mred.png", "[red].png", "-a.png", "😀 ü.png", "{0}%s.png"]
)
def test_odd_names_are_served_and_shown_on_one_line(run, name):
    draw(f"in/{name}")
    code, said = run()
    assert code == 0
    assert name not in said or name.isprintable()
    Path(f"in/{name}").write_text("no picture")
    code, said = run(output="again")
    assert code in (1, 3) and "not an image" in said and (name.isprintable() or name not in said)


GLOBS = [("infer", "in/*")]


@pytest.mark.parametrize(
    ("run", "given"), [*((name, "in") for name in COMMANDS), *GLOBS], indirect=["run"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "dead link"])
def test_what_is_no_file_is_told_and_nobody_waits(run, kind, given):
    if kind == "pipe":
        os.mkfifo("in/b.png")
        os.mkfifo("in/a.txt")  # a caption's place
    else:
        Path("in/b.png").symlink_to(
            {"device": "/dev/zero", "loop": "b.png", "dead link": "nowhere.png"}[kind]
        )
    code, said = run(given)
    assert code in (0, 1, 3) and "b.png" in said and (given == "in" or "a.png" in said)
    assert any(word in said for word in ("regular", "link", "no such file", "symbolic"))


def test_links_in_circles_end(run):
    Path("in/up").symlink_to("..")
    assert run()[0] in (0, 3)


@pytest.mark.parametrize("link", ["", "in/up"])
def test_folders_that_are_not_gone_into_are_told(tmp_path, monkeypatch, capsys, link):
    monkeypatch.chdir(tmp_path)
    Path("in/closed").mkdir(parents=True)
    draw("in/a.png"), draw("in/closed/b.png")
    Path("other").mkdir()
    Path("in/link").symlink_to("../other")

    def closed(place, look=os.scandir):  # whoever may do everything can't be told by permissions
        if str(place) == "in/closed":
            raise PermissionError(13, "Permission denied", place)
        return look(place)

    monkeypatch.setattr(os, "scandir", closed)
    found = {
        str(one.name): (one.status, one.reason)
        for one in find_inputs(["in"], Path("out"), recursive=True)
    }
    assert found == {
        "a.png": ("ready", ""),
        "link": ("skipped", "a link to a folder, which is not followed"),
        "closed": ("skipped", "a folder that may not be read"),
    }
    assert len(find_inputs(["in"], Path("out"))) == 1


def test_a_folder_that_is_called_like_a_picture_is_none(run):
    Path("in/b.png").mkdir()
    assert run()[0] == 0


@pytest.mark.parametrize("given", ["nowhere", "empty", "a\0b", "x" * 300])
def test_what_is_not_there_is_one_line(run, given):
    Path("empty").mkdir()
    code, said = run(given)
    assert code in (errors.NOTHING_STARTED, errors.WRONG_USAGE) and said.count("\n") == 1
    assert "a\0" not in said


def test_pictures_of_a_kind_that_is_not_read_are_not_passed_over(run):
    Path("in/b.gif").write_bytes(b"GIF89a")
    Path("in/c.HEIC").touch()
    code, said = run()
    assert code == 0
    assert "GIF is not read here" in said and "HEIC is not read here" in said


def test_what_a_name_can_not_promise_is_looked_at(run):
    Path("in/b.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    code, said = run()
    assert code in (1, 3) and ("PostScript is not read here" in said)


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["afile", "afile/below", "a\0b", "x" * 300])
def test_an_output_that_can_not_be_is_one_line(run, output):
    Path("afile").write_text("precious")
    code, said = run(output=output)
    assert code in (errors.NOTHING_STARTED, errors.WRONG_USAGE) and said.count("\n") == 1
    assert Path("afile").read_text() == "precious"


LAST = {
    "infer": "a.png", "evaluate": "summary.json",
}  # fmt: skip


def test_a_folder_where_a_file_is_to_be_written_is_named_before_the_work(run, monkeypatch):
    Path("out", LAST[run.name], "in the way").mkdir(parents=True)
    monkeypatch.setattr(Enlarges, "__call__", lambda *_, **__: pytest.fail("it was computed"))
    code, said = run()
    assert code == (errors.SOME_FAILED if run.name == "infer" else errors.NOTHING_STARTED)
    assert f"out/{LAST[run.name]} is a folder" in said and ".tmp" not in said


class Full:
    """A stream that nobody can write to."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def fileno(self):
        raise ValueError

    def flush(self):
        raise self.error


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "error", [None, OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")]
)
def test_what_can_not_be_printed_ends_nothing(run, monkeypatch, stream, error):
    Path("in/b.png").write_text("no picture")
    expected = run(output="told")[0]
    monkeypatch.setattr(sys, stream, error and Full(error))
    assert run()[0] == expected
    assert {path.name for path in Path("out").rglob("*")} == {
        path.name for path in Path("told").rglob("*")
    }


@pytest.mark.parametrize(
    "shell", ["| head -1 >/dev/null; exit ${PIPESTATUS[0]}", "> /dev/full", ">&- 2>&-"]
)
def test_a_reader_that_leaves_costs_nothing(tmp_path, shell):
    code = (
        "import sys; from pisasr.errors import guarded\n"
        "def run():\n    print('a\\n' * 100_000)\n    open(sys.argv[1], 'w').write('done')\n    return 3\n"
        "sys.exit(guarded(run))"
    )
    words = ["bash", "-c", f'"{sys.executable}" -c "$0" "$1" {shell}', code, tmp_path / "made"]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr, (tmp_path / "made").read_text()) == (3, "", "done")


def test_inputs_are_never_written_over(run):
    before = {path.name: path.read_bytes() for path in Path("in").iterdir()}
    code, said = run("in", "in")
    assert code in (errors.NOTHING_STARTED, errors.WRONG_USAGE) and "--output" in said
    assert {path.name: path.read_bytes() for path in Path("in").iterdir()} == before


def test_a_full_disk_is_one_line(run, monkeypatch):
    """At every write: no traceback, and no picture that is half there under its name."""
    from pisasr import files
    from pisasr.pictures import saving

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_through", full)
    monkeypatch.setattr(saving, "save_image", full)
    code, said = run()
    assert code in (errors.NOTHING_STARTED, errors.SOME_FAILED)
    assert "No space left" in said


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_is_one_word_and_130(run, monkeypatch, number):
    """SIGTERM, from whoever shuts a machine down, as Ctrl-C."""

    def told(*args, **options):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(batch, "check_output", told)
    for module in (
        infer_module,
        sys.modules["pisasr.commands.evaluate"],
    ):
        monkeypatch.setattr(module, "check_output", told)
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever runs in the background hears none
    try:
        code, said = run()
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert (
        code == errors.INTERRUPTED
        and "interrupted" in said
        and signal.getsignal(signal.SIGTERM) == before
    )


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", signals.ENDING)
def test_the_picture_in_hand_is_finished_unless_asked_twice(
    tmp_path, monkeypatch, capfd, number, times
):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "abcd":
        draw(f"in/{name}.png")

    class Asked(Enlarges):
        calls = 0

        def __call__(self, pictures, *args, **options):
            self.calls += 1
            for _ in range(times if self.calls == 2 else 0):
                os.kill(os.getpid(), number)
            return super().__call__(pictures, *args, **options)

    monkeypatch.setattr(infer_module, "load_pipeline", lambda args: Asked())
    assert main(["infer", "-i", "in", "-o", "out"]) == errors.INTERRUPTED
    done = ["a.png", "b.png"][: 3 - times]
    assert sorted(path.name for path in Path("out").glob("*.png")) == done
    assert [
        json.loads(row)["status"] for row in Path("out/report.jsonl").read_text().splitlines()
    ] == ["ok"] * len(done)
    assert "once more stops at once" in capfd.readouterr().err
    assert main(["infer", "-i", "in", "-o", "out", "--existing", "skip"]) in (0, errors.INTERRUPTED)


def test_a_second_thread_hears_no_signals_and_needs_none():
    seen = []

    def work():
        with signals.StopRequests(signals.ENDING) as asked, signals.ended_by_sigterm():
            seen.append(asked.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


# --- two at once ----------------------------------------------------------------------------------


def test_two_runs_into_one_folder_do_not_destroy_each_others_work(tmp_path):
    """Each has a report of its own while both live; one that is over makes way, and a link leads
    nobody astray.
    """
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (tmp_path / "report.jsonl").symlink_to(precious)
    holder = (
        "import sys, pathlib; from pisasr.commands.batch import Report\n"
        "report = Report(pathlib.Path(sys.argv[1]), 1)\n"
        'report._file.write(\'{"input": "theirs"}\\n\'); report._file.flush()\n'
        "print(report.path.name, flush=True); input()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout.readline() == "report.jsonl\n"
        with batch.Report(tmp_path, 1, quiet=True) as ours:
            ours._file.write('{"input": "ours"}\n')
            assert ours.path.name == "report-2.jsonl"
        other.communicate("\n", timeout=60)
    finally:
        other.kill()
    assert (tmp_path / "report.jsonl").read_text().splitlines()[
        0
    ] == '{"input": "theirs"}' and precious.read_text() == "precious"
    with batch.Report(tmp_path, 1, quiet=True) as again:
        assert again.path.name == "report.jsonl" and again.path.read_bytes() == b""


@pytest.mark.parametrize("there", ["pipe", "folder", "notes", "read-only"])
def test_a_report_is_written_over_no_stranger(tmp_path, monkeypatch, there):
    path, content = (
        tmp_path / "report.jsonl",
        "my notes\n" if there == "notes" else '{"input": "theirs"}\n',
    )
    if there == "pipe":
        os.mkfifo(path)
    elif there == "folder":
        path.mkdir()
    else:
        path.write_text(content)
    monkeypatch.setattr(
        os, "access", lambda *_: there != "read-only"
    )  # whoever may do everything sees no difference
    with batch.Report(tmp_path, 1, quiet=True) as ours:
        assert ours.path.name == "report-2.jsonl"
    assert not path.is_file() or path.read_text() == content


def test_a_report_s_other_name_keeps_what_it_holds(tmp_path):
    (tmp_path / "kept.jsonl").write_text('{"input": "theirs"}\n')
    os.link(tmp_path / "kept.jsonl", tmp_path / "report.jsonl")
    with batch.Report(tmp_path, 1, quiet=True) as ours:
        assert ours.path.name == "report.jsonl"
    assert (
        tmp_path / "kept.jsonl"
    ).read_text() == '{"input": "theirs"}\n' and not ours.path.read_text()


# --- launchers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["infer"], indirect=True)
@pytest.mark.parametrize("rank", [None, "", "abc", "2", "-1"])
def test_half_a_launcher_is_usage(run, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    code, said = run()
    assert code == errors.WRONG_USAGE and "RANK is" in said and said.count("\n") == 1


# --- vanishing files, and names -------------------------------------------------------------------


@pytest.mark.parametrize("change", ["gone", "a folder", "another's", "cut"])
def test_a_file_that_changes_under_way_costs_itself_alone(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "abc":
        draw(f"in/{name}.png")
    monkeypatch.setattr(infer_module, "load_pipeline", lambda args: Enlarges())

    def look(*args, find=infer_module.find_inputs):
        found, victim = find(*args), Path("in/b.png")
        content = victim.read_bytes()
        victim.unlink()
        if change == "a folder":
            victim.mkdir()
        elif change == "another's":
            os.mkfifo(victim)
        elif change == "cut":
            victim.write_bytes(content[: len(content) // 2])
        return found

    monkeypatch.setattr(infer_module, "find_inputs", look)
    assert main(["infer", "-i", "in", "-o", "out"]) == errors.SOME_FAILED
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "c.png"]


def test_a_name_is_free_where_letters_of_both_cases_and_accents_of_both_kinds_are_one():
    taken = set()
    names = ["Photo", "photo", "PHOTO", "caf\u00e9", "cafe\u0301", "a", "a-2", "a"]
    assert [free_name(Path(name), taken, ".png").name for name in names] == [
        "Photo.png", "photo-2.png", "PHOTO-3.png", "caf\u00e9.png", "cafe\u0301-2.png", "a.png", "a-2.png", "a-3.png",
    ]  # fmt: skip


@pytest.mark.parametrize("letter", ["x", "ü", "😀"])
def test_long_names_keep_their_beginning_and_are_each_their_own(tmp_path, letter):
    taken, stem = set(), letter * (251 // len(letter.encode()))
    names = [
        free_name(Path("deep") / name, taken, ".png")
        for name in (stem, stem + ".jpg", stem, stem + letter)
    ]
    assert len(set(names)) == 4
    for name in names:
        assert (
            len(os.fsencode(name.name)) <= 255
            and name.name.startswith(letter * 50)
            and name.parent == Path("deep")
        )
        (tmp_path / name.name).touch()


def test_two_long_names_that_meet_are_both_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(infer_module, "load_pipeline", lambda args: Enlarges())
    Path("in").mkdir()
    for end in ("png", "jpg"):
        draw("a.png")
        Path("a.png").rename(f"in/{'x' * 251}.{end}")
    assert main(["infer", "-i", "in", "-o", "out"]) == 0
    assert len(list(Path("out").glob("*.png"))) == 2


def test_a_picture_beside_a_folder_of_its_results_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(infer_module, "load_pipeline", lambda args: Enlarges())
    Path("in/a.png").mkdir(parents=True)
    draw("in/a.jpg"), draw("in/a.png/b.png")
    assert main(["infer", "-i", "in", "-o", "out", "--recursive"]) == 0
    assert sorted(str(path) for path in Path("out").rglob("*.png") if path.is_file()) == [
        "out/a-2.png",
        "out/a.png/b.png",
    ]


def test_what_can_not_be_read_takes_no_name_away(tmp_path):
    found = [Found(tmp_path / name, Path(name), status) for name, status in
             [("a.gif", "skipped"), ("a.png", "ready"), ("b.jpg", "failed"), ("b.png", "ready")]]  # fmt: skip
    jobs = batch.plan_jobs(found, tmp_path / "out")
    assert [[target.name for target in job.targets] for job in jobs] == [
        [],
        ["a.png"],
        [],
        ["b.png"],
    ]


def test_a_big_output_is_done_and_not_made_again(tmp_path, monkeypatch):
    """Pillow alone refuses what has more than 179 million pixels: a photo of 12 million, four times
    enlarged.
    """
    draw(str(tmp_path / "a.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it refuses twice as many
    assert batch._is_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert not batch._is_picture(tmp_path / "b.png")


# --- what the command line is told ----------------------------------------------------------------


def test_a_far_strength_is_a_line_of_infer(tmp_path, monkeypatch, base_folder, capsys):
    monkeypatch.chdir(tmp_path)
    draw("a.png"), draw("b.png")
    words = [
        "--pretrained_model",
        str(base_folder),
        "--process_size",
        "16",
        "--upscale",
        "1",
        "--lambda_sem",
        "4",
    ]
    main(["infer", "-i", "a.png", "b.png", "-o", "out", *words])
    assert capsys.readouterr().err.count("lambda_sem is 4; the model knows strengths near 1") == 1


def test_no_photos_and_none_that_can_be_used_are_usage_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    from pisasr.training import loop

    monkeypatch.setattr(loop, "load_model", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for name in "ab":
        (tmp_path / "bad" / f"{name}.png").write_text("no picture")
    config = tmp_path / "tiny.yaml"
    config.write_text("data: {crop_px: 32}\nsem: {steps: 0}\npix: {steps: 1, batch_size: 1}\n")
    for folder, said in [
        ("empty", "no photos in"),
        ("nowhere", "neither a folder nor a list"),
        ("bad", "none of 2 photos can be used"),
    ]:
        for dry in ([], ["--dry_run"]):
            words = [f"data.photos=[{tmp_path / folder}]", f"run.output={tmp_path / 'run'}"]
            assert main(["train", "--config", str(config), *dry, *words]) == errors.WRONG_USAGE
            assert said in capsys.readouterr().err

"""Kills, full disks, long runs: nothing corrupt under its name, the same bytes in the end."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr import PiSASRPipeline, errors
from pisasr.commands import infer as command
from pisasr.commands.main import main
from pisasr.pictures.saving import save_image


@pytest.mark.slow
@pytest.mark.parametrize("count", [12])
def test_a_killed_batch_has_nothing_corrupt_and_ends_with_the_same_bytes(
    base_folder,
    tmp_path,
    count,
):
    script = Path(__file__).with_name("killed.py")
    words = [sys.executable, script, base_folder, tmp_path, count, 0]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == count
    for kill in kills:
        assert not kill["corrupt"] and not kill["differ"] and kill["again"] == 0, kill
    cut = sum(kill["ended"] in (-signal.SIGKILL, -signal.SIGALRM) for kill in kills)
    assert cut >= 0.6 * count  # by the clock, some were done before their moment came


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_file_that_outgrows_its_disk_leaves_nothing_under_its_name(tmp_path, name):
    """The kernel's own refusal, in the middle of the picture."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    save_image(picture.resize((20, 20)), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            save_image(picture, tmp_path / name)
        except OSError as error:
            code = 0 if error.errno == errno.EFBIG else 2  # 2: the codec says so in its own words
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 2)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells")
@pytest.mark.slow
@pytest.mark.parametrize("count", [40, 200])
def test_many_pictures_take_the_memory_of_a_few(pipe, tmp_path, monkeypatch, count):
    """After the first twenty: five per cent more at the end, and no file left open."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(count):
        width, height = [(24, 20), (9, 30), (40, 17), (16, 16)][number % 4]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(f"in/{number:03}.png")
    pipe = PiSASRPipeline.from_pretrained() if count == 200 else pipe
    monkeypatch.setattr(command, "load_model", lambda args: pipe)
    seen = []

    class Watched(command.Report):
        def add(self, *args):
            super().add(*args)
            seen.append((resident(), handles()))

    monkeypatch.setattr(command, "Report", Watched)
    size = "64" if count == 200 else "16"
    words = ["--process_size", size, "--upscale", "2", "--device", "cpu"]
    assert main(["infer", "-i", "in", "-o", "out", *words]) == errors.OK
    memory, files = (np.array(column) for column in zip(*seen, strict=True))
    first, last = memory[20:25].mean(), memory[-5:].mean()
    assert last < 1.05 * first and files[-5:].min() <= files[20:25].max()

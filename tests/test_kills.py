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

from pisasr.pictures.saving import save_image


@pytest.mark.slow
@pytest.mark.parametrize("count", [12])
def test_a_killed_batch_has_nothing_corrupt_and_ends_with_the_same_bytes(
    base_folder, tmp_path, count
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

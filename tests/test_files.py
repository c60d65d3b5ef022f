"""Journals are part of what a run leaves, to the byte, wherever it was killed and whatever the disk
had room for.
"""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pisasr.files import Journal, finite

ROWS = [{"step": step, "l2": math.sin(step) / 3} for step in range(1, 9)]


def up_to(step):
    return lambda row: row["step"] <= step


def write(path, rows):
    journal = Journal(path)
    for row in rows:
        journal.append(row)
    return path.read_bytes()


def test_numbers_come_back_to_the_last_digit_and_nan_as_null_where_json_is_wanted(tmp_path):
    write(
        tmp_path / "a.jsonl",
        [finite({"l2": 0.1 + 0.2, "csd": math.nan, "total": -math.inf, "photos": ["a"]})],
    )
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "l2": 0.1 + 0.2,
        "csd": None,
        "total": None,
        "photos": ["a"],
    }
    write(tmp_path / "b.jsonl", [{"psnr": math.nan}])
    assert math.isnan(Journal(tmp_path / "b.jsonl").rows()[0]["psnr"])


@pytest.mark.parametrize("seed", range(20))
def test_one_cut_at_any_byte_and_continued_is_the_uninterrupted_one(tmp_path, seed):
    """A checkpoint anywhere, a kill at any later byte, as often as it takes."""
    chance, whole = random.Random(seed), write(tmp_path / "whole.jsonl", ROWS)
    lines, path, done = whole.splitlines(True), tmp_path / "log.jsonl", 0
    while done < len(ROWS):
        journal = Journal(path)
        last = journal.rewind(up_to(done))
        assert last == (ROWS[done - 1] if done else None)
        assert (path.read_bytes() if path.exists() else b"") == b"".join(lines[:done])
        reached = chance.randint(done, len(ROWS))
        for row in ROWS[done:reached]:
            journal.append(row)
        if reached < len(ROWS):
            done = chance.randint(done, reached)  # the checkpoint
            if path.exists():
                os.truncate(path, chance.randint(len(b"".join(lines[:done])), path.stat().st_size))
        else:
            done = reached
    assert path.read_bytes() == whole


def test_rewinding_to_the_end_leaves_the_file_alone(tmp_path):
    write(tmp_path / "log.jsonl", ROWS)
    before = (tmp_path / "log.jsonl").stat()
    assert Journal(tmp_path / "log.jsonl").rewind(up_to(99)) == ROWS[-1]
    assert (tmp_path / "log.jsonl").stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "rubbish", [b"\0\0\0\n", b"3\n", b'{"step": 4}', b"\xff", b"[1]\n", b'{"step": \n']
)
def test_what_is_no_row_is_passed_over_and_cut_off(tmp_path, rubbish):
    path = tmp_path / "log.jsonl"
    whole = write(path, ROWS)
    with path.open("ab") as file:
        file.write(rubbish)
    assert Journal(path).rows() == ROWS
    Journal(path).append({"step": 9})
    assert Journal(path).rows() == [*ROWS, {"step": 9}], "a half line swallows no row"
    path.write_bytes(whole + rubbish)
    Journal(path).rewind(up_to(99))
    assert path.read_bytes() == whole


def test_a_missing_file_has_no_rows(tmp_path):
    journal = Journal(tmp_path / "none.jsonl")
    assert journal.rows() == [] and journal.rewind(up_to(1)) is None
    journal.sync()
    assert not journal.path.exists()


def test_a_full_disk_costs_no_row_and_one_line(tmp_path, monkeypatch, caplog):
    whole = write(tmp_path / "whole.jsonl", ROWS[:4])
    journal = Journal(tmp_path / "log.jsonl")
    journal.append(ROWS[0])
    original = Path.open

    def full(self, *arguments, **options):
        """A file on a disk that takes ten more bytes."""
        file = original(self, *arguments, **options)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                file.write(data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    with monkeypatch.context() as context:
        context.setattr(Path, "open", full)
        journal.append(ROWS[1])
        journal.append(ROWS[2])
        with pytest.raises(OSError, match="No space left"):
            journal.sync()
    assert journal.path.read_bytes() == whole.splitlines(True)[0]
    assert caplog.text.count("No space left") == 1
    journal.append(ROWS[3])
    journal.sync()
    assert journal.path.read_bytes() == whole


def test_a_killed_process_leaves_every_row_that_it_appended(tmp_path):
    code = (
        "import os, signal; from pisasr.files import Journal; journal = Journal('log.jsonl')\n"
        "for step in range(1, 8): journal.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [row["step"] for row in Journal(tmp_path / "log.jsonl").rows()] == list(range(1, 8))

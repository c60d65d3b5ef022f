"""Files are whole or as they were; a journal is the uninterrupted one wherever a run was killed."""

import json
import math
import os
import random

import pytest

from pisasr.files import Journal, finite, replacing, write_whole

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


@pytest.mark.parametrize("seed", range(8))
def test_one_cut_at_any_byte_and_continued_is_the_uninterrupted_one(tmp_path, seed):
    """A checkpoint anywhere, a kill at any later byte, as often as it takes."""
    chance, whole = random.Random(seed), write(tmp_path / "whole.jsonl", ROWS)
    lines, path, done = whole.splitlines(True), tmp_path / "log.jsonl", 0
    while done < len(ROWS):
        journal = Journal(path)
        last = journal.truncate(up_to(done))
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


def test_truncating_to_the_end_leaves_the_file_alone(tmp_path):
    write(tmp_path / "log.jsonl", ROWS)
    before = (tmp_path / "log.jsonl").stat()
    assert Journal(tmp_path / "log.jsonl").truncate(up_to(99)) == ROWS[-1]
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
    Journal(path).truncate(up_to(99))
    assert path.read_bytes() == whole


def test_a_missing_file_has_no_rows(tmp_path):
    journal = Journal(tmp_path / "none.jsonl")
    assert journal.rows() == [] and journal.truncate(up_to(1)) is None
    journal.sync()
    assert not journal.path.exists()


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, "one")
    with pytest.raises(OSError, match="disk"), replacing(path) as temporary:
        temporary.write_text("tw")
        raise OSError("disk")
    assert path.read_text() == "one" and os.listdir(tmp_path) == [path.name]

"""Files are whole, or as they were."""

import os

import pytest

from pisasr.files import parse_json, replacing, write_whole


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, "one")
    with pytest.raises(OSError, match="disk"), replacing(path) as temporary:
        temporary.write_text("tw")
        raise OSError("disk")
    assert path.read_text() == "one" and os.listdir(tmp_path) == [path.name]


def test_json_without_end_is_a_value_error():
    assert parse_json('{"a": 1}') == {"a": 1}
    for text in ("[" * 100_000, "{", b"\xff"):
        with pytest.raises(ValueError):
            parse_json(text)

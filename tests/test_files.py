"""Files are whole, or as they were."""

import os

import pytest

from pisasr.files import replacing, write_whole


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, "one")
    with pytest.raises(OSError, match="disk"), replacing(path) as temporary:
        temporary.write_text("tw")
        raise OSError("disk")
    assert path.read_text() == "one" and os.listdir(tmp_path) == [path.name]

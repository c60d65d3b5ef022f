"""Files that hold all of what was written, or what they held before."""

import os
from pathlib import Path
from zlib import crc32


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside `path`, wait for the disk, rename. OSError leaves `path` as it was."""
    temporary = temporary_name(path)
    try:
        write_through(temporary, content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it is renamed: beside it, short (a name has 255 bytes at most), with its owner."""
    return path.with_name(f".pisasr-{os.getpid()}-{crc32(os.fsencode(path.name)):08x}.tmp")


def write_through(path: Path, content: bytes) -> None:
    """Write and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

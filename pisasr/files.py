"""Files that hold all of what was written, or what they held before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, and rename it to `path` after the block.

    An exception in the block leaves `path` as it was and removes what was written.
    """
    # Short, since a name has 255 bytes at most; and each process has its own.
    temporary = path.with_name(f".pisasr-{os.getpid()}-{crc32(os.fsencode(path.name)):08x}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `path` whole or not at all, also in a power cut. Raises OSError."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())

"""Files that hold all of what was written or what they held before; rows that outlive a kill."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zlib import crc32


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, and rename it to `path` after the block.

    An exception in the block leaves `path` as it was and removes what was written.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it is renamed: beside it, short, with its process."""
    return path.with_name(f".pisasr-{os.getpid()}-{crc32(os.fsencode(path.name)):08x}.tmp")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `path` whole or not at all, also in a power cut. Raises OSError."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError, also for endless nesting."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Journal:
    """Rows in a file, one JSON object a line, each appended whole or not at all.

    A half line, which a kill leaves, is no row and makes way for the next one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """Read every whole row, first to last; [] without a file."""
        return [row for row in map(_parse_row, self._lines()) if row is not None]

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row through to the system; nan and inf as Python's json has them."""
        with self.path.open("a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read() != b"\n":
                    file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            file.write(json.dumps(row).encode() + b"\n")

    def sync(self) -> None:
        """Make the rows safe against a power cut, too."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def truncate(self, keep: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Cut the file at the first line that `keep` refuses or is no row; return the last row."""
        last, kept = None, list[bytes]()
        for line in self._lines():
            row = _parse_row(line)
            if row is None or not keep(row):
                write_whole(self.path, b"".join(kept))
                break
            last = row
            kept.append(line)
        return last

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace nan and inf, for which JSON has no word, by None."""
    return {
        key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()
    }


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def is_locked(file: IO) -> bool:
    """Lock an open file for this process; False if another process did."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

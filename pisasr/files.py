"""Under every journey: files that hold all of what was written or what they held before; rows that
outlive a kill.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from zlib import crc32

log = logging.getLogger(__name__)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside `path`, wait for the disk, rename. OSError leaves `path` as it was."""
    temporary = temporary_name(path)
    try:
        write_through(temporary, content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it is renamed: beside it, short (a name has 255 bytes at
    most), with its owner.
    """
    return path.with_name(f".pisasr-{os.getpid()}-{crc32(os.fsencode(path.name)):08x}.tmp")


def write_through(path: Path, content: bytes) -> None:
    """Write and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def parse_json(text: str | bytes) -> Any:
    """What a text in JSON says; ValueError for everything that it can be wrong with, nesting
    without end included.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_locked(file: IO) -> bool:
    """Lock a file that is open for writing, for this process while it lives or the file is open;
    False if another did.

    A record lock, because the processes that load photos would inherit the other kind and outlive a
    killed run with it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


class Journal:
    """A file of rows, one JSON object a line, appended one by one: a process killed anywhere has
    lost no whole one.

    A half line, which a kill or a power cut may leave, is never read as a row and makes way for the
    next one. There is no clock in it: who rewinds to a place and appends the same rows again ends
    with the same bytes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._waiting, self._told = (
            b"",
            False,
        )  # rows that the disk had no room for; whether that was said

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row, first to last; what is no JSON object is passed over. A missing file has
        none.
        """
        return [row for line in self._lines() if (row := _row_of(line)) is not None]

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row through to the system. On a full disk it waits for the next call, which is
        told once.

        nan and inf are written as Python's json has them; for readers that want JSON alone there is
        `finite`.
        """
        self._waiting += json.dumps(row).encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if not self._told:
                log.warning(
                    "%s can't be written (%s); its rows wait in memory for the next one",
                    self.path,
                    error,
                )
            self._told = True

    def sync(self) -> None:
        """Make the rows safe against a power cut, too. OSError where that can't be done: some still
        wait in memory.
        """
        self._write()
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, belongs: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Keep the rows before the first line that is no row or doesn't belong; cut off all from
        there, and what waits.

        The file is replaced as a whole, so a kill in here costs nothing. Returns the last row kept,
        None without one.
        """
        self._waiting = b""
        lines, last, kept = self._lines(), None, 0
        while kept < len(lines) and (row := _row_of(lines[kept])) is not None and belongs(row):
            last, kept = row, kept + 1
        if kept < len(lines):
            log.info("%s: %d rows are cut off, %d stay", self.path.name, len(lines) - kept, kept)
            write_whole(self.path, b"".join(lines[:kept]))
        return last

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []

    def _write(self) -> None:
        if not self._waiting:
            return
        with self.path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                end = self.path.read_bytes().rfind(b"\n") + 1
                file.truncate(end)
            try:
                if file.write(self._waiting) < len(self._waiting):
                    raise OSError("the disk is full")
            except OSError:
                file.truncate(end)
                raise
        self._waiting = b""


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for every nan and inf, for which JSON has no word."""
    return {
        key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()
    }


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

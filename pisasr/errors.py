"""Under every journey: what pisasr says when it can't go on, in one line: what was wanted, what
came, what to do.

Exit codes of every command and script: 0 all fine, 1 nothing could start, 2 the command line is
wrong, 3 some inputs failed and the others are there, 130 interrupted, 128 + N stopped by signal N
and ready to go on (training).
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pisasr.signals import ended_by_sigterm

OK, NOTHING_STARTED, WRONG_USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class PisasrError(Exception):
    """Something the user can put right; a command prints the message alone, without a traceback."""


class ImageError(PisasrError):
    """A picture that can't be read, or can't be worked on."""


class CheckpointError(PisasrError):
    """A file of weights that is broken, incomplete, or not what it says it is."""


class ModelError(PisasrError):
    """A base model that is missing, or is of another kind than the adapters were made for."""


class UsageError(PisasrError, argparse.ArgumentTypeError):
    """The command line asks for something that can't be. argparse prints it as its own line, with
    the option's name.
    """


class OverlapError(UsageError):
    """An output would be written over an input."""


class UserNotice(UserWarning):
    """Something that a person should know while work goes on; a command prints it as a line,
    without a place in the code.
    """


class MemoryShort(UserNotice):
    """A picture is cut into smaller pieces than was asked for, since memory was out or would be."""


class NotFinite(UserNotice):
    """A picture was made once more in float32, since numbers of half precision ran out of their
    range.
    """


class UnusualStrength(UserNotice):
    """A strength is far from those that the model was trained with."""


class PassedOver(UserNotice):
    """Pictures in a folder are of a kind that is not read."""


def guarded(
    run: Callable[[], int | None],
    debug: bool = False,
    quiet: bool = False,
    stopped: str = "interrupted",
) -> int:
    """Run a command or a script and return its exit code; whatever goes wrong is one line on
    stderr. SIGTERM is taken as Ctrl-C.

    debug: a traceback before that line. quiet: no line at all, since another process prints the
    same. stopped: what Ctrl-C is answered with.
    """
    # Of damaged tags, which pictures are noted for anyway. Not where a picture is read: threads do,
    # and share filters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with _printing_or_not():
        try:
            with ended_by_sigterm(), _plainly(quiet):
                return run() or OK
        except KeyboardInterrupt:
            print(stopped, file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if debug:
                traceback.print_exc()
            if not quiet:
                print(f"pisasr: {safe_text(explain(error))}", file=sys.stderr)
            return WRONG_USAGE if isinstance(error, UsageError) else NOTHING_STARTED


class _Stream:
    """stdout or stderr, None where it is closed: what can't be printed is lost, and ends nobody's
    work.

    After a reader that left or a full disk, all goes to nowhere: Python itself would try again at
    the end, and fail.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = Path(os.devnull).open("w") if stream is None else stream
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(
                errors="backslashreplace"
            )  # names may hold what the terminal can't show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lost():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lost():
            self._stream.flush()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: it was closed
            with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def _printing_or_not() -> Iterator[None]:
    """Let nothing in the block fail because it can't be printed."""
    usual: Any = sys.stdout, sys.stderr
    streams: Any = tuple(map(_Stream, usual))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = usual


@contextmanager
def _plainly(quiet: bool) -> Iterator[None]:
    """Print a UserNotice as a line on stderr, once each; Python's own way names files and numbers of
    lines.
    """
    with warnings.catch_warnings():
        usual: Any = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, UserNotice):
                usual(message, category, *place, **more)
            elif not quiet:
                tqdm.write(safe_text(message), file=sys.stderr)

        warnings.showwarning = show
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was out, of any device: torch has a class for accelerators, and words for the
    CPU.
    """
    named = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def explain(error: BaseException) -> str:
    """An exception as one line for the user."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return "out of memory; try a smaller --tile_size and --vae_tile_size"
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename  # the second is what a file was to be called
        return f"{error.strerror}: {name}" if name else error.strerror
    if isinstance(error, (PisasrError, ValueError)) and text:
        return text
    if isinstance(error, RuntimeError) and text.startswith(
        "Symlink loop from "
    ):  # Path.resolve before Python 3.13
        return f"{text.split(' from ', 1)[1]} is a link that leads back to itself; wanted a folder or a file"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def safe_text(text: object) -> str:
    """A name for one line of a terminal: what can't be printed (newlines, escape codes, broken
    bytes) is escaped.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))

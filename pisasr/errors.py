"""Errors in one line (what was wanted, what came, what to do) and exit codes."""

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# All fine; nothing could start; the command line is wrong; some inputs failed; Ctrl-C or SIGTERM.
# Training that a signal stopped, ready to go on, ends with 128 + its number.
OK, NOTHING_STARTED, WRONG_USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class PisasrError(Exception):
    """Something the user can put right; a command prints the message without a traceback."""


class ImageError(PisasrError):
    """A picture that can't be read or restored."""


class CheckpointError(PisasrError):
    """A file of weights that is broken, incomplete, or not what it says it is."""


class ModelError(PisasrError):
    """A base model that is missing, or of another kind than the adapters were made for."""


class UsageError(PisasrError, argparse.ArgumentTypeError):
    """Options that can't be; from an option's type, argparse adds the option's name."""


class OverlapError(UsageError):
    """An output would be written over an input."""


class UserNotice(UserWarning):
    """Something a user should know while work goes on; a command prints the message alone."""


def guarded(run: Callable[[], int | None], debug: bool = False) -> int:
    """Run a command and return its exit code; an error is a line, with debug its traceback too."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may hold what the terminal can't show
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged tags
        _print_notices()
        try:
            with sigterm_as_interrupt():
                return run() or OK
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader of stdout left; Python would fail on it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return NOTHING_STARTED
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(f"pisasr: {safe_text(explain(error))}", file=sys.stderr)
            return WRONG_USAGE if isinstance(error, UsageError) else NOTHING_STARTED


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block; in a thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_notices() -> None:
    usual: Any = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserNotice):
            tqdm.write(safe_text(message), file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; torch has a class for accelerators, and words for the CPU."""
    named = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def explain(error: BaseException) -> str:
    """Say in one line what an exception means for the user."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return "out of memory; try a smaller --tile_size and --vae_tile_size"
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename  # the second is what a file was to be called
        return f"{error.strerror}: {name}" if name else error.strerror
    if isinstance(error, PisasrError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def safe_text(text: object) -> str:
    """Escape what a terminal can't print: newlines, escape codes, broken bytes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))

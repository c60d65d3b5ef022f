"""argv in, exit code out: `pisasr app`, a local page on which the two strengths are turned by
hand.
"""

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from pisasr.commands.options import (
    add_model_options,
    add_weights_option,
    command_parser,
    load_model,
    normalise,
    positive_int,
    whole,
)
from pisasr.errors import OK, PisasrError, UsageError, guarded
from pisasr.files import is_locked

LOCK = ".pisasr-page"  # in a page's folder, which none but a page has: the folder may be deleted

EXAMPLES = """examples:
  pisasr app                                     the small model, at a free port from http://127.0.0.1:7860
  pisasr app --pretrained_model FOLDER --adapters weights/pisa-sr --open
  pisasr app --host 0.0.0.0 --auth ann:secret    for others in the house, who sign in

Uploads end at 32 MB and 16 million pixels, results at 64 million. Nothing is sent elsewhere, files are deleted after an
hour and at the end. A script asks the same page through gradio_client: the README has an example."""


def app(argv: list[str]) -> int:
    """Turn the two knobs on a local page: `pisasr app --help`."""
    parser = app_parser()
    args = parser.parse_args(normalise(argv))
    if not is_loopback(args.host) and args.auth is None:
        parser.error(f"--host {args.host} lets others in; give --auth USER:PASSWORD, too")
    return guarded(lambda: _app(args), args.debug)


def app_parser() -> argparse.ArgumentParser:
    """Every option of `app`."""
    parser = command_parser(
        "pisasr app", "Repair photos on a local page, with two knobs.", EXAMPLES
    )
    add = parser.add_argument_group("page").add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where it listens (default: %(default)s, this machine)",
    )
    add("--port", type=port_number, metavar="N", help="default: the first free one from 7860")
    add(
        "--auth",
        type=parse_auth,
        metavar="USER:PASSWORD",
        help="who may see it; anything but this machine needs it",
    )
    add("--open", action="store_true", help="open it in the browser")
    pixels = "refuse larger photos (default: %(default)s)"
    add("--max_input_pixels", type=positive_int, default=16_000_000, metavar="N", help=pixels)
    add_weights_option(add)
    add_model_options(parser)
    return parser


def port_number(text: str) -> int:
    """A whole number that a port can have."""
    if (number := whole(text)) > 65_535:
        raise UsageError(f"{number} is no port; they end at 65535")
    return number


def parse_auth(text: str) -> tuple[str, str]:
    """USER:PASSWORD as a pair; UsageError where one of them is empty."""
    user, _, password = text.partition(":")
    if not user or not password:
        raise UsageError("it is USER:PASSWORD, neither of them empty")
    return user, password


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone. A name that isn't localhost might not
    be.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _app(args: argparse.Namespace) -> int:
    if find_spec("gradio") is None:
        raise PisasrError("the page needs gradio, which is not here: pip install 'pisasr[app]'")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    remove_dead_pages()
    with TemporaryDirectory(prefix="pisasr-") as folder, Path(folder, LOCK).open("wb") as lock:
        is_locked(lock)  # while the page lives
        try:
            with writing_below(folder):
                _serve(args)
        except KeyboardInterrupt:
            return OK


def remove_dead_pages() -> None:
    """Delete what pages left here that were killed, people's photos among it; those of a living
    page stay.
    """
    for lock in (
        Path(tempfile.gettempdir()).glob(f"pisasr-*/{LOCK}") if os.name != "nt" else ()
    ):  # no locks there
        with suppress(OSError), lock.open("r+b") as file:
            if is_locked(file):
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def writing_below(folder: str) -> Iterator[None]:
    """Have everything that the page writes lie in a folder, which goes when the page does.

    Gradio's copies lie beside what is handed to it: a file inside its own folder keeps its address
    whatever it holds, and a browser goes on showing what it has seen there first.
    """
    usual = tempfile.tempdir
    tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = folder, str(Path(folder, "gradio"))
    try:
        yield
    finally:
        tempfile.tempdir = usual
        del os.environ["GRADIO_TEMP_DIR"]


def _serve(args: argparse.Namespace) -> NoReturn:
    pipe = load_model(args)
    from pisasr.app.desk import Desk, Limits
    from pisasr.app.page import serve

    limits = Limits(input_pixels=args.max_input_pixels)
    desk = Desk(pipe, limits, args.weights, takes_prompts=args.pretrained_model is not None)
    try:
        page = serve(desk, args.host, args.port, args.auth, browser=args.open)
    except OSError:
        port = "any port from 7860" if args.port is None else f"port {args.port}"
        raise PisasrError(
            f"no page can be at {args.host}, {port}; choose another --port, or --host"
        ) from None
    try:
        print(f"The page is at {page.local_url} until Ctrl-C.", flush=True)
        while True:
            time.sleep(3600)
    finally:
        page.close(verbose=False)

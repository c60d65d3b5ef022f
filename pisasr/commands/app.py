"""Run `pisasr app`: a local page on which the two strengths are set by hand."""

import argparse
import os
import time
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from tempfile import TemporaryDirectory

from pisasr.commands.options import (
    add_model_options,
    command_parser,
    load_model,
    normalize,
    whole,
)
from pisasr.errors import OK, PisasrError, UsageError, guarded

EXAMPLES = """examples:
  pisasr app                                     the model in pisasr, from http://127.0.0.1:7860
  pisasr app --pretrained_model FOLDER --adapters weights/pisa-sr --open
  pisasr app --host 0.0.0.0 --auth ann:secret    for others on the network, who sign in

Nothing is sent elsewhere; pictures are deleted after an hour and at the end. Scripts use the same
page through gradio_client: see pisasr/app/README.md."""


def app(argv: list[str]) -> int:
    """Serve the page: `pisasr app --help`."""
    about = "Repair photos on a local page, with two knobs."
    parser = command_parser("pisasr app", about, EXAMPLES)
    add = parser.add_argument_group("page").add_argument
    here = "where it listens (default: %(default)s, this machine)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=here)
    add("--port", type=port_number, metavar="N", help="default: the first free one from 7860")
    who = "required unless it listens to this machine alone"
    add("--auth", type=parse_auth, metavar="USER:PASSWORD", help=who)
    add("--open", action="store_true", help="open it in the browser")
    add_model_options(parser)
    args = parser.parse_args(normalize(argv))
    if not is_loopback(args.host) and args.auth is None:
        parser.error(f"--host {args.host} lets others in; give --auth USER:PASSWORD, too")
    return guarded(lambda: _app(args), args.debug)


def port_number(text: str) -> int:
    """Parse a port."""
    if (number := whole(text)) > 65_535:
        raise UsageError(f"{number} is no port; they end at 65535")
    return number


def parse_auth(text: str) -> tuple[str, str]:
    """Parse USER:PASSWORD, neither of them empty."""
    user, _, password = text.partition(":")
    if not user or not password:
        raise UsageError("it is USER:PASSWORD, neither of them empty")
    return user, password


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone; of names, localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _app(args: argparse.Namespace) -> int:
    if find_spec("gradio") is None:
        raise PisasrError("the page needs gradio, not installed: pip install 'pisasr[app]'")
    with TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio's copies of pictures go with the page
        with suppress(KeyboardInterrupt):  # SIGTERM, too: see errors.guarded
            _serve(args)
    return OK


def _serve(args: argparse.Namespace) -> None:
    pipe = load_model(args)
    from pisasr.app.page import serve
    from pisasr.app.session import Session

    session = Session(pipe, takes_prompts=args.pretrained_model is not None)
    try:
        page = serve(session, args.host, args.port, args.auth, browser=args.open)
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

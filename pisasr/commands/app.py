"""Run `pisasr app`: a local page on which the two strengths are set by hand."""

import argparse
import os
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pisasr.commands.options import add_model_options, command_parser, load_model, normalize, whole
from pisasr.errors import OK, PisasrError, UsageError, guarded

EXAMPLES = """examples:
  pisasr app --open                              the model in pisasr, from http://127.0.0.1:7860
  pisasr app --pretrained_model FOLDER --adapters weights/pisa-sr
  pisasr app --host 0.0.0.0 --auth ann:secret    for others on the network, who sign in

Nothing is sent elsewhere; pictures are deleted after an hour and at the end. Scripts use the same
page through gradio_client: see pisasr/app/README.md."""


def app(argv: list[str]) -> int:
    """Serve the page: `pisasr app --help`."""
    parser = command_parser("pisasr app", "Repair photos on a local page with two knobs.", EXAMPLES)
    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s, this machine")
    add("--port", type=port_number, metavar="N", help="default: the first free one from 7860")
    who = "required unless it listens to this machine alone; or the variable PISASR_AUTH"
    known = os.environ.get("PISASR_AUTH")
    add("--auth", type=parse_auth, metavar="USER:PASSWORD", default=known, help=who)
    add("--name", default=[], nargs="+", metavar="NAME", help="by which a proxy is asked for it")
    add("--models", type=Path, metavar="FOLDER", help="each folder in it is offered as a model")
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
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def free_port(host: str, port: int | None) -> int:
    """The port, or the first free one; PisasrError, before anything is loaded, where none is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(7860, 7960) if port is None else [port]:
        with suppress(OSError), socket.create_server((host, number), family=family) as trial:
            return int(trial.getsockname()[1])
    asked = "any port from 7860" if port is None else f"port {port}"
    raise PisasrError(f"no page can be at {host}, {asked}; choose another --port, or --host")


def addresses(host: str, port: int) -> list[str]:
    """Where the page is found: from this machine, and from others of its network."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104  compared, not listened to
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}/"]
    outside = socket.gethostname()
    with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as trial:
        trial.connect(("10.255.255.255", 1))  # nothing is sent
        outside = trial.getsockname()[0]
    return [f"http://localhost:{port}/", f"http://{outside}:{port}/"]


def _app(args: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise PisasrError("the page needs gradio, not installed: pip install 'pisasr[app]'")
    port, others = free_port(args.host, args.port), []
    if args.models:
        others = sorted(path.parent.name for path in args.models.glob("*/model_index.json"))
        if not others:
            raise PisasrError(f"--models {args.models} has no folder with a model_index.json in it")
    print("Loading the model ...", flush=True)
    with TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio's copies of pictures go with the page
        is_at_rest = True
        with suppress(KeyboardInterrupt):  # SIGTERM, too: see errors.guarded
            is_at_rest = _serve(args, port, others)
    if not is_at_rest:  # a tile that takes longer would end the interpreter by an abort
        os._exit(OK)


def _serve(args: argparse.Namespace, port: int, others: list[str]) -> bool:
    """Serve until Ctrl-C; whether all work came to rest then."""
    from pisasr.app.page import serve
    from pisasr.app.session import Session

    def load(name: str) -> Any:
        named = {"pretrained_model": str(args.models / name), "adapters": None}
        return load_model(argparse.Namespace(**vars(args) | named))

    session = Session(load_model(args), others, load)
    launch = {"server_port": port, "auth": args.auth, "inbrowser": args.open}
    page = serve(session, args.host, tuple(args.name), **launch)
    found = addresses(args.host, port)
    print(f"The page is at {' and '.join(found)} until Ctrl-C.", flush=True)
    if not is_loopback(args.host) and find_spec("segno") is not None and sys.stdout.isatty():
        import_module("segno").make(found[-1]).terminal(compact=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    is_at_rest = session.close()  # first: what waits for it would keep the page from closing
    page.close(verbose=False)
    return is_at_rest

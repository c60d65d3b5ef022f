"""Run the `pisasr` command: argv in, exit code out.

What needs torch is imported once the arguments are known to be good: mistakes are answered at once.
"""

import argparse
import sys
from importlib import import_module

from pisasr import __version__
from pisasr.commands.options import Parser

COMMANDS = {  # each is a function of pisasr.commands.NAME, which is imported when it is asked for
    "infer": "Restore pictures: `pisasr infer --help`.",
    "app": "Turn the two knobs on a local page: `pisasr app --help`.",
    "train": "Train the two adapters: `pisasr train --help`.",
    "evaluate": "Score folders of results: `pisasr evaluate --help`.",
    "degrade": "Make pairs of photos: `pisasr degrade --help`.",
    "convert": "Turn the published checkpoint into safetensors: `pisasr convert --help`.",
    "publish": "Write adapters as a folder for the hub: `pisasr publish --help`.",
    "export": "Write a model as ONNX files: `pisasr export --help`.",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. Raises SystemExit(2) for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="pisasr",
        description="PiSA-SR: sharp photos from poor ones in one step.",
        epilog="\n".join(["commands:", *(f"  {name:10}{what}" for name, what in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="what to do; each has its own --help"
    )
    name = parser.parse_args(argv[:1]).command
    module = import_module(f"pisasr.commands.{name}")
    return getattr(module, name)(argv[1:])


if __name__ == "__main__":
    sys.exit(main())

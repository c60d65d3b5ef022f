"""Train the two adapters: `pisasr train`."""

import argparse
import logging
import sys

from pisasr.commands.options import command_parser, place_among_processes
from pisasr.errors import OK, guarded

EXAMPLES = """examples:
  pisasr train --config configs/smoke.yaml "data.photos=[photos]" run.output=runs/smoke
  accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]" \\
      run.output=runs/pisasr

run.output receives adapters/{pix,sem}.safetensors, the resolved config.yaml and log.jsonl."""


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    about = "Train the two adapters; the same command continues an interrupted run."
    parser = command_parser("pisasr train", about, EXAMPLES)
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE", help="YAML over the defaults of pisasr/config.py"
    )
    add("--dry_run", action="store_true", help="print every setting, count the photos, and stop")
    add("--allow_change", action="store_true", help="continue a run although its settings differ")
    add("overrides", nargs="*", metavar="section.key=value", help="rules over the file")
    args = parser.parse_intermixed_args(argv)
    return guarded(lambda: _train(args), args.debug)


def _train(args: argparse.Namespace) -> int:
    from pisasr.config import load_config, to_yaml

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from pisasr.training.setup import open_photos

        print(f"{to_yaml(config)}\n{len(open_photos(config)[0])} photos")
        return OK
    from pisasr.training.loop import Interrupted
    from pisasr.training.loop import train as train_adapters

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        train_adapters(config, args.allow_change)
    except Interrupted as stop:
        print(f"pisasr: {stop}", file=sys.stderr)
        return 128 + stop.number
    return OK

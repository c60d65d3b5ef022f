"""argv in, exit code out: `pisasr train`, from a file of options to adapters."""

import argparse
import logging
import sys

from pisasr.commands.options import command_parser, place_among_processes
from pisasr.errors import OK, guarded

EXAMPLES = """examples:
  pisasr train --config configs/small.yaml "data.photos=[photos]" run.output=runs/small
  accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]" run.output=runs/pisasr

run.output receives adapters/pix.safetensors, adapters/sem.safetensors, the resolved config.yaml and log.jsonl."""


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    about = "Train the two adapters, as a file of options says; the same command continues an interrupted run."
    parser = command_parser("pisasr train", about, EXAMPLES)
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE", help="YAML over the defaults in pisasr/config.py"
    )
    plan = "print the resolved options and what a step costs, look for the photos, and stop"
    add("--dry_run", "--dry-run", action="store_true", help=plan)
    change = "continue a run although its photos, processes or settings differ"
    add("--allow_change", "--allow-change", action="store_true", help=change)
    add("overrides", nargs="*", metavar="section.key=value", help="rules over the file")
    args = parser.parse_intermixed_args(argv)
    return guarded(lambda: _train(args), args.debug)


def _train(args: argparse.Namespace) -> int:
    from pisasr.config import load_config

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from pisasr.training.estimate import print_plan
        from pisasr.training.setup import open_photos

        rank, count = place_among_processes()
        if rank == 0:
            print_plan(config, count)
            print(f"{len(open_photos(config)[0])} photos in {', '.join(config.data.photos)}")
        return OK
    from pisasr.training.guard import Interrupted
    from pisasr.training.loop import train as train_adapters

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        train_adapters(config, args.allow_change)
    except Interrupted as stop:
        print(f"pisasr: {stop}", file=sys.stderr)
        return 128 + stop.number
    return OK

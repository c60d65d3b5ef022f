"""`pisasr train`: a configuration in, two adapters out."""

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from pisasr.errors import OK, UsageError, guarded

if TYPE_CHECKING:
    from pisasr.config import TrainConfig

EXAMPLES = """examples:
  pisasr train --config configs/small.yaml "data.photos=[photos]" run.output=runs/small
  accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]" run.output=runs/pisasr

run.output receives adapters/pix.safetensors, adapters/sem.safetensors, the resolved config.yaml and log.jsonl."""


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    parser = argparse.ArgumentParser(
        prog="pisasr train",
        description="Train the two adapters, as a file of options says; the same command continues an interrupted run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML over the defaults in pisasr/config.py")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="print the resolved options and what a step costs, and stop"
    )
    parser.add_argument(
        "--allow_change",
        "--allow-change",
        action="store_true",
        help="continue a run although its photos, processes or settings differ",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="rules over the file")
    args = parser.parse_intermixed_args(argv)
    return guarded(lambda: _train(args), args.debug)


def _train(args: argparse.Namespace) -> int:
    from pisasr.config import ConfigError, load_config

    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    if args.dry_run:
        return _print_plan(config)
    from pisasr.training.guard import Interrupted
    from pisasr.training.trainer import train as train_adapters

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        train_adapters(config, args.allow_change)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except Interrupted as stop:
        print(f"pisasr: {stop}", file=sys.stderr)
        return 128 + stop.number
    return OK


def _print_plan(config: "TrainConfig") -> int:
    """Every setting, and what a step would cost; by the first of several processes alone."""
    if os.environ.get("RANK", "0") != "0":
        return OK
    from pisasr.config import ConfigError, to_yaml
    from pisasr.training.estimate import estimate, render

    print(to_yaml(config), flush=True)
    try:
        print(render(estimate(config, int(os.environ.get("WORLD_SIZE", 1)))))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return OK

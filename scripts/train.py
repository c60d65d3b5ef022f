"""Train the two adapters.

    accelerate launch scripts/train.py --config configs/pisasr.yaml data.photos='[photos/LSDIR]' run.output=runs/pisasr
    accelerate launch scripts/train.py --config configs/demo.yaml data.photos='[data/demo/train]' run.output=runs/demo

Leaves adapters/pix.safetensors, adapters/sem.safetensors, config.yaml (everything, as resolved) and log.jsonl (a row
per step) in run.output. The same command continues an interrupted run. section.key=value overrides the file.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file over the defaults in pisasr/config.py")
    parser.add_argument("--dry_run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()

    from pisasr.errors import PisasrError

    try:
        from pisasr.config import ConfigError, load_config, to_yaml

        try:
            config = load_config(args.config, args.overrides)
        except ConfigError as error:
            print(f"train.py: {error}", file=sys.stderr)
            return 2
        if args.dry_run:
            print(to_yaml(config), end="")
            return 0
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

        from pisasr.training.trainer import train

        train(config)
    except PisasrError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train the two adapters; the same as `pisasr train`, as a file that accelerate can launch.

accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]"
run.output=runs/pisasr
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

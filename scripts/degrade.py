"""Degrade photos; the same as `pisasr degrade`.

python scripts/degrade.py --input photos --output data/pairs --seed 7
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["degrade", *sys.argv[1:]]))

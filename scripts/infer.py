"""Restore photos; the same as `pisasr infer`.

python scripts/infer.py --input photos --output results --lambda_pix 1.0 --lambda_sem 1.0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))

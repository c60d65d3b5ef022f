"""Score folders of restored pictures; the same as `pisasr evaluate`.

python scripts/evaluate.py --sr ours=results/photos --hr photos --output results/scores
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

"""Many methods on the same inputs, in one table: repair, time, score, show.

python scripts/compare.py --hq crops --output results/compare
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())

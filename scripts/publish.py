"""Write adapters as a folder that the hub and diffusers understand; the same as `pisasr publish`.

python scripts/publish.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))

"""Turn the published checkpoint into safetensors adapters; the same as `pisasr convert`.

python scripts/convert.py pisa_sr.pkl weights/pisa-sr
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

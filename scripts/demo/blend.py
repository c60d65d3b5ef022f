"""Step 8 of the embedded default: one semantic adapter out of two that were trained on from the
same third.

    python scripts/demo/blend.py --start START.safetensors --ends ONE.safetensors OTHER.safetensors --share 0.5 \\
        --strength 1.1 --output runs/blend/sem.safetensors

Weights are start + share * (the sum of what each end moved), as task arithmetic has it
(arXiv:2212.04089); strength multiplies the adapter's change of the layers, that of B alone.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.errors import guarded


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--ends", type=Path, nargs="+", required=True)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return guarded(lambda: blend(args))


def blend(args: argparse.Namespace) -> None:
    from pisasr.models.weights import load_adapter, save_adapter

    start, ends = load_adapter(args.start), [load_adapter(path).tensors for path in args.ends]
    tensors = {}
    for key, before in start.tensors.items():
        before = before.float()
        value = before
        for end in ends:
            value = value + args.share * (end[key].float() - before)
        tensors[key] = value * args.strength if key.endswith("lora_B.weight") else value
    save_adapter(args.output, replace(start, tensors=tensors))


if __name__ == "__main__":
    sys.exit(main())

"""Step 9 of the embedded default: its base and its two adapters in one folder, float16, with their
hashes.

python scripts/demo/assemble.py --base runs/base --adapters runs/sem/adapters --output pisasr/demo
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return guarded(lambda: assemble(args))


def assemble(args: argparse.Namespace) -> None:
    import torch

    from pisasr.models.bases import check_base
    from pisasr.models.weights import load_adapters, save_adapter

    if args.output.resolve() == args.base.resolve():
        raise PisasrError(f"--output {args.output} is the base itself; give another folder")
    check_base(args.base)
    adapters = load_adapters(args.adapters)
    for part in PARTS:
        shutil.copytree(args.base / part, args.output / part, dirs_exist_ok=True)
        for config in (args.output / part).glob("config.json"):
            content = json.loads(config.read_text())
            content.pop("_name_or_path", None)  # where this machine had it
            config.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copy(args.base / "model_index.json", args.output)
    for adapter in filter(None, adapters):
        save_adapter(
            args.output / "adapters" / f"{adapter.name}.safetensors", adapter, torch.float16
        )
    for path in args.output.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"{args.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())

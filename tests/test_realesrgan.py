"""The peer: its weight file is read right, and (where its packages are installed) its pictures are
ncnn's.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.realesrgan import (
    FLOAT16_TAG,
    RRDBNet,
    load_x4plus,
    read_convolutions,
    upscale,
)


def write_ncnn(folder, convs, halves):
    """An ncnn model of these convolutions, kernels as float16 or float32."""
    lines, data = ["7767517", f"{len(convs)} {len(convs)}"], b""
    for conv, half in zip(convs, halves, strict=True):
        count = conv.weight.numel()
        lines.append(f"Convolution conv 1 1 in out 0={conv.out_channels} 1=3 4=1 5=1 6={count}")
        kernel = conv.weight.detach().numpy().astype(np.float16 if half else np.float32).tobytes()
        data += (
            (FLOAT16_TAG if half else 0).to_bytes(4, "little") + kernel + b"\0" * (-len(kernel) % 4)
        )
        data += conv.bias.detach().numpy().tobytes()
    param, binary = folder / "net.param", folder / "net.bin"
    param.write_text("\n".join(lines) + "\n")
    binary.write_bytes(data)
    return param, binary


@pytest.mark.parametrize("halves", [(False, False), (True, True), (True, False)])
def test_convolutions_come_back_as_written(tmp_path, halves):
    torch.manual_seed(0)
    written = [nn.Conv2d(3, 5, 3), nn.Conv2d(5, 1, 3)]
    read = [nn.Conv2d(3, 5, 3), nn.Conv2d(5, 1, 3)]
    read_convolutions(*write_ncnn(tmp_path, written, halves), read)
    for was, now, half in zip(written, read, halves, strict=True):
        assert torch.allclose(was.weight, now.weight, atol=1e-3 if half else 0)
        assert torch.equal(was.bias, now.bias)


def test_a_file_of_another_network_or_length_is_refused(tmp_path):
    convs = [nn.Conv2d(3, 5, 3)]
    param, binary = write_ncnn(tmp_path, convs, [False])
    with pytest.raises(MetricUnavailable, match="convolutions"):
        read_convolutions(param, binary, [nn.Conv2d(3, 6, 3)])
    binary.write_bytes(binary.read_bytes() + b"more")
    with pytest.raises(MetricUnavailable, match="bytes"):
        read_convolutions(param, binary, convs)


def test_the_network_has_the_published_size_and_quadruples():
    network = RRDBNet().requires_grad_(False)
    assert sum(p.numel() for p in network.parameters()) == 16_697_987
    assert upscale(Image.new("RGB", (5, 4)), network).size == (20, 16)


@pytest.mark.weights
def test_pictures_equal_ncnn():
    ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed")
    from pisasr.evaluation.realesrgan import find_files

    try:
        param, binary = find_files()
    except MetricUnavailable as missing:
        pytest.skip(str(missing))
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    )
    picture = picture.resize((32, 24), Image.Resampling.BICUBIC)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_arithmetic = False
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    net.load_param(str(param))
    net.load_model(str(binary))
    x_L = np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)
    extractor = net.create_extractor()
    extractor.input(
        net.input_names()[0], ncnn.Mat(x_L)
    )  # Mat borrows x_L, which must live until extract
    theirs = (
        np.array(extractor.extract(net.output_names()[0])[1]).transpose(1, 2, 0).clip(0, 1) * 255
    )
    ours = np.asarray(upscale(picture, load_x4plus()), np.float32)
    assert np.abs(ours - theirs).max() < 0.51  # rounding to whole levels is all that differs

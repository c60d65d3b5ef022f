"""Read RRDBNets that others trained, and write one as the base of an adapter pair.

A .pth or .safetensors file has upstream's names (BasicSR's, the first release's or those of before
it), ncnn's .param and .bin have none: their convolutions come in the order they run.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pisasr.errors import CheckpointError
from pisasr.files import write_whole
from pisasr.models.rrdbnet import SCALE, PixelAutoencoder, RRDBNet

FLOAT16_TAG = 0x01306B47  # what ncnn writes before a kernel stored as float16; 0 before float32
WRAPPERS = ("params_ema", "params", "state_dict")  # where a .pth keeps its tensors, if not on top
# (pattern, name here): RRDB_ESRGAN_x4.pth's names, then those of ESRGAN's first release.
RENAMES = (
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"trunk_conv\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"model\.1\.sub\.\d+\.", "conv_body."),
    (r"model\.0\.", "conv_first."),
    (r"model\.3\.", "conv_up1."),
    (r"model\.6\.", "conv_up2."),
    (r"model\.8\.", "conv_hr."),
    (r"model\.10\.", "conv_last."),
)
INDEX = {
    "_class_name": "PiSASRPipeline",
    "unet": ["pisasr.models.rrdbnet", "RRDBNet"],
    "vae": ["pisasr.models.rrdbnet", "PixelAutoencoder"],
    "color_fix": "wavelet",
    "native_upscale": SCALE,
    "process_size": 64,
}


def read_network(path: Path) -> RRDBNet:
    """Read an x4 RRDBNet of any depth and width: .pth, .safetensors, or .bin with its .param.

    Frozen, float32, on the CPU. Raises CheckpointError where the file holds another network.
    """
    if path.suffix == ".bin":
        return read_ncnn(path.with_suffix(".param"), path)
    tensors = {rename(key): tensor for key, tensor in _read_tensors(path).items()}
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("body.")})
    first, dense = (tensors.get(f"{name}.weight") for name in ("conv_first", "body.0.rdb1.conv1"))
    if first is None or dense is None or first.ndim != 4 or first.shape[1] != 3:
        raise CheckpointError(f"{path} holds no RRDBNet that enlarges RGB by 4.")
    network = RRDBNet(blocks, features=len(first), growth=len(dense))
    try:
        network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not an x4 RRDBNet ({reason}).") from None
    return network.eval().requires_grad_(False)


def rename(key: str) -> str:
    """Translate a tensor's name to the one here; names that are known already stay."""
    for pattern, name in RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, name, key, count=1)
    return key


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes both libraries raise what they like
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} can't be read as weights alone ({reason}).") from None
    inner = next((content[name] for name in WRAPPERS if name in content), content)
    if not all(isinstance(tensor, Tensor) for tensor in inner.values()):
        raise CheckpointError(f"{path} holds more than tensors by name; give a file of weights.")
    return inner


def read_ncnn(param: Path, binary: Path) -> RRDBNet:
    """Read x4plus (23 blocks, 64 features) from an ncnn model of convolutions with bias.

    The .bin holds for each: a tag, the kernel [out, in, 3, 3] as float16 (padded to four bytes) or
    float32, the bias as float32. Sizes are checked against the .param and the file's end.
    """
    network = RRDBNet()
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    try:
        lines, data = [line.split() for line in param.read_text().splitlines()], binary.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{binary} and its .param can't be read ({error}).") from None
    rows = [line for line in lines if line[0] == "Convolution"]
    fields = [dict(word.split("=") for word in row if "=" in word) for row in rows]
    if [field.get("6") for field in fields] != [str(conv.weight.numel()) for conv in convs]:
        raise CheckpointError(f"{param}: its {len(fields)} convolutions are not x4plus's.")
    at = 0
    for conv in convs:
        half = int.from_bytes(data[at : at + 4], "little") == FLOAT16_TAG
        kind, count = np.float16 if half else np.float32, conv.weight.numel()
        kernel = np.frombuffer(data, kind, count, at + 4)
        at += 4 + -(-kernel.nbytes // 4) * 4
        bias = np.frombuffer(data, np.float32, conv.out_channels, at)
        at += bias.nbytes
        conv.weight.data = torch.from_numpy(kernel.astype(np.float32)).view_as(conv.weight)
        conv.get_parameter("bias").data = torch.from_numpy(bias.copy())
    if at != len(data):
        raise CheckpointError(f"{binary} has {len(data)} bytes, {param.name} accounts for {at}.")
    return network.eval().requires_grad_(False)


def save_base(network: RRDBNet, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write FOLDER in diffusers' layout, for `PiSASRPipeline` and for training."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    network.save_pretrained(folder / "unet")
    PixelAutoencoder().save_pretrained(folder / "vae")
    write_whole(folder / "model_index.json", json.dumps(INDEX, indent=2) + "\n")

"""Repair a photo by the ONNX files beside this one, with numpy, onnxruntime and Pillow alone.

    python FOLDER/repair.py photo.png repaired.png --lambda_pix 1 --lambda_sem 0.7 --upscale 4

`pisasr export` copies this file to where it writes the others. The photo goes through whole and in
color: no tiles, no alpha, eight bits.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    """Run a network; each is loaded when it is used, so one at a time takes memory."""
    providers = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(str(path), providers=providers).run(None, inputs)[0]


def restore(
    x_L: np.ndarray, folder: Path, facts: dict[str, Any], lambda_pix: float, lambda_sem: float
) -> np.ndarray:
    """Restore x_L [B, 3, H, W] in [-1, 1]: [B, 3, H, W] in [0, 1], all float32.

        eps = lambda_pix * eps_pix + lambda_sem * (eps_full - eps_pix)

    A UNet without a part in it does not run. facts: the contents of pisasr.json.
    """
    height, width = x_L.shape[2:]
    below, right = -height % facts["multiple_of"], -width % facts["multiple_of"]
    padded = np.pad(x_L, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect")
    z_L = run(folder / "encoder.onnx", x_L=padded)
    eps = np.zeros_like(z_L)
    if lambda_pix != lambda_sem:
        eps += np.float32(lambda_pix - lambda_sem) * run(folder / facts["eps_pix"], z_L=z_L)
    if lambda_sem != 0:
        eps += np.float32(lambda_sem) * run(folder / "unet.onnx", z_L=z_L)
    x_H = run(folder / "decoder.onnx", z_H=z_L - eps)
    return run(folder / "colors.onnx", x_H=x_H[:, :, :height, :width], x_L=x_L)


def main() -> None:
    """Read the arguments, write the file."""
    parser = argparse.ArgumentParser(description="Repair and enlarge a photo.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("repaired", type=Path)
    for name, default in (("--lambda_pix", 1.0), ("--lambda_sem", 1.0), ("--upscale", 4.0)):
        parser.add_argument(name, type=float, default=default)
    args = parser.parse_args()
    folder = Path(__file__).parent
    facts = json.loads((folder / "pisasr.json").read_text())

    photo = ImageOps.exif_transpose(Image.open(args.photo)).convert("RGB")
    size = [round(args.upscale * side) for side in photo.size]
    factor = facts["native_upscale"] or args.upscale  # the one that the base works at, or any
    short, least = min(photo.size), int(facts["process_size"] // factor)
    if short < least:  # the model was trained on nothing smaller
        photo = photo.resize([least * side // short for side in photo.size])
    photo = photo.resize([round(factor * side) for side in photo.size])

    x_L = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
    (picture,) = restore(x_L, folder, facts, args.lambda_pix, args.lambda_sem)
    levels = np.rint(255 * picture.transpose(1, 2, 0)).astype(np.uint8)
    Image.fromarray(levels).resize(size).save(args.repaired)


if __name__ == "__main__":
    main()

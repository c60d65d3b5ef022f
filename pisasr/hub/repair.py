"""Infer, without PyTorch: one photo through the ONNX files beside this one, by numpy, onnxruntime
and Pillow alone.

    python FOLDER/repair.py photo.png repaired.png --lambda_pix 1 --lambda_sem 0.7 --upscale 4

`pisasr export` copies it to where it writes the files. It takes the photo whole and in
colour: no tiles, no alpha, eight bits. pisasr.json says what the files take and give.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    """The one output of a file; networks are loaded one after another, so that one at a time needs
    memory.
    """
    session = onnxruntime.InferenceSession(
        str(path), providers=onnxruntime.get_available_providers()
    )
    return session.run(None, inputs)[0]


def restore(
    x_L: np.ndarray, folder: Path, facts: dict[str, Any], lambda_pix: float, lambda_sem: float
) -> np.ndarray:
    """x_L [B, 3, H, W] in [-1, 1] -> a picture [B, 3, H, W] in [0, 1], all float32. facts: those of
    pisasr.json.

    Each UNet is asked where it has a part in lambda_pix * eps_pix + lambda_sem * (eps_pisa -
    eps_pix).
    """
    height, width = x_L.shape[2:]
    below, right = -height % facts["multiple_of"], -width % facts["multiple_of"]
    padded = np.pad(x_L, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect")
    z_L = run(folder / "encoder.onnx", x_L=padded)
    eps = np.zeros_like(z_L)
    if lambda_pix != lambda_sem:
        eps += np.float32(lambda_pix - lambda_sem) * run(folder / facts["eps_pix"], z_L=z_L)
    if lambda_sem != 0:
        eps += np.float32(lambda_sem) * run(folder / facts["eps_pisa"], z_L=z_L)
    x_H = run(folder / "decoder.onnx", z_H=z_L - eps)
    return run(folder / "colors.onnx", x_H=x_H[:, :, :height, :width], x_L=x_L)


def main() -> None:
    """argv in, a file out."""
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
    short, wanted = min(photo.size), int(facts["process_size"] // args.upscale)
    if short < wanted:  # the model saw nothing smaller
        photo = photo.resize(
            [wanted * side // short for side in photo.size], Image.Resampling.BICUBIC
        )
    photo = photo.resize(
        [round(args.upscale * side) for side in photo.size], Image.Resampling.BICUBIC
    )

    x_L = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
    (picture,) = restore(x_L, folder, facts, args.lambda_pix, args.lambda_sem)
    levels = np.rint(255 * picture.transpose(1, 2, 0)).astype(np.uint8)
    Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(args.repaired)


if __name__ == "__main__":
    main()

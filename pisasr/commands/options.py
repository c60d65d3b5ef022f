"""argv in: the options of every command that runs the model: which model, how, on which device.

Nothing here waits for torch before a model is loaded.
"""

import argparse
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from pisasr.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pisasr.pipeline import PiSASRPipeline


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """The groups "model", "picture" and "memory"; the published script's names are aliases of ours."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--pretrained_model",
        "--pretrained_model_path",
        metavar="MODEL",
        help="base model: a folder or a hub id (default: the small model that comes with pisasr)",
    )
    add(
        "--adapters",
        "--pretrained_path",
        metavar="ADAPTERS",
        help="the two adapters: a folder, a hub id or a published .pkl (default: those of the model)",
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add(
        "--dtype",
        "--mixed_precision",
        choices=("auto", "fp32", "bf16", "fp16", "no"),
        default="auto",
        help="auto: fp16 on CUDA, fp32 elsewhere",
    )

    add = parser.add_argument_group("picture").add_argument
    add("--upscale", type=at_least_one, default=4, help="any factor from 1 (default: 4)")
    add(
        "--process_size",
        type=positive_int,
        default=512,
        help="smaller pictures are first enlarged to give the model this many pixels (default: 512)",
    )
    add(
        "--color_fix",
        "--align_method",
        choices=("adain", "wavelet", "none", "nofix"),
        help="how the result gets the input's colours (default: the model's own way, adain if it names none)",
    )
    add("--prompt", default="", help="what the picture shows (default: nothing)")
    add(
        "--posterior",
        choices=("mean", "sample"),
        default="mean",
        help="the VAE's mean, or a sample of it as published (default: mean)",
    )
    add("--seed", type=int, default=42, help="for --posterior sample (default: 42)")

    add = parser.add_argument_group("memory").add_argument
    add(
        "--tile_size",
        "--latent_tiled_size",
        type=positive_int,
        metavar="N",
        help="UNet tile in latent pixels (default: 768 px of the picture, 96 for Stable Diffusion)",
    )
    add(
        "--tile_overlap",
        "--latent_tiled_overlap",
        type=whole,
        metavar="N",
        help="in latent pixels (default: a third of the tile)",
    )
    add(
        "--vae_tile_size",
        "--vae_encoder_tiled_size",
        type=positive_int,
        metavar="N",
        help="VAE tile in pixels of the picture; changes memory, not the result (default: 512)",
    )
    add(
        "--batch_size",
        type=positive_int,
        default=1,
        metavar="N",
        help="UNet tiles that go through at once; changes speed and memory (default: 1)",
    )
    add("--low_memory", action="store_true", help="halve what the VAE holds of a big picture, for more time")
    add(
        "--vae_decoder_tiled_size",
        type=positive_int,
        metavar="N",
        help="the same in latent pixels, as the published script has it; the smaller one rules",
    )


def normalise(argv: list[str]) -> list[str]:
    """Let options be spelled with hyphens, and let negative numbers and lists of them follow an option."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append("--" + name[2:].replace("-", "_") + equals + value)
        elif re.fullmatch(r"-[\d.][\d.,:eE+ -]*", word):
            words.append(" " + word)  # argparse would take "-0.5,1" for an option
        else:
            words.append(word)
    return words


def check_pipeline_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, and give the published values our names."""
    if args.tile_size and args.tile_overlap is not None and args.tile_overlap >= args.tile_size:
        parser.error(f"--tile_overlap {args.tile_overlap} must be below --tile_size {args.tile_size}")
    args.color_fix = {"nofix": "none"}.get(args.color_fix, args.color_fix)
    args.dtype = {"no": "fp32"}.get(args.dtype, args.dtype)


def pipeline_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What `PiSASRPipeline.__call__` and its sweeps are told beside the generator; known once the model is loaded."""
    return {
        "upscale": args.upscale,
        "process_size": args.process_size,
        "color_fix": args.color_fix,
        "tile_size": args.tile_size,
        "tile_overlap": args.tile_overlap,
        "vae_tile_size": args.vae_tile_size,
        "batch_size": args.batch_size,
        "low_memory": args.low_memory,
        "prompt": args.prompt,
        "posterior": args.posterior,
    }


# --- the model -------------------------------------------------------------------------------------------------------


def load_pipeline(args: argparse.Namespace) -> "PiSASRPipeline":
    """The model that the options name, on the device and in the dtype that they and the machine allow."""
    from pisasr.pipeline import PiSASRPipeline

    device = _choose_device(args.device)
    dtype = _choose_dtype(args.dtype, device)
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, adapters=args.adapters, torch_dtype=dtype).to(device)
    _fit_tiles(args, pipe.model.factor)
    return pipe


def _fit_tiles(args: argparse.Namespace, factor: int) -> None:
    """What could not be judged before the VAE's factor was known."""
    from pisasr.pipeline import Options

    if args.vae_decoder_tiled_size:
        args.vae_tile_size = min(args.vae_decoder_tiled_size * factor, args.vae_tile_size or math.inf)
    try:
        Options(tile_size=args.tile_size, tile_overlap=args.tile_overlap).tile_plan(factor)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _choose_device(name: str) -> str:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, available in there.items() if available)
    if not there[name]:
        raise UsageError(f"--device {name} is not available to this PyTorch; use --device auto or cpu")
    return name


def _choose_dtype(name: str, device: str) -> "torch.dtype":
    import torch

    if name == "auto":
        return torch.float16 if device == "cuda" else torch.float32
    if name == "fp16" and device == "cpu":
        print("fp16 needs a GPU; computing in fp32", file=sys.stderr)
        return torch.float32
    if name == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        print("this GPU has no bf16; computing in fp32", file=sys.stderr)
        return torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


# --- values ----------------------------------------------------------------------------------------------------------


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a finite number such as 0.5")
    return value


def at_least_one(text: str) -> float:
    value = finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text.strip()} is below 1; pictures are enlarged, or kept at their size")
    return value


def whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number from 0")
    return value


def positive_int(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number from 1")
    return value

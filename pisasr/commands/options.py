"""Options of the commands that run the model, and the model, device and dtype that they name.

Nothing here imports torch before a model is loaded.
"""

import argparse
import math
import os
import re
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pisasr.errors import WRONG_USAGE, OverlapError, UsageError, safe_text
from pisasr.options import Options

if TYPE_CHECKING:
    import torch

    from pisasr.pipeline import PiSASRPipeline


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one line, where argparse puts every option before it."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with WRONG_USAGE."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message} (see --help)\n")


def command_parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Start a command's parser: examples as they are written, whole names of options, --debug."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog, None, description, epilog, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def finite(text: str, least: float = -math.inf) -> float:
    """Parse a number that is neither infinite nor below `least`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        above = f", from {least:g} up" if math.isfinite(least) else ""
        raise UsageError(f"'{text.strip()}' is not a finite number{above}")
    return value


def whole(text: str, least: int = 0) -> int:
    """Parse a whole number that is not below `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"'{text.strip()}' is not a whole number from {least}")
    return value


positive_int = partial(whole, least=1)


def normalize(argv: list[str]) -> list[str]:
    """Let options be spelled with hyphens, and negative numbers follow one."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append("--" + name[2:].replace("-", "_") + equals + value)
        else:  # argparse would take "-0.5,1" for an option
            words.append(" " + word if re.fullmatch(r"-[\d.][\d.,:eE+ -]*", word) else word)
    return words


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add which model, where and in which numbers; the published script's names are aliases."""
    add = parser.add_argument_group("model").add_argument
    base = "base model: a folder or a hub id (default: the embedded one)"
    add("--pretrained_model", "--pretrained_model_path", metavar="MODEL", help=base)
    both = "the two adapters: a folder, a hub id or a published .pkl (default: those of the model)"
    add("--adapters", "--pretrained_path", metavar="ADAPTERS", help=both)
    devices = ("auto", "cpu", "cuda", "mps")
    add("--device", choices=devices, default="auto", help="default: %(default)s")
    dtypes = ("auto", "fp32", "bf16", "fp16")
    usual = "auto (default): fp16 on CUDA, bf16 on a CPU that multiplies it natively, else fp32"
    add("--dtype", "--mixed_precision", choices=dtypes, default="auto", help=usual)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of `Options` that has a group, and --seed."""
    groups = {name: parser.add_argument_group(name) for name in ("picture", "memory")}
    parsers: dict[type, Any] = {int: whole, float: finite}
    for each in fields(Options):
        about: Any = each.metadata
        if about["group"] is None:
            continue
        kind = parsers.get(about["kind"])
        if kind and about["least"] is not None:
            kind = partial(kind, least=about["least"])
        groups[about["group"]].add_argument(
            f"--{each.name}",
            *about["aliases"],
            type=kind or str,
            default=each.default,
            choices=about["choices"],
            metavar=None if about["choices"] else "N" if kind else "TEXT",
            help=about["help"],
        )
    sampled = "sample the VAE's posterior, as published (default: take its mean)"
    groups["picture"].add_argument("--seed", type=whole, metavar="N", help=sampled)


def pipeline_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of `Options`, by field. Raises UsageError for a contradiction."""
    named = [each.name for each in fields(Options) if hasattr(args, each.name)]
    options = {name: getattr(args, name) for name in named}
    try:
        Options(**options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return options


# --- the model ------------------------------------------------------------------------------------


def load_model(args: argparse.Namespace) -> "PiSASRPipeline":
    """Load the model that the options name, on the device and in the dtype that they allow."""
    import torch

    from pisasr.pipeline import PiSASRPipeline

    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    # The same bytes again from the same card and versions; products of full precision.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for kernels that ask for the current one
    load = PiSASRPipeline.from_pretrained
    return load(args.pretrained_model, adapters=args.adapters, torch_dtype=dtype).to(device)


def check_apart(output: Path, pretrained_model: str | None, adapters: str | None) -> None:
    """Raise OverlapError where an output would replace the model that it is made of."""
    from pisasr.models.bases import EMBEDDED

    output = output.resolve()
    for given in (pretrained_model or EMBEDDED, adapters):
        place = Path(given or os.devnull).expanduser().resolve()
        if place.is_dir() and output in (place, *place.parents):
            raise OverlapError(
                f"{safe_text(output)} holds what this is made of, {safe_text(place)};"
                " choose another folder"
            )


def choose_device(name: str) -> str:
    """Resolve `auto`; raise UsageError for a device that this PyTorch lacks.

    cuda is cuda:N where accelerate or torchrun started several processes.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if not {"cuda": cuda, "mps": mps, "cpu": True}[name]:
        raise UsageError(
            f"--device {name} is not available to this PyTorch; use --device auto or cpu"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return name


def choose_dtype(name: str, device: str) -> "torch.dtype":
    """Resolve `auto`; fp32, with a line on stderr, where the device can't do as told."""
    import torch

    from pisasr.pipeline import usual_dtype

    if name == "auto":
        return usual_dtype(device)
    no_bf16 = device.startswith("cuda") and not torch.cuda.is_bf16_supported()
    if (name == "fp16" and device == "cpu") or (name == "bf16" and no_bf16):
        print(f"this device has no {name}; computing in fp32", file=sys.stderr)
        return torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)


# --- several processes ----------------------------------------------------------------------------


def place_among_processes() -> tuple[int, int]:
    """(rank, count) by RANK and WORLD_SIZE, which launchers set; (0, 1) without them.

    Raises UsageError for anything else.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and count is None:
        return 0, 1
    if rank and count and rank.isdecimal() and count.isdecimal() and int(rank) < int(count):
        return int(rank), int(count)
    raise UsageError(f"RANK is {rank!r}, WORLD_SIZE {count!r}; set both, such as 0 and 2, or none")

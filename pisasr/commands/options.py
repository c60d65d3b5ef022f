"""The options of every command that runs the model, and what they stand for: which model, how, on
which device.

Nothing here waits for torch before a model is loaded.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
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
        """Say what is wrong, and leave with the exit code for it."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message} (see --help)\n")


def command_parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """What every command's parser has in common: examples as they are written, whole names of
    options, --debug.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog, None, description, epilog, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def finite(text: str, least: float = -math.inf, unit: str = "") -> float:
    """A number, and none that is infinite. unit: for the line that refuses one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a finite number such as 0.5")
    if value < least:
        raise argparse.ArgumentTypeError(f"{text.strip()} is below {least:g}{unit}; take more")
    return value


def whole(text: str, least: int = 0) -> int:
    """A whole number that is not below `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number from {least}")
    return value


positive_int = partial(whole, least=1)


def parse_lambdas(text: str) -> list[float]:
    """Parse a list of strengths such as "0,0.5,1": each once, in the order they come."""
    return list(dict.fromkeys(finite(part) for part in text.split(",")))


def place_among_processes() -> tuple[int, int]:
    """Return (rank, count) as accelerate, torchrun and Slurm scripts set them, else (0, 1)."""
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and count is None:
        return 0, 1
    if rank and count and rank.isdecimal() and count.isdecimal() and int(rank) < int(count):
        return int(rank), int(count)
    given = f"RANK is {rank!r} and WORLD_SIZE {count!r} in the environment"
    raise UsageError(f"{given}; a launcher sets both, such as 0 and 2: unset both, or set both")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, where and in which numbers; the published script's names are aliases of ours."""
    add = parser.add_argument_group("model").add_argument
    base = "base model: a folder or a hub id (default: the small model that comes with pisasr)"
    add("--pretrained_model", "--pretrained_model_path", metavar="MODEL", help=base)
    both = "the two adapters: a folder, a hub id or a published .pkl (default: those of the model)"
    add("--adapters", "--pretrained_path", metavar="ADAPTERS", help=both)
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="default: %(default)s",
    )
    dtypes = ("auto", "fp32", "bf16", "fp16", "no")
    usual = "default: %(default)s; auto is fp16 on CUDA, bf16 on a CPU that multiplies it natively, fp32 elsewhere"
    add("--dtype", "--mixed_precision", choices=dtypes, default="auto", help=usual)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """add_model_options, and a setting for each field of `Options` that has a group."""
    add_model_options(parser)
    kinds: dict[type, Callable[..., Any]] = {int: whole, float: finite}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in fields(Options):
        about = setting.metadata
        if about["group"] is None:
            continue
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        read = kinds.get(about["kind"])
        groups[about["group"]].add_argument(
            f"--{setting.name}",
            *about["aliases"],
            type=str if read is None else partial(read, least=about["least"]),
            default=setting.default,
            choices=about["choices"],
            metavar=None if about["choices"] else "N" if read else "TEXT",
            help=about["help"],
        )
    seed = "sample the VAE's posterior, from this seed and the input's name (default: its mean)"
    groups["picture"].add_argument("--seed", type=whole, metavar="N", help=seed)


def normalise(argv: list[str]) -> list[str]:
    """Let options be spelled with hyphens, and let negative numbers and lists of them follow an
    option.
    """
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
    """Refuse what contradicts itself."""
    if args.tile_size and args.tile_overlap is not None and args.tile_overlap >= args.tile_size:
        parser.error(
            f"--tile_overlap {args.tile_overlap} must be below --tile_size {args.tile_size}"
        )


def pipeline_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What `PiSASRPipeline.__call__` is told beside the generator; known once the
    model is loaded.
    """
    return {
        each.name: getattr(args, each.name) for each in fields(Options) if each.metadata["group"]
    }


# --- the model ------------------------------------------------------------------------------------


def load_model(args: argparse.Namespace) -> "PiSASRPipeline":
    """The model that the options name, on the device and in the dtype that they and the machine
    allow.
    """
    import torch

    from pisasr.pipeline import PiSASRPipeline

    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    choose_arithmetic()
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for kernels that ask for the current one
    pipe = PiSASRPipeline.from_pretrained(
        args.pretrained_model, adapters=args.adapters, torch_dtype=dtype
    ).to(device)
    return pipe


def choose_arithmetic() -> None:
    """On CUDA, for the whole process: the same bytes again from the same card and versions, and
    float32 products of full precision.
    """
    import torch

    cudnn = torch.backends.cudnn
    cudnn.benchmark = cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cudnn.deterministic = True


def check_apart(output: Path, pretrained_model: str | None, adapters: str | None) -> None:
    """OverlapError where what is written would take the place of the model or the adapters that it
    is made of.
    """
    from pisasr.models.bases import EMBEDDED

    output = output.resolve()
    for given in (pretrained_model or EMBEDDED, adapters):
        place = Path(given or os.devnull).expanduser().resolve()
        if place.is_dir() and output in (place, *place.parents):
            raise OverlapError(
                f"{safe_text(output)} holds what this is made of, {safe_text(place)}; choose another folder"
            )


def load_pipeline(args: argparse.Namespace) -> "PiSASRPipeline":
    """load_model; then what could not be judged before the VAE's factor was known: the tiles."""
    pipe = load_model(args)
    try:
        Options(
            tile_size=args.tile_size, tile_overlap=args.tile_overlap, tiling=args.tiling
        ).tile_plan(pipe.model.factor)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return pipe


def choose_device(name: str) -> str:
    """What `auto` stands for here; UsageError for a device that this PyTorch lacks.

    cuda is cuda:N where accelerate or torchrun started several processes: each has a GPU of its
    own, while there are.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UsageError(
            f"--device {name} is not available to this PyTorch; use --device auto or cpu"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return name


def choose_dtype(name: str, device: str) -> "torch.dtype":
    """What `auto` stands for there; fp32, and a line that says so, where the device can't do as
    told.
    """
    import torch

    from pisasr.pipeline import usual_dtype

    if name == "auto":
        return usual_dtype(device)
    if name == "fp16" and device == "cpu":
        print("fp16 needs a GPU; computing in fp32", file=sys.stderr)
        return torch.float32
    if name == "bf16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        print("this GPU has no bf16; computing in fp32", file=sys.stderr)
        return torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)

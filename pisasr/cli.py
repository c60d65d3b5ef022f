"""The `pisasr` command: infer, train, evaluate, convert.

Exit codes: 0 all fine, 1 nothing could start, 2 the command line is wrong, 3 some inputs failed, 130 interrupted.
Everything that needs torch is imported after the arguments are known to be good, so mistakes are answered at once.
"""

import argparse
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr import __version__
from pisasr.batch import (
    Found,
    Job,
    OverlapError,
    Report,
    Restore,
    check_output,
    explain,
    find_inputs,
    plan_jobs,
    remove_leftovers,
    restore_files,
    shown,
)
from pisasr.errors import PisasrError

if TYPE_CHECKING:
    import torch

    from pisasr.config import TrainConfig
    from pisasr.pipeline import PiSASRPipeline


class UsageError(PisasrError):
    """The command line asks for something that can't be."""


OK, NOTHING_STARTED, WRONG_USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

INFER_EXAMPLES = """examples:
  pisasr infer --input photo.jpg --output results
  pisasr infer --input photos "more/*.png" --output results --recursive --lambda_sem 0.7
  pisasr infer --input photo.jpg --output results --lambda_grid "0,0.5,1,1.5" "0,0.5,1,1.5"

lambda_pix takes away noise, blur and blocks; lambda_sem adds detail. (1, 0) is faithful, (1, 1) sharp.
Results are PNG, whatever the input was; what happened to every input is in OUTPUT/report.jsonl."""


TRAIN_EXAMPLES = """examples:
  pisasr train --config configs/demo.yaml run.output=runs/demo
  accelerate launch scripts/train.py --config configs/pisasr.yaml "data.photos=[photos]" run.output=runs/pisasr

run.output receives adapters/pix.safetensors, adapters/sem.safetensors, the resolved config.yaml and log.jsonl."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage leaves through SystemExit(2), as argparse has it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show must not end a batch
    parser = argparse.ArgumentParser(
        prog="pisasr",
        description="PiSA-SR: sharp photos from poor ones in one step.",
        epilog="\n".join(["commands:", *(f"  {name:10}{run.__doc__}" for name, run in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do; each has its own --help")
    command = parser.parse_args(argv[:1]).command
    return COMMANDS[command](argv[1:])


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command whose failures are one line; the traceback is for --debug."""
    try:
        return run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"pisasr: {shown(explain(error))}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, UsageError) else NOTHING_STARTED


# --- infer -----------------------------------------------------------------------------------------------------------


def infer(argv: list[str]) -> int:
    """Restore pictures: `pisasr infer --help`."""
    parser = infer_parser()
    args = parser.parse_args(_normalise(argv))
    _check_infer(parser, args)
    return _guarded(_infer, args)


def infer_parser() -> argparse.ArgumentParser:
    """Every option of `infer`; the published script's names are aliases of ours."""
    parser = argparse.ArgumentParser(
        prog="pisasr infer",
        description="Restore low-quality photos, enlarged and sharp.",
        epilog=INFER_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("files").add_argument
    add("--input", "--input_image", "-i", nargs="+", action="extend", required=True, metavar="PATH",
        help="pictures, folders or globs (PNG, JPEG, WebP, TIFF, BMP)")
    add("--output", "--output_dir", "-o", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    add("--recursive", action="store_true", help="go into sub-folders, and keep them in the output")
    add("--existing", choices=("overwrite", "skip", "error"), default="overwrite",
        help="when an output is there already (default: overwrite)")
    add("--max_input_pixels", type=_positive_int, metavar="N", help="refuse larger inputs (default: 64 million)")

    add = parser.add_argument_group("strengths").add_argument
    add("--lambda_pix", type=_finite, default=1.0, help="how much to repair (default: 1)")
    add("--lambda_sem", type=_finite, default=1.0, help="how much detail to add (default: 1)")
    add("--lambda_grid", nargs=2, type=_finite_list, metavar=("PIX", "SEM"),
        help='all pairs of two lists, "0,0.5,1" "0,1": a folder per input with every picture and a labelled sheet')
    add("--default", action="store_true", help="both strengths at 1, whatever else is said (published option)")

    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model", "--pretrained_model_path", metavar="MODEL",
        help="base model: a folder or a hub id (default: the small model that comes with pisasr)")
    add("--adapters", "--pretrained_path", metavar="ADAPTERS",
        help="the two adapters: a folder, a hub id or a published .pkl (default: those of the model)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("--dtype", "--mixed_precision", choices=("auto", "fp32", "bf16", "fp16", "no"), default="auto",
        help="auto: fp16 on CUDA, fp32 elsewhere")

    add = parser.add_argument_group("picture").add_argument
    add("--upscale", type=_factor, default=4, help="any factor from 1 (default: 4)")
    add("--process_size", type=_positive_int, default=512,
        help="smaller pictures are first enlarged to give the model this many pixels (default: 512)")
    add("--color_fix", "--align_method", choices=("adain", "wavelet", "none", "nofix"), default="adain",
        help="how the result gets the input's colours (default: adain)")
    add("--prompt", default="", help="what the picture shows (default: nothing)")
    add("--posterior", choices=("mean", "sample"), default="mean",
        help="the VAE's mean, or a sample of it as published (default: mean)")
    add("--seed", type=int, default=42, help="for --posterior sample (default: 42)")

    add = parser.add_argument_group("memory").add_argument
    add("--tile_size", "--latent_tiled_size", type=_positive_int, metavar="N",
        help="UNet tile in latent pixels (default: 768 px of the picture, 96 for Stable Diffusion)")
    add("--tile_overlap", "--latent_tiled_overlap", type=_whole, metavar="N",
        help="in latent pixels (default: a third of the tile)")
    add("--vae_tile_size", "--vae_encoder_tiled_size", type=_positive_int, metavar="N",
        help="VAE tile in pixels of the picture; changes memory, not the result (default: 512)")
    add("--vae_decoder_tiled_size", type=_positive_int, metavar="N",
        help="the same in latent pixels, as the published script has it; the smaller one rules")

    add = parser.add_argument_group("talk").add_argument
    add("--quiet", action="store_true", help="say nothing but what failed")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _normalise(argv: list[str]) -> list[str]:
    """Let options be spelled with hyphens, and let negative numbers and lists of them follow an option."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append("--" + name[2:].replace("-", "_") + equals + value)
        elif re.fullmatch(r"-[\d.][\d.,eE+ -]*", word):
            words.append(" " + word)  # argparse would take "-0.5,1" for an option
        else:
            words.append(word)
    return words


def _check_infer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.tile_size and args.tile_overlap is not None and args.tile_overlap >= args.tile_size:
        parser.error(f"--tile_overlap {args.tile_overlap} must be below --tile_size {args.tile_size}")
    if args.default and args.lambda_grid:
        parser.error("--default fixes both strengths, --lambda_grid varies them: leave one of them out")
    if args.default:
        args.lambda_pix = args.lambda_sem = 1.0
    args.color_fix = {"nofix": "none"}.get(args.color_fix, args.color_fix)
    args.dtype = {"no": "fp32"}.get(args.dtype, args.dtype)


def _infer(args: argparse.Namespace) -> int:
    pairs = [(pix, sem) for pix in args.lambda_grid[0] for sem in args.lambda_grid[1]] if args.lambda_grid else []
    jobs = _plan(args, [f"pix{pix:.15g}_sem{sem:.15g}" for pix, sem in pairs])
    check_output(args.output)
    remove_leftovers(jobs)
    pipe = load_pipeline(args)
    restore = _restorer(pipe, args, pairs)
    with Report(args.output, len(jobs), args.quiet) as report:
        restore_files(jobs, restore, report, args.existing, args.seed, args.max_input_pixels, args.debug)
    return SOME_FAILED if report.counts["failed"] else OK


def _plan(args: argparse.Namespace, variants: list[str]) -> list[Job]:
    try:
        inputs = find_inputs(args.input, args.output, args.recursive)
        _check_inputs(args.input, inputs)
        return plan_jobs(inputs, args.output, [*variants, "grid"] if variants else [])
    except OverlapError as error:
        raise UsageError(str(error)) from None


def _check_inputs(asked: list[str], inputs: list[Found]) -> None:
    if any(found.status == "ready" for found in inputs):
        return
    reasons = [f"{found.path}: {found.reason}" for found in inputs[:3]]
    looked = "looked for png, jpg, webp, tif, bmp; --recursive goes deeper"
    more = "; ..." if len(inputs) > 3 else ""
    raise PisasrError(f"no images in {', '.join(asked)} ({'; '.join(reasons)}{more}; {looked})")


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


def _restorer(pipe: "PiSASRPipeline", args: argparse.Namespace, pairs: list[tuple[float, float]]) -> Restore:
    """What to do with one picture: one result, or one for every pair of strengths and a sheet of them all."""
    from pisasr.grid import draw_sheet

    settings = {
        "upscale": args.upscale,
        "process_size": args.process_size,
        "color_fix": args.color_fix,
        "tile_size": args.tile_size,
        "tile_overlap": args.tile_overlap,
        "vae_tile_size": args.vae_tile_size,
        "prompt": args.prompt,
        "posterior": args.posterior,
    }

    def restore(image, seed):
        if not pairs:
            return pipe(image, args.lambda_pix, args.lambda_sem, generator=seed, **settings).images
        pictures = pipe.sweep(image, pairs, generator=seed, **settings)
        return [*pictures, draw_sheet(pictures, *args.lambda_grid)]

    return restore


# --- convert, train, evaluate ----------------------------------------------------------------------------------------


def convert(argv: list[str]) -> int:
    """Turn the published checkpoint into safetensors: `pisasr convert --help`."""
    parser = argparse.ArgumentParser(
        prog="pisasr convert",
        description="Turn the published pisa_sr.pkl into OUT/pix.safetensors and OUT/sem.safetensors.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="pisa_sr.pkl; read without running any code in it")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder, to be given to infer as --adapters")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return _guarded(_convert, parser.parse_args(argv))


def _convert(args: argparse.Namespace) -> int:
    from pisasr.weights import convert_release, save_adapter

    adapters = convert_release(args.checkpoint)
    check_output(args.output)
    for adapter in adapters:
        path = args.output / f"{adapter.name}.safetensors"
        save_adapter(path, adapter)
        print(f"{shown(path)}: {adapter.name}, rank {adapter.rank}, {len(adapter.targets)} layers")
    return OK


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    parser = argparse.ArgumentParser(
        prog="pisasr train",
        description="Train the two adapters, as a file of options says; the same command continues an interrupted run.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML over the defaults in pisasr/config.py")
    parser.add_argument("--dry_run", "--dry-run", action="store_true",
        help="print the resolved options and what a step costs, and stop")
    parser.add_argument("--allow_change", "--allow-change", action="store_true",
        help="continue a run although its photos, processes or settings differ")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="rules over the file")
    return _guarded(_train, parser.parse_intermixed_args(argv))


def _train(args: argparse.Namespace) -> int:
    from pisasr.config import ConfigError, load_config

    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    if args.dry_run:
        return _print_plan(config)
    from pisasr.training.guard import Interrupted
    from pisasr.training.trainer import train as train_adapters

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        train_adapters(config, args.allow_change)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except Interrupted as stop:
        print(f"pisasr: {stop}", file=sys.stderr)
        return 128 + stop.number
    return OK


def _print_plan(config: "TrainConfig") -> int:
    """Every setting, and what a step would cost; by the first of several processes alone."""
    if os.environ.get("RANK", "0") != "0":
        return OK
    from pisasr.config import ConfigError, to_yaml
    from pisasr.training.estimate import estimate, render

    print(to_yaml(config), flush=True)
    try:
        print(render(estimate(config, int(os.environ.get("WORLD_SIZE", 1)))))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return OK


def evaluate(argv: list[str]) -> int:
    """Score folders of results: `pisasr evaluate --help`."""
    from pisasr.evaluation.cli import main as run

    return run(argv)


COMMANDS = {"infer": infer, "train": train, "evaluate": evaluate, "convert": convert}


# --- values ----------------------------------------------------------------------------------------------------------


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a finite number such as 0.5")
    return value


def _finite_list(text: str) -> list[float]:
    return list(dict.fromkeys(_finite(part) for part in text.split(",")))


def _factor(text: str) -> float:
    value = _finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text.strip()} is below 1; pictures are enlarged, or kept at their size")
    return value


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number from 0")
    return value


def _positive_int(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number from 1")
    return value


if __name__ == "__main__":
    sys.exit(main())

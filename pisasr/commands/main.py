"""The `pisasr` command: infer, train, evaluate, convert.

Exit codes: 0 all fine, 1 nothing could start, 2 the command line is wrong, 3 some inputs failed, 130 interrupted.
Everything that needs torch is imported after the arguments are known to be good, so mistakes are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr import __version__
from pisasr.commands.batch import (
    Job,
    Report,
    Restore,
    check_output,
    plan_jobs,
    remove_leftovers,
    restore_files,
)
from pisasr.commands.exits import OK, SOME_FAILED, guarded
from pisasr.commands.options import (
    add_pipeline_options,
    check_pipeline_options,
    finite,
    load_pipeline,
    normalise,
    pipeline_settings,
    positive_int,
)
from pisasr.errors import PisasrError, shown
from pisasr.evaluation.rules import Pair, describe, parse_lambdas, parse_rule, pick
from pisasr.pictures.folders import Found, find_inputs

if TYPE_CHECKING:
    from PIL import Image

    from pisasr.evaluation.metrics import Scorer
    from pisasr.pipeline import PiSASRPipeline

AUTO_LAMBDAS = "0:1.5:0.25"  # both strengths' candidates for --lambda_auto

INFER_EXAMPLES = """examples:
  pisasr infer --input photo.jpg --output results
  pisasr infer --input photos "more/*.png" --output results --recursive --lambda_sem 0.7
  pisasr infer --input photo.jpg --output results --lambda_grid "0,0.5,1,1.5" "0:1.5:0.5"
  pisasr infer --input photos --output results --lambda_auto "niqe where psnr_lq >= 30"

lambda_pix takes away noise, blur and blocks; lambda_sem adds detail. (1, 0) is faithful, (1, 1) sharp.
Results are PNG, whatever the input was; what happened to every input is in OUTPUT/report.jsonl."""


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


# --- infer -----------------------------------------------------------------------------------------------------------


def infer(argv: list[str]) -> int:
    """Restore pictures: `pisasr infer --help`."""
    parser = infer_parser()
    args = parser.parse_args(normalise(argv))
    _check_infer(parser, args)
    return guarded(_infer, args)


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
    add(
        "--input",
        "--input_image",
        "-i",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="pictures, folders or globs (PNG, JPEG, WebP, TIFF, BMP)",
    )
    add("--output", "--output_dir", "-o", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    add("--recursive", action="store_true", help="go into sub-folders, and keep them in the output")
    add(
        "--existing",
        choices=("overwrite", "skip", "error"),
        default="overwrite",
        help="when an output is there already (default: overwrite)",
    )
    add("--max_input_pixels", type=positive_int, metavar="N", help="refuse larger inputs (default: 64 million)")

    add = parser.add_argument_group("strengths").add_argument
    add("--lambda_pix", type=finite, help="how much to repair (default: 1)")
    add("--lambda_sem", type=finite, help="how much detail to add (default: 1)")
    add(
        "--lambda_grid",
        nargs=2,
        type=parse_lambdas,
        metavar=("PIX", "SEM"),
        help='all pairs of two lists, "0,0.5,1" or "0:1.5:0.25" (start:stop:step): a folder per input with every '
        "picture and a labelled sheet",
    )
    add(
        "--lambda_auto",
        type=parse_rule,
        metavar="RULE",
        help=f'for each picture the pair of --lambda_grid (default: "{AUTO_LAMBDAS}" twice) that is best by a rule, '
        '"METRIC" or "METRIC where METRIC >= X and ..."; only metrics that need no true picture',
    )
    add(
        "--weights",
        type=Path,
        default=os.environ.get("PISASR_WEIGHTS") or None,
        metavar="DIR",
        help="files that the rule's metrics need (default: $PISASR_WEIGHTS)",
    )
    add("--default", action="store_true", help="both strengths at 1, whatever else is said (published option)")
    add_pipeline_options(parser)

    add = parser.add_argument_group("talk").add_argument
    add("--quiet", action="store_true", help="say nothing but what failed")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _check_infer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_pipeline_options(parser, args)
    if args.default and args.lambda_grid:
        parser.error("--default fixes both strengths, --lambda_grid varies them: leave one of them out")
    if args.lambda_auto:
        _check_auto(parser, args)
    elif args.lambda_grid and (fixed := _fixed_strengths(args)):
        parser.error(f"--{fixed[0]} fixes a strength, --lambda_grid varies both: leave one of them out")
    if args.default:
        args.lambda_pix = args.lambda_sem = 1.0
    args.lambda_pix = 1.0 if args.lambda_pix is None else args.lambda_pix
    args.lambda_sem = 1.0 if args.lambda_sem is None else args.lambda_sem


def _fixed_strengths(args: argparse.Namespace) -> list[str]:
    return [name for name in ("lambda_pix", "lambda_sem") if getattr(args, name) is not None]


def _check_auto(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from pisasr.evaluation.metrics import METRICS

    fixed = _fixed_strengths(args)
    if fixed or args.default:
        said = "--default" if args.default else f"--{fixed[0]}"
        parser.error(f"{said} fixes strengths, --lambda_auto chooses them: leave one of them out")
    allowed = [name for name, metric in METRICS.items() if metric.needs in (None, "lq")]
    for name in args.lambda_auto.metrics:
        if name not in allowed:
            parser.error(f"--lambda_auto: {name} needs a true picture; without one there are {', '.join(allowed)}")
    args.lambda_grid = args.lambda_grid or [parse_lambdas(AUTO_LAMBDAS)] * 2


def _infer(args: argparse.Namespace) -> int:
    pairs = [(pix, sem) for pix in args.lambda_grid[0] for sem in args.lambda_grid[1]] if args.lambda_grid else []
    jobs = _plan(args, [] if args.lambda_auto else [f"pix{pix:.15g}_sem{sem:.15g}" for pix, sem in pairs])
    scorers = _find_scorers(args)
    check_output(args.output)
    remove_leftovers(jobs)
    pipe = load_pipeline(args)
    restore = _restorer(pipe, args, pairs, scorers)
    with Report(args.output, len(jobs), args.quiet) as report:
        restore_files(jobs, restore, report, args.existing, args.seed, args.max_input_pixels, args.debug)
    return SOME_FAILED if report.counts["failed"] else OK


def _plan(args: argparse.Namespace, variants: list[str]) -> list[Job]:
    inputs = find_inputs(args.input, args.output, args.recursive)
    _check_inputs(args.input, inputs)
    return plan_jobs(inputs, args.output, [*variants, "grid"] if variants else [])


def _check_inputs(asked: list[str], inputs: list[Found]) -> None:
    if any(found.status == "ready" for found in inputs):
        return
    reasons = [f"{found.path}: {found.reason}" for found in inputs[:3]]
    looked = "looked for png, jpg, webp, tif, bmp; --recursive goes deeper"
    more = "; ..." if len(inputs) > 3 else ""
    raise PisasrError(f"no images in {', '.join(asked)} ({'; '.join(reasons)}{more}; {looked})")


def _find_scorers(args: argparse.Namespace) -> "dict[str, Scorer]":
    """The rule's metrics; PisasrError if one can't be had here, since no other could take its place."""
    if not args.lambda_auto:
        return {}
    from pisasr.evaluation.scorers import load_scorers

    scorers, missing = load_scorers(args.lambda_auto.metrics, weights=args.weights)
    if missing:
        raise PisasrError("--lambda_auto: " + "; ".join(f"no {name} here: {why}" for name, why in missing.items()))
    return scorers


def _restorer(
    pipe: "PiSASRPipeline", args: argparse.Namespace, pairs: list[Pair], scorers: "dict[str, Scorer]"
) -> Restore:
    """What to do with one picture: one result; or one for every pair and a sheet of them all; or the rule's choice."""
    from pisasr.pictures.sheets import draw_sheet

    settings = pipeline_settings(args)

    def restore(image, seed):
        return pipe(image, args.lambda_pix, args.lambda_sem, generator=seed, **settings).images

    def restore_grid(image, seed):
        pictures = pipe.sweep(image, pairs, generator=seed, **settings)
        return [*pictures, draw_sheet(pictures, *args.lambda_grid)]

    def restore_best(image, seed):
        pictures = pipe.sweep_lazily(image, pairs, generator=seed, **settings)
        choice, picture = pick(args.lambda_auto, _score_each(pairs, pictures, image, scorers))
        image.info["notices"].append(describe(args.lambda_auto, choice))
        image.info["fields"] = dict(zip(("lambda_pix", "lambda_sem"), choice.pair, strict=True))
        return [picture]

    return restore_best if args.lambda_auto else restore_grid if pairs else restore


def _score_each(
    pairs: list[Pair], pictures: Iterable["Image.Image"], image: "Image.Image", scorers: "dict[str, Scorer]"
) -> Iterator[tuple[Pair, dict[str, float], "Image.Image"]]:
    """(pair, scores, picture) for each picture, judged as its 8-bit file holds it, beside the input; without alpha."""
    import numpy as np

    from pisasr.pictures.images import split

    lq = np.asarray(split(image)[0])
    for pair, picture in zip(pairs, pictures, strict=True):
        sr = np.asarray(split(picture)[0])
        yield pair, {name: scorer(sr, None, lq) for name, scorer in scorers.items()}, picture


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
    return guarded(_convert, parser.parse_args(argv))


def _convert(args: argparse.Namespace) -> int:
    from pisasr.models.weights import convert_release, save_adapter

    adapters = convert_release(args.checkpoint)
    check_output(args.output)
    for adapter in adapters:
        path = args.output / f"{adapter.name}.safetensors"
        save_adapter(path, adapter)
        print(f"{shown(path)}: {adapter.name}, rank {adapter.rank}, {len(adapter.targets)} layers")
    return OK


def train(argv: list[str]) -> int:
    """Train the two adapters: `pisasr train --help`."""
    from pisasr.commands.train import train as run

    return run(argv)


def evaluate(argv: list[str]) -> int:
    """Score folders of results: `pisasr evaluate --help`."""
    from pisasr.commands.evaluate import main as run

    return run(argv)


COMMANDS = {"infer": infer, "train": train, "evaluate": evaluate, "convert": convert}


if __name__ == "__main__":
    sys.exit(main())

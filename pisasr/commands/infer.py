"""`pisasr infer`: pictures in, restored pictures and a report out."""

import argparse
import os
from collections.abc import Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisasr.commands.batch import Report, Restore, Result, check_output, plan_tasks, restore_files
from pisasr.commands.options import (
    add_model_options,
    add_pipeline_options,
    command_parser,
    finite,
    load_model,
    normalize,
    pipeline_options,
    place_among_processes,
)
from pisasr.errors import OK, SOME_FAILED, PisasrError, UsageError, guarded, safe_text
from pisasr.options import Options, OutputType
from pisasr.pictures.folders import Input, find_inputs

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture
    from pisasr.pictures.metadata import Metadata
    from pisasr.pipeline import PiSASRPipeline

STRENGTHS = ("lambda_pix", "lambda_sem")

EXAMPLES = """examples:
  pisasr infer --input photo.jpg --output results
  pisasr infer --input photos "more/*.png" --output results --recursive --lambda_sem 0.7
  pisasr infer --input photos --output grid --lambda_grid 0,0.5,1,1.5 0,1
  pisasr infer --input photo.jpg --output results --lambda_sem 1.2 --lambda_sem_map hair.png
  torchrun --nproc_per_node 4 -m pisasr.commands.main infer --input photos --output results
  RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=$SLURM_ARRAY_TASK_COUNT pisasr infer --input photos

lambda_pix takes away noise, blur and blocks; lambda_sem adds detail. (1, 0) is faithful, (1, 1)
sharp. What happened to every input is in OUTPUT/report.jsonl."""


def infer(argv: list[str]) -> int:
    """Restore pictures: `pisasr infer --help`."""
    parser = infer_parser()
    args = parser.parse_args(normalize(argv))
    try:
        _check(args)
    except UsageError as error:
        parser.error(str(error))
    return guarded(lambda: _infer(args), args.debug)


def infer_parser() -> argparse.ArgumentParser:
    """Build the parser of `infer`; the published script's names are aliases."""
    parser = command_parser(
        "pisasr infer", "Restore low-quality photos, enlarged and sharp.", EXAMPLES
    )
    add = parser.add_argument_group("files").add_argument
    inputs: Any = {"nargs": "+", "action": "extend", "required": True, "metavar": "PATH"}
    what = "pictures, folders or globs (PNG, JPEG, WebP, TIFF, BMP)"
    add("--input", "--input_image", "-i", **inputs, help=what)
    output: Any = {"type": Path, "default": Path("results"), "metavar": "DIR"}
    add("--output", "--output_dir", "-o", **output, help="default: %(default)s")
    add("--recursive", action="store_true", help="go into sub-folders, and keep them in the output")
    choices, there = ("overwrite", "skip", "error"), "when an output is there (default: overwrite)"
    add("--existing", choices=choices, default="overwrite", help=there)
    bits = "of each channel of the results (default: 8); 16 is PNG alone"
    add("--bits", type=int, choices=(8, 16), default=8, help=bits)
    endings = ("png", "jpg", "webp", "tif", "same")
    add("--format", choices=endings, default="png", help="same: each input's (default: png)")
    kept = "keep the input's EXIF, with the place where it was taken, and say how it was made"
    add("--keep_metadata", action="store_true", help=kept)

    add = parser.add_argument_group("strengths").add_argument
    add("--lambda_pix", type=finite, metavar="X", help="how much to repair (default: 1)")
    add("--lambda_sem", type=finite, metavar="X", help="how much detail to add (default: 1)")
    where = "a gray picture over the input, black is 0, white --{}; or a folder with one for each"
    for name in STRENGTHS:
        add(f"--{name}_map", type=Path, metavar="FILE", help=where.format(name))
    grid = """all pairs of two lists such as 0,0.5,1, each in a folder OUTPUT/pixA_semB; and in
        OUTPUT/grid a labelled sheet of them for each picture"""
    add("--lambda_grid", nargs=2, type=parse_strengths, metavar=("PIX", "SEM"), help=grid)
    add_model_options(parser)
    add_pipeline_options(parser)
    return parser


def parse_strengths(text: str) -> list[float]:
    """Parse "0,0.5,1" as numbers without doubles."""
    return list(dict.fromkeys(finite(word) + 0.0 for word in text.split(",")))  # -0 is 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other; fill in the strengths."""
    pipeline_options(args)
    fixed = [f"{name}{end}" for name in STRENGTHS for end in ("", "_map")]
    fixed = [name for name in fixed if getattr(args, name) is not None]
    if fixed and args.lambda_grid:
        raise UsageError(f"--{fixed[0]} and --lambda_grid: leave one of them out")
    if args.bits == 16 and args.format != "png":
        raise UsageError(f"--bits 16 is written as PNG alone, --format is {args.format}")
    for name in STRENGTHS:
        place = getattr(args, f"{name}_map")
        if place and not place.exists():
            raise UsageError(f"--{name}_map {safe_text(place)}: no such file or folder")
        if getattr(args, name) is None:
            setattr(args, name, 1.0)


def _infer(args: argparse.Namespace) -> int:
    inputs = find_inputs(args.input, args.output, args.recursive)
    _check_inputs(args, inputs)
    rank, count = place_among_processes()
    pairs = list(product(*args.lambda_grid)) if args.lambda_grid else []
    variants = [f"pix{pix:.15g}_sem{sem:.15g}" for pix, sem in pairs] + ["grid"] if pairs else []
    suffix = None if args.format == "same" else f".{args.format}"
    tasks = plan_tasks(inputs, args.output, variants, suffix)[rank::count]
    name = "report.jsonl" if count == 1 else f"report.{rank + 1}of{count}.jsonl"
    check_output(args.output, name)
    pipe = load_model(args) if tasks else None
    report = Report(args.output / name, len(tasks))
    try:
        if pipe is not None:
            restore = _restorer(pipe, args, report)
            restore_files(tasks, restore, report, args.existing, args.debug)
    finally:
        report.close()
    if count > 1 and "MASTER_ADDR" in os.environ:
        _wait_for_others()
    return SOME_FAILED if report.counts["failed"] else OK


def _check_inputs(args: argparse.Namespace, inputs: Sequence[Input]) -> None:
    ready = sum(each.status == "ready" for each in inputs)
    if not ready:
        reasons = [f"{each.path}: {each.reason}" for each in inputs[:3]]
        reasons += ["..."] * (len(inputs) > 3)
        raise PisasrError(f"no images in {', '.join(args.input)} ({'; '.join(reasons)})")
    for name in STRENGTHS:
        place = getattr(args, f"{name}_map")
        if place and ready > 1 and not place.is_dir():
            raise UsageError(
                f"--{name}_map is one file and {ready} pictures came; give a folder with a map for"
                " each, by its name"
            )


def _wait_for_others() -> None:
    """Wait: a launcher ends all processes when one leaves with a code other than 0."""
    from datetime import timedelta

    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()
    distributed.destroy_process_group()


def _restorer(pipe: "PiSASRPipeline", args: argparse.Namespace, report: Report) -> Restore:
    """Make the function from a picture to its result, or its results for every pair and a sheet."""
    from pisasr.pictures.images import eight_bits
    from pisasr.pictures.sheets import draw_sheet

    try:
        Options(**pipeline_options(args)).tile_plan(pipe.model.factor, pipe.unet)
    except ValueError as error:
        raise UsageError(str(error)) from None
    output_type: OutputType = "uint16" if args.bits == 16 else "pil"
    pairs = list(product(*args.lambda_grid)) if args.lambda_grid else []

    def options_for(name: Path) -> dict[str, Any]:
        options = {**pipeline_options(args), "output_type": output_type}
        if args.seed is not None:
            options["generator"] = picture_seed(args.seed, name)
        return options

    def restore(picture: "Picture", name: Path) -> Result:
        (pix, sem), note = _strengths_of(args, name)
        (result,) = pipe(picture, pix, sem, report.on_tile, **options_for(name)).images
        return Result([result], [_metadata(pipe, args, picture, (pix, sem))], note)

    def restore_grid(picture: "Picture", name: Path) -> Result:
        prediction = pipe.predict(picture, report.on_tile, **options_for(name))
        results = [pipe.decode(prediction, pix, sem, output_type) for pix, sem in pairs]
        sheet = draw_sheet([eight_bits(result) for result in results], *args.lambda_grid)
        metadata = [_metadata(pipe, args, picture, pair) for pair in [*pairs, args.lambda_grid]]
        return Result([*results, sheet], metadata)

    def announce(picture: "Picture", name: Path) -> Result:
        report.begin(name, pipe.working_size(picture, **pipeline_options(args)))
        return (restore_grid if pairs else restore)(picture, name)

    return announce


def _strengths_of(args: argparse.Namespace, name: Path) -> tuple[list[Any], str]:
    """[lambda_pix, lambda_sem] of an input, numbers or maps, and a note where it has no map."""
    from pisasr.pictures.maps import find_map, read_map

    strengths, notes = [], []
    for strength in STRENGTHS:
        number, place = getattr(args, strength), getattr(args, f"{strength}_map")
        file = find_map(place, name) if place else None
        strengths.append(read_map(file, number) if file else number)
        if place and not file:
            notes.append(f"no map in {safe_text(place)}, {strength} is {number:g} everywhere")
    return strengths, "; ".join(notes)


def _metadata(
    pipe: "PiSASRPipeline", args: argparse.Namespace, picture: "Picture", strengths: Sequence[Any]
) -> "Metadata | None":
    """What a result's file says, if --keep_metadata is set."""
    from pisasr.pictures.metadata import Metadata, made_with

    if not args.keep_metadata:
        return None
    made: dict[str, Any] = dict(zip(STRENGTHS, map(_words_for, strengths), strict=True))
    made |= {**pipeline_options(args), "seed": args.seed}
    return Metadata(made_with(pipe.identity, made), picture.exif)


def _words_for(strength: Any) -> str:
    if isinstance(strength, list):
        return "/".join(map(_words_for, strength))
    return f"{strength:.15g}" if isinstance(strength, float) else "by a map"


def picture_seed(seed: int, name: Path) -> int:
    """63 bits for a seed and a picture's name: neither order nor company changes a result."""
    text = f"{seed}/{name.as_posix()}".encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(text).digest()[:8], "big") >> 1

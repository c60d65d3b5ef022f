"""argv in, exit code out: `pisasr infer`, pictures in, restored pictures out, and a report of what
happened to each.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pisasr.commands.batch import (
    Made,
    Report,
    Restore,
    Shard,
    check_output,
    launched,
    parse_shard,
    plan_jobs,
    remove_leftovers,
    restore_files,
    share_of,
)
from pisasr.commands.options import (
    add_pipeline_options,
    check_pipeline_options,
    command_parser,
    finite,
    load_pipeline,
    normalise,
    parse_lambdas,
    pipeline_settings,
    positive_int,
)
from pisasr.errors import OK, SOME_FAILED, PisasrError, UsageError, guarded, safe_text
from pisasr.pictures.folders import Found, find_inputs
from pisasr.signals import ENDING, StopRequests

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture
    from pisasr.pictures.saving import Metadata
    from pisasr.pipeline import PiSASRPipeline

# Where they are installed, diffusers and transformers import them, a quarter of the start-up, for
# models not used here.
UNUSED = ("scipy", "torchvision")
LAMBDAS = ("lambda_pix", "lambda_sem")

EXAMPLES = """examples:
  pisasr infer --input photo.jpg --output results
  pisasr infer --input photos "more/*.png" --output results --recursive --lambda_sem 0.7
  pisasr infer --input photo.jpg --output results --lambda_grid 0,0.5,1,1.5 0,0.5,1
  pisasr infer --input photo.jpg --output results --lambda_sem 1.2 --lambda_sem_map hair.png
  pisasr infer --input photos --output results --format same --keep_metadata

lambda_pix takes away noise, blur and blocks; lambda_sem adds detail. (1, 0) is faithful, (1, 1) sharp.
Results are PNG, unless --format says otherwise; what happened to every input is in OUTPUT/report.jsonl."""


def infer(argv: list[str]) -> int:
    """Restore pictures: `pisasr infer --help`."""
    parser = infer_parser()
    args = parser.parse_args(normalise(argv))
    _check_infer(parser, args)
    return guarded(lambda: _infer(args), args.debug)


def infer_parser() -> argparse.ArgumentParser:
    """Every option of `infer`; the published script's names are aliases of ours."""
    parser = command_parser(
        "pisasr infer", "Restore low-quality photos, enlarged and sharp.", EXAMPLES
    )
    add = parser.add_argument_group("files").add_argument
    names, given = (
        ("--input", "--input_image", "-i"),
        "pictures, folders or globs (PNG, JPEG, WebP, TIFF, BMP)",
    )
    add(*names, nargs="+", action="extend", required=True, metavar="PATH", help=given)
    add(
        "--output",
        "--output_dir",
        "-o",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="default: results",
    )
    add("--recursive", action="store_true", help="go into sub-folders, and keep them in the output")
    choices, there = (
        ("overwrite", "skip", "error"),
        "when an output is there already (default: overwrite)",
    )
    add("--existing", choices=choices, default="overwrite", help=there)
    share = "do the I-th of N shares, as a Slurm array does; with --existing skip a rerun makes what is missing"
    add("--shard", type=parse_shard, default=Shard(), metavar="I/N", help=share)
    bits = "of each channel of the results (default: 8); inputs of sixteen bits are read as such either way"
    add("--bits", type=int, choices=(8, 16), default=8, help=bits)
    formats = "of the results: as the input's name has it with `same`, where it can be; jpg loses a little"
    add(
        "--format",
        choices=("png", "jpg", "webp", "tif", "same"),
        default="png",
        help=f"{formats} (default: png)",
    )
    kept = "the results' files tell the input's EXIF, with the place where it was taken, and how they were made"
    add("--keep_metadata", action="store_true", help=f"{kept} (default: the picture alone)")
    add(
        "--max_input_pixels",
        type=positive_int,
        metavar="N",
        help="refuse larger inputs (default: 64 million)",
    )

    add = parser.add_argument_group("strengths").add_argument
    add("--lambda_pix", type=finite, help="how much to repair (default: 1)")
    add("--lambda_sem", type=finite, help="how much detail to add (default: 1)")
    where = """a grey picture over the input, 8 or 16 bits, in its proportions: white is --{}, black 0;
        or a folder with such pictures by the inputs' names"""
    for name in LAMBDAS:
        add(f"--{name}_map", type=Path, metavar="FILE", help=where.format(name))
    grid = """all pairs of two lists such as 0,0.5,1: a folder per input, with a sheet"""
    add("--lambda_grid", nargs=2, type=parse_lambdas, metavar=("PIX", "SEM"), help=grid)
    add(
        "--default",
        action="store_true",
        help="both strengths at 1, whatever else is said (published option)",
    )
    add_pipeline_options(parser)
    parser.add_argument("--quiet", action="store_true", help="say nothing but what failed")
    return parser


def _check_infer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that contradict each other; then fill in the strengths."""
    check_pipeline_options(parser, args)
    fixed = ["default"] * args.default + [n for n in LAMBDAS if getattr(args, n) is not None]
    if fixed and args.lambda_grid:
        parser.error(
            f"--{fixed[0]} fixes strengths, --lambda_grid varies both: leave one of them out"
        )
    for name in (f"{name}_map" for name in LAMBDAS if getattr(args, f"{name}_map")):
        if other := next(
            (o for o in ("lambda_grid", "default") if getattr(args, o)), None
        ):
            parser.error(
                f"--{name} varies a strength by place, --{other} sets it for the whole: leave one of them out"
            )
        if not getattr(args, name).exists():
            parser.error(f"--{name} {safe_text(getattr(args, name))}: no such file or folder")
    if args.bits == 16 and args.format != "png":
        parser.error(
            f"--bits 16 is written as PNG alone, --format {args.format} is not: leave one of them out"
        )
    for name in LAMBDAS:
        if args.default or getattr(args, name) is None:
            setattr(args, name, 1.0)


def _infer(args: argparse.Namespace) -> int:
    pairs = list(product(*args.lambda_grid)) if args.lambda_grid else []
    variants = [f"pix{pix:.15g}_sem{sem:.15g}" for pix, sem in pairs] + ["grid"] if pairs else []
    inputs = find_inputs(args.input, args.output, args.recursive)
    _check_inputs(args.input, inputs)
    _check_maps(args, inputs)
    process = launched()
    share = share_of(args.shard, process)
    suffix = None if args.format == "same" else f".{args.format}"
    jobs = share.of(plan_jobs(inputs, args.output, variants, suffix))
    check_output(args.output)
    remove_leftovers((target for job in jobs for target in job.targets), is_alone=share.count == 1)
    with _unseen(*UNUSED):
        pipe = load_pipeline(args) if jobs else None
    with Report(args.output, len(jobs), args.quiet, share.report_name) as report:
        if pipe is not None:
            alone = pairs or args.lambda_pix_map or args.lambda_sem_map
            batch: tuple[int, int] = (
                (1, 0)
                if args.batch_size == 1 or alone
                else (args.batch_size, _small_pixels(pipe, args))
            )
            restore = _restorer(pipe, args, pairs)
            how = args.existing, args.seed or 0, args.max_input_pixels, args.debug
            once = "stopping after the picture in hand; once more stops at once"
            with StopRequests(ENDING, patient=False, advice=once) as asked:
                restore_files(
                    jobs, restore, report, *how, *batch, stopping=lambda: asked.number != 0
                )
    if process.count > 1:
        _wait_for_the_others()
    return SOME_FAILED if report.counts["failed"] else OK


def _small_pixels(pipe: "PiSASRPipeline", args: argparse.Namespace) -> int:
    """Pixels of the largest input that shares a batch: one whose result is no more than one tile of
    the UNet.
    """
    from pisasr.options import TILE_PX

    side = args.tile_size * pipe.model.factor if args.tile_size else TILE_PX
    return int((side / args.upscale) ** 2)


def _wait_for_the_others() -> None:
    """Launchers end all processes when one leaves with a code other than 0, and a bad picture must
    not end theirs.
    """
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    without = not torch.accelerator.is_available()
    state = PartialState(cpu=without, timeout=timedelta(days=7))
    state.wait_for_everyone()
    state.destroy_process_group()


@contextmanager
def _unseen(*packages: str) -> Iterator[None]:
    """Let what is imported in the block believe that these packages are not installed; they can be
    had afterwards.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None says so to `import` and to find_spec
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


def _check_inputs(asked: list[str], inputs: list[Found]) -> None:
    if any(found.status == "ready" for found in inputs):
        return
    reasons = [f"{found.path}: {found.reason}" for found in inputs[:3]] + ["..."] * (
        len(inputs) > 3
    )
    looked = "looked for png, jpg, webp, tif, bmp; --recursive goes deeper"
    raise PisasrError(f"no images in {', '.join(asked)} ({'; '.join(reasons)}; {looked})")


def _check_maps(args: argparse.Namespace, inputs: list[Found]) -> None:
    """UsageError if one map is to serve several pictures."""
    ready = sum(found.status == "ready" for found in inputs)
    for name, place in ((name, getattr(args, f"{name}_map")) for name in LAMBDAS):
        if place and ready > 1 and not place.is_dir():
            raise UsageError(
                f"--{name}_map is one file and {ready} pictures came; give a folder with a map for each, by its name"
            )


def _restorer(
    pipe: "PiSASRPipeline",
    args: argparse.Namespace,
    pairs: list[tuple[float, float]],
) -> Restore:
    """What to do with one picture: one result; or one for every pair and a sheet of them all."""
    from pisasr.pictures.images import eight_bits
    from pisasr.pictures.sheets import draw_sheet

    settings = pipeline_settings(args) | {"output_type": "uint16" if args.bits == 16 else "pil"}
    metadata_of = (
        _labeller(pipe, args, settings) if args.keep_metadata else lambda picture, pairs: None
    )

    def restore(
        pictures: Sequence["Picture"], names: Sequence[Path], seeds: Sequence[int]
    ) -> list[Made]:
        pair, notes = _strengths(args, names[0])  # with maps, one picture comes at a time
        made = []
        for picture, seed in zip(pictures, seeds, strict=True):
            results = pipe(picture, *pair, generator=_generator(args, seed), **settings).images
            made.append(Made(results, notes, metadata=metadata_of(picture, [pair])))
        return made

    def at_each(picture: "Picture", seed: int) -> Iterator[Any]:
        output_type, others = settings["output_type"], dict(settings)
        del others["output_type"]
        prediction = pipe.predict(picture, generator=_generator(args, seed), **others)
        return (pipe.decode(prediction, *pair, output_type=output_type) for pair in pairs)

    def restore_grid(picture: "Picture", seed: int) -> Made:
        results = list(at_each(picture, seed))
        sheet = draw_sheet([eight_bits(result) for result in results], *args.lambda_grid)
        return Made(
            [*results, sheet], metadata=metadata_of(picture, [*pairs, tuple(args.lambda_grid)])
        )

    def each(restore_one: Callable[["Picture", int], Made]) -> Restore:
        return lambda pictures, _, seeds: list(map(restore_one, pictures, seeds))

    return each(restore_grid) if pairs else restore


def _generator(args: argparse.Namespace, seed: int) -> int | None:
    """The picture's own seed, if posteriors are sampled."""
    return None if args.seed is None else seed


def _strengths(args: argparse.Namespace, name: Path) -> tuple[tuple[Any, Any], str]:
    """(lambda_pix, lambda_sem) of the input of this name, numbers or maps, and a note where it has
    no map.
    """
    from pisasr.pictures.maps import find_map, read_map

    strengths, notes = [], []
    for lambda_ in LAMBDAS:
        number, place = getattr(args, lambda_), getattr(args, f"{lambda_}_map")
        file = find_map(place, name) if place else None
        strengths.append(read_map(file, number) if file else number)
        if place and not file:
            notes.append(f"no map in {safe_text(place)}, {lambda_} is {number:g} everywhere")
    return (strengths[0], strengths[1]), "; ".join(notes)


def _labeller(
    pipe: "PiSASRPipeline", args: argparse.Namespace, settings: dict[str, Any]
) -> "Callable[[Picture, Sequence[tuple[Any, Any]]], list[Metadata]]":
    """What the file of each of a picture's results tells, from its strengths."""
    from pisasr.pictures.saving import Metadata, made_with

    model = pipe.identity  # the same for all
    chance = {} if args.seed is None else {"seed": args.seed}
    others = {name: value for name, value in settings.items() if name != "output_type"}

    def words(strength: Any, name: str) -> str:
        if isinstance(strength, float):
            return f"{strength:.15g}"
        if isinstance(strength, list):
            return "/".join(f"{value:.15g}" for value in strength)
        return f"0..{getattr(args, name):.15g} by a map"

    def metadata_of(picture: "Picture", pairs: Sequence[tuple[Any, Any]]) -> "list[Metadata]":
        strengths = [dict(zip(LAMBDAS, map(words, pair, LAMBDAS), strict=True)) for pair in pairs]
        return [
            Metadata(made_with(model, {**each, **others, **chance}), picture.exif)
            for each in strengths
        ]

    return metadata_of

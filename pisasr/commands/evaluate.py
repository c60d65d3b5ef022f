"""argv in, exit code out: `pisasr evaluate`, folders of results in, a table out."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import choose_device, command_parser, normalize, whole
from pisasr.errors import NOTHING_STARTED, OK, SOME_FAILED, PisasrError, guarded, safe_text

EXAMPLES = """examples:
  pisasr evaluate --sr results/photos --hq photos --output results/scores
  pisasr evaluate --sr ours=results/a theirs=results/b --hq hq --lq lq --metrics psnr lpips musiq
  pisasr evaluate --sr results/grid/pix*_sem* --hq hq --output results/scores

--output receives per_image.csv, summary.json, table.md, plot.png and sheet.png."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `evaluate`."""
    parser = command_parser("pisasr evaluate", "Score folders of restored pictures.", EXAMPLES)
    add = parser.add_argument
    named = "folders of results: NAME=DIR, or DIR, whose name then names the method"
    add("--sr", nargs="+", action="extend", required=True, metavar="[NAME=]DIR", help=named)
    add("--hq", "--hr", type=Path, metavar="DIR", help="the true pictures")
    add("--lq", "--lr", type=Path, metavar="DIR", help="the inputs")
    metrics = """psnr ssim psnr_lq lpips lpips_vgg dists niqe fid, or any name of pyiqa
        (default: psnr ssim lpips niqe, without --hq niqe)"""
    add("--metrics", nargs="+", type=str.lower, metavar="METRIC", help=metrics)
    border = "pixels that PSNR, SSIM and the like leave out at each side (default: 0)"
    add("--border", type=whole, default=0, metavar="N", help=border)
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    missing = "score what every folder has, and list what is left out"
    add("--allow_missing", action="store_true", help=missing)
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return parser


def evaluate(argv: list[str]) -> int:
    """Score folders of results; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(normalize(argv))
    methods = _name_methods(args.sr, parser)
    folders = [folder for folder in (*methods.values(), args.hq, args.lq) if folder]
    if any(folder.absolute() == args.output.absolute() for folder in folders):
        parser.error(f"--output {safe_text(args.output)} is a folder of pictures; choose another")
    return guarded(partial(_evaluate, args, methods), args.debug)


def _evaluate(args: argparse.Namespace, methods: dict[str, Path]) -> int:
    # Imported here: torch comes along, and wrong usage is answered without it.
    from pisasr.evaluation.pairs import pair_folders
    from pisasr.evaluation.report import FILES, write_report
    from pisasr.evaluation.scoring import load_metrics, score_examples

    examples, problems = pair_folders(methods, args.hq, args.lq)
    _print_all(problems)
    if problems and not args.allow_missing:
        _print_all(["Nothing was scored; --allow_missing scores what every folder has."])
        return SOME_FAILED
    if not examples:
        raise PisasrError("no picture is in every folder, readable and of the right size")
    check_output(args.output, *FILES)
    kinds = {kind for kind in ("hq", "lq") if getattr(args, kind)}
    names = args.metrics or (["psnr", "ssim", "lpips", "niqe"] if args.hq else ["niqe"])
    metrics, missing = load_metrics(dict.fromkeys(names), choose_device(args.device), kinds)
    _print_all(f"{name}: n/a. {reason}" for name, reason in missing.items())
    if not metrics:
        return NOTHING_STARTED
    scores = score_examples(examples, metrics, args.border)
    left_out = [f"Left out: {problem}" for problem in problems]
    table, notices = write_report(
        args.output, examples, scores, metrics, missing, args.border, left_out
    )
    _print_all(notices)
    print("\n".join(map(safe_text, table.splitlines())))
    written = ", ".join(name for name in FILES if (args.output / name).is_file())
    print(f"Written to {safe_text(args.output)}: {written}")
    return OK


def _name_methods(words: list[str], parser: argparse.ArgumentParser) -> dict[str, Path]:
    """Return name -> folder of NAME=DIR or DIR, whose own name then names the method."""
    methods: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():
            name, folder = Path(word).absolute().name, word
        if not name or name in methods:
            parser.error(f"--sr {word}: every method needs a name of its own, --sr NAME={folder}")
        methods[name] = Path(folder)
    return methods


def _print_all(lines: Iterable[str]) -> None:
    for line in lines:
        print(safe_text(line), file=sys.stderr)

"""`pisasr evaluate` and scripts/evaluate.py: folders in, scores out."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from pisasr.errors import PisasrError

EXAMPLES = """\
Examples
  python scripts/evaluate.py --sr results/photos --hr photos --output results/scores
  python scripts/evaluate.py --sr bicubic=out/bicubic ours=out/ours --hr hq --lr lq \\
      --metrics psnr ssim psnr_lq niqe featdist --output results/scores

Pictures are paired by name: equal names first, then names without endings such as x4, _LR4, _HR, _SR, _out, _gt.
Anything missing, extra, unreadable or of another size is listed and nothing is scored, unless --allow_missing.

Exit code: 0 scored, 1 no metric can be computed here, 2 usage, 3 pictures do not fit together.
"""


def build_parser() -> argparse.ArgumentParser:
    from pisasr.evaluation.metrics import METRICS

    parser = argparse.ArgumentParser(
        prog="pisasr evaluate",
        description="Score folders of restored pictures: a number per picture, the means, and how they were made.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sr", nargs="+", required=True, metavar="[NAME=]DIR", help="restored pictures, one folder per method"
    )
    parser.add_argument("--hr", type=Path, metavar="DIR", help="the true pictures")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="the inputs, for psnr_lq")
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=["psnr", "ssim", "niqe", "featdist"],
        metavar="METRIC",
        help=f"any of {' '.join(METRICS)} (default: psnr ssim niqe featdist)",
    )
    parser.add_argument(
        "--border", type=int, default=0, metavar="N", help="px that PSNR and SSIM leave out at each side (default 0)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="for per_image.csv, summary.json, table.md"
    )
    parser.add_argument(
        "--allow_missing", action="store_true", help="score what every folder has, list the rest in the table"
    )
    parser.add_argument("--suffix", metavar="REGEX", help="name endings to disregard instead of the ones below")
    parser.add_argument(
        "--weights",
        type=Path,
        default=os.environ.get("PISASR_WEIGHTS"),
        metavar="DIR",
        help="files that scorers need: niqe_pris_params.npz, efficientnet-lite0-*.pth (default: $PISASR_WEIGHTS)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.metrics = list(dict.fromkeys(args.metrics))
    methods = _name_methods(args.sr, parser)
    _check_usage(args, parser)
    try:
        return evaluate(methods, args)
    except PisasrError as error:
        print(error, file=sys.stderr)
        return 3


def evaluate(methods: dict[str, Path], args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pisasr.evaluation.folders import SUFFIX, pair_folders
    from pisasr.evaluation.report import render_table, score_examples, summarise, write_report
    from pisasr.evaluation.scorers import load_scorers, score_folders

    pairing = pair_folders(methods, args.hr, args.lr, args.suffix or SUFFIX)
    for problem in pairing.problems:
        print(problem, file=sys.stderr)
    if pairing.problems and not args.allow_missing:
        print("Nothing was scored; --allow_missing scores the pictures that every folder has.", file=sys.stderr)
        return 3
    if not pairing.examples:
        print("No picture is in every folder, readable and of the right size.", file=sys.stderr)
        return 3
    scorers, missing = load_scorers(args.metrics, args.border, args.weights)
    rows = score_examples(tqdm(pairing.examples, "scoring", disable=None), scorers)
    whole, missing_too = score_folders(args.metrics, methods, args.hr, bool(pairing.problems))
    summary = summarise(rows, args.metrics, args.border, pairing.problems, missing | missing_too, whole)
    for name, reason in summary["not_available"].items():
        print(f"{name}: n/a. {reason}", file=sys.stderr)
    write_report(args.output, rows, summary)
    print(render_table(summary), end="")
    print(f"\nWritten to {args.output}: per_image.csv, summary.json, table.md")
    return 0 if scorers or whole else 1


def _name_methods(words: list[str], parser: argparse.ArgumentParser) -> dict[str, Path]:
    """NAME=DIR or DIR, whose own name then names the method."""
    methods = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():
            name, folder = Path(word).resolve().name, word
        if not name or name in methods:
            parser.error(f"--sr {word}: every method needs a name of its own, as in --sr NAME={folder}")
        methods[name] = Path(folder)
    return methods


def _check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from pisasr.evaluation.metrics import METRICS

    try:
        re.compile(args.suffix or "")
    except re.error as error:
        parser.error(f"--suffix {args.suffix} is not a regular expression: {error}")
    if args.border < 0:
        parser.error(f"--border {args.border}: it must be 0 or more")
    for name in args.metrics:
        if METRICS[name].needs in ("hq", "hq_set") and not args.hr:
            parser.error(f"--metrics {name} compares with the true pictures; name their folder with --hr")
        if METRICS[name].needs == "lq" and not args.lr:
            parser.error(f"--metrics {name} compares with the inputs; name their folder with --lr")

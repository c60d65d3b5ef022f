"""argv in, exit code out: `pisasr export`, a model for other programs: two strengths in one UNet."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr.commands.batch import check_output
from pisasr.commands.options import command_parser, finite, normalise
from pisasr.errors import OK, UsageError, guarded, shown

if TYPE_CHECKING:
    from pisasr.pipeline import PiSASRPipeline

EXAMPLES = """examples:
  pisasr export --lambda_pix 0.8 --lambda_sem 0.8 --output firm      one UNet, exact
  pisasr export --lambda_pix 1 --lambda_sem 0.5 --output soft --approximate --input photo.png

One UNet is exact for equal strengths and for --lambda_sem 0. For others its weights lie between those of the two; how
far its pictures are from the ones that were meant is measured and printed."""


def export(argv: list[str]) -> int:
    """Put two strengths into one UNet: `pisasr export --help`."""
    parser = command_parser("pisasr export", "Write a model with two strengths in its weights, in one UNet.", EXAMPLES)
    add = parser.add_argument
    add("--lambda_pix", type=finite, default=1.0, metavar="A", help="how much is taken away (default: 1)")
    add("--lambda_sem", type=finite, default=1.0, metavar="B", help="how much detail is added (default: 1)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="what infer then takes as --pretrained_model")
    add("--approximate", action="store_true", help="allow strengths that one UNet meets nearly; says how nearly")
    on = "pictures to measure that on (default: the four example photos)"
    add("--input", type=Path, nargs="+", metavar="PICTURE", help=on)
    add("--pretrained_model", metavar="MODEL", help="the base (default: the small model that comes with pisasr)")
    add("--adapters", metavar="ADAPTERS", help="a folder, a hub id or a published .pkl (default: those of the model)")
    add("--dtype", choices=("fp32", "fp16"), default="fp32", help="how weights are written (default: %(default)s)")
    args = parser.parse_args(normalise(argv))
    return guarded(lambda: _export(args), args.debug)


def _export(args: argparse.Namespace) -> int:
    import torch

    from pisasr.hub.baked import baked
    from pisasr.method.baking import is_exact
    from pisasr.pipeline import PiSASRPipeline

    exact = is_exact(args.lambda_pix, args.lambda_sem)
    if not exact and not args.approximate:
        raise UsageError(
            f"one UNet is exact for equal strengths or --lambda_sem 0, not for ({args.lambda_pix:g}, "
            f"{args.lambda_sem:g}); --approximate makes one that is near, and says how near"
        )
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    made = baked(pipe, args.lambda_pix, args.lambda_sem)
    check_output(args.output)
    how = "exact to rounding" if exact else "near"
    if not exact:
        _measure(made, pipe, args)
    if args.dtype == "fp16":
        made.to(torch.float16)
    made.save_pretrained(args.output)
    print(f"{shown(args.output)}: lambda_pix {args.lambda_pix:g}, lambda_sem {args.lambda_sem:g} in one UNet, {how}")
    return OK


def _measure(made: "PiSASRPipeline", pipe: "PiSASRPipeline", args: argparse.Namespace) -> None:
    """Print how far an approximation is off, a picture a line."""
    from pisasr.hub.baked import errors_of
    from pisasr.models.bases import EMBEDDED
    from pisasr.pictures.images import open_picture

    paths = args.input or sorted((EMBEDDED / "examples").glob("*.png"))
    for path in paths:
        (error,) = errors_of(made, pipe, [open_picture(path)], args.lambda_pix, args.lambda_sem)
        print(f"{shown(path)}: off by {error.mean:.2f} of 255 levels on average, {error.most:.0f} at most")

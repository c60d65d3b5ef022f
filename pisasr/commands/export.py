"""argv in, exit code out: `pisasr export`, a model for other programs: two strengths in one UNet,
files of ONNX.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr.commands.batch import check_output
from pisasr.commands.options import check_apart, command_parser, finite, normalise
from pisasr.errors import OK, PisasrError, UsageError, guarded, safe_text

if TYPE_CHECKING:
    from pisasr.pipeline import PiSASRPipeline

EXAMPLES = """examples:
  pisasr export --lambda_pix 0.8 --lambda_sem 0.8 --output firm      one UNet, exact
  pisasr export --lambda_pix 1 --lambda_sem 0.5 --output soft --approximate --input photo.png
  pisasr export --onnx --output files                                without PyTorch, both strengths still to choose
  python files/repair.py photo.png repaired.png --lambda_sem 0.7

One UNet is exact for equal strengths and for --lambda_sem 0. For others its weights lie between those of the two; how
far its pictures are from the ones that were meant is measured and printed."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(argv: list[str]) -> int:
    """Put two strengths into one UNet, or write ONNX: `pisasr export --help`."""
    about = "Write a model with two strengths in its weights, in one UNet; or as ONNX files."
    parser = command_parser("pisasr export", about, EXAMPLES)
    add = parser.add_argument
    add("--lambda_pix", type=finite, metavar="A", help="how much is taken away (default: 1)")
    add("--lambda_sem", type=finite, metavar="B", help="how much detail is added (default: 1)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="what infer takes as --pretrained_model, but for ONNX",
    )
    onnx = "write encoder, UNets and decoder as ONNX files, checked, and repair.py, which uses them without PyTorch; "
    add(
        "--onnx", action="store_true", help=onnx + "where no strength is given, both stay to choose"
    )
    add(
        "--approximate",
        action="store_true",
        help="allow strengths that one UNet meets nearly; says how nearly",
    )
    on = "pictures to measure that on (default: the four example photos)"
    add("--input", type=Path, nargs="+", metavar="PICTURE", help=on)
    add(
        "--pretrained_model",
        metavar="MODEL",
        help="the base (default: the small model that comes with pisasr)",
    )
    add(
        "--adapters",
        metavar="ADAPTERS",
        help="a folder, a hub id or a published .pkl (default: those of the model)",
    )
    add(
        "--dtype",
        choices=("fp32", "fp16"),
        default="fp32",
        help="how weights are written (default: %(default)s)",
    )
    args = parser.parse_args(normalise(argv))
    return guarded(lambda: _export(args), args.debug)


def _export(args: argparse.Namespace) -> int:
    if args.onnx and (absent := [package for package in PACKAGES if find_spec(package) is None]):
        raise PisasrError(
            f"--onnx needs {', '.join(absent)}, not installed: pip install 'pisasr[onnx]'"
        )
    if args.onnx and args.dtype != "fp32":
        raise UsageError("--onnx writes float32 alone; leave out --dtype")
    import torch

    from pisasr.hub.baked import baked
    from pisasr.method.baking import is_exact
    from pisasr.pipeline import PiSASRPipeline

    bakes = not args.onnx or args.lambda_pix is not None or args.lambda_sem is not None
    pair = (
        1.0 if args.lambda_pix is None else args.lambda_pix,
        1.0 if args.lambda_sem is None else args.lambda_sem,
    )
    exact = is_exact(*pair)
    if not exact and not args.approximate:
        raise UsageError(
            f"one UNet is exact for equal strengths or --lambda_sem 0, not for ({pair[0]:g}, {pair[1]:g}); "
            "--approximate makes one that is near, and says how near"
        )
    check_apart(args.output, args.pretrained_model, args.adapters)
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    made = baked(pipe, *pair) if bakes else pipe
    check_output(args.output)
    if not exact:
        _measure(made, pipe, pair, args.input)
    near = "exact to rounding" if exact else "near"
    what = (
        f"lambda_pix {pair[0]:g}, lambda_sem {pair[1]:g} in one UNet, {near}"
        if bakes
        else "both strengths to choose"
    )
    if args.onnx:
        from pisasr.hub.onnx import write_onnx

        off = write_onnx(made, args.output)
        what += f"; {off:.2g} of 255 levels from PyTorch's picture at most; try {safe_text(args.output / 'repair.py')}"
    else:
        made.to(torch.float16 if args.dtype == "fp16" else torch.float32).save_pretrained(
            args.output
        )
    print(f"{safe_text(args.output)}: {what}")
    return OK


def _measure(
    made: "PiSASRPipeline", pipe: "PiSASRPipeline", pair: tuple[float, float], given: list[Path]
) -> None:
    """Print how far an approximation is off, a picture a line."""
    from pisasr.hub.baked import errors_of
    from pisasr.models.bases import EMBEDDED
    from pisasr.pictures.images import open_picture

    for path in given or sorted((EMBEDDED / "examples").glob("*.png")):
        (error,) = errors_of(made, pipe, [open_picture(path)], *pair)
        print(
            f"{safe_text(path)}: off by {error.mean:.2f} of 255 levels on average, {error.most:.0f} at most"
        )

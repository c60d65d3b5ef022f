"""Run `pisasr export`: write a model as ONNX files, for use without PyTorch."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from pisasr.commands.batch import check_output
from pisasr.commands.options import check_apart, command_parser, normalize
from pisasr.errors import OK, PisasrError, guarded, safe_text

EXAMPLES = """examples:
  pisasr export --output files
  pisasr export --pretrained_model FOLDER --adapters weights/pisa-sr --output files
  python files/repair.py photo.png repaired.png --lambda_sem 0.7

Both strengths stay free. The files are float32, and compared with PyTorch after writing."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(argv: list[str]) -> int:
    """Write ONNX files: `pisasr export --help`."""
    about = "Write encoder, UNets and decoder as ONNX files, and repair.py, which runs them."
    parser = command_parser("pisasr export", about, EXAMPLES)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add("--pretrained_model", metavar="MODEL", help="the base (default: the model in pisasr)")
    both = "a folder, a hub id or a published .pkl (default: those of the model)"
    add("--adapters", metavar="ADAPTERS", help=both)
    args = parser.parse_args(normalize(argv))
    return guarded(lambda: _export(args), args.debug)


def _export(args: argparse.Namespace) -> int:
    if absent := [package for package in PACKAGES if find_spec(package) is None]:
        raise PisasrError(f"{', '.join(absent)} not installed: pip install 'pisasr[onnx]'")
    from pisasr.hub.onnx import write_onnx
    from pisasr.pipeline import PiSASRPipeline

    check_apart(args.output, args.pretrained_model, args.adapters)
    pipe = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    check_output(args.output)
    error = write_onnx(pipe, args.output)
    script = safe_text(args.output / "repair.py")
    print(f"{script}: at most {error:.2g} of 255 levels from PyTorch's picture")
    return OK

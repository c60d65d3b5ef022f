"""Measure what PiSA-SR costs on this machine, from seeded random weights or the embedded model;
nothing is downloaded.

python scripts/benchmark.py --size demo --px 512,1024 --output bench.json
python scripts/benchmark.py --device cuda --size full --output bench.json
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.options import choose_device, positive_int
from pisasr.errors import OK, SOME_FAILED, UsageError, guarded, safe_text
from pisasr.files import write_whole

PX = {"tiny": "64,128", "demo": "256,512,1024,2048", "full": "256,512,1024,2048,4096"}
NAMES = "modes sweep tiles scaling dtypes execution batch folder startup training x4plus published".split()


def pixel_sizes(text: str) -> list[int]:
    """Sides of results from "256,512", ascending; multiples of 64, so that every model's levels
    divide them.
    """
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"wanted sides in pixels, like 256,512; got {text!r}") from None
    if wrong := [size for size in sizes if size < 64 or size % 64]:
        raise UsageError(f"wanted multiples of 64; got {wrong[0]}")
    return sizes


def case_names(text: str) -> list[str]:
    """Cases from "modes,tiles"."""
    if unknown := [name for name in text.split(",") if name not in NAMES]:
        raise UsageError(f"no case {unknown[0]!r}; there are {', '.join(NAMES)}")
    return text.split(",")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="default: %(default)s",
    )
    sizes = "tiny: seconds; demo: the embedded model; full: Stable Diffusion 2.1's size, random (default: %(default)s)"
    add("--size", choices=tuple(PX), default="demo", help=sizes)
    add(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="default: bf16 on CUDA, else what infer takes",
    )
    add(
        "--px",
        type=pixel_sizes,
        metavar="N,...",
        help="sides of the results (default: by size, 256 to 4096)",
    )
    cases = f"of {', '.join(NAMES)} (default: all but published, and on a CPU but execution)"
    add("--cases", type=case_names, metavar="NAME,...", help=cases)
    add(
        "--published",
        action="store_true",
        help="add the published algorithm: weight swaps, one encode a strength",
    )
    add(
        "--pairs",
        type=positive_int,
        default=5,
        metavar="N",
        help="timed pairs a row (default: %(default)s)",
    )
    add(
        "--seconds",
        type=positive_int,
        default=60,
        metavar="S",
        help="after which a row begins no further pair",
    )
    add(
        "--check_px",
        type=positive_int,
        default=1024,
        metavar="N",
        help="compare with the reference up to this side",
    )
    add("--output", type=Path, metavar="FILE", help="the report as JSON, written after every case")
    add("--debug", action="store_true", help="show tracebacks")
    return made


def run(args: argparse.Namespace) -> int:
    """Measure what the arguments ask for; rows are told as they come, the tables at the end."""
    if args.output and not args.output.resolve().parent.is_dir():
        raise UsageError(
            f"--output {safe_text(args.output)} lies in no folder; make {safe_text(args.output.parent)} first"
        )
    device = choose_device(args.device)
    from pisasr.benchmark.bench import DTYPES, Bench
    from pisasr.benchmark.cases import CASES
    from pisasr.benchmark.report import as_json, as_markdown
    from pisasr.benchmark.subjects import write_model
    from pisasr.pipeline import usual_dtype

    cases = args.cases or [
        name for name in NAMES if name != "published" and (name, device) != ("execution", "cpu")
    ]
    cases += ["published"] * (args.published and "published" not in cases)
    sizes = args.px or pixel_sizes(PX[args.size])
    usual = (
        "bf16"
        if device == "cuda"
        else next(name for name, own in DTYPES.items() if own == usual_dtype(device))
    )
    dtype = args.dtype or usual
    settings = {
        name: value for name, value in vars(args).items() if name not in ("output", "debug")
    }
    settings |= {"device": device, "dtype": dtype, "px": sizes, "cases": cases}
    with TemporaryDirectory(prefix="pisasr-") as place:
        model = write_model(args.size, Path(place))
        bench = Bench(
            model, args.size, device, DTYPES[dtype], args.pairs, args.seconds, args.check_px
        )
        bench.counting = "cpu" if args.size == "tiny" else "meta"
        for name in cases:
            for row in bench.measure(name, CASES[name], sizes):
                told = f"{row.ms:.4g} ms, {row.ratio:.3f} of {row.against}" if row.ms else row.note
                print(
                    f"{name}: {row.variant}, {' x '.join(map(str, row.shape))}: {told}",
                    file=sys.stderr,
                    flush=True,
                )
            report = as_json(bench, settings)
            if args.output:
                write_whole(args.output, json.dumps(report, indent=1) + "\n")
    print(as_markdown(report, bench.rows))
    return SOME_FAILED if any(row.failed for row in bench.rows) else OK


if __name__ == "__main__":
    given = parser().parse_args()
    sys.exit(guarded(lambda: run(given), given.debug))

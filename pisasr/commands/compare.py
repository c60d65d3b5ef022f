"""Score, at the command line: many methods on the same inputs, in one table. Repair, time, score,
show.

python scripts/compare.py --hq crops --output results/compare
python scripts/compare.py --hq crops --lq degraded_crops --methods bicubic 1,0 1,1 --also
OSEDiff=results/osediff \\
    --output results/compare

Without --lq, each photo is degraded by the project's own pipeline; its chance comes from --seed and
the photo's name, so adding photos changes none of the others. Enlargement is fourfold. OUTPUT gets
hq/, lq/, a folder per method, what scripts/evaluate.py writes, and comparison.png. Seconds are the
median over the pictures, with the model loaded and one picture done before the clock starts. --also
brings in pictures that somebody else's method has made.

Exit code: 0 done, 1 nothing could start, 2 usage, 3 a method's pictures do not fit.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image
from tqdm import tqdm

from pisasr.commands.batch import check_output
from pisasr.commands.evaluate import build_parser, score
from pisasr.commands.options import (
    add_model_options,
    add_weights_option,
    choose_device,
    choose_dtype,
    command_parser,
    finite,
    load_model,
    whole,
)
from pisasr.errors import PisasrError, guarded
from pisasr.evaluation.figure import draw_comparison
from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.metrics import METRICS
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.testsets import TestSet
from pisasr.pictures.folders import list_pictures, match_names
from pisasr.pictures.opening import read_picture

SCALE = 4
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
X4PLUS = "Real-ESRGAN x4plus"

Upscaler = Callable[[Image.Image], Image.Image]  # LQ picture -> picture four times as large
Method = str | tuple[float, float]
Pair = tuple[str, Image.Image, Image.Image]  # stem, photo, low-quality version


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return guarded(lambda: compare(args), args.debug)


def compare(args: argparse.Namespace) -> int:
    """Pairs, every method's pictures; then what scripts/evaluate.py does with them, and one picture
    of it all.
    """
    hq, lq = args.output / "hq", args.output / "lq"
    refuse_own_inputs(args, hq, lq)
    check_output(args.output)
    names = write_pairs(args, hq, lq)
    seconds, absent = run_methods(args, lq, names)
    folders = {name: args.folders[name] for name in seconds}
    asked = [
        "--border",
        args.border,
        "--sheets",
        args.sheets,
        "--device",
        args.device,
        "--output",
        args.output,
    ]
    asked += ["--metrics", *dict.fromkeys(args.metrics)] if args.metrics else []
    asked += ["--weights", args.weights] if args.weights else []
    sets = [TestSet(args.set, folders | dict(args.also), hq, lq)]
    made_by = describe(args, absent)
    code = score(
        sets,
        build_parser().parse_args(list(map(str, asked))),
        Processes(),
        seconds=seconds,
        made_by=made_by,
    )
    spread = dict.fromkeys(names[round(k * (len(names) - 1) / 3)] for k in range(4))
    rows = [
        {n: open_picture(of / name) for n, of in (folders | {"true picture": hq}).items()}
        for name in spread
    ]
    save(draw_comparison(rows), args.output / "comparison.png")
    print(f"{args.output} has comparison.png and the pictures, too")
    return code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("compare.py", __doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--hq", type=Path, required=True, metavar="DIR", help="good photos, or crops of them")
    add(
        "--lq",
        type=Path,
        metavar="DIR",
        help="their low-quality versions, a fourth as large, paired by name",
    )
    add(
        "--recipe",
        type=Path,
        metavar="YAML",
        help="degradation recipe instead of the published one",
    )
    add("--seed", type=int, default=0, help="of the degradation (default 0)")
    usual = ["bicubic", "x4plus", (0, 0), (1, 0), (1, 1)]
    words = "bicubic, lanczos, x4plus, or strengths LAMBDA_PIX,LAMBDA_SEM (default: bicubic x4plus 0,0 1,0 1,1)"
    add("--methods", nargs="+", type=parse_method, default=usual, metavar="METHOD", help=words)
    words = "as scripts/evaluate.py has them (default: psnr ssim niqe featdist, and lpips where its weights are at hand)"
    add("--metrics", nargs="+", choices=METRICS, metavar="METRIC", help=words)
    add(
        "--border",
        type=whole,
        default=4,
        help="px that PSNR and SSIM leave out at each side (default 4)",
    )
    add(
        "--also",
        nargs="+",
        type=parse_other,
        default=[],
        metavar="NAME=DIR",
        help="pictures of other methods",
    )
    add(
        "--set",
        default="",
        metavar="NAME",
        help="the test set's name, as scripts/evaluate.py has it",
    )
    add_weights_option(add)
    add(
        "--sheets",
        type=whole,
        default=8,
        metavar="N",
        help="pictures on sheets of largest differences (default 8)",
    )
    add("--output", type=Path, required=True, metavar="DIR")
    parser.set_defaults(device="cpu", dtype="fp32")
    args = parser.parse_args(argv)
    if args.lq and args.recipe:
        parser.error(
            "--lq brings its own pictures; --recipe only goes with photos that are degraded here"
        )
    args.methods = {name_method(method): method for method in args.methods}
    names = [*args.methods, *(name for name, _ in args.also)]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"--also {twice[0]}: another method has that name; give one of its own")
    args.folders = {
        n: args.output / re.sub(r"[^A-Za-z0-9.-]+", "_", n).strip("_") for n in args.methods
    }
    return args


def parse_method(word: str) -> Method:
    if word in (*FILTERS, "x4plus"):
        return word
    try:
        lambda_pix, lambda_sem = map(finite, word.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        known = ", ".join(FILTERS)
        raise argparse.ArgumentTypeError(
            f"{word!r} is neither {known}, x4plus nor strengths such as 1,0"
        ) from None
    return lambda_pix, lambda_sem


def parse_other(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not (name and equals and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=FOLDER with a folder that is there")
    return name, Path(folder)


def name_method(method: Method) -> str:
    if isinstance(method, tuple):
        return f"ours ({method[0]:g}, {method[1]:g})"
    return X4PLUS if method == "x4plus" else method


# --- pictures -------------------------------------------------------------------------------------


def refuse_own_inputs(args: argparse.Namespace, *pictures: Path) -> None:
    """No picture that is given may lie where this run writes: it would be gone."""
    written = {folder.resolve() for folder in (args.output, *pictures, *args.folders.values())}
    given = {
        "--hq": args.hq,
        "--lq": args.lq,
        **{f"--also {name}": folder for name, folder in args.also},
    }
    for option, folder in given.items():
        for path in (folder, *list_pictures(folder).values()) if folder else ():
            if path.resolve() in written or path.resolve().parent in written:
                place = f"lies where --output {args.output} is written"
                raise PisasrError(
                    f"{option} {folder}: {path} {place}, and would be lost; choose another --output"
                )


def make_pairs(args: argparse.Namespace) -> Iterator[Pair]:
    """Each photo, cut so that its sides divide by the scale, and its picture degraded here by
    chance of its own.
    """
    import torch

    from pisasr.data.degradation import DegradationRecipe, degrade_one, sample_generator

    recipe = DegradationRecipe()
    if args.recipe:
        from pisasr.config import (
            load_recipe,
        )  # wants omegaconf, which the published recipe does without

        recipe = load_recipe(args.recipe)
    if recipe.scale != SCALE:
        raise PisasrError(
            f"{args.recipe} reduces by {recipe.scale}, this comparison needs scale: {SCALE}"
        )
    for stem, path in list_pictures(args.hq).items():
        photo = open_picture(path)
        width, height = (side // SCALE * SCALE for side in photo.size)
        left, top = (photo.width - width) // 2, (photo.height - height) // 2
        photo = photo.crop((left, top, left + width, top + height))
        x_H = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
        x_L = degrade_one(x_H, recipe, sample_generator(args.seed, 0, crc32(stem.encode())))
        yield (
            stem,
            photo,
            Image.fromarray((x_L * 255).round().byte().permute(1, 2, 0).contiguous().numpy()),
        )


def collect_pairs(args: argparse.Namespace) -> Iterator[Pair]:
    """Pairs as given, by name."""
    hq, lq = list_pictures(args.hq), list_pictures(args.lq)
    matches = match_names(hq, lq)
    if len(matches) < max(len(hq), len(lq)):
        alone = [hq[stem].name for stem in hq.keys() - matches]
        alone += [lq[stem].name for stem in lq.keys() - set(matches.values())]
        counts = f"--hq has {len(hq)} pictures, --lq has {len(lq)}"
        raise PisasrError(f"{counts}; without a partner: {', '.join(sorted(alone))}")
    for stem, path in hq.items():
        high, low = open_picture(path), open_picture(lq[matches[stem]])
        if high.size != (low.width * SCALE, low.height * SCALE):
            sizes = f"{high.width}x{high.height} and its --lq {low.width}x{low.height}"
            raise PisasrError(f"{path.name} is {sizes}; wanted sides {SCALE} to 1")
        yield stem, high, low


def write_pairs(args: argparse.Namespace, hq: Path, lq: Path) -> list[str]:
    """Write every pair under one name; returns the names. Pictures of an earlier run would be
    scored with them.
    """
    names = []
    for stem, photo, low in collect_pairs(args) if args.lq else make_pairs(args):
        names.append(f"{stem}.png")
        save(photo, hq / names[-1])
        save(low, lq / names[-1])
    if strangers := sorted(
        path.name for path in list_pictures(hq).values() if path.name not in names
    ):
        held = f"{hq} holds pictures of another run ({', '.join(strangers)})"
        raise PisasrError(f"{held}; empty {args.output} or choose another --output")
    return names


def open_picture(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path))


def save(picture: Image.Image, path: Path) -> None:
    from pisasr.pictures.saving import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)


# --- methods --------------------------------------------------------------------------------------


def run_methods(
    args: argparse.Namespace, lq: Path, names: list[str]
) -> tuple[dict[str, float], list[str]]:
    """Write every method's pictures. Returns each one's median seconds, and lines about methods
    that can't run.
    """
    seconds, absent = {}, []
    pipeline = (
        load_model(args)
        if any(isinstance(method, tuple) for method in args.methods.values())
        else None
    )
    for name, method in args.methods.items():
        try:
            upscaler = load_upscaler(method, args, pipeline)
        except MetricUnavailable as reason:
            absent.append(f"{name}: {reason}")
            print(absent[-1], file=sys.stderr)
            continue
        times = []
        upscaler(
            open_picture(lq / names[0])
        )  # what is slow only once is done before the clock starts
        for picture in tqdm(names, name, disable=None):
            low = open_picture(lq / picture)
            start = time.perf_counter()
            sr = upscaler(low)
            times.append(time.perf_counter() - start)
            save(sr, args.folders[name] / picture)
        seconds[name] = statistics.median(times)
    return seconds, absent


def load_upscaler(method: Method, args: argparse.Namespace, pipeline: Any) -> Upscaler:
    if isinstance(method, tuple):
        lambda_pix, lambda_sem = method
        return lambda lq: pipeline(
            lq, lambda_pix=lambda_pix, lambda_sem=lambda_sem, upscale=SCALE
        ).images[0]
    if method == "x4plus":
        from pisasr.evaluation.realesrgan import load_x4plus, upscale

        device = choose_device(args.device)
        network = load_x4plus(args.weights).to(device, choose_dtype(args.dtype, device))
        return lambda lq: upscale(lq, network)
    return lambda lq: lq.resize((lq.width * SCALE, lq.height * SCALE), FILTERS[method])


def describe(args: argparse.Namespace, absent: list[str]) -> dict[str, str]:
    """What made the pictures and the seconds, in words for the table's notes."""
    import torch

    recipe = f"recipe {args.recipe.name}" if args.recipe else "the published recipe"
    made = {
        "Pictures": "pairs as given"
        if args.lq
        else f"degraded by {recipe}, seed {args.seed}, whole"
    }
    if any(isinstance(method, tuple) for method in args.methods.values()):
        made["Ours"] = args.pretrained_model or "the embedded model"
    place = f"{args.dtype} on {args.device} (CPU threads: {torch.get_num_threads()})"
    made["Seconds"] = f"median per picture, model loaded, {place}"
    return made | ({"Left out": "; ".join(absent)} if absent else {})

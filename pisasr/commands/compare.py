"""Score, at the command line: many methods on the same inputs, in one table. Repair, time, score, show.

python scripts/compare.py --hq photos --crop 512 --output results/compare
python scripts/compare.py --hq crops --lq degraded_crops --methods bicubic 1,0 1,1 --also OSEDiff=results/osediff \\
    --output results/compare

Without --lq, each photo is degraded by the project's own pipeline; its chance comes from --seed and the photo's name,
so adding photos changes none of the others. Enlargement is fourfold. OUTPUT gets hq/, lq/, a folder per method, what
scripts/evaluate.py writes, and comparison.png. Seconds are the median over the pictures, with the model loaded and one
picture done before the clock starts. --also brings in pictures that somebody else's method has made.

Exit code: 0 done, 1 nothing could start, 2 usage, 3 a method's pictures do not fit.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from PIL import Image

from pisasr.commands.options import whole
from pisasr.errors import PisasrError, guarded
from pisasr.evaluation.metrics import METRICS, STABLESR
from pisasr.pictures.folders import list_pictures, match_names, read_picture

if TYPE_CHECKING:
    import torch

SCALE = 4
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
X4PLUS = "Real-ESRGAN x4plus"

# LQ picture -> picture four times as large
Upscaler = Callable[[Image.Image], Image.Image]
Strengths = tuple[float, float]


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return guarded(lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Pairs, every method's pictures, the report."""
    hq, lq = args.output / "hq", args.output / "lq"
    refuse_own_inputs(args, hq, lq)
    names = write_pairs(args, hq, lq)
    seconds, absent = run_methods(args, lq, names)
    return report(args, hq, lq, seconds, absent)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hq", type=Path, required=True, metavar="DIR", help="good photos, or crops of them")
    add("--lq", type=Path, metavar="DIR", help="their low-quality versions, a fourth as large, paired by name")
    add("--crop", type=int, metavar="PX", help="take this much from the middle of each photo")
    add("--recipe", type=Path, metavar="YAML", help="degradation recipe instead of the published one")
    add("--seed", type=int, default=0, help="of the degradation (default 0)")
    usual = ["bicubic", "x4plus", (0, 0), (1, 0), (1, 1)]
    words = "bicubic, lanczos, x4plus, or strengths LAMBDA_PIX,LAMBDA_SEM (default: bicubic x4plus 0,0 1,0 1,1)"
    add("--methods", nargs="+", type=parse_method, default=usual, metavar="METHOD", help=words)
    add("--pretrained_model", metavar="MODEL", help="folder or hub id (default: the embedded model)")
    add("--adapters", metavar="PATH", help="folder, hub id or .pkl (default: those beside the model)")
    add("--device", default="cpu", help="torch device of models and metrics (default cpu)")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="in which models compute (default fp32)")
    add("--metrics", nargs="+", choices=METRICS, default=["psnr", "ssim", "niqe", "featdist"], metavar="METRIC")
    add("--border", type=whole, default=4, help="px that PSNR and SSIM leave out at each side (default 4)")
    add("--also", nargs="+", type=parse_other, default=[], metavar="NAME=DIR", help="pictures of other methods")
    add("--set", default="", metavar="NAME", help="the test set's name, as scripts/evaluate.py has it")
    weights = os.environ.get("PISASR_WEIGHTS") or None
    add("--weights", type=Path, default=weights, metavar="DIR", help="files that scorers need")
    add("--sheets", type=whole, default=8, metavar="N", help="pictures on sheets of largest differences (default 8)")
    add("--show", nargs="+", metavar="NAME", help="photos for comparison.png (default: four, spread over the set)")
    add("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    if args.lq and (args.crop or args.recipe):
        parser.error("--lq brings its own pictures; --crop and --recipe only go with photos that are degraded here")
    if args.crop is not None and args.crop < SCALE:
        parser.error(f"--crop {args.crop}: it must be at least {SCALE}")
    names = [*map(name_method, dict.fromkeys(args.methods)), *(name for name, _ in args.also)]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"--also {twice[0]}: another method has that name; give one of its own")
    return args


def parse_method(word: str) -> str | Strengths:
    if word in (*FILTERS, "x4plus"):
        return word
    try:
        lambda_pix, lambda_sem = (float(part) for part in word.split(","))
    except ValueError:
        lambda_pix = lambda_sem = math.nan
    if not (math.isfinite(lambda_pix) and math.isfinite(lambda_sem)):
        raise argparse.ArgumentTypeError(f"{word!r} is neither {', '.join(FILTERS)}, x4plus nor strengths such as 1,0")
    return lambda_pix, lambda_sem


def parse_other(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not (name and equals and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=FOLDER with a folder that is there")
    return name, Path(folder)


def name_method(method: str | Strengths) -> str:
    if isinstance(method, tuple):
        return f"ours ({method[0]:g}, {method[1]:g})"
    return X4PLUS if method == "x4plus" else method


# --- pictures --------------------------------------------------------------------------------------------------------


def refuse_own_inputs(args: argparse.Namespace, *pictures: Path) -> None:
    """No picture that is given may lie where this run writes: it would be gone."""
    written = {folder.resolve() for folder in (args.output, *pictures, *method_folders(args).values())}
    given = {"--hq": args.hq, "--lq": args.lq, **{f"--also {name}": folder for name, folder in args.also}}
    for option, folder in given.items():
        for path in (folder, *list_pictures(folder).values()) if folder else ():
            if path.resolve() in written or path.resolve().parent in written:
                raise PisasrError(
                    f"{option} {folder}: {path} lies where --output {args.output} is written, and would be lost; "
                    "choose another --output"
                )


def method_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Each method's name -> where its pictures go."""
    names = map(name_method, dict.fromkeys(args.methods))
    return {name: args.output / re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_") for name in names}


def make_pairs(args: argparse.Namespace) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(stem, photo, low-quality version): each photo's crop, degraded here by chance of its own."""
    import torch

    from pisasr.data.degradation import DegradationRecipe, degrade_one, sample_generator

    recipe = DegradationRecipe()
    if args.recipe:
        from pisasr.config import load_recipe  # wants omegaconf, which the published recipe does without

        recipe = load_recipe(args.recipe)
    if recipe.scale != SCALE:
        raise PisasrError(f"{args.recipe} reduces by {recipe.scale}, this comparison needs scale: {SCALE}")
    for stem, path in list_pictures(args.hq).items():
        photo = cut_middle(Image.fromarray(read_picture(path)), args.crop)
        x_H = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
        x_L = degrade_one(x_H, recipe, sample_generator(args.seed, 0, crc32(stem.encode())))
        yield stem, photo, Image.fromarray((x_L * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def collect_pairs(args: argparse.Namespace) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(stem, photo, low-quality version) as given, paired by name."""
    hq, lq = list_pictures(args.hq), list_pictures(args.lq)
    matches = match_names(hq, lq)
    if len(matches) < max(len(hq), len(lq)):
        alone = [hq[stem].name for stem in hq.keys() - matches]
        alone += [lq[stem].name for stem in lq.keys() - set(matches.values())]
        counts = f"--hq has {len(hq)} pictures, --lq has {len(lq)}"
        raise PisasrError(f"{counts}; without a partner: {', '.join(sorted(alone))}")
    for stem, path in hq.items():
        high, low = (Image.fromarray(read_picture(p)) for p in (path, lq[matches[stem]]))
        if high.size != (low.width * SCALE, low.height * SCALE):
            sizes = f"{high.width}x{high.height} and its --lq {low.width}x{low.height}"
            raise PisasrError(f"{path.name} is {sizes}; wanted sides {SCALE} to 1")
        yield stem, high, low


def cut_middle(photo: Image.Image, side: int | None) -> Image.Image:
    """The middle `side` px of a photo, or nearly all of it: sides must divide by the scale."""
    width, height = (min(length, side or length) // SCALE * SCALE for length in photo.size)
    if side and (width, height) != (side // SCALE * SCALE,) * 2:
        raise PisasrError(f"a photo of {photo.width}x{photo.height} has no room for --crop {side}")
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))


def write_pairs(args: argparse.Namespace, hq: Path, lq: Path) -> list[str]:
    """Write every pair under one name; returns the names. Pictures of an earlier run would be scored with them."""
    names = []
    for stem, photo, low in collect_pairs(args) if args.lq else make_pairs(args):
        names.append(f"{stem}.png")
        save(photo, hq / names[-1])
        save(low, lq / names[-1])
    if strangers := sorted(path.name for path in list_pictures(hq).values() if path.name not in names):
        raise PisasrError(
            f"{hq} holds pictures of another run ({', '.join(strangers)}); empty {hq.parent} or choose another --output"
        )
    return names


def save(picture: Image.Image, path: Path) -> None:
    from pisasr.pictures.images import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)


# --- methods ---------------------------------------------------------------------------------------------------------


def run_methods(args: argparse.Namespace, lq: Path, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """Write every method's pictures. Returns each one's median seconds, and lines about methods that can't run."""
    from pisasr.evaluation.lookup import MetricUnavailable

    seconds, absent, folders = {}, [], method_folders(args)
    pipeline = load_pipeline(args) if any(isinstance(method, tuple) for method in args.methods) else None
    for method in dict.fromkeys(args.methods):
        name = name_method(method)
        try:
            upscaler = load_upscaler(method, args, pipeline)
        except MetricUnavailable as reason:
            absent.append(f"{name}: {reason}")
            print(absent[-1], file=sys.stderr)
            continue
        seconds[name] = run(name, upscaler, lq, folders[name], names)
    return seconds, absent


def load_pipeline(args: argparse.Namespace) -> Any:
    from pisasr import PiSASRPipeline

    pipeline = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters, torch_dtype=torch_dtype(args))
    return pipeline.to(args.device)


def torch_dtype(args: argparse.Namespace) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.dtype]


def load_upscaler(method: str | Strengths, args: argparse.Namespace, pipeline: Any) -> Upscaler:
    if isinstance(method, tuple):
        lambda_pix, lambda_sem = method
        return lambda lq: pipeline(lq, lambda_pix=lambda_pix, lambda_sem=lambda_sem, upscale=SCALE).images[0]
    if method == "x4plus":
        from pisasr.evaluation.realesrgan import load_x4plus, upscale

        network = load_x4plus(args.weights).to(args.device, torch_dtype(args))
        return lambda lq: upscale(lq, network)
    return lambda lq: lq.resize((lq.width * SCALE, lq.height * SCALE), FILTERS[method])


def run(name: str, upscaler: Upscaler, lq: Path, folder: Path, names: list[str]) -> float:
    """Write one method's pictures; returns the median seconds of one, reading and writing not counted."""
    from tqdm import tqdm

    times = []
    upscaler(Image.fromarray(read_picture(lq / names[0])))  # what is slow only once is done before the clock starts
    for picture in tqdm(names, name, disable=None):
        low = Image.fromarray(read_picture(lq / picture))
        start = time.perf_counter()
        sr = upscaler(low)
        times.append(time.perf_counter() - start)
        save(sr, folder / picture)
    return statistics.median(times)


# --- results ---------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, hq: Path, lq: Path, seconds: dict[str, float], absent: list[str]) -> int:
    """Score, tabulate and draw."""
    from pisasr.evaluation.evaluate import Settings, check_set, evaluate_set
    from pisasr.evaluation.figure import draw_comparison
    from pisasr.evaluation.processes import Processes
    from pisasr.evaluation.scorers import load_panel
    from pisasr.evaluation.tables import build_table, to_text
    from pisasr.evaluation.testsets import TestSet

    folders = {name: folder for name, folder in method_folders(args).items() if name in seconds}
    checked = check_set(TestSet(args.set, folders | dict(args.also), hq, lq))
    if checked.pairing.problems:
        print("\n".join(checked.pairing.problems), file=sys.stderr)
        return 3
    checked.pairing.problems.extend(absent)
    metrics = list(dict.fromkeys(args.metrics))
    bordered = replace(STABLESR, name=f"stablesr, border {args.border} px", border_px=args.border)
    protocol = bordered if args.border else STABLESR
    panel = load_panel(metrics, protocol, args.weights, device=args.device)
    for name, reason in panel.missing.items():
        print(f"{name}: n/a. {reason}", file=sys.stderr)
    settings = Settings(metrics, protocol, sheets=args.sheets, seconds=seconds, made_by=describe(args))
    done = evaluate_set(checked, panel, settings, args.output, Processes())
    names = [example.name for example in checked.pairing.examples]
    spread = [names[round(k * (len(names) - 1) / 3)] for k in range(4)]
    chosen = [name for name in names if Path(name).stem in {Path(n).stem for n in args.show or spread}]
    columns = {**folders, "true picture": hq}
    rows = [{label: Image.fromarray(read_picture(of / name)) for label, of in columns.items()} for name in chosen]
    if rows:
        save(draw_comparison(rows), args.output / "comparison.png")
    if done:
        print(to_text(build_table(done[0])), end="")
    print(f"\nWritten to {args.output}: what scripts/evaluate.py writes, comparison.png and the pictures")
    return 0


def describe(args: argparse.Namespace) -> dict[str, str]:
    """What made the pictures and the seconds, in words for the table's notes."""
    import torch

    recipe = f"recipe {args.recipe.name}" if args.recipe else "the published recipe"
    extent = f"{args.crop} px crops" if args.crop else "whole"
    made = {"Pictures": "pairs as given" if args.lq else f"degraded by {recipe}, seed {args.seed}, {extent}"}
    if any(isinstance(method, tuple) for method in args.methods):
        made["Ours"] = args.pretrained_model or "the embedded model"
    place = f"{args.dtype} on {args.device} (CPU threads: {torch.get_num_threads()})"
    return {**made, "Seconds": f"median per picture, model loaded, {place}"}

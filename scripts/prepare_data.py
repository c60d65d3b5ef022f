"""Make a training set of photos: one manifest with hashes, sizes, licences, scores and captions.

python scripts/prepare_data.py --input LSDIR FFHQ list.txt --output data/set --licence FFHQ=CC-BY-NC-SA-4.0 --workers 16
python scripts/prepare_data.py --caption Salesforce/blip-image-captioning-large --output data/set
accelerate launch scripts/prepare_data.py --caption MODEL --output data/set      # the same on all GPUs

Inputs are folders (searched recursively; numbered shards, DIV2K, Flickr2K and Hugging Face's imagefolder are known) and
text files with a path a line. Unreadable and small photos and duplicates are left out, and OUTPUT/dropped.jsonl tells
which and why; OUTPUT/manifest.jsonl has the others with a quality score in [0, 1], and is what `data.photos` takes;
OUTPUT/summary.json counts. No photo is copied or changed. The same command goes on where it was interrupted, and
measures only what is new: what is known is in OUTPUT/measured.jsonl. --caption fills empty captions of the manifest
with any captioning or image-classification model that transformers loads.

Exit code: 0 all fine, 1 nothing could start, 2 usage, 3 some photos could not be read.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.batch import check_output  # noqa: E402
from pisasr.errors import (  # noqa: E402
    ImageError,
    PisasrError,
    shown,  # noqa: E402
)

T = TypeVar("T")
MANIFEST = "manifest.jsonl"


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        return caption(args) if args.caption else prepare(args)
    except (PisasrError, OSError) as error:
        print(shown(error), file=sys.stderr)
        return 1


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", nargs="+", metavar="SOURCE", help="folders of photos, and lists with a path a line")
    parser.add_argument("--output", required=True, type=Path, help="folder for the manifest")
    parser.add_argument("--licence", nargs="+", default=[], metavar="SOURCE=TEXT", help="overrides what lies beside it")
    parser.add_argument("--min_side", type=positive, default=512, help="px; smaller photos are dropped (%(default)s)")
    parser.add_argument("--metric", metavar="NAME", help="a no-reference metric of pyiqa as half of the score")
    parser.add_argument("--workers", type=positive, default=1, help="processes (%(default)s)")
    parser.add_argument("--caption", metavar="MODEL", help="folder or hub id; fills the captions of OUTPUT's manifest")
    parser.add_argument("--batch_size", type=positive, default=8, help="of --caption (%(default)s)")
    parser.add_argument("--caption_prompt", metavar="TEXT", help="for models that want to be asked")
    args = parser.parse_args(argv)
    if bool(args.input) == bool(args.caption):
        parser.error("give --input to make a manifest, or --caption to fill its captions")
    if wrong := [text for text in args.licence if "=" not in text]:
        parser.error(f"--licence wants SOURCE=TEXT; got {wrong[0]!r}")
    return args


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is wanted; got {text!r}")
    return int(text)


def prepare(args: argparse.Namespace) -> int:
    """Find, measure, select, write."""
    from pisasr.data.manifest import Journal, write_rows
    from pisasr.data.prepare import count_reasons, manifest_row, measure_photos, select
    from pisasr.files import write_whole

    found, left_out, licences = search(args)
    check_output(args.output)
    with Journal(args.output / "measured.jsonl") as journal:
        rows = list(progress(measure_photos([f.path for f in found], journal, args.workers), len(found), "measured"))
    stay, dropped = select(found, rows, args.min_side, args.output)
    kept = [manifest_row(found[i], rows[i], args.output, licences.get(found[i].source)) for i in stay]
    keep_captions(kept, args.output / MANIFEST)
    metric = score_by_metric(kept, args) if args.metric else None
    write_rows(args.output / "dropped.jsonl", dropped)
    write_rows(args.output / MANIFEST, kept)
    reasons = count_reasons(dropped)
    summary = summarise(args, found, kept, reasons, left_out, metric)
    write_whole(args.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    for row in dropped:
        if row["reason"].startswith("unreadable"):
            print(f"{shown(row['path'])}: {shown(row['reason'])}", file=sys.stderr)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    print(f"{len(kept)} of {len(found)} photos kept{f' ({told})' if told else ''}: {shown(args.output / MANIFEST)}")
    return 3 if "unreadable" in reasons else 0


def search(args: argparse.Namespace) -> tuple[list, list, dict[str, str]]:
    """All photos of all sources, each file once; the folders left out; the licences given by name of source."""
    from pisasr.data.sources import find_photos, name_sources

    names = name_sources(args.input)
    given = dict(text.split("=", 1) for text in args.licence)
    if unknown := given.keys() - names.keys() - set(names.values()):
        raise PisasrError(f"--licence {min(unknown)}: no such source; there are {', '.join(names.values())}.")
    found, left_out = {}, []
    for source, name in names.items():
        photos, without = find_photos(source, name, args.output)
        left_out += without
        for photo in photos:
            found.setdefault(photo.path.absolute(), photo)
    for place in left_out:
        print(f"{shown(place.path)} is left out: {shown(place.reason)}")
    return list(found.values()), left_out, {names.get(source, source): text for source, text in given.items()}


def keep_captions(rows: list[dict], before: Path) -> None:
    """What --caption wrote into an earlier manifest stays, where nothing beside the photo says otherwise."""
    from pisasr.data.manifest import read_manifest

    if before.is_file():
        captions = {row.get("sha256"): row.get("caption") for row in read_manifest(before)}
        for row in rows:
            row["caption"] = row["caption"] or captions.get(row["sha256"])


def score_by_metric(rows: list[dict], args: argparse.Namespace) -> dict | None:
    """Let the metric have half of the say; None, with a line, where it can't be had."""
    from pisasr.data.manifest import Journal
    from pisasr.data.prepare import add_metric, load_metric
    from pisasr.pictures.images import open_image, split, to_tensor

    try:
        metric = load_metric(args.metric)
    except PisasrError as error:
        print(shown(error), file=sys.stderr)
        return None
    with Journal(args.output / f"{args.metric}.jsonl") as journal:
        known = {row["sha256"]: row["value"] for row in journal.read()}
        for row in progress(rows, len(rows), f"scored by {args.metric}"):
            if row["sha256"] not in known:
                try:
                    value = float(metric(to_tensor(split(open_image(args.output / row["path"]))[0])))
                except (ImageError, RuntimeError, ValueError, AssertionError):
                    value = None
                known[row["sha256"]] = value
                journal.add({"sha256": row["sha256"], "value": value})
    add_metric(rows, [known[row["sha256"]] for row in rows], args.metric, metric.lower_better)
    return {"name": args.metric, "lower_better": metric.lower_better}


def summarise(args, found: list, kept: list[dict], reasons: dict, left_out: list, metric: dict | None) -> dict:
    """What was done, with which settings, and what the score means."""
    from pisasr.data import quality

    sources = Counter(photo.source for photo in found)
    stayed = Counter(row["source"] for row in kept)
    scores = sorted(row["score"] for row in kept)
    at = {f"{share:.0%}": scores[round(share * (len(scores) - 1))] for share in (0, 0.1, 0.5, 0.9, 1)} if scores else {}
    return {
        "found": len(found),
        "kept": len(kept),
        "dropped": reasons,
        "captions": sum(bool(row["caption"]) for row in kept),
        "licences": sum(bool(row["licence"]) for row in kept),
        "sources": {name: {"found": count, "kept": stayed[name]} for name, count in sources.items()},
        "left_out": [{"path": str(place.path), "reason": place.reason} for place in left_out],
        "settings": {"input": args.input, "licence": args.licence, "min_side": args.min_side, "metric": args.metric},
        "score": {
            "version": quality.VERSION,
            "definition": "product of (1 / (1 + (value / half) ** steepness)) ** weight over the parts; with a metric, "
            "the mean of that and of the photo's rank by the metric",
            "parts": {
                name: dict(zip(("half", "steepness", "weight"), curve, strict=True))
                for name, curve in quality.CURVES.items()
            },
            "metric": metric,
            "quantiles": at,
        },
    }


def caption(args: argparse.Namespace) -> int:
    """Fill the manifest's empty captions; processes share the work."""
    from pisasr.data.captions import fill_captions, is_main_process

    filled, failed = fill_captions(args.output / MANIFEST, args.caption, args.batch_size, args.caption_prompt, progress)
    if not is_main_process():
        return 0
    for path, reason in failed.items():
        print(f"{shown(path)}: {shown(reason)}", file=sys.stderr)
    print(f"{filled} captions written to {shown(args.output / MANIFEST)}")
    return 3 if failed else 0


def progress(steps: Iterable[T], total: int, verb: str) -> Iterator[T]:
    """Pass things on, and say every few seconds how far it is; on a terminal in one line."""
    started = told = time.monotonic()
    terminal = sys.stderr.isatty()
    for done, step in enumerate(steps, 1):
        yield step
        now = time.monotonic()
        if now - told > (1 if terminal else 30) or (terminal and done == total):
            told, speed = now, done / max(now - started, 1e-9)
            line = f"{done}/{total} {verb}, {speed:.1f} a second, {(total - done) / speed / 60:.0f} min left"
            print(
                f"\r{line}   " if terminal else line, end="\n" if not terminal or done == total else "", file=sys.stderr
            )


if __name__ == "__main__":
    sys.exit(main())

"""Make a training set of photos: one manifest with hashes, sizes, licences, scores and captions.

python scripts/prepare_data.py --input LSDIR FFHQ list.txt --output data/set --licence
FFHQ=CC-BY-NC-SA-4.0 --workers 16 python scripts/prepare_data.py --caption
Salesforce/blip-image-captioning-large --output data/set accelerate launch scripts/prepare_data.py
--caption MODEL --output data/set      # the same on all GPUs

Inputs are folders (searched recursively; numbered shards, DIV2K, Flickr2K and Hugging Face's
imagefolder are known) and text files with a path a line. Unreadable and small photos and duplicates
are left out, and OUTPUT/dropped.jsonl tells which and why; OUTPUT/manifest.jsonl has the others
with a quality score in [0, 1], and is what `data.photos` takes; OUTPUT/summary.json counts. No
photo is copied or changed. The same command goes on where it was interrupted, and measures only
what is new: what is known is in OUTPUT/measured.jsonl. --caption fills empty captions of the
manifest with any captioning or image-classification model that transformers loads.

Exit code: 0 all fine, 1 nothing could start, 2 usage, 3 some photos could not be read.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.batch import check_output
from pisasr.commands.options import command_parser, positive_int
from pisasr.errors import PisasrError, guarded, safe_text

MANIFEST = "manifest.jsonl"


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return guarded(lambda: caption(args) if args.caption else prepare(args), args.debug)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("prepare_data.py", __doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="SOURCE",
        help="folders of photos, and lists with a path a line",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the manifest")
    parser.add_argument(
        "--licence",
        nargs="+",
        default=[],
        metavar="SOURCE=TEXT",
        help="overrides what lies beside it",
    )
    parser.add_argument(
        "--min_side",
        type=positive_int,
        default=512,
        help="px; smaller photos are dropped (%(default)s)",
    )
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--caption",
        metavar="MODEL",
        help="folder or hub id; fills the captions of OUTPUT's manifest",
    )
    parser.add_argument(
        "--batch_size", type=positive_int, default=8, help="of --caption (%(default)s)"
    )
    parser.add_argument("--caption_prompt", metavar="TEXT", help="for models that want to be asked")
    args = parser.parse_args(argv)
    if bool(args.input) == bool(args.caption):
        parser.error("give --input to make a manifest, or --caption to fill its captions")
    if wrong := [text for text in args.licence if "=" not in text]:
        parser.error(f"--licence wants SOURCE=TEXT; got {wrong[0]!r}")
    return args


def prepare(args: argparse.Namespace) -> int:
    """Find, measure, select, write."""
    from tqdm import tqdm

    from pisasr.data.prepare import count_reasons, manifest_row, measure_photos, select
    from pisasr.data.sources import write_rows
    from pisasr.files import Journal, write_whole

    found, left_out, licences = search(args)
    check_output(args.output, "measured.jsonl", "dropped.jsonl", MANIFEST, "summary.json")
    journal = Journal(args.output / "measured.jsonl")
    measured = measure_photos([photo.path for photo in found], journal, args.workers)
    rows = list(tqdm(measured, total=len(found), unit="photo", desc="measured", delay=2))
    stay, dropped = select(found, rows, args.min_side, args.output)
    kept = [
        manifest_row(found[i], rows[i], args.output, licences.get(found[i].source)) for i in stay
    ]
    keep_captions(kept, args.output / MANIFEST)
    write_rows(args.output / "dropped.jsonl", dropped)
    write_rows(args.output / MANIFEST, kept)
    reasons = count_reasons(dropped)
    summary = summarise(args, found, kept, reasons, left_out)
    write_whole(args.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    for row in dropped:
        if row["reason"].startswith("unreadable"):
            print(f"{safe_text(row['path'])}: {safe_text(row['reason'])}", file=sys.stderr)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    print(
        f"{len(kept)} of {len(found)} photos kept{f' ({told})' if told else ''}: {safe_text(args.output / MANIFEST)}"
    )
    return 3 if "unreadable" in reasons else 0


def search(args: argparse.Namespace) -> tuple[list, list, dict[str, str]]:
    """All photos of all sources, each file once; the folders left out; the licences given by name
    of source.
    """
    from pisasr.data.sources import LeftOut, Photo, find_photos, name_sources

    names = name_sources(args.input)
    given = dict(text.split("=", 1) for text in args.licence)
    if unknown := given.keys() - names.keys() - set(names.values()):
        raise PisasrError(
            f"--licence {min(unknown)}: no such source; there are {', '.join(names.values())}."
        )
    found: dict[Path, Photo] = {}
    left_out: list[LeftOut] = []
    for source, name in names.items():
        photos, without = find_photos(source, name, args.output)
        left_out += without
        for photo in photos:
            found.setdefault(photo.path.absolute(), photo)
    for place in left_out:
        print(f"{safe_text(place.path)}, left out: {safe_text(place.reason)}")
    return (
        list(found.values()),
        left_out,
        {names.get(source) or source: text for source, text in given.items()},
    )


def keep_captions(rows: list[dict], before: Path) -> None:
    """What --caption wrote into an earlier manifest stays, where nothing beside the photo says
    otherwise.
    """
    from pisasr.files import Journal

    texts = [(str(row.get("sha256")), row.get("caption")) for row in Journal(before).rows()]
    captions = {digest: text for digest, text in texts if isinstance(text, str)}
    for row in rows:
        row["caption"] = row["caption"] or captions.get(row["sha256"])


def summarise(
    args: argparse.Namespace, found: list, kept: list[dict], reasons: dict, left_out: list
) -> dict:
    """What was done, with which settings, and how the scores lie; `pisasr.data.quality` says what
    they mean.
    """
    from pisasr.data import quality

    sources = Counter(photo.source for photo in found)
    stayed = Counter(row["source"] for row in kept)
    scores = sorted(row["score"] for row in kept)
    at = (
        {
            f"{share:.0%}": scores[round(share * (len(scores) - 1))]
            for share in (0, 0.1, 0.5, 0.9, 1)
        }
        if scores
        else {}
    )
    return {
        "found": len(found),
        "kept": len(kept),
        "dropped": reasons,
        "captions": sum(bool(row["caption"]) for row in kept),
        "licences": sum(bool(row["licence"]) for row in kept),
        "sources": {
            name: {"found": count, "kept": stayed[name]} for name, count in sources.items()
        },
        "left_out": [{"path": str(place.path), "reason": place.reason} for place in left_out],
        "settings": {"input": args.input, "licence": args.licence, "min_side": args.min_side},
        "score": {"version": quality.VERSION, "curves": quality.CURVES, "quantiles": at},
    }


def caption(args: argparse.Namespace) -> int:
    """Fill the manifest's empty captions; processes share the work."""
    from pisasr.data.captions import fill_captions, is_main_process

    filled, failed = fill_captions(
        args.output / MANIFEST, args.caption, args.batch_size, args.caption_prompt
    )
    if not is_main_process():
        return 0
    for path, reason in failed.items():
        print(f"{safe_text(path)}: {safe_text(reason)}", file=sys.stderr)
    print(f"{filled} captions written to {safe_text(args.output / MANIFEST)}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

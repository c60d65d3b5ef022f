"""Make a list of photos to train on: large ones, without duplicates, the best of them, captioned.

python scripts/prepare_data.py --input LSDIR FFHQ --output data/train.txt --best 0.5
python scripts/prepare_data.py --input LSDIR --output data/train.txt \\
    --caption Salesforce/blip-image-captioning-large

Inputs are folders (searched recursively) and text files with a path a line. OUTPUT has a path a
line and is what `data.photos` takes; beside it OUTPUT's stem + .dropped.txt says which photos were
left out and why. --best keeps the share with the lowest NIQE. --caption writes PHOTO.txt beside
each photo of the list that has none. No photo is copied or changed.

Exit code: 0 all fine, 1 nothing could start, 2 usage, 3 some photos could not be read.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.options import command_parser, finite, positive_int
from pisasr.errors import OK, SOME_FAILED, PisasrError, UsageError, explain, guarded, safe_text

if TYPE_CHECKING:
    from PIL import Image

NEAR_BITS = 6  # of 64: perceptual hashes that differ in fewer belong to the same picture
SCORED_PX = 768  # of a photo's middle that is scored
PROMPT = "Describe this photo in one sentence."
MAX_TOKENS = 60
UNREADABLE = "unreadable"


class Measured(NamedTuple):
    """What is known of a photo; reason: why it is left out, empty for one that stays."""

    path: Path
    reason: str = ""
    digest: bytes = b""
    hash: int = 0
    score: float = 0.0


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("prepare_data.py", __doc__ or "")
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="SOURCE", help="folders, and lists of paths")
    add("--output", required=True, type=Path, metavar="FILE", help="the list that is written")
    add("--min_side", type=positive_int, default=512, help="px; smaller photos go (%(default)s)")
    add("--best", type=finite, default=1.0, metavar="SHARE", help="of the photos; 1 scores nothing")
    add("--caption", metavar="MODEL", help="folder or hub id of an image-text-to-text model")
    args = parser.parse_args(argv)
    return guarded(lambda: prepare(args), args.debug)


def prepare(args: argparse.Namespace) -> int:
    """Find, measure, select, write, caption."""
    from tqdm import tqdm

    from pisasr.data.photos import list_photos
    from pisasr.files import write_whole

    if not 0 < args.best <= 1:
        raise UsageError(f"--best is a share above 0, up to 1; got {args.best:g}")
    score = load_score() if args.best < 1 else None
    paths = list(dict.fromkeys(photo.path.absolute() for photo in list_photos(args.input)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = pool.map(lambda path: measure(path, args.min_side, score), paths)
        rows = list(tqdm(measured, total=len(paths), unit="photo", delay=2))
    rows = keep_best(list(drop_duplicates(rows)), args.best)
    folder = args.output.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row.path for row in rows if not row.reason]
    lines = [f"{row.path}\t{row.reason}\n" for row in rows if row.reason]
    write_whole(
        args.output.with_suffix(".dropped.txt"), "".join(lines).encode(errors="surrogateescape")
    )
    listed = "".join(f"{os.path.relpath(path, folder)}\n" for path in kept)
    write_whole(args.output, listed.encode(errors="surrogateescape"))
    reasons = Counter(row.reason.split(":")[0] for row in rows if row.reason)
    told = "".join(f", {count} {reason}" for reason, count in reasons.items())
    print(f"{len(kept)} of {len(rows)} photos kept{told}: {safe_text(args.output)}")
    if args.caption:
        write_captions(kept, load_captioner(args.caption))
    return SOME_FAILED if reasons[UNREADABLE] else OK


def load_score() -> Callable[["Image.Image"], float]:
    """Return NIQE of a photo's middle."""
    import numpy as np

    from pisasr.evaluation.niqe import load_niqe

    niqe = load_niqe()

    def score(picture: "Image.Image") -> float:
        left, top = (max(0, side - SCORED_PX) // 2 for side in picture.size)
        middle = picture.crop(
            (left, top, min(left + SCORED_PX, picture.width), min(top + SCORED_PX, picture.height))
        )
        value = niqe(np.asarray(middle))
        return value if np.isfinite(value) else float("inf")  # too flat to be scored: the worst

    return score


def measure(path: Path, min_side: int, score: Callable[["Image.Image"], float] | None) -> Measured:
    """Decode one photo once: its size, its digests, its score."""
    import imagehash

    from pisasr.pictures.images import open_image

    try:
        picture = open_image(path).convert("RGB")
        digest = sha256(picture.tobytes() + repr(picture.size).encode()).digest()
    except (PisasrError, OSError) as error:
        return Measured(path, f"{UNREADABLE}: {explain(error)}")
    if min(picture.size) < min_side:
        return Measured(path, f"small: {picture.width}x{picture.height}")
    if "\n" in str(path):
        return Measured(path, f"{UNREADABLE}: a name of several lines")
    value = score(picture) if score else 0.0
    return Measured(path, "", digest, int(str(imagehash.phash(picture)), 16), value)


def drop_duplicates(rows: list[Measured]) -> Iterator[Measured]:
    """Mark photos whose pixels, or whose perceptual hash within NEAR_BITS, an earlier one has."""
    import numpy as np

    seen: dict[bytes, Path] = {}
    paths: list[Path] = []
    hashes = np.zeros(len(rows), np.uint64)
    for row in rows:
        if row.reason:
            yield row
            continue
        if row.digest in seen:
            yield row._replace(reason=f"duplicate: of {seen[row.digest]}")
            continue
        distances = np.bitwise_count(hashes[: len(paths)] ^ np.uint64(row.hash))
        if len(paths) and distances.min() < NEAR_BITS:
            yield row._replace(reason=f"near duplicate: of {paths[distances.argmin()]}")
            continue
        seen[row.digest] = row.path
        hashes[len(paths)] = row.hash
        paths.append(row.path)
        yield row


def keep_best(rows: list[Measured], share: float) -> list[Measured]:
    """Mark all but the best-scored share of the photos that are left; lower scores are better."""
    left = sorted((row for row in rows if not row.reason), key=lambda row: row.score)
    worse = {row.path for row in left[max(1, round(share * len(left))) :]}
    return [
        row._replace(reason=f"worse: NIQE {row.score:.3g}") if row.path in worse else row
        for row in rows
    ]


def load_captioner(model: str) -> Callable[["Image.Image"], str]:
    """Return a function from pictures to captions, by a transformers pipeline."""
    from transformers import pipeline

    captioner: Any = pipeline("image-text-to-text", model=model)
    chats = bool(getattr(captioner.processor, "chat_template", None))

    def caption(picture: "Image.Image") -> str:
        if chats:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
            given = {"text": [{"role": "user", "content": content}]}
        else:
            given = {"images": picture, "text": ""}
        answer = captioner(**given, return_full_text=False, max_new_tokens=MAX_TOKENS)
        return " ".join(answer[0]["generated_text"].split())

    return caption


def write_captions(paths: list[Path], caption: Callable[["Image.Image"], str]) -> None:
    """Write PHOTO.txt beside each photo that has none, unless the model says nothing."""
    from tqdm import tqdm

    from pisasr.files import write_whole
    from pisasr.pictures.images import open_image

    without = [path for path in paths if not path.with_suffix(".txt").exists()]
    for path in tqdm(without, unit="caption", delay=2):
        if text := caption(open_image(path).convert("RGB")):
            write_whole(path.with_suffix(".txt"), text + "\n")
    print(f"{len(without)} photos had no caption")


if __name__ == "__main__":
    sys.exit(main())

"""Score, second stop: what every picture is asked, and the loop that asks it; a kill costs the
picture at hand.

A metric that can't be had costs its own column, no other. What is done lies in FOLDER/rows-N.jsonl,
a journal per process and a row per picture of the set, under a key that holds everything the
numbers depend on. A later run with the same keys takes them over; the folder goes when all is
written.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pisasr.evaluation.deep import NETWORKS
from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.metrics import METRICS, STABLESR, Protocol, psnr, psnr_lq, ssim
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.rules import Pair
from pisasr.files import Journal
from pisasr.pictures.opening import read_picture

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture

Row = dict[str, Any]  # method, name, then a number per metric

# The pictures of one example: (method, uint8 [H, W, 3])
Pictures = Callable[[Example], Iterable[tuple[str, np.ndarray]]]

SECONDS_BETWEEN_LINES = 20  # of progress in a log file; short runs have none there
TRUTH = ""  # among the methods, whose features are the true picture's


# --- what is asked --------------------------------------------------------------------------------


def usual_metrics(with_hq: bool = True) -> list[str]:
    """What is asked unless somebody says: the metrics that want no download; LPIPS where its files
    are.
    """
    if not with_hq:
        return ["niqe"]
    from pisasr.evaluation.perceptual import is_at_hand

    return ["psnr", "ssim", *["lpips"] * is_at_hand("lpips"), "niqe"]


def load_scorers(
    names: Iterable[str],
    protocol: Protocol = STABLESR,
    weights: Path | None = None,
    device: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics that can run here, a Scorer each (an Extractor if it needs a set); for the others
    what they lack.

    weights: a folder with the files of NIQE and the feature distance; the others' lie where torch's
    hub keeps them. device: torch's; None for the GPU if there is one.
    """
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = load_scorer(name, protocol, weights, device)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return loaded, missing


def load_scorer(name: str, protocol: Protocol, weights: Path | None, device: str | None) -> Any:
    """One metric's Scorer, or Extractor; MetricUnavailable where a file or a package is missing.

    What needs torch is imported here and not above, so that PSNR and SSIM do without.
    """
    match name:
        case "psnr":
            return lambda sr, hq, lq: psnr(sr, hq, protocol)
        case "ssim":
            return lambda sr, hq, lq: ssim(sr, hq, protocol)
        case "psnr_lq":
            return lambda sr, hq, lq: psnr_lq(sr, lq)
        case "niqe":
            from pisasr.evaluation.niqe import find_parameters, load_parameters, niqe

            pristine = load_parameters(find_parameters(weights))
            return lambda sr, hq, lq: niqe(sr, pristine)
        case "lpips" | "lpips_vgg" | "dists":
            from pisasr.evaluation import perceptual

            return perceptual.load_scorer(name, device)
        case "fid":
            from pisasr.evaluation.fid import load_inception

            return load_inception(device)
        case _:
            from pisasr.evaluation import deep

            return deep.load_scorer(name, device)


def describe(metric: str, protocol: Protocol) -> str:
    """The recipe of one column, with the library that computes it: what must stand beside its
    numbers.
    """
    recipe = protocol.describe(metric) if metric in ("psnr", "ssim") else METRICS[metric].recipe
    package, name = (
        ("pyiqa", f" {NETWORKS[metric].name}")
        if metric in NETWORKS
        else (METRICS[metric].package, "")
    )
    try:
        package = f"{package} {version(package)}"
    except PackageNotFoundError:
        pass
    return f"{recipe}; {package}{name}"


# --- the loop -------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What came of a set. rows: method, name, then a number per metric (NaN stays NaN), ordered by
    method, then name.

    features: metric -> method -> [pictures, d], TRUTH among the methods. faults: one line for each
    metric that failed on a picture, whose number is NaN.
    """

    rows: list[Row]
    features: Mapping[str, Mapping[str, np.ndarray]] = {}
    faults: Sequence[str] = ()


def read_methods(example: Example) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures that lie in the methods' folders."""
    for method, path in example.sr.items():
        yield method, read_picture(path)


def score_set(
    examples: Sequence[Example],
    scorers: Mapping[str, Any],
    pictures: Pictures,
    folder: Path,
    fingerprint: str,
    processes: Processes,
    label: str = "scoring",
) -> Scores | None:
    """Score this process' share, wait for the others, and give the first process everything (the
    others None).

    fingerprint: what the numbers depend on beside the files: metrics, protocol, versions, model.
    The result is the same for any number of processes and however often the run was killed. OSError
    when the disk has no room for the journal.
    """
    keys, done = processes.once(
        lambda: ([_key(e, fingerprint) for e in examples], set(_read_journals(folder)))
    )
    share = processes.split(
        [(key, e) for key, e in zip(keys, examples, strict=True) if key not in done]
    )
    if processes.is_first and len(share) < len(examples):
        others = f", {processes.count} processes" if processes.count > 1 else ""
        print(
            f"{label}: {len(share)} of {len(examples)} pictures to do here{others}", file=sys.stderr
        )
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"rows-{processes.rank}.jsonl")
    seldom = 0 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    silent = not processes.is_first
    for key, example in tqdm(
        share, label, unit="picture", disable=silent, delay=seldom, mininterval=seldom or 0.1
    ):
        journal.append({"key": key, **_score_example(example, scorers, pictures)})
    journal.sync()
    processes.wait()
    if not processes.is_first:
        return None
    rows = _read_journals(folder)
    return _merge([rows[key] for key in keys], [example.name for example in examples])


def _key(example: Example, fingerprint: str) -> str:
    digest = hashlib.sha256(json.dumps([fingerprint, example.name, list(example.sr)]).encode())
    for path in [*example.sr.values(), example.hq, example.lq]:
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path else b"none")
    return digest.hexdigest()


def _read_journals(folder: Path) -> dict[str, Row]:
    rows = [row for path in sorted(folder.glob("rows-*.jsonl")) for row in Journal(path).rows()]
    return {row["key"]: row for row in rows if "key" in row}


def _score_example(example: Example, scorers: Mapping[str, Any], pictures: Pictures) -> Row:
    """One row of the journal: method -> metric -> number, and -> features. A metric that fails
    costs a line.
    """
    hq, lq = (read_picture(path) if path else None for path in (example.hq, example.lq))
    extractors = {
        name: extract for name, extract in scorers.items() if METRICS[name].needs == "hq_set"
    }
    row: Row = {"scores": {}, "features": {}, "faults": []}
    if hq is not None and extractors:
        row["features"][TRUTH] = {
            name: extract(hq).tolist() for name, extract in extractors.items()
        }
    for method, sr in pictures(example):
        scores = row["scores"][method] = {}
        for name in (name for name in scorers if name not in extractors):
            try:
                scores[name] = scorers[name](sr, hq, lq)
            except Exception as error:
                scores[name], words = (
                    math.nan,
                    f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
                )
                row["faults"].append(f"{method}, {example.name}: {name} failed ({words})")
        row["features"][method] = {
            name: extract(sr).tolist() for name, extract in extractors.items()
        }
    return row


def _merge(found: list[Row], names: list[str]) -> Scores:
    """The journal's rows, a picture each, as rows of a method and a picture each."""
    methods = found[0]["scores"] if found else ()
    rows = [
        {"method": m, "name": n, **row["scores"][m]}
        for m in methods
        for n, row in zip(names, found, strict=True)
    ]
    features: dict[str, dict[str, np.ndarray]] = {}
    for method, vectors in (found[0]["features"] if found else {}).items():
        for metric in vectors:
            columns = [row["features"][method][metric] for row in found]
            features.setdefault(metric, {})[method] = np.array(columns, np.float32)
    return Scores(rows, features, [fault for row in found for fault in row["faults"]])


# --- strengths ------------------------------------------------------------------------------------


def score_each(
    pairs: Iterable[Pair], results: Iterable[Any], picture: "Picture", scorers: Mapping[str, Any]
) -> Iterator[tuple[Pair, dict[str, float], Any]]:
    """(pair, scores, result) for each result, judged as its 8-bit file holds it, beside the input;
    without alpha.
    """
    from pisasr.pictures.images import eight_bits

    lq = np.asarray(eight_bits(picture.pixels))
    for pair, result in zip(pairs, results, strict=True):
        sr = np.asarray(eight_bits(result).convert("RGB"))
        yield pair, {name: scorer(sr, None, lq) for name, scorer in scorers.items()}, result

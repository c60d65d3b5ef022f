"""Score every picture by every metric, and take the means."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pisasr.evaluation.metrics import Metric, Scorer, load_metric
from pisasr.evaluation.networks import MetricUnavailable
from pisasr.evaluation.pairs import Example
from pisasr.pictures.opening import read_picture

Loaded = Mapping[str, tuple[Metric, Scorer]]
Row = dict[str, Any]  # method, name, then a number per metric; NaN where there is none


class Scores(NamedTuple):
    """rows: one per method and picture. sets: metric -> method -> number, of whole sets (FID).

    faults: a line for each metric that failed on a picture.
    """

    rows: list[Row]
    sets: dict[str, dict[str, float]]
    faults: list[str]


def load_metrics(
    names: Iterable[str], device: str, kinds: Collection[str]
) -> tuple[Loaded, dict[str, str]]:
    """Return the metrics that can be had here, and the reason why not for each of the others.

    kinds: what there is beside the results, of "hq" and "lq".
    """
    loaded: dict[str, tuple[Metric, Scorer]] = {}
    missing = {}
    for name in names:
        try:
            metric, scorer = load_metric(name, device)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
            continue
        kind = (metric.needs or "").removesuffix("_set")
        if kind and kind not in kinds:
            missing[name] = f"it compares with pictures of --{kind}, which was not given"
        else:
            loaded[name] = metric, scorer
    return loaded, missing


def score_examples(examples: Sequence[Example], metrics: Loaded, border: int = 0) -> Scores:
    """Score every example of every method. border: px left out at each side by PSNR and SSIM.

    A metric that fails on a picture gives NaN and a line; the others go on.
    """
    rows: list[Row] = []
    faults: list[str] = []
    for example in tqdm(examples, "scoring", unit="picture", disable=None):
        others = {
            kind: read_picture(path)
            for kind, path in (("hq", example.hq), ("lq", example.lq))
            if path is not None
        }
        for method, path in example.sr.items():
            sr = read_picture(path)
            row: Row = {"method": method, "name": example.name}
            for name, (metric, scorer) in metrics.items():
                if metric.needs == "hq_set":
                    continue
                pictures = [sr, others[metric.needs]] if metric.needs else [sr]
                if metric.crops and border:
                    pictures = [picture[border:-border, border:-border] for picture in pictures]
                row[name], fault = _try(scorer, *pictures)
                if fault:
                    faults.append(f"{method}, {example.name}: {name} failed ({fault})")
            rows.append(row)
    methods = list(examples[0].sr)
    rows.sort(key=lambda row: methods.index(row["method"]))
    sets: dict[str, dict[str, float]] = {}
    hq_files = [example.hq for example in examples]
    for name in (name for name, (metric, _) in metrics.items() if metric.needs == "hq_set"):
        sets[name] = {}
        for method in methods:
            files = [example.sr[method] for example in examples]
            sets[name][method], fault = _try(metrics[name][1], files, hq_files)
            if fault:
                faults.append(f"{method}: {name} failed ({fault})")
    return Scores(rows, sets, faults)


def _try(scorer: Scorer, *args: Any) -> tuple[float, str]:
    """Return the number, or NaN and what went wrong: another library's code runs in here."""
    try:
        return float(scorer(*args)), ""
    except Exception as error:
        return math.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def summarize(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Return method -> metric -> {"mean": a number or None, "without": names that have none}.

    A mean is taken only where every picture has a number.
    """
    methods: dict[str, list[Row]] = {}
    for row in scores.rows:
        methods.setdefault(row["method"], []).append(row)
    summary = {}
    for method, rows in methods.items():
        columns = {}
        for name in (key for key in rows[0] if key not in ("method", "name")):
            without = [row["name"] for row in rows if not math.isfinite(row[name])]
            mean = None if without else float(np.mean([row[name] for row in rows]))
            columns[name] = {"mean": mean, "without": without}
        for name, values in scores.sets.items():
            finite = math.isfinite(values[method])
            columns[name] = {"mean": values[method] if finite else None, "without": []}
        summary[method] = columns
    return summary

"""Names of metrics -> functions of one picture. A metric whose files are absent costs its own column, no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pisasr.evaluation.lookup import MetricUnavailable, find_efficientnet
from pisasr.evaluation.metrics import METRICS, STABLESR, Extractor, Protocol, Scorer, psnr, psnr_lq, ssim


@dataclass(frozen=True)
class Panel:
    """What every picture is asked.

    scorers: metric -> number. extractors: metrics of whole sets -> features. checks: the same metrics by another
    library. missing: metric -> the line that says what it lacks here.
    """

    scorers: dict[str, Scorer] = field(default_factory=dict)
    extractors: dict[str, Extractor] = field(default_factory=dict)
    checks: dict[str, Scorer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def drop(self, why: dict[str, str]) -> Panel:
        """The panel without these metrics, for a set that can't answer them."""
        scorers, extractors, checks = (
            {name: f for name, f in part.items() if name not in why}
            for part in (self.scorers, self.extractors, self.checks)
        )
        return Panel(scorers, extractors, checks, {**self.missing, **why})


def load_panel(
    metrics: Iterable[str], protocol: Protocol = STABLESR, weights: Path | None = None, cross_check: bool = False
) -> Panel:
    """Everything that can be asked here of these metrics."""
    metrics = list(metrics)
    scorers, missing = load_scorers([m for m in metrics if METRICS[m].needs != "hq_set"], protocol, weights)
    extractors, checks = {}, {}
    for name in (name for name in metrics if METRICS[name].needs == "hq_set"):
        from pisasr.evaluation.fid import load_inception

        try:
            extractors[name] = load_inception(weights)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    if cross_check:
        from pisasr.evaluation.deep import load_second_opinions

        checks, why = load_second_opinions(list(scorers), protocol, weights)
        missing |= {f"cross-check of {name}": reason for name, reason in why.items()}
    return Panel(scorers, extractors, checks, missing)


def load_scorers(
    names: Iterable[str], protocol: Protocol = STABLESR, weights: Path | None = None
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The scorers of single pictures that can run here, and for each other one the line that says what it lacks."""
    scorers, missing = {}, {}
    for name in names:
        try:
            scorers[name] = _load_scorer(name, protocol, weights)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return scorers, missing


def describe(metric: str, protocol: Protocol) -> str:
    """The recipe of one column, with the library that computes it: what must stand beside its numbers."""
    recipe = protocol.describe(metric) if metric in ("psnr", "ssim") else METRICS[metric].recipe
    return f"{recipe}; {_library(metric)}"


def _library(metric: str) -> str:
    from pisasr.evaluation.deep import NETWORKS

    package, name = ("pyiqa", f" {NETWORKS[metric].name}") if metric in NETWORKS else ("pisasr", "")
    try:
        return f"{package} {version(package)}{name}"
    except PackageNotFoundError:
        return f"{package}{name}"


def _load_scorer(name: str, protocol: Protocol, weights: Path | None) -> Scorer:
    if name == "psnr":
        return lambda sr, hq, lq: psnr(sr, hq, protocol)
    if name == "ssim":
        return lambda sr, hq, lq: ssim(sr, hq, protocol)
    if name == "psnr_lq":
        return lambda sr, hq, lq: psnr_lq(sr, lq)
    if name == "niqe":
        from pisasr.evaluation.niqe import find_parameters, load_parameters, niqe

        pristine = load_parameters(find_parameters(weights))
        return lambda sr, hq, lq: niqe(sr, pristine)
    if name == "featdist":
        path = find_efficientnet(weights)
        from pisasr.evaluation.features import load_network, picture_distance

        network = load_network(path)
        return lambda sr, hq, lq: picture_distance(sr, hq, network)
    from pisasr.evaluation.deep import load_scorer

    return load_scorer(name, weights)

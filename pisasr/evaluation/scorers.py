"""Score, before the first picture: names of metrics -> functions. What can't be had costs its own column, no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pisasr.evaluation.deep import NETWORKS, load_second_opinions
from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.metrics import METRICS, STABLESR, Extractor, Protocol, Scorer, Setup


@dataclass(frozen=True)
class Panel:
    """What every picture is asked.

    scorers: metric -> number. extractors: metrics of whole sets -> features. checks: the same metrics by another
    library. missing: metric -> the line that says what it lacks here.
    """

    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    extractors: Mapping[str, Extractor] = field(default_factory=dict)
    checks: Mapping[str, Scorer] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def drop(self, why: Mapping[str, str]) -> Panel:
        """The panel without these metrics, for a set that can't answer them."""
        scorers = {name: score for name, score in self.scorers.items() if name not in why}
        extractors = {name: extract for name, extract in self.extractors.items() if name not in why}
        checks = {name: score for name, score in self.checks.items() if name not in why}
        return Panel(scorers, extractors, checks, {**self.missing, **why})


def load_panel(
    metrics: Iterable[str],
    protocol: Protocol = STABLESR,
    weights: Path | None = None,
    cross_check: bool = False,
    device: str | None = None,
) -> Panel:
    """Everything that can be asked here of these metrics. device: of networks; None for the GPU if there is one."""
    loaded, missing = load_scorers(metrics, protocol, weights, device)
    sets = [name for name in loaded if METRICS[name].needs == "hq_set"]
    scorers = {name: score for name, score in loaded.items() if name not in sets}
    checks, why = load_second_opinions(list(scorers), protocol, weights) if cross_check else ({}, {})
    missing |= {f"cross-check of {name}": reason for name, reason in why.items()}
    return Panel(scorers, {name: loaded[name] for name in sets}, checks, missing)


def load_scorers(
    names: Iterable[str], protocol: Protocol = STABLESR, weights: Path | None = None, device: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics that can run here, as a Scorer each (an Extractor if it needs a set); for the others what they lack.

    device: as load_panel has it.
    """
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = METRICS[name].load(name, Setup(protocol, weights, device))
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return loaded, missing


def describe(metric: str, protocol: Protocol) -> str:
    """The recipe of one column, with the library that computes it: what must stand beside its numbers."""
    recipe = protocol.describe(metric) if metric in ("psnr", "ssim") else METRICS[metric].recipe
    package, name = ("pyiqa", f" {NETWORKS[metric].name}") if metric in NETWORKS else ("pisasr", "")
    try:
        package = f"{package} {version(package)}"
    except PackageNotFoundError:
        pass
    return f"{recipe}; {package}{name}"

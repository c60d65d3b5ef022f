"""Score, with the model in the loop: every pair of strengths from one encoding and two UNet passes.

Nothing here knows the model: `restore` is a function from an input's file to its pictures, one for
each pair.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.rules import Pair, Rule, choose, describe
from pisasr.evaluation.scoring import read_methods
from pisasr.pictures.opening import opened

# (file of the input, pairs of strengths) -> a picture for each, 8 bits a channel
RestoreFile = Callable[[Path, Sequence[Pair]], Iterator[Image.Image]]


@dataclass(frozen=True)
class Grid:
    """The pairs, who makes their pictures, and by which rule one is called the best.

    fingerprint: names the model and its settings, for a run that is continued.
    """

    lambdas_pix: Sequence[float]
    lambdas_sem: Sequence[float]
    restore: RestoreFile
    rule: Rule | None = None
    fingerprint: str = ""

    @property
    def methods(self) -> dict[str, Pair]:
        """The name of each pair in the tables: "ours (1, 0.5)"."""
        return name_pairs(self.lambdas_pix, self.lambdas_sem)

    def pictures(self, example: Example) -> Iterator[tuple[str, np.ndarray]]:
        """What is scored of an example: the pictures of its folders, then one of the model for each
        pair.
        """
        yield from read_methods(example)
        pictures = self.restore(example.lq, list(self.methods.values())) if example.lq else iter(())
        for method, picture in zip(self.methods, pictures, strict=True):
            if example.hq:
                _check_size(picture, example.hq, example.name)
            yield method, np.asarray(picture.convert("RGB"))

    def add_to(self, summary: dict[str, Any]) -> None:
        """Put the surface into the summary: the means as maps [lambda_pix][lambda_sem], and the
        rule's choice.
        """
        summary["made_by"]["Strengths"] = (
            f"ours (lambda_pix, lambda_sem), {len(self.methods)} pairs from one encoding and two UNet passes a picture"
        )
        found = {pair: summary["methods"][method] for method, pair in self.methods.items()}
        means = {
            pair: {name: column["mean"] for name, column in of.items()}
            for pair, of in found.items()
        }
        maps = {
            m: [[means[p, s][m] for s in self.lambdas_sem] for p in self.lambdas_pix]
            for m in [*means.values()][0]
        }
        surface = {"lambdas_pix": list(self.lambdas_pix), "lambdas_sem": list(self.lambdas_sem)}
        summary["surface"] = {**surface, "methods": self.methods, "maps": maps}
        if self.rule:
            best = summary["surface"]["best"] = _choose(self.rule, means)
            summary["made_by"]["Chosen"] = f"{best['rule']}: {best['words']}"


def name_pairs(lambdas_pix: Sequence[float], lambdas_sem: Sequence[float]) -> dict[str, Pair]:
    """What each pair is called in the tables: "ours (1, 0.5)"."""
    return {
        f"ours ({pix:.15g}, {sem:.15g})": (pix, sem)
        for pix, sem in product(lambdas_pix, lambdas_sem)
    }


def check_rule(rule: Rule, metrics: Sequence[str]) -> None:
    """PisasrError if the rule asks for what is not computed."""
    if absent := [name for name in rule.metrics if name not in metrics]:
        raise PisasrError(
            f"--rule '{rule}' needs {absent[0]}; add it to --metrics {' '.join(metrics)}"
        )
    if sets := [name for name in rule.metrics if METRICS[name].needs == "hq_set"]:
        raise PisasrError(
            f"--rule '{rule}': {sets[0]} has one number per set and no picture; choose by another metric"
        )


def _choose(rule: Rule, means: dict[Pair, dict[str, float | None]]) -> dict[str, Any]:
    numbers = {
        p: {n: np.nan if mean is None else mean for n, mean in of.items()}
        for p, of in means.items()
    }
    try:
        choice = choose(rule, numbers)
    except PisasrError as error:  # no number anywhere: what was scored is still worth its tables
        return {"rule": str(rule), "pair": (), "kept": False, "words": str(error)}
    return {
        "rule": str(rule),
        "pair": choice.pair,
        "kept": choice.kept,
        "words": describe(rule, choice),
    }


def _check_size(sr: Image.Image, hq: Path, name: str) -> None:
    with opened(hq) as picture:
        if sr.size != picture.size:
            came, want = ("{}x{}".format(*size) for size in (sr.size, picture.size))
            raise PisasrError(
                f"{name} comes out as {came}, the true picture is {want}: set --upscale"
            )

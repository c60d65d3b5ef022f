"""The trade-off surface: every pair of strengths of a grid, from one encoding and two UNet passes per picture.

Nothing here knows the model: `restore` is a function from an input's file to its pictures, one for each pair.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.rules import Pair, Rule, choose, describe
from pisasr.evaluation.scoring import Pictures, read_methods
from pisasr.files import write_whole

# (file of the input, pairs of strengths) -> a picture for each, 8 bits a channel
RestoreFile = Callable[[Path, Sequence[Pair]], Iterator[Image.Image]]


@dataclass(frozen=True)
class Grid:
    """The pairs, who makes their pictures, and by which rule one is called the best.

    fingerprint: names the model and its settings, for a run that is continued. saves: keep the pictures as PNGs; the
    scores are those of the same 8 bits either way.
    """

    lambdas_pix: Sequence[float]
    lambdas_sem: Sequence[float]
    restore: RestoreFile
    rule: Rule | None = None
    fingerprint: str = ""
    saves: bool = False

    @property
    def pairs(self) -> list[Pair]:
        return [*product(self.lambdas_pix, self.lambdas_sem)]

    @property
    def methods(self) -> dict[str, Pair]:
        """The name of each pair in the tables: "ours (1, 0.5)"."""
        return name_pairs(self.lambdas_pix, self.lambdas_sem)

    def pictures(self, folder: Path | None) -> Pictures:
        """What is scored of an example: the pictures of its folders, then one of the model for each pair."""

        def make(example: Example) -> Iterator[tuple[str, np.ndarray]]:
            yield from read_methods(example)
            for method, picture in zip(self.methods, self.restore(example.lq, self.pairs), strict=True):
                if folder:
                    _save(picture, folder / method / Path(example.name).with_suffix(".png"))
                levels = np.asarray(picture.convert("RGB"))
                if example.hq:
                    _check_size(levels, example)
                yield method, levels

        return make

    def describe(self) -> dict[str, str]:
        """For the notes under a table."""
        return {"Strengths": f"ours (lambda_pix, lambda_sem), {len(self.pairs)} pairs from one encoding and two"
                f" UNet passes a picture"}  # fmt: skip

    def summarise(self, summary: dict) -> dict:
        """The surface for summary.json: the means as maps [lambda_pix][lambda_sem], and the rule's choice."""
        means = {
            method: {name: summary["methods"][method][name]["mean"] for name in summary["methods"][method]}
            for method in self.methods
        }
        metrics = list(next(iter(means.values())))
        columns = len(self.lambdas_sem)
        values = {name: [means[method].get(name) for method in self.methods] for name in metrics}
        surface = {
            "lambdas_pix": list(self.lambdas_pix),
            "lambdas_sem": list(self.lambdas_sem),
            "methods": self.methods,
            "maps": {name: [row[k : k + columns] for k in range(0, len(row), columns)] for name, row in values.items()},
        }
        if self.rule:
            scores = {pair: {n: np.nan if v is None else v for n, v in means[method].items()}
                      for method, pair in self.methods.items()}  # fmt: skip
            try:
                choice = choose(self.rule, scores)
                words = describe(self.rule, choice)
                surface["best"] = {"rule": str(self.rule), "pair": choice.pair, "kept": choice.kept, "words": words}
            except PisasrError as error:  # no number anywhere: what was scored is still worth its tables
                surface["best"] = {"rule": str(self.rule), "pair": (), "kept": False, "words": str(error)}
        return surface

    def write_csv(self, path: Path, summary: dict) -> None:
        """A row per pair: lambda_pix, lambda_sem, then the mean of every metric ("n/a" where there is none)."""
        metrics = list(summary["surface"]["maps"])
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["lambda_pix", "lambda_sem", *metrics])
        for method, pair in self.methods.items():
            means = [summary["methods"][method][name]["mean"] for name in metrics]
            writer.writerow([*pair, *("n/a" if mean is None else mean for mean in means)])
        write_whole(path, text.getvalue())


def name_pairs(lambdas_pix: Sequence[float], lambdas_sem: Sequence[float]) -> dict[str, Pair]:
    """What each pair is called in the tables: "ours (1, 0.5)"."""
    return {f"ours ({pix:.15g}, {sem:.15g})": (pix, sem) for pix, sem in product(lambdas_pix, lambdas_sem)}


def check_rule(rule: Rule, metrics: Sequence[str]) -> None:
    """PisasrError if the rule asks for what is not computed."""
    if absent := [name for name in rule.metrics if name not in metrics]:
        raise PisasrError(f"--rule '{rule}' needs {absent[0]}; add it to --metrics {' '.join(metrics)}")
    if sets := [name for name in rule.metrics if METRICS[name].needs == "hq_set"]:
        raise PisasrError(f"--rule '{rule}': {sets[0]} has one number per set and no picture; choose by another metric")


def _save(picture: Image.Image, path: Path) -> None:
    from pisasr.pictures.images import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)


def _check_size(sr: np.ndarray, example: Example) -> None:
    with Image.open(example.hq) as hq:
        wanted = hq.size
    if sr.shape[1::-1] != wanted:
        came = f"{sr.shape[1]}x{sr.shape[0]}"
        raise PisasrError(
            f"{example.name} comes out as {came}, the true picture is {wanted[0]}x{wanted[1]}: set --upscale"
        )

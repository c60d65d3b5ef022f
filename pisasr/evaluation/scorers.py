"""Names of metrics -> functions of one example. A metric whose files are absent costs its own column, no other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pisasr.evaluation.metrics import METRICS, psnr_lq, psnr_y, ssim_y
from pisasr.evaluation.weights import MetricUnavailable, find_efficientnet_lite0

# (picture, true picture or None, input or None), each uint8 [H, W, 3] -> score
Scorer = Callable[[np.ndarray, np.ndarray | None, np.ndarray | None], float]

# The papers' names -> pyiqa's.
PYIQA = {
    "lpips": "lpips",
    "dists": "dists",
    "musiq": "musiq",
    "maniqa": "maniqa-pipal",
    "clipiqa": "clipiqa",
    "fid": "fid",
}


def load_scorers(
    names: list[str], border: int = 0, weights: Path | None = None
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The scorers of single pictures that can run here, and for each other one the line that says what it lacks."""
    scorers, missing = {}, {}
    for name in (name for name in names if METRICS[name].needs != "hq_set"):
        try:
            scorers[name] = _load_scorer(name, border, weights)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return scorers, missing


def _load_scorer(name: str, border: int, weights: Path | None) -> Scorer:
    if name == "psnr":
        return lambda sr, hq, lq: psnr_y(sr, hq, border)
    if name == "ssim":
        return lambda sr, hq, lq: ssim_y(sr, hq, border)
    if name == "psnr_lq":
        return lambda sr, hq, lq: psnr_lq(sr, lq)
    if name == "niqe":
        from pisasr.evaluation.niqe import find_parameters, load_parameters, niqe

        pristine = load_parameters(find_parameters(weights))
        return lambda sr, hq, lq: niqe(sr, pristine)
    if name == "featdist":
        path = find_efficientnet_lite0(weights)
        from pisasr.evaluation.features import load_network, picture_distance

        network = load_network(path)
        return lambda sr, hq, lq: picture_distance(sr, hq, network)
    return _load_pyiqa(name)


def _load_pyiqa(name: str) -> Scorer:
    """A scorer of IQA-PyTorch, which is not installed with pisasr because its licence forbids commercial use."""
    metric = create_pyiqa(name)

    def score(sr: np.ndarray, hq: np.ndarray | None, lq: np.ndarray | None) -> float:
        import torch

        pictures = [sr, hq] if METRICS[name].needs == "hq" else [sr]
        with torch.inference_mode():
            return float(metric(*(torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 255 for p in pictures)))

    return score


def score_folders(
    names: list[str], methods: dict[str, Path], hq: Path | None, has_gaps: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The metrics that compare whole folders (FID): metric -> method -> score, and what keeps the others away.

    They read every file of a folder, so with gaps their number would not be about the pictures of the table.
    """
    scores, missing = {}, {}
    for name in (name for name in names if METRICS[name].needs == "hq_set"):
        try:
            if has_gaps:
                raise MetricUnavailable("it compares whole folders, and pictures were left out of this table")
            metric = create_pyiqa(name)
            scores[name] = {method: float(metric(str(folder), str(hq))) for method, folder in methods.items()}
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return scores, missing


def create_pyiqa(name: str) -> Callable:
    """pyiqa's own metric object, or MetricUnavailable when the package or its weights cannot be had."""
    if find_spec("pyiqa") is None:
        raise MetricUnavailable("pyiqa is not installed: pip install pyiqa (PolyForm Noncommercial licence)")
    _fail_fast_when_offline()
    from pisasr._compat import repair_torchvision

    repair_torchvision()
    try:
        import pyiqa

        return pyiqa.create_metric(PYIQA[name])
    except Exception as error:  # URLError, hub errors, missing pkg_resources: all mean that this column cannot be had
        raise MetricUnavailable(
            f"pyiqa could not load {PYIQA[name]} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); its"
            " weights are looked for in $TORCH_HOME/hub/pyiqa and $TORCH_HOME/hub/checkpoints"
        ) from error


def _fail_fast_when_offline() -> None:
    """The hub client retries for most of a minute where there is no network; tell it so before it is imported."""
    try:
        socket.create_connection(("huggingface.co", 443), timeout=1).close()
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

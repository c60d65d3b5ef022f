"""Score: networks that judge a picture alone, and FID's: pyiqa's, through one doorway.

pyiqa is no part of pisasr: its licence forbids commercial use since 2026. The files that it would
download are known here by name, so that what is missing can be named, with the place where pyiqa
looks for it.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from pisasr.evaluation.lookup import MetricUnavailable, choose_device, place_of
from pisasr.evaluation.metrics import Scorer

IQA_HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
CLIP = "https://openaipublic.azureedge.net/clip/models/"

RN50 = CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
VIT_B32 = CLIP + "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"


class Network(NamedTuple):
    """pyiqa's name for a metric and the files that it loads."""

    name: str
    urls: tuple[str, ...]


NETWORKS = {
    "fid": Network("fid", (IQA_HUB + "pt_inception-2015-12-05-6726825d.pth",)),
    "musiq": Network("musiq", (IQA_HUB + "musiq_koniq_ckpt-e95806b9.pth",)),
    "maniqa": Network("maniqa-pipal", (IQA_HUB + "MANIQA_PIPAL-ae6d356b.pth",)),
    "clipiqa": Network("clipiqa", (RN50,)),
    "clipiqa+": Network("clipiqa+", (RN50, IQA_HUB + "CLIP-IQA+_learned_prompts-603f3273.pth")),
    "topiq": Network("topiq_nr", (IQA_HUB + "cfanet_nr_koniq_res50-9a73138b.pth",)),
    "liqe": Network("liqe", (VIT_B32, IQA_HUB + "liqe_koniq.pt")),
}


def load_network(metric: str, create: Callable[[str], Any]) -> Any:
    """What `create(pyiqa's name)` makes, with files from torch's hub folder; pyiqa fetches those
    that are not there.

    MetricUnavailable, one line, when pyiqa is not there or fails, and at once where a file is
    missing while HF_HUB_OFFLINE=1 says that nothing can be fetched. MANIQA and TOPIQ want a
    backbone from timm beside their file, which timm keeps in Hugging Face's cache.
    """
    network = NETWORKS[metric]
    if find_spec("pyiqa") is None:
        files = " and ".join(network.urls)
        install = "pip install 'pisasr[pyiqa]' (PolyForm Noncommercial licence)"
        raise MetricUnavailable(f"pyiqa is not installed: {install}; it then fetches {files}")
    places = {
        url: place_of(url, "clip" if url.startswith(CLIP) else "pyiqa") for url in network.urls
    }
    advice = " and ".join(
        f"put {url} at {place}" for url, place in places.items() if not place.is_file()
    )
    if advice and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise MetricUnavailable(f"offline, and a file is missing: {advice}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return create(network.name)
    except Exception as error:  # a bad file, a hub error, a missing package: all mean that this column can't be had
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        more = f"; without a network, {advice}" if advice else ""
        raise MetricUnavailable(f"pyiqa could not load {network.name} ({reason}){more}") from error


def load_scorer(metric: str, device: str | None = None) -> Scorer:
    """pyiqa's judgement of a uint8 picture alone, on `device` (None for the GPU if there is
    one).
    """
    place = choose_device(device)

    def create(name: str) -> Any:
        import pyiqa

        return pyiqa.create_metric(name, device=place)

    network = load_network(metric, create)

    def score(sr: np.ndarray, hq: Any, lq: Any) -> float:
        import torch

        x = torch.from_numpy(np.array(sr)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            return float(network(x.to(place)))

    return score

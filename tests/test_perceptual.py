"""LPIPS and DISTS against a published log, and the script that fetches what they need."""

import csv
import os
import pickle
from pathlib import Path

import fetch_perceptual
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet

from pisasr.errors import PisasrError
from pisasr.evaluation.networks import MetricUnavailable
from pisasr.evaluation.perceptual import TRUNKS, is_at_hand, load_scorer
from pisasr.evaluation.scoring import usual_metrics

REALSR = Path(
    os.environ.get("PISASR_REALSR", Path(__file__).resolve().parents[2] / "shared" / "realsr")
)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("metric", "every"),
    [
        ("lpips", 20),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("lpips", "dists")),
    ],
)
def test_scores_are_those_of_the_published_log(metric, every):
    """OSEDiff's log of the 100 RealSR pairs, made on a GPU: single pictures differ by a few 1e-4,
    means do not.
    """
    if not REALSR.is_dir():
        pytest.skip(f"no RealSR pairs at {REALSR} (set PISASR_REALSR)")
    if not is_at_hand(metric):
        pytest.skip(
            f"{metric}'s trunk is not in torch's folder; scripts/fetch_perceptual.py makes it"
        )
    score = load_scorer(metric)
    rows = list(csv.DictReader((REALSR / "osediff_scores.csv").open()))
    assert len(rows) == 100
    rows = rows[::every]
    published = np.array([float(row[metric]) for row in rows])
    ours = np.array(
        [score(*(read(row["name"], side) for side in ("osediff", "hr")), None) for row in rows]
    )
    print(
        f"{metric}: mean {ours.mean():.6f}, {ours.mean() - published.mean():+.1e}; {abs(ours - published).max():.1e}"
    )
    assert abs(ours.mean() - published.mean()) < 1e-4 * every**0.5
    assert abs(ours - published).max() < 1e-3


def read(name: str, side: str) -> np.ndarray:
    path = next((REALSR / side).glob(f"{Path(name).stem.replace('_LR4', '')}*"))
    return np.asarray(Image.open(path).convert("RGB"))


def test_where_the_trunk_can_not_be_fetched_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    def refuse(url, *rest, **options):
        raise OSError(f"no way\nto {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert not is_at_hand("lpips")
    with pytest.raises(
        MetricUnavailable, match="no way to .*alexnet-owt-7be5be79.pth.*fetch_perceptual.py"
    ) as missing:
        load_scorer("lpips")
    assert "\n" not in str(missing.value)


def test_lpips_is_asked_by_default_where_its_trunk_is(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert usual_metrics() == ["psnr", "ssim", "niqe", "featdist"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert usual_metrics() == ["psnr", "ssim", "lpips", "niqe", "featdist"] and usual_metrics(
        with_hq=False
    ) == ["niqe"]


def test_trunks_are_the_files_that_torchvision_asks_for():
    assert TRUNKS["lpips"] == AlexNet_Weights.DEFAULT.url
    assert TRUNKS["lpips_vgg"] == TRUNKS["dists"] == VGG16_Weights.DEFAULT.url


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_a_pickle_that_holds_more_than_arrays_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Harmful()}))
    with pytest.raises(PisasrError, match="asks for posix.system; wanted numpy's arrays alone"):
        fetch_perceptual.read_arrays((tmp_path / "bad.ckpt").open("rb"))
    assert not (tmp_path / "harm.txt").exists()


def test_the_file_gives_torchvision_its_features_and_no_classes(tmp_path):
    """The jax layout [h, w, in, out] comes out as torch's [out, in, h, w]; a classifier that is not
    there says NaN.
    """
    chance = np.random.default_rng(0)
    network = alexnet()
    layers = [layer for layer in network.features if isinstance(layer, torch.nn.Conv2d)]
    arrays = {
        f"Conv_{i}": {
            "kernel": chance.normal(size=layer.weight.permute(2, 3, 1, 0).shape).astype("f4"),
            "bias": chance.normal(size=layer.bias.shape).astype("f4"),
        }
        for i, layer in enumerate(layers)
    }
    pickled = tmp_path / "alexnet.ckpt"
    pickled.write_bytes(pickle.dumps({"AlexNet_0": arrays, "NetLinLayer_0": {}}, protocol=4))
    with pickled.open("rb") as file:
        fetch_perceptual.write(
            fetch_perceptual.read_arrays(file), alexnet, tmp_path / "alexnet.pth"
        )
    network.load_state_dict(torch.load(tmp_path / "alexnet.pth", weights_only=True))
    first = arrays["Conv_0"]["kernel"]
    assert network.features[0].weight[5, 1, 2, 3] == first[2, 3, 1, 5]
    assert (tmp_path / "alexnet.pth").stat().st_size < 1.1 * 4 * sum(
        a.size for c in arrays.values() for a in c.values()
    )
    assert network.eval()(torch.rand(1, 3, 64, 64)).isnan().all()

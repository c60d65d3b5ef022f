"""LPIPS as a loss and as a score, pyiqa's doorway, and the script that fetches the trunks."""

import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import fetch_perceptual
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet, vgg16

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS, load_metric
from pisasr.evaluation.networks import MetricUnavailable, load_lpips


@pytest.fixture
def trunks(tmp_path, monkeypatch):
    """Files under torchvision's names, drawn and not trained; only the features are there."""
    places = tmp_path / "checkpoints"
    places.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    for build, name in ((alexnet, "alexnet-owt-7be5be79"), (vgg16, "vgg16-397923af")):
        with torch.device("meta"):
            state = build(weights=None).state_dict()
        zero = torch.zeros(())
        drawn = {
            key: torch.randn(x.shape) / 30 if key.startswith("features") else zero.expand(x.shape)
            for key, x in state.items()
        }
        torch.save(drawn, places / f"{name}.pth")


def test_lpips_is_zero_for_equal_pictures_symmetric_and_differentiable(trunks):
    lpips = load_lpips("alex")
    x, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    x.requires_grad_()
    assert lpips(x, x).tolist() == [0, 0]
    distances = lpips(x, y)
    assert distances.shape == (2,) and (distances > 0).all()
    torch.testing.assert_close(distances, lpips(y, x))
    distances.mean().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_the_score_is_the_loss_of_the_same_pictures(trunks):
    pictures = [np.random.default_rng(k).integers(0, 256, (64, 70, 3), np.uint8) for k in (0, 1)]
    tensors = [torch.tensor(p).permute(2, 0, 1)[None] / 255 for p in pictures]
    score = load_metric("lpips", "cpu")[1]
    assert score(*pictures) == pytest.approx(load_lpips("alex")(*tensors).item())


def test_dists_is_zero_for_equal_pictures_and_grows_with_damage(trunks):
    score = load_metric("dists", "cpu")[1]
    hq = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    small = Image.fromarray(hq).resize((32, 32), Image.Resampling.BOX)
    assert score(hq, hq) == pytest.approx(0, abs=1e-5)
    assert score(np.asarray(small.resize((64, 64))), hq) > 0.01


def test_where_a_trunk_can_not_be_fetched_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    def refuse(url, *rest, **options):
        raise OSError(f"no way\nto {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(MetricUnavailable, match=r"no way to .*fetch_perceptual.py") as missing:
        load_lpips("alex")
    assert "\n" not in str(missing.value)


class Brightness(torch.nn.Module):
    """In place of a network of pyiqa's that judges a picture alone."""

    metric_mode, lower_better = "NR", False

    def forward(self, x):
        return x.mean()


@pytest.fixture
def pyiqa(monkeypatch):
    """A stand-in with pyiqa's two functions and two metrics."""

    def fid(sr, hq, **options):
        return float(len(os.listdir(sr)) + len(os.listdir(hq)))

    made = {"musiq": Brightness(), "fid": fid}
    module = SimpleNamespace(
        list_models=lambda: list(made), create_metric=lambda name, device: made[name]
    )
    monkeypatch.setitem(sys.modules, "pyiqa", module)


def test_any_metric_of_pyiqa_s_is_a_column_by_its_name(pyiqa):
    metric, scorer = load_metric("musiq", "cpu")
    assert metric.higher_is_better and metric.needs is None
    assert scorer(np.full((4, 4, 3), 51, np.uint8)) == pytest.approx(0.2)


def test_a_name_that_pyiqa_has_not_is_answered_with_near_ones(pyiqa):
    with pytest.raises(MetricUnavailable, match=r"no metric is called musik; did you mean musiq"):
        load_metric("musik", "cpu")


def test_fid_is_about_the_given_files_alone(pyiqa, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.PNG").touch()
    paths = sorted(tmp_path.glob("*.PNG"))
    assert METRICS["fid"].load("cpu")(paths[:2], paths[:2]) == 4


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_a_pickle_that_holds_more_than_arrays_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Harmful()}))
    with Path("bad.ckpt").open("rb") as file, pytest.raises(PisasrError, match="system"):
        fetch_perceptual.Arrays(file).load()
    assert not Path("harm.txt").exists()


def test_the_fetched_file_gives_torchvision_its_features_and_no_classes(tmp_path):
    """[h, w, in, out] comes out as torch's [out, in, h, w]; the absent classifier is NaN."""
    rng = np.random.default_rng(0)
    network = alexnet()
    layers = [layer for layer in network.features if isinstance(layer, torch.nn.Conv2d)]
    arrays = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=layer.weight.permute(2, 3, 1, 0).shape).astype("f4"),
            "bias": rng.normal(size=layer.bias.shape).astype("f4"),
        }
        for i, layer in enumerate(layers)
    }
    path = tmp_path / "alexnet.pth"
    path.write_bytes(fetch_perceptual.as_checkpoint(arrays, alexnet))
    network.load_state_dict(torch.load(path, weights_only=True))
    assert network.features[0].weight[5, 1, 2, 3] == arrays["Conv_0"]["kernel"][2, 3, 1, 5]
    held = sum(array.size for layer in arrays.values() for array in layer.values())
    assert path.stat().st_size < 1.1 * 4 * held
    assert network.eval()(torch.rand(1, 3, 64, 64)).isnan().all()

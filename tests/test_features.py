"""The offline perceptual distance: zero for equal pictures, growing with damage, each picture by
itself.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pisasr.evaluation import features, lookup
from pisasr.evaluation.features import (
    EfficientNetLite,
    feature_distance,
    load_network,
    picture_distance,
)
from pisasr.evaluation.lookup import MetricUnavailable, find_efficientnet
from pisasr.evaluation.scoring import load_scorers


@pytest.fixture
def random_network():
    torch.manual_seed(0)
    return EfficientNetLite().eval()


def test_taps_are_where_the_protocol_has_them(random_network):
    with torch.inference_mode():
        shapes = [tuple(feature.shape) for feature in random_network(torch.rand(1, 3, 64, 96))]
    assert shapes == [(1, 32, 32, 48), (1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6)]


def test_equal_pictures_have_no_distance_and_the_order_does_not_matter(random_network):
    x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert feature_distance(x, x, random_network).tolist() == [0, 0]
        assert torch.allclose(
            feature_distance(x, y, random_network), feature_distance(y, x, random_network)
        )


def test_each_picture_of_a_batch_has_its_own_distance(random_network):
    x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        alone = torch.cat(
            [feature_distance(x[i : i + 1], y[i : i + 1], random_network) for i in range(2)]
        )
        assert torch.allclose(feature_distance(x, y, random_network), alone, rtol=1e-4)


def test_gradients_reach_the_picture(random_network):
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    feature_distance(x, torch.rand(1, 3, 32, 32), random_network).sum().backward()
    assert x.grad.abs().sum() > 0


def test_it_runs_on_the_device_that_it_is_given(random_network, monkeypatch):
    monkeypatch.setattr(lookup, "find_efficientnet", lambda weights: Path("there"))
    monkeypatch.setattr(features, "load_network", lambda path: random_network)
    scorers, _ = load_scorers(["featdist"], device="meta")
    assert {parameter.device.type for parameter in random_network.parameters()} == {"meta"}
    with pytest.raises(
        RuntimeError, match="meta"
    ):  # the pictures went there, too, where nothing has a value
        scorers["featdist"](*[np.zeros((32, 32, 3), np.uint8)] * 2, None)


def test_another_checkpoint_is_refused_in_one_line(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "efficientnet-lite0-other.pth")
    with pytest.raises(MetricUnavailable, match="does not hold") as refusal:
        load_network(tmp_path / "efficientnet-lite0-other.pth")
    assert "\n" not in str(refusal.value)


def test_a_named_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MetricUnavailable, match="no folder at .*gone"):
        find_efficientnet(tmp_path / "gone")


@pytest.mark.weights
def test_published_weights_see_more_difference_in_more_blur():
    folder = os.environ.get("PISASR_WEIGHTS")
    try:
        network = load_network(find_efficientnet(Path(folder) if folder else None))
    except MetricUnavailable as missing:
        pytest.skip(f"EfficientNet-Lite0's weights are not installed: {missing}")
    texture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    hq = Image.fromarray(texture).filter(ImageFilter.GaussianBlur(1))
    blurred = [np.asarray(hq.filter(ImageFilter.GaussianBlur(radius))) for radius in (0.5, 1, 2, 4)]
    distances = [picture_distance(sr, np.asarray(hq), network) for sr in blurred]
    assert 0 < distances[0] and distances == sorted(distances)

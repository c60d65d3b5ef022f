"""The embedded model: offline, small, and its two strengths do what the paper says."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image

from pisasr import PiSASRPipeline
from pisasr.models.bases import EMBEDDED


@pytest.fixture(scope="module")
def demo():
    pipe = PiSASRPipeline.from_pretrained(torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def crop():
    return Image.open(EMBEDDED / "examples/chelsea.png").convert("RGB").crop((30, 30, 62, 54))


def detail(picture: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels."""
    y = np.asarray(picture.convert("L"), dtype=float)
    edges = 4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]
    return float(np.abs(edges).mean())


def test_it_loads_without_a_network_and_says_whose_base_it_is(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the embedded model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert PiSASRPipeline.from_pretrained().config.native_upscale == 4
    assert "Xintao Wang" in (EMBEDDED / "LICENSE.Real-ESRGAN").read_text()


def test_without_strengths_it_is_the_enlarged_picture_to_the_bit(demo, crop):
    result = demo(crop, 0, 0).images[0]
    assert result == crop.resize((128, 96), Image.Resampling.BICUBIC)


def test_lambda_sem_adds_detail_and_colors_stay(demo, crop):
    prediction = demo.predict(crop)
    results = [demo.decode(prediction, 1, sem) for sem in (0.0, 0.5, 1.0, 1.5)]
    energies = [detail(result) for result in results]
    assert energies == sorted(energies)
    assert energies[2] > 1.1 * energies[0]
    shift = np.asarray(results[2]).mean((0, 1)) - np.asarray(crop).mean((0, 1))
    assert np.abs(shift).max() < 3


def test_sizes_other_than_its_own_factor_are_exact(demo, crop):
    small = crop.crop((0, 0, 13, 9))
    sizes = [demo(small, upscale=factor).images[0].size for factor in (1, 2, 3)]
    assert sizes == [(13, 9), (26, 18), (39, 27)]

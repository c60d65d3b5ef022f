"""The embedded default: it is what its card says, runs offline, and its two strengths do what the paper says."""

import hashlib
import json
import socket

import numpy as np
import pytest
from PIL import Image

from pisasr import PiSASRPipeline
from pisasr.bases import EMBEDDED

EXAMPLES = sorted((EMBEDDED / "examples").glob("*.png"))


@pytest.fixture(scope="module")
def demo():
    pipe = PiSASRPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def detail(picture: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels."""
    y = np.asarray(picture.convert("L"), dtype=float)
    return np.abs(4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]).mean()


def test_the_weights_are_those_of_the_card():
    hashes = json.loads((EMBEDDED / "hashes.json").read_text())
    assert {str(path.relative_to(EMBEDDED)) for path in EMBEDDED.rglob("*.safetensors")} == hashes.keys()
    for name, digest in hashes.items():
        assert hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest() == digest, name


def test_it_loads_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the embedded default asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert PiSASRPipeline.from_pretrained().unet.config.in_channels == 16


def test_lambda_pix_takes_noise_from_flat_areas(demo):
    noise = np.random.default_rng(0).normal(120, 6, (64, 64, 3))
    flat = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    pictures = demo.sweep(flat, [(value, 0.0) for value in (0.0, 0.5, 1.0)], color_fix="none")
    spreads = [np.asarray(picture, dtype=float).std() for picture in pictures]
    assert spreads == sorted(spreads, reverse=True) and spreads[2] < 0.75 * spreads[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_lambda_sem_adds_detail_to_photos(demo, path):
    pictures = demo.sweep(Image.open(path), [(1.0, value) for value in (0.0, 0.5, 1.0, 1.5)])
    energies = [detail(picture) for picture in pictures]
    assert energies == sorted(energies) and energies[2] > 1.05 * energies[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_colours_stay(demo, path):
    photo = Image.open(path).convert("RGB")
    restored = demo(photo).images[0]
    assert restored.size == (4 * photo.width, 4 * photo.height)
    assert np.abs(np.asarray(photo).mean((0, 1)) - np.asarray(restored).mean((0, 1))).max() < 1


def test_runs_are_identical(demo):
    photo = Image.open(EXAMPLES[0])
    first, second = (np.asarray(demo(photo).images[0]) for _ in range(2))
    assert np.array_equal(first, second)

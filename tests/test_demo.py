"""The embedded default: it is what its card says, runs offline, and its two strengths do what the
paper says.
"""

import hashlib
import io
import json
import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pisasr import PiSASRPipeline
from pisasr.models.bases import EMBEDDED

EXAMPLES = sorted((EMBEDDED / "examples").glob("*.png"))


@pytest.fixture(scope="module")
def demo():
    pipe = PiSASRPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def detail(picture: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels."""
    y = np.asarray(picture.convert("L"), dtype=float)
    return np.abs(
        4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]
    ).mean()


def test_the_weights_are_those_of_the_card():
    hashes = json.loads((EMBEDDED / "hashes.json").read_text())
    files = {path.relative_to(EMBEDDED).as_posix() for path in EMBEDDED.glob("*/*")} | {
        "model_index.json"
    }
    assert {
        name for name in files if not name.startswith(("adapters/", "examples/"))
    } == hashes.keys()
    for name, digest in hashes.items():
        assert hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest() == digest, name


def test_it_loads_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the embedded default asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert PiSASRPipeline.from_pretrained().unet.config.in_channels == 16


def test_the_paper_of_a_screenshot_stays_white():
    page = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, 128, 16), fill=(40, 60, 110))
    for row in range(5):
        pen.text(
            (4, 20 + 18 * row), "def main(args): 13", fill="black", font=ImageFont.load_default(11)
        )
    restored = PiSASRPipeline.from_pretrained()(page).images[0]
    paper, bar = restored.crop((440, 80, 500, 500)), restored.crop((460, 16, 500, 48))
    assert np.asarray(paper).mean() > 254
    np.testing.assert_allclose(np.asarray(bar).mean((0, 1)), (40, 60, 110), atol=3)


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    """Calm areas and steep edges that everybody knows the place of, a fourth as large, with noise
    and JPEG blocks.
    """
    large = Image.new("L", (512, 512), 110)
    pen = ImageDraw.Draw(large)
    pen.rectangle((0, 0, 200, 300), fill=60)
    pen.ellipse((230, 180, 460, 430), fill=190)
    small = np.asarray(large.resize((128, 128), Image.Resampling.BOX), dtype=float)[..., None]
    noisy = small + np.random.default_rng(0).normal(0, 6, (128, 128, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def unrest(picture: Image.Image) -> float:
    """What moves within 16 px on the calm areas of `drawn`: mean standard deviation of the luma, in
    grey levels.
    """
    y = np.asarray(picture.convert("L"), dtype=float)
    calm = (y[32:272, 32:176], y[32:144, 240:480], y[240:368, 288:400])
    blocks = [
        area.reshape(area.shape[0] // 16, 16, area.shape[1] // 16, 16).std((1, 3)).ravel()
        for area in calm
    ]
    return float(np.concatenate(blocks).mean())


def steepness(picture: Image.Image) -> float:
    """Largest step from pixel to pixel across the long edge of `drawn`, mean over its rows, in grey
    levels.
    """
    across = np.asarray(picture.convert("L"), dtype=float)[32:272, 184:220]
    return float(np.abs(np.diff(across)).max(1).mean())


def lattice_of(picture: Image.Image) -> float:
    """What the calm ground of `drawn` repeats every four pixels: standard deviation, in grey
    levels.
    """
    y = np.asarray(picture.convert("L"), dtype=float)[32:144, 240:480]
    return float(y.reshape(28, 4, 60, 4).mean((0, 2)).std())


def test_lambda_pix_takes_noise_and_blocks_from_calm_areas(demo, drawn):
    unrests = [
        unrest(picture) for picture in demo.sweep(drawn, [(value / 4, 0.0) for value in range(5)])
    ]
    assert unrests == sorted(unrests, reverse=True) and unrests[-1] < 0.7 * unrests[0]


def test_lambda_sem_steepens_edges_and_leaves_calm_areas_calm(demo, drawn):
    pictures = demo.sweep(drawn, [(1.0, value) for value in (0.0, 0.5, 1.0, 1.5)])
    steps = [steepness(picture) for picture in pictures]
    assert steps == sorted(steps) and steps[2] > 1.1 * steps[0]
    assert unrest(pictures[2]) < 1.1 * unrest(pictures[0])


def test_both_strengths_draw_no_lattice(demo, drawn):
    assert lattice_of(demo(drawn).images[0]) < 0.25


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

"""One picture by command line, page, ComfyUI, diffusers and ONNX files is the same picture."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stub_comfyui
import tiny
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from pisasr import PiSASRPipeline
from pisasr.commands.main import main
from pisasr.errors import OK

PAIR = (0.9, 0.6)
SMALL = {"upscale": 2, "process_size": 16}
STRENGTHS = ["--lambda_pix", "0.9", "--lambda_sem", "0.6"]
WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "transformers", "pisasr"]))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray((tiny.wave((16, 24, 3), 1.0, 80) + 128).to(torch.uint8).numpy()).save(path)
    return path


def by_command_line(photo: Path, base_folder: Path, request) -> np.ndarray:
    output = photo.parent / "out"
    files = ["--input", str(photo), "--output", str(output), "--pretrained_model", str(base_folder)]
    options = ["--upscale", "2", "--process_size", "16", "--dtype", "fp32", "--device", "cpu"]
    assert main(["infer", *files, *STRENGTHS, *options]) == OK
    return np.asarray(Image.open(output / "photo.png"))


def by_page(photo: Path, base_folder: Path, request) -> np.ndarray:
    from pisasr.app.session import Session, Settings

    session = Session(PiSASRPipeline.from_pretrained(base_folder), process_size=16)
    session.repair_file(photo, photo.parent / "made.png", Settings(*PAIR, upscale=2))
    return np.asarray(Image.open(photo.parent / "made.png"))


def by_comfyui(photo: Path, base_folder: Path, request) -> np.ndarray:
    patch = request.getfixturevalue("monkeypatch")
    for name, module in stub_comfyui.modules(photo.parent)[0].items():
        patch.setitem(sys.modules, name, module)
    stub_comfyui.forget()
    request.addfinalizer(stub_comfyui.forget)
    from pisasr.comfyui.models import ComfyPipeline, Model
    from pisasr.comfyui.nodes import MixAndDecode, Predict

    class Small(ComfyPipeline):
        def predict(self, image, *on_tile, **options):
            return super().predict(image, *on_tile, process_size=16, **options)

    image = torch.from_numpy(np.asarray(Image.open(photo), np.float32) / 255)[None]
    (prediction,) = Predict.execute(Model(Small.from_pretrained(base_folder)), image, 2.0).args
    (made,) = MixAndDecode.execute(prediction, *PAIR, "the model's own").args
    return (255 * made[0]).round().to(torch.uint8).numpy()


def by_diffusers(photo: Path, base_folder: Path, request) -> np.ndarray:
    folder = str(photo.parent / "whole")
    PiSASRPipeline.from_pretrained(base_folder).save_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    return np.asarray(pipe(Image.open(photo), *PAIR, **SMALL).images[0])


def by_onnx(photo: Path, base_folder: Path, request) -> np.ndarray:
    folder = photo.parent / "onnx"
    shutil.copytree(request.getfixturevalue("onnx_files"), folder)
    facts = json.loads((folder / "pisasr.json").read_text())
    (folder / "pisasr.json").write_text(json.dumps(facts | {"process_size": 16}))
    made = photo.parent / "made.png"
    script = [sys.executable, "-c", WITHOUT_TORCH, str(folder / "repair.py")]
    subprocess.run([*script, str(photo), str(made), *STRENGTHS, "--upscale", "2"], check=True)
    return np.asarray(Image.open(made))


# Levels of 255, at most and on average. ONNX sums in another order; ComfyUI enlarges floats without
# rounding, which this model of sine waves amplifies.
SAME, OTHER_SUMS, FLOATS = (0, 0.0), (1, 0.01), (8, 1.0)


@pytest.mark.parametrize(
    ("door", "bounds"),
    [
        (by_command_line, SAME),
        (by_page, SAME),
        (by_diffusers, SAME),
        (by_comfyui, FLOATS),
        pytest.param(by_onnx, OTHER_SUMS, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_door_gives_the_same_picture(
    door: Callable, bounds: tuple[int, float], photo, base_folder, request
):
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    expected, other = (
        np.asarray(pipe(Image.open(photo), *pair, **SMALL).images[0]).astype(int)
        for pair in (PAIR, (1.0, 1.0))
    )
    made = door(photo, base_folder, request)
    assert made.shape == (32, 48, 3)
    error = np.abs(made - expected)
    assert error.max() <= bounds[0] and error.mean() <= bounds[1]
    assert np.abs(other - expected).mean() > FLOATS[1]  # other strengths would be noticed

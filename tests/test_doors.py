"""One picture through every door: command line, page, ComfyUI, diffusers and, without PyTorch, ONNX
files.
"""

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
from pisasr.errors import NOTHING_STARTED, OK, WRONG_USAGE
from pisasr.hub.publish import publish

PAIR = (0.9, 0.6)
SMALL = {"upscale": 2, "process_size": 16}
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "transformers", "pisasr"]))  # as if they were not installed
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray((tiny.wave((16, 24, 3), 1.0, 80) + 128).to(torch.uint8).numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def onnx_files(base_folder, tmp_path_factory) -> Path:
    """The tiny model's, as the command writes them; exporting takes a minute, so these tests are
    long ones.
    """
    pytest.importorskip("onnxscript", reason="no onnxscript here: pip install 'pisasr[onnx]'")
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: pip install 'pisasr[onnx]'")
    folder = tmp_path_factory.mktemp("onnx")
    assert (
        main(["export", "--onnx", "--pretrained_model", str(base_folder), "--output", str(folder)])
        == OK
    )
    return folder


def by_command_line(photo: Path, base_folder: Path, request) -> np.ndarray:
    given = [
        "--input",
        str(photo),
        "--output",
        str(photo.parent / "out"),
        "--pretrained_model",
        str(base_folder),
    ]
    pair = ["--lambda_pix", str(PAIR[0]), "--lambda_sem", str(PAIR[1])]
    assert (
        main(["infer", *given, *pair, "--upscale", "2", "--process_size", "16", "--dtype", "fp32"])
        == OK
    )
    return np.asarray(Image.open(photo.parent / "out" / "photo.png"))


def by_page(photo: Path, base_folder: Path, request) -> np.ndarray:
    pytest.importorskip("gradio", reason="no gradio here: pip install 'pisasr[app]'")
    from pisasr.app.desk import Desk
    from pisasr.app.page import Listener

    page = Listener(Desk(PiSASRPipeline.from_pretrained(base_folder), process_size=16))
    return np.asarray(Image.open(page.repair(str(photo), *PAIR, upscale=2)))


def by_comfyui(photo: Path, base_folder: Path, request) -> np.ndarray:
    patch = request.getfixturevalue("monkeypatch")
    for name, module in stub_comfyui.modules(photo.parent)[0].items():
        patch.setitem(sys.modules, name, module)
    stub_comfyui.forget()
    request.addfinalizer(stub_comfyui.forget)
    from pisasr.comfyui.models import ComfyPipeline, Model
    from pisasr.comfyui.nodes import MixAndDecode, Predict

    class Small(ComfyPipeline):
        def look(self, image, **options):
            return super().look(image, process_size=16, **options)

    image = torch.from_numpy(np.asarray(Image.open(photo), np.float32) / 255)[None]
    (looked,) = Predict.execute(Model(Small.from_pretrained(base_folder)), image, 2.0).args
    (came,) = MixAndDecode.execute(looked, *PAIR, "the model's own").args
    return (255 * came[0]).round().to(torch.uint8).numpy()


def by_diffusers(photo: Path, base_folder: Path, request) -> np.ndarray:
    folder = str(photo.parent / "published")
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    publish(pipe, Path(folder), "cc0-1.0", name=folder, base=str(base_folder))
    loaded = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True
    )
    return np.asarray(loaded(Image.open(photo), *PAIR, **SMALL).images[0])


def by_onnx(photo: Path, base_folder: Path, request) -> np.ndarray:
    folder = photo.parent / "onnx"
    shutil.copytree(request.getfixturevalue("onnx_files"), folder)
    facts = json.loads((folder / "pisasr.json").read_text())
    (folder / "pisasr.json").write_text(json.dumps(facts | {"process_size": 16}))
    made, pair = (
        photo.parent / "made.png",
        ["--lambda_pix", str(PAIR[0]), "--lambda_sem", str(PAIR[1])],
    )
    script = [sys.executable, "-c", WITHOUT, str(folder / "repair.py")]
    subprocess.run([*script, str(photo), str(made), *pair, "--upscale", "2"], check=True)
    return np.asarray(Image.open(made))


# Levels of 255, at most and on average. Other libraries add up in another order. ComfyUI's pictures
# are floats, which are enlarged without rounding; this model of sine waves makes three times as
# much of it as the small one.
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
def test_the_same_picture_comes_out(
    door: Callable, bounds: tuple[int, float], photo, base_folder, request
):
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    meant, other = (
        np.asarray(pipe(Image.open(photo), *pair, **SMALL).images[0]).astype(int)
        for pair in (PAIR, (1.0, 1.0))
    )
    came = door(photo, base_folder, request)
    assert came.shape == (32, 48, 3)
    off, far = np.abs(came - meant), np.abs(other - meant)
    assert off.max() <= bounds[0] and off.mean() <= bounds[1]
    assert (
        far.max() > FLOATS[0] and far.mean() > FLOATS[1]
    )  # other strengths would have been noticed


@pytest.mark.slow
def test_onnx_files_take_any_strengths_sizes_and_numbers(onnx_files, pipe):
    from pisasr.hub.repair import restore

    facts = json.loads((onnx_files / "pisasr.json").read_text())
    for pair, number, height, width in (
        ((0.5, 1.5), 1, 8, 8), ((0.5, 1.5), 3, 72, 40), ((1.0, 1.0), 2, 24, 64), ((1.0, 0.0), 1, 24, 64),
    ):  # fmt: skip
        x_L = 0.9 * tiny.wave((number, 3, height, width), 1.0)
        came = restore(x_L.numpy(), onnx_files, facts, *pair)
        unit = [(one + 1) / 2 for one in x_L]
        meant = pipe(unit, *pair, upscale=1, process_size=1, output_type="pt").images
        np.testing.assert_allclose(came, torch.stack(meant).numpy(), rtol=0, atol=0.1 / 255)
    padded = restore(x_L[:, :, :21, :50].numpy(), onnx_files, facts, 1.0, 1.0)
    assert padded.shape == (1, 3, 21, 50) and 0 <= padded.min() and padded.max() <= 1
    files = sorted(onnx_files.iterdir())
    assert [file.name for file in files] == [
        "colors.onnx", "decoder.onnx", "encoder.onnx", "pisasr.json", "repair.py", "unet.onnx", "unet_pix.onnx",
    ]  # fmt: skip
    places = [str(Path(__file__).parents[1]).encode(), b"site-packages"]
    assert not any(
        place in file.read_bytes() for file in files for place in places
    )  # nothing of this disk


def test_what_onnx_can_t_give_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "--onnx", "--output", str(tmp_path / "out")]) == NOTHING_STARTED
    assert (
        "onnxscript" in (told := capsys.readouterr().err) and "pip install 'pisasr[onnx]'" in told
    )
    monkeypatch.setattr("pisasr.commands.export.PACKAGES", ())
    assert (
        main(["export", "--onnx", "--dtype", "fp16", "--output", str(tmp_path / "out")])
        == WRONG_USAGE
    )
    assert "float32 alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [[], ["--lambda_pix", "0.8", "--lambda_sem", "0.8"]], ids=["both", "baked"]
)
def test_the_small_model_as_onnx(pair, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="no onnxscript here: pip install 'pisasr[onnx]'")
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: pip install 'pisasr[onnx]'")
    assert main(["export", "--onnx", *pair, "--output", str(tmp_path)]) == OK
    assert "levels from PyTorch's picture" in capsys.readouterr().out
    assert (tmp_path / "unet_pix.onnx").exists() == (not pair)
    facts = json.loads((tmp_path / "pisasr.json").read_text())
    assert facts["baked"] == ({"lambda_pix": 0.8, "lambda_sem": 0.8} if pair else None)

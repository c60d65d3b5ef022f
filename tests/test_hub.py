"""Published folders load elsewhere and give the same picture; ONNX files do without PyTorch."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import equal, photo

from pisasr import PiSASRPipeline
from pisasr.commands.main import main
from pisasr.errors import NOTHING_STARTED, OK, WRONG_USAGE, ModelError
from pisasr.hub.publish import publish

SMALL = {"upscale": 2, "process_size": 16}


@pytest.fixture
def published(base_folder, pipe, tmp_path) -> str:
    """The tiny model as others get it, its base under a path that they have."""
    folder = tmp_path / "published"
    publish(pipe, folder, "cc0-1.0", name=str(folder), base=str(base_folder))
    return str(folder)


def test_the_card_is_the_hubs_and_its_example_gives_the_same_picture(
    published, base_folder, pipe, tmp_path, monkeypatch
):
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    card = (Path(published) / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "cc0-1.0" and head["base_model"] == str(base_folder)
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    made = {}
    exec(example.replace("upscale=4", "upscale=2, process_size=16"), made)
    assert equal(made["image"], pipe(photo(), **SMALL).images[0])
    assert len(card.splitlines()) <= 40


def test_diffusers_loads_a_whole_folder_as_our_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    folder = str(tmp_path)
    options = {"custom_pipeline": folder, "trust_remote_code": True}
    again = DiffusionPipeline.from_pretrained(folder, **options)
    assert equal(again(photo(), **SMALL).images[0], pipe(photo(), **SMALL).images[0])
    half = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, **options)
    assert type(half) is PiSASRPipeline and half.unet.dtype == half.vae.dtype == torch.bfloat16


def test_a_hub_id_serves_as_model_and_as_adapters(published, pipe, monkeypatch):
    def snapshot(name, allow_patterns, **options):
        assert name == "me/pisa" and any(p.startswith("adapters") for p in allow_patterns)
        return published

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    expected = pipe(photo(), **SMALL).images[0]
    assert equal(PiSASRPipeline.from_pretrained("me/pisa")(photo(), **SMALL).images[0], expected)
    pipe.load_lora_weights("me/pisa")
    assert equal(pipe(photo(), **SMALL).images[0], expected)


def test_publish_refuses_what_others_could_not_use(base_folder, pipe, tmp_path, capsys):
    with pytest.raises(ModelError, match="local folder"):
        publish(pipe, tmp_path / "a", "cc0-1.0")
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError):
        publish(PiSASRPipeline.from_pretrained(tmp_path / "whole"), tmp_path / "b", "cc0-1.0")
    with pytest.raises(SystemExit) as caught:
        main(["publish", str(tmp_path / "c"), "--pretrained_model", str(base_folder)])
    assert caught.value.code == WRONG_USAGE and "--license" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words\n")
    with pytest.raises(ModelError, match="README.md"):
        publish(pipe, tmp_path / "mine", "cc0-1.0", base="a/b")


def test_the_inputs_of_a_model_are_not_written_over(base_folder, tmp_path, capsys):
    shutil.copytree(base_folder, folder := tmp_path / "mine")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    given = ["--pretrained_model", str(base_folder), "--adapters", str(folder / "adapters")]
    assert main(["publish", str(folder), "--license", "mit", *given]) == WRONG_USAGE
    assert str(folder) in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_missing_packages_are_named_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "--output", str(tmp_path / "out")]) == NOTHING_STARTED
    error = capsys.readouterr().err
    assert "onnxscript" in error and "pisasr[onnx]" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_files_take_any_strengths_sizes_and_batches(onnx_files, pipe):
    from pisasr.hub.repair import restore

    facts = json.loads((onnx_files / "pisasr.json").read_text())
    for pair, count, height, width in (
        ((0.5, 1.5), 1, 8, 8),
        ((0.5, 1.5), 3, 72, 40),
        ((1.0, 1.0), 2, 24, 64),
        ((1.0, 0.0), 1, 24, 64),
    ):
        x_L = 0.9 * tiny.wave((count, 3, height, width), 1.0)
        made = restore(x_L.numpy(), onnx_files, facts, *pair)
        inputs = [(one + 1) / 2 for one in x_L]
        expected = pipe(inputs, *pair, upscale=1, process_size=1, output_type="pt").images
        np.testing.assert_allclose(made, torch.stack(expected).numpy(), rtol=0, atol=0.1 / 255)
    padded = restore(x_L[:, :, :21, :50].numpy(), onnx_files, facts, 1.0, 1.0)
    assert padded.shape == (1, 3, 21, 50) and 0 <= padded.min() and padded.max() <= 1
    places = [str(Path(__file__).parents[1]).encode(), b"site-packages"]  # of this machine
    assert not any(p in file.read_bytes() for file in onnx_files.iterdir() for p in places)


@pytest.mark.slow
def test_the_script_repairs_a_photo_without_pytorch(onnx_files, pipe, tmp_path):
    shutil.copytree(onnx_files, folder := tmp_path / "onnx")
    facts = json.loads((folder / "pisasr.json").read_text())
    (folder / "pisasr.json").write_text(json.dumps(facts | {"process_size": 16}))
    photo(24, 16).save(tmp_path / "photo.png")
    without = """import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "transformers", "pisasr"]))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")"""
    words = [folder / "repair.py", tmp_path / "photo.png", tmp_path / "made.png"]
    options = ["--lambda_pix", "0.9", "--lambda_sem", "0.6", "--upscale", "2"]
    subprocess.run([sys.executable, "-c", without, *map(str, words), *options], check=True)
    made = np.asarray(Image.open(tmp_path / "made.png")).astype(int)
    error = np.abs(made - np.asarray(pipe(photo(24, 16), 0.9, 0.6, **SMALL).images[0]))
    assert error.max() <= 1 and error.mean() <= 0.01


@pytest.mark.slow
def test_the_embedded_model_is_exported_and_checked(tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="needs pisasr[onnx]")
    pytest.importorskip("onnxruntime", reason="needs pisasr[onnx]")
    assert main(["export", "--output", str(tmp_path)]) == OK
    assert (tmp_path / "unet_pix.onnx").is_file() and "255" in capsys.readouterr().out

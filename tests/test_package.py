"""What an installation promises: a light import, a small model, pins that fit the ranges."""

import ast
import importlib.util
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pisasr

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_opens_to_what_it_names():
    from pisasr.pipeline import PiSASRPipeline
    from pisasr.training.config import load_config

    assert pisasr.PiSASRPipeline is PiSASRPipeline and pisasr.load_config is load_config
    with pytest.raises(AttributeError, match="no attribute 'PiSASPipeline'"):
        _ = pisasr.PiSASPipeline


@pytest.mark.slow
def test_importing_pisasr_imports_no_library():
    libraries = {"torch", "numpy", "PIL", "diffusers", "pydantic"}
    assert run(f"import sys, pisasr; print(*({libraries} & set(sys.modules)))") == ""


@pytest.mark.slow
def test_inference_needs_nothing_from_the_extras():
    extras = ("torchvision", "lpips", "pydantic", "scipy")
    block = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
    assert run(block + "import pisasr.pipeline, pisasr.commands.main; print('ok')") == "ok"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="it is not installed")
def test_torchvision_and_what_imports_it_work_beside_any_torch():
    code = (
        "import pisasr\n"
        "from transformers import CLIPTextModel\n"
        "from diffusers import UNet2DConditionModel\n"
        "import torch, torchvision\n"
        "features = torchvision.models.squeezenet1_1(weights=None)(torch.zeros(1, 3, 32, 32))\n"
        "print(tuple(features.shape))"
    )
    assert run(code) == "(1, 1000)"


def test_the_pins_fit_the_ranges():
    lines = (ROOT / "configs/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    optional = PROJECT["project"]["optional-dependencies"]
    pinned = (extra for name, extra in optional.items() if name != "pyiqa")
    for line in PROJECT["project"]["dependencies"] + sum(pinned, []):
        requirement = Requirement(line)
        if requirement.name != "pisasr":
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_the_embedded_default_is_small_enough_to_ship():
    files = [path for path in (ROOT / "pisasr/demo").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 48e6


def test_the_tests_have_no_network_and_a_model_on_the_disk_asks_for_none(pipe):
    from PIL import Image

    with pytest.raises(OSError, match="tests have no network, and asked for example.org"):
        socket.create_connection(("example.org", 80), timeout=5)
    pipe(Image.new("RGB", (9, 7)), upscale=1, process_size=16)


def test_nothing_that_is_read_can_be_run():
    """Beside ruff's rules of security: what these calls would do by default."""
    wanted = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    for path in [*(ROOT / "pisasr").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                name, value = wanted.get(ast.unparse(node.func), ("", None))
                assert words.get(name) == value, f"{path}: {ast.unparse(node)}"
                assert words.get("trust_remote_code", "False") == "False", path

"""torchvision beside a torch it wasn't built for. Each case runs a Python of its own: operators
stay declared.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the real torchvision does at import, in one line: it fails where the operator isn't declared.
NEEDS_NMS = "import torch\ntorch.library.register_fake('torchvision::nms')(lambda dets, scores, threshold: scores)\n"


def run(code: str, *path: Path) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def torchvision(tmp_path) -> Path:
    """An empty torchvision of our own; the tests put libraries and code into it."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    return package


def test_absent_torchvision_costs_nothing():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from pisasr._compat import repair_torchvision\n"
        "print(repair_torchvision(), 'torch' in sys.modules)"
    )
    assert run(code) == "absent False"


def test_one_loading_library_is_enough_to_stay_native_and_untouched(torchvision):
    import torch

    (torchvision / "_C.so").write_bytes(b"not a library")
    shutil.copy(
        torch._C.__file__, torchvision / "_C_stable.so"
    )  # a real one, sure to load beside torch
    code = (
        "import pisasr, torchvision, torch\n"
        "from pisasr._compat import repair_torchvision\n"
        "print(repair_torchvision(), hasattr(torch.ops.torchvision, 'nms'), torchvision.__file__)"
    )
    assert run(code, torchvision.parent) == f"native False {torchvision / '__init__.py'}"


def test_torchvision_that_does_not_load_is_stubbed_before_its_first_import(torchvision):
    (torchvision / "_C.so").write_bytes(b"not a library")
    (torchvision / "__init__.py").write_text(NEEDS_NMS)
    assert (
        run("try: import torchvision\nexcept RuntimeError: print('fails')", torchvision.parent)
        == "fails"
    )
    code = (
        "import sys, pisasr; print('torch' in sys.modules)\n"
        "import torchvision, torch\n"
        "from pisasr._compat import repair_torchvision\n"
        "print(repair_torchvision(), repair_torchvision(), torch.ops.torchvision.qnms.default)"
    )
    assert run(code, torchvision.parent).split("\n") == [
        "False",
        "stubbed stubbed torchvision.qnms.default",
    ]


def test_operators_that_somebody_else_declared_stay_theirs(torchvision):
    (torchvision / "_C.so").write_bytes(b"not a library")
    code = (
        "import torch; theirs = torch.library.Library('torchvision', 'DEF')\n"
        "theirs.define('nms(Tensor dets) -> Tensor')\n"
        "from pisasr._compat import repair_torchvision; print(repair_torchvision())"
    )
    assert run(code, torchvision.parent) == "native"


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
def test_installed_torchvision_and_those_it_breaks_import_after_pisasr():
    code = (
        "import pisasr\n"
        "from transformers import CLIPTextModel\n"
        "from diffusers import UNet2DConditionModel\n"
        "import torch, torchvision\n"
        "from pisasr._compat import repair_torchvision\n"
        "features = torchvision.models.squeezenet1_1(weights=None)(torch.zeros(1, 3, 32, 32))\n"
        "print(repair_torchvision() in ('native', 'stubbed'), tuple(features.shape))"
    )
    assert run(code) == "True (1, 1000)"

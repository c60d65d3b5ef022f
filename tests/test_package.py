"""What an installation promises: a light door, a base install that infers, pins that fit the
ranges.
"""

import importlib.metadata
import re
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


def test_importing_pisasr_imports_no_library():
    code = "import sys, pisasr; print(*({'torch', 'numpy', 'PIL', 'diffusers', 'pydantic'} & set(sys.modules)))"
    assert run(code) == ""


def test_the_door_opens_to_what_it_names():
    from pisasr.config import load_config
    from pisasr.pipeline import PiSASRPipeline

    assert pisasr.PiSASRPipeline is PiSASRPipeline
    assert pisasr.load_config is load_config
    assert set(pisasr.__all__) <= set(dir(pisasr))


def test_the_door_refuses_other_names():
    with pytest.raises(AttributeError, match="no attribute 'PiSASPipeline'"):
        _ = pisasr.PiSASPipeline


def test_inference_needs_nothing_from_the_extras():
    extras = ("torchvision", "lpips", "pydantic", "scipy", "h5py")
    block = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
    assert (
        run(block + "import pisasr.pipeline, pisasr.commands.main; print('imported')") == "imported"
    )


def test_the_pins_fit_the_ranges():
    lines = (ROOT / "configs/constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if not line.startswith("#")
    }
    optional = PROJECT["project"]["optional-dependencies"]
    pinned = ("app", "browser", "train", "eval", "onnx", "peers", "dev")
    wanted = PROJECT["project"]["dependencies"] + sum((optional[extra] for extra in pinned), [])
    for requirement in map(Requirement, wanted):
        if requirement.name != "pisasr":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), (
                requirement
            )


def test_the_demos_files_are_those_of_the_pins_each_by_its_hash():
    """pip takes no other with --require-hashes, and the base package needs no more than these."""
    pins, *files = (
        {
            canonicalize_name(line.split("==")[0]): line.split("==")[1]
            for line in lines
            if not line.startswith("#")
        }
        for lines in (
            (ROOT / "configs" / name).read_text().splitlines()
            for name in ("constraints.txt", "hashes.txt")
        )
    )
    (hashed,) = files
    for name, told in hashed.items():
        version, digest = re.fullmatch(r"(\S+) --hash=sha256:([0-9a-f]{64})", told).groups()
        assert version.removesuffix("+cpu") == pins.get(name, version), name
        assert (name == "setuptools") == (name not in pins), name
    assert {
        canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]
    } <= hashed.keys()


def test_one_version_everywhere():
    try:
        installed = importlib.metadata.version("pisasr")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pisasr is not installed in this environment")
    assert installed == pisasr.__version__


def test_the_embedded_default_is_small_enough_to_ship():
    files = [path for path in (ROOT / "pisasr/demo").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 24 * 2**20


def test_the_tests_have_no_network_and_a_model_on_the_disk_asks_for_none(base_folder):
    """Every attempt is counted: one here, and none by whoever loads, repairs, saves."""
    from conftest import ASKED
    from PIL import Image

    from pisasr import PiSASRPipeline

    with pytest.raises(OSError, match="tests have no network, and asked for example.org"):
        socket.create_connection(("example.org", 80), timeout=5)
    with pytest.raises(OSError, match="asked for 192.0.2.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    before = len(ASKED)
    for model in (base_folder, None):
        PiSASRPipeline.from_pretrained(model)(Image.new("RGB", (9, 7)), upscale=1, process_size=16)
    assert len(ASKED) == before >= 2

"""What CUDA computes by is said in the settings, set in one place, and told; a CPU is left as it
is.
"""

import logging
import os

import pytest
import torch

from pisasr.config import RunConfig
from pisasr.training import setup


def settings():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": cudnn.benchmark,
        "tf32": (cuda.matmul.allow_tf32, cudnn.allow_tf32),
        "attention": cuda.mem_efficient_sdp_enabled(),
    }


@pytest.fixture
def restored(monkeypatch):
    """Gives the process back as it was."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "as it was")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before, warn_only = settings(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield before
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=warn_only)
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["tf32"]
    torch.backends.cuda.enable_mem_efficient_sdp(before["attention"])


def test_the_defaults_ask_cuda_for_the_same_bytes(restored, caplog):
    caplog.set_level(logging.INFO)
    setup.apply_precision(RunConfig(output="a", mixed_precision="bf16"), torch.device("cuda"))
    assert settings() == {
        "deterministic": True,
        "benchmark": False,
        "tf32": (False, False),
        "attention": False,
    }
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert caplog.messages == ["precision bf16 on cuda, TF32 off, deterministic on"]


def test_speed_is_there_for_whom_other_bytes_are_fine(restored, caplog):
    caplog.set_level(logging.INFO)
    run = RunConfig(output="a", mixed_precision="no", tf32=True, deterministic=False)
    setup.apply_precision(run, torch.device("cuda"))
    assert settings() == {
        "deterministic": False,
        "benchmark": True,
        "tf32": (True, True),
        "attention": True,
    }
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert caplog.messages == ["precision no on cuda, TF32 on, deterministic off"]


def test_a_cpu_is_left_as_it_is(restored):
    setup.apply_precision(RunConfig(output="a", mixed_precision="no"), torch.device("cpu"))
    assert settings() == restored

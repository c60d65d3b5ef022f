"""What CUDA computes by follows from one setting; a CPU is left as it is."""

import os

import pytest
import torch

from pisasr.training.config import RunConfig
from pisasr.training.setup import apply_precision


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
    """Give the process back as it was."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "as it was")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before, warn_only = settings(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield before
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=warn_only)
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["tf32"]
    torch.backends.cuda.enable_mem_efficient_sdp(before["attention"])


@pytest.mark.parametrize("exact", [True, False])
def test_cuda_gives_the_same_bytes_or_the_fastest(restored, exact):
    apply_precision(RunConfig(output="a", deterministic=exact), torch.device("cuda"))
    fast = not exact
    assert settings() == {
        "deterministic": exact,
        "benchmark": fast,
        "tf32": (fast, fast),
        "attention": fast,
    }
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if exact else None)


def test_a_cpu_is_left_as_it_is(restored):
    apply_precision(RunConfig(output="a"), torch.device("cpu"))
    assert settings() == restored

import gc
import os
import socket
import sys
from pathlib import Path

import pytest
import tiny
import torch

import pisasr.pipeline
from pisasr.models.weights import save_adapter

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_collection_finish() -> None:
    """Freeze what was imported, so that garbage collections after a stage stay short."""
    gc.collect()
    gc.freeze()


LOCAL = ("localhost", "::", "::1", "0.0.0.0", "", None, socket.gethostname())


def is_local(host: object) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    return host in LOCAL or str(host).startswith("127.")


def pytest_configure() -> None:
    """Keep every test on this machine, and turn `usual_dtype`'s answer round where asked."""
    if os.environ.get("PISASR_TURN_DTYPE"):
        native = pisasr.pipeline.usual_dtype("cpu") == torch.bfloat16
        torch.cpu.get_capabilities = lambda: {} if native else {"avx512_bf16": True}
    os.environ["HF_HUB_OFFLINE"] = "1"
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse(host: object) -> None:
        raise OSError(f"tests have no network, and asked for {host}")

    def only_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            refuse(address[0])
        return connect(self, address)

    def known(host, *args, **options):
        return look_up(host, *args, **options) if is_local(host) else refuse(host)

    socket.socket.connect, socket.getaddrinfo = only_here, known


# Processor time that a test may take unless it is slow.
SECONDS = float(os.environ.get("PISASR_TEST_SECONDS", "inf"))
LONG = ("slow", "browser")
_running: list[pytest.Item] = []  # the test that runs now


def is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Measure the processor time of a test, its children's included."""
    _running[:] = [item]
    start = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        seconds = sum(os.times()[:4]) - start
        _running.clear()
        if seconds > SECONDS and not is_long(item):
            pytest.fail(f"took {seconds:.1f} s of processor time; mark it slow or make it smaller")


def refuse_interpreters(event: str, args: tuple) -> None:
    """Let long tests alone start Python anew: its imports take ten seconds."""
    if event == "subprocess.Popen" and _running and not is_long(_running[0]):
        words = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        if str(words[0]) == sys.executable:
            raise RuntimeError(f"{_running[0].nodeid} starts an interpreter; mark it slow")


sys.addaudithook(refuse_interpreters)


PARITY = Path(
    os.environ.get("PISASR_PARITY", Path(__file__).resolve().parents[2] / "shared" / "parity")
)


@pytest.fixture(scope="session")
def parity() -> Path:
    """Find the published implementation's outputs, which are no part of this repository."""
    if not (PARITY / "index.json").is_file():
        pytest.skip(f"no parity data at {PARITY} (set PISASR_PARITY)")
    return PARITY


@pytest.fixture
def unet():
    return tiny.make_unet()


@pytest.fixture
def vae():
    return tiny.make_vae()


@pytest.fixture
def pix(unet):
    return tiny.make_adapter(unet, "pix", rank=4)


@pytest.fixture
def sem(unet):
    return tiny.make_adapter(unet, "sem", rank=2)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A tiny base with its adapters beside it, as the embedded default has them."""
    folder = tiny.write_base(tmp_path_factory.mktemp("base"))
    for name, rank in (("pix", 4), ("sem", 2)):
        save_adapter(
            folder / "adapters" / f"{name}.safetensors",
            tiny.make_adapter(tiny.make_unet(), name, rank),
        )
    return folder


@pytest.fixture
def pipe(base_folder):
    from pisasr import PiSASRPipeline

    return PiSASRPipeline.from_pretrained(base_folder)


@pytest.fixture
def passes(pipe):
    """Which UNet was asked, in order: a list that grows."""
    seen = []
    pipe.unet.register_forward_hook(lambda *_: seen.append("both"))
    pipe.unet_pix.register_forward_hook(lambda *_: seen.append("pix"))
    return seen


@pytest.fixture(scope="session")
def onnx_files(base_folder, tmp_path_factory) -> Path:
    """The tiny model as ONNX files; takes a minute, so its tests are slow ones."""
    pytest.importorskip("onnxscript", reason="needs pisasr[onnx]")
    pytest.importorskip("onnxruntime", reason="needs pisasr[onnx]")
    from pisasr.commands.main import main

    folder = tmp_path_factory.mktemp("onnx")
    assert main(["export", "--pretrained_model", str(base_folder), "--output", str(folder)]) == 0
    return folder

"""Compiled networks are themselves, or stay as they were; tracing them finds nothing that Python
must do itself.
"""

import re

import pytest
import tiny
import torch
from torch import nn

from pisasr.commands.infer import infer_parser
from pisasr.commands.options import choose_arithmetic
from pisasr.method.compiling import BLOCKS, CompilingFailed, compile_checked
from pisasr.method.layers import use_fast_layers

SMALL = {"upscale": 2, "process_size": 16, "lambda_sem": 0.5, "output_type": "pt"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_parts(network):
    return [module for module in network.modules() if module._compiled_call_impl is not None]


@torch.no_grad()
def test_a_unet_is_one_graph():
    unet = tiny.make_unet()
    use_fast_layers(unet)
    z, words = tiny.wave((1, 4, 8, 8), 0.0), tiny.wave((1, 7, tiny.CROSS), 1.0)
    told = torch._dynamo.explain(unet)(z, torch.tensor(1), encoder_hidden_states=words)
    assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


@torch.no_grad()
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_vae_is_one_graph(half):
    vae = tiny.make_vae()
    use_fast_layers(vae)
    x = tiny.wave((1, 3, 16, 16) if half == "encoder" else (1, 4, 4, 4), 0.0)
    told = torch._dynamo.explain(getattr(vae, half))(x)
    assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "max-autotune"])
def test_a_compiled_pipeline_gives_the_same_picture(pipe, monkeypatch, mode):
    picture = torch.rand(3, 12, 9, generator=torch.Generator().manual_seed(0))
    (wanted,) = pipe(picture, **SMALL).images
    own = nn.Module.compile  # "eager" wants no compiler, and takes no mode
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **options: own(self, **options))
    assert pipe.compile(mode=mode, backend="eager", fullgraph=True)
    for network in (pipe.unet, pipe.unet_pix):
        kinds = {type(module).__name__ for module in compiled_parts(network)}
        assert kinds == ({"UNet2DConditionModel"} if mode else set(BLOCKS))
    (came,) = pipe(picture, **SMALL).images
    torch.testing.assert_close(came, wanted, atol=1e-5, rtol=0)


class ResnetBlock2D(nn.Linear):
    """Worth compiling, by its name."""

    def forward(self, x):
        return torch.sin(x @ self.weight)


class Tiny(nn.Module):
    """A network of one block."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.block = ResnetBlock2D(2, 2)

    def forward(self, x):
        return 2 * self.block(x)


def wrong(graph, inputs):
    return lambda *args: [1.1 * x for x in graph(*args)]


def broken(graph, inputs):
    raise OSError("no C++ compiler")


@torch.no_grad()
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("eager", ""),
        (
            wrong,
            "it is not compiled: compiled, it answers otherwise by 0.1 of the largest value, 0.001 are allowed",
        ),
        (broken, r"it is not compiled: it doesn't compile here \(BackendCompilerFailed\)"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_fails_or_compiles_to_something_else_stays_as_it_was(backend, reason, whole):
    network, x = Tiny(), torch.ones(1, 2)
    wanted = network(x)
    assert re.fullmatch(
        reason, compile_checked("it", network, lambda: network(x), whole, backend=backend)
    )
    assert compiled_parts(network) == ([] if reason else [network if whole else network.block])
    assert torch.equal(network(x), wanted)


def test_a_pipeline_says_what_is_not_compiled(pipe, monkeypatch):
    monkeypatch.setattr(
        "pisasr.pipeline.compile_checked",
        lambda part, *_, **__: "" if part == "vae" else f"{part}: no",
    )
    with pytest.warns(CompilingFailed) as told:
        assert not pipe.compile()
    assert [str(warning.message) for warning in told] == ["unet_pix: no", "unet: no"]


def test_arithmetic_is_exact_unless_asked():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = [(cudnn, name) for name in ("benchmark", "allow_tf32", "deterministic")] + [
        (matmul, "allow_tf32")
    ]
    before = [getattr(owner, name) for owner, name in flags]
    try:
        for words, fast in ((["-i", "a"], False), (["-i", "a", "--fast_math"], True)):
            choose_arithmetic(infer_parser().parse_args(words).fast_math)
            assert [getattr(owner, name) for owner, name in flags] == [fast, fast, not fast, fast]
    finally:
        for (owner, name), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def test_compile_is_off_unless_asked():
    asked = {
        (): None,
        ("--compile",): "default",
        ("--compile", "reduce-overhead"): "reduce-overhead",
    }
    for words, mode in asked.items():
        assert infer_parser().parse_args(["-i", "a", *words]).compile == mode

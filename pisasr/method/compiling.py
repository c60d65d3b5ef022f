"""Infer, inside the networks: compiled by torch.compile, and compared with themselves before they
are used.

Off by default: compiling takes a minute or more, and on a CPU the result was slower than without it
(a decoder of Stable Diffusion's took 1.1 times as long). No GPU was measured yet;
`scripts/benchmark.py --cases execution` does it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pisasr.errors import UserNotice

# Blocks that a network repeats. Compiled one by one they take an eighth of the time that the whole
# network takes, and what gains, group norms and SiLUs and products with their biases, lies inside
# them.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
VARIANTS = 64  # sizes that a block may be compiled for; SD-2.1's UNet has twelve of ResnetBlock2D at one size
BOUNDS = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
}  # of the largest value, that compiling may change the result by
HALF_BOUND = 3e-2


class CompilingFailed(UserNotice):
    """A network stays as it was, since it doesn't compile here, or compiles to something else."""


def compile_checked(
    name: str, network: Any, call: Callable[[], Tensor], whole: bool, **options: Any
) -> str:
    """Compile a network in place; "" if `call`, which runs it, gives what it gave before, within
    BOUNDS; else the reason, and the network is as before. whole: at once, instead of block by
    block; options: torch.compile's.
    """
    wanted = call()
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, VARIANTS)
    for module in _regions(network, whole):
        module.compile(**options)
    try:
        came = call()
    except Exception as error:  # of a compiler, whatever it is
        reason = f"it doesn't compile here ({type(error).__name__})"
    else:
        difference = ((came - wanted).abs().max() / wanted.abs().max()).item()
        bound = BOUNDS.get(network.dtype, HALF_BOUND)
        if difference <= bound:
            return ""
        reason = f"compiled, it answers otherwise by {difference:.1g} of the largest value, {bound:g} are allowed"
    undo_compiling(network)
    return f"{name} is not compiled: {reason}"


def undo_compiling(network: nn.Module) -> None:
    """The network as before, in place."""
    for module in network.modules():
        module._compiled_call_impl = None


def _regions(network: Any, whole: bool) -> Iterator[nn.Module]:
    """What is compiled of a network by itself: a VAE's halves, or blocks, of each network that has
    any.
    """
    for part in (
        [network] if not hasattr(network, "decoder") else [network.encoder, network.decoder]
    ):
        blocks = [module for module in part.modules() if type(module).__name__ in BLOCKS]
        yield from [part] if whole or not blocks else blocks

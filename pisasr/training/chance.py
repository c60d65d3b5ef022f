"""Photo to adapter: chance by sample, so that neither a batch's size nor the process that has it
changes a draw.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pisasr.data.degradation import sample_generator


def stream(seed: int, purpose: str) -> torch.Generator:
    """A stream of chance per sample and purpose."""
    return sample_generator(seed, zlib.crc32(purpose.encode()), 0)


def draw(seeds: Sequence[int], shape: Sequence[int], purpose: str) -> Tensor:
    """N(0, 1) [len(seeds), *shape], each sample from a generator of its own."""
    return torch.stack(
        [torch.randn(tuple(shape), generator=stream(seed, purpose)) for seed in seeds]
    )


def seed_step(seed: int, stage: str, step: int, process: int) -> None:
    """Chance that no sample owns (a dropout, say) belongs to the step, so that no generator has a
    state to save.
    """
    number = zlib.crc32(f"{stage} {process}".encode())
    torch.manual_seed(sample_generator(seed, number, step).initial_seed())

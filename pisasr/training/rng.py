"""Per-sample random generators: draws do not depend on batch size, process or resume."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pisasr.data.degradation import sample_generator


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return the generator of one sample and purpose."""
    return sample_generator(seed, zlib.crc32(purpose.encode()), 0)


def randn_for(seeds: Sequence[int], shape: Sequence[int], purpose: str) -> Tensor:
    """Draw N(0, 1) [len(seeds), *shape], each sample from its own generator."""
    draws = [torch.randn(tuple(shape), generator=generator_for(seed, purpose)) for seed in seeds]
    return torch.stack(draws)


def seed_step(seed: int, stage: str, step: int, process: int) -> None:
    """Seed torch for one step, for draws that belong to no sample (a dropout, say).

    No generator then has a state that a checkpoint would have to keep.
    """
    number = zlib.crc32(f"{stage} {process}".encode())
    torch.manual_seed(sample_generator(seed, number, step).initial_seed())

"""The loop that a base's parts are trained by: steps that a kill costs nothing but themselves.

Smaller than the adapters' trainer: one process, one part at a time, and the whole part moves.
"""

import logging
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pisasr.data.degradation import sample_generator
from pisasr.data.photos import KeyedBatches, Photos, collate
from pisasr.errors import CheckpointError
from pisasr.training.checkpoints import Checkpoint, Checkpoints, by_kind, load_moments, pack_moments
from pisasr.training.guard import TrainingDiverged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, how many pictures at a time. The learning rate rises over `warmup_steps`, stays until half
    of the steps are taken and falls to zero in a straight line."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 100
    weight_decay: float = 0.0
    average: float | None = None  # of weights, exponential, this much of the old at every step; None: the last ones

    def lr_at(self, step: int) -> float:
        rise = step / self.warmup_steps if self.warmup_steps else 1.0
        return self.lr * max(0.0, min(1.0, rise, 2 - 2 * step / self.steps))


@dataclass
class Data:
    """Photos and their degraded versions, in an order that depends on the seed alone."""

    photos: Photos
    shares: list[tuple[list[int], int]]
    workers: int = 0

    def batches(self, size: int, start: int) -> Iterator[dict[str, Any]]:
        sampler = KeyedBatches(len(self.photos), size, self.photos.seed, shares=self.shares, start=start)
        return iter(DataLoader(self.photos, batch_sampler=sampler, num_workers=self.workers, collate_fn=collate))


def train_part(
    name: str,
    part: nn.Module,
    loss_of: Callable[[dict[str, Any]], Tensor],
    data: Data,
    schedule: Schedule,
    checkpoints: Checkpoints,
    checkpoint_every: int = 200,
    log_every: int = 100,
) -> nn.Module:
    """Take every step that no checkpoint has yet, and return the part, or its average where the schedule has one.

    loss_of: a batch of `Photos` -> loss; chance in it belongs to the step. CheckpointError where the checkpoint found
    is of another schedule: its steps were others. TrainingDiverged at a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(part.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    average = AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(schedule.average)) if schedule.average else None
    first = take_up(checkpoints.newest(name), part, optimizer, average, schedule)
    seed, running = data.photos.seed, None
    for step, batch in enumerate(data.batches(schedule.batch_size, first), start=first + 1):
        if step > schedule.steps:
            break
        torch.manual_seed(sample_generator(seed, zlib.crc32(name.encode()), step).initial_seed())
        optimizer.param_groups[0]["lr"] = schedule.lr_at(step)
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        if average:
            average.update_parameters(part)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if not math.isfinite(running):
            raise TrainingDiverged(f"{name}: the loss is {running} at step {step}; the last checkpoint is whole.")
        if step % log_every == 0 or step == schedule.steps:
            log.info("%s step %d/%d: loss %.5f", name, step, schedule.steps, running)
        if step % checkpoint_every == 0 or step == schedule.steps:
            checkpoints.save(Checkpoint(name, step, pack(part, optimizer, average), {"schedule": vars(schedule)}))
    return average.module if average else part


def pack(part: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> dict[str, Tensor]:
    kinds = {"part": part.state_dict(), "moments": pack_moments(optimizer)}
    if average:
        kinds["average"] = average.state_dict()
    return {f"{kind}.{key}": t.detach().cpu().clone() for kind, tensors in kinds.items() for key, t in tensors.items()}


def take_up(
    found: Checkpoint | None,
    part: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    schedule: Schedule,
) -> int:
    """Go back to a checkpoint and return its step; without one, 0."""
    if found is None:
        return 0
    if found.state["schedule"] != vars(schedule):
        raise CheckpointError(
            f"{found.name} was trained by {found.state['schedule']}, not {vars(schedule)}; "
            "give the same numbers again, or another --output."
        )
    kinds = by_kind(found.tensors)
    part.load_state_dict(kinds["part"])
    load_moments(optimizer, kinds["moments"])
    if average:
        average.load_state_dict(kinds["average"])
    log.info("continued at %s", found.name)
    return found.step

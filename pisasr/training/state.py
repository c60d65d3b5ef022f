"""Photo to adapter: everything that must survive a kill, in one object that goes to disk and comes back."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pisasr.data.photos import BadPhotos
from pisasr.files import Journal
from pisasr.method.adapters import load_into, parameters_of
from pisasr.models.weights import KINDS
from pisasr.training.checkpoints import Checkpoint, Checkpoints, by_kind
from pisasr.training.guard import NonFiniteGuard

log = logging.getLogger(__name__)

STATE_KEYS = ("ground", "guard", "bad_photos", "scaler")  # of a checkpoint


@dataclass
class State:
    """Where a stage stands. What is drawn at random hangs on the step and the sample, so no generator is among it.

    unet: carries the adapter `stage`, which learns. ground: the SHA-256 of each adapter that the stage stands on, as it
    was loaded. journals: files of rows with "stage" and "step", whose place is the step's.
    """

    stage: str
    unet: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any  # a GradScaler, with fp16 alone
    guard: NonFiniteGuard
    bad_photos: BadPhotos
    ground: dict[str, str | None]
    journals: Sequence[Journal]

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write it. A full disk is told, and training goes on from what memory has."""
        state = {
            "ground": self.ground,
            "guard": self.guard.state(),
            "bad_photos": sorted(self.bad_photos.paths),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        parameters, moments = parameters_of(self.unet, self.stage), self.optimizer.state_dict()["state"]
        tensors = {f"adapter.{key}": parameter.detach().cpu() for key, parameter in parameters.items()}
        for number, key in enumerate(parameters):
            tensors |= {f"optimizer.{name}.{key}": t.detach().cpu() for name, t in moments.get(number, {}).items()}
        try:
            for journal in self.journals:  # a checkpoint that is ahead of its journal would leave a gap there
                journal.sync()
            checkpoints.save(Checkpoint(self.stage, step, tensors, state))
        except OSError as error:
            log.error("%s step %d could not be saved (%s); older checkpoints are whole", self.stage, step, error)

    def take_up(self, found: Checkpoint | None) -> int:
        """Go back to a checkpoint: adapter, Adam's moments, counters. Returns its step; without one, 0."""
        if found is None:
            return 0
        kinds = by_kind(found.tensors)
        load_into(self.unet, self.stage, kinds["adapter"])
        numbers = {key: number for number, key in enumerate(parameters_of(self.unet, self.stage))}
        moments: dict[int, dict[str, Tensor]] = {number: {} for number in numbers.values()}
        for name, tensor in kinds["optimizer"].items():
            moment, key = name.split(".", 1)
            moments[numbers[key]][moment] = tensor
        rates = self.optimizer.state_dict()["param_groups"]  # learning rates and the like stay the optimizer's own
        self.optimizer.load_state_dict({"state": moments, "param_groups": rates})
        self.guard.load(found.state["guard"])
        self.bad_photos.paths |= set(found.state["bad_photos"])
        if self.scaler is not None and found.state["scaler"] is not None:
            self.scaler.load_state_dict(found.state["scaler"])
        log.info("%s: continued at step %d", self.stage, found.step)
        return found.step

    def rewind(self, step: int) -> list[bool]:
        """Cut off the rows of steps that are about to be taken again. Whether each journal has that very step's row."""

        def place(row: dict[str, Any]) -> tuple[int, int] | None:
            try:
                return KINDS.index(row["stage"]), int(row["step"])
            except (ValueError, KeyError, TypeError):
                return None

        here = KINDS.index(self.stage), step
        kept = [journal.rewind(lambda row: (at := place(row)) is not None and at <= here) for journal in self.journals]
        return [row is not None and place(row) == here for row in kept]

"""Photo to adapter, kept: everything that must survive a kill, and how it lies on the disk.

    OUTPUT/checkpoints/pix-00000120    a line of JSON (stage, step, counters), safetensors (the adapter, Adam's
                                       moments), and the SHA-256 of both

A checkpoint is written beside its place, flushed to the disk and renamed; older ones go afterwards.
Whatever the moment of a crash, the newest whole one is still there, and whoever reads trusts
nothing that its hash doesn't vouch for. `Accelerator.save_state` promises neither.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from pisasr.data.photos import BadPhotos
from pisasr.files import Journal, write_whole
from pisasr.method.adapters import load_into, parameters_of
from pisasr.models.weights import KINDS
from pisasr.training.guard import NonFiniteGuard

log = logging.getLogger(__name__)

STATE_KEYS = ("ground", "guard", "bad_photos", "scaler")  # of a checkpoint


@dataclass
class State:
    """Where a stage stands. What is drawn at random hangs on the step and the sample, so no
    generator is among it.

    unet: carries the adapter `stage`, which learns. ground: the SHA-256 of each adapter that the
    stage stands on, as it was loaded. journals: files of rows with "stage" and "step", whose place
    is the step's.
    """

    stage: str
    unet: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any  # a GradScaler, with fp16 alone
    guard: NonFiniteGuard
    bad_photos: BadPhotos
    ground: dict[str, str | None]
    journals: Sequence[Journal]

    def save(self, checkpoints: "Checkpoints", step: int) -> None:
        """Write it. A full disk is told, and training goes on from what memory has."""
        state = {
            "ground": self.ground,
            "guard": self.guard.state(),
            "bad_photos": sorted(self.bad_photos.paths),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        parameters, moments = (
            parameters_of(self.unet, self.stage),
            self.optimizer.state_dict()["state"],
        )
        tensors = {
            f"adapter.{key}": parameter.detach().cpu() for key, parameter in parameters.items()
        }
        for number, key in enumerate(parameters):
            tensors |= {
                f"optimizer.{name}.{key}": t.detach().cpu()
                for name, t in moments.get(number, {}).items()
            }
        try:
            for (
                journal
            ) in self.journals:  # a checkpoint that is ahead of its journal would leave a gap there
                journal.sync()
            checkpoints.save(Checkpoint(self.stage, step, tensors, state))
        except OSError as error:
            log.error(
                "%s step %d could not be saved (%s); older checkpoints are whole",
                self.stage,
                step,
                error,
            )

    def take_up(self, found: "Checkpoint | None") -> int:
        """Go back to a checkpoint: adapter, Adam's moments, counters. Returns its step; without
        one, 0.
        """
        if found is None:
            return 0
        adapter: dict[str, Tensor] = {}
        numbers = {key: number for number, key in enumerate(parameters_of(self.unet, self.stage))}
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in found.tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "adapter":
                adapter[rest] = tensor
            else:
                moment, key = rest.split(".", 1)
                moments[numbers[key]][moment] = tensor
        load_into(self.unet, self.stage, adapter)
        rates = self.optimizer.state_dict()[
            "param_groups"
        ]  # learning rates and the like stay the optimizer's own
        self.optimizer.load_state_dict({"state": dict(moments), "param_groups": rates})
        self.guard.load(found.state["guard"])
        self.bad_photos.paths |= set(found.state["bad_photos"])
        if self.scaler is not None and found.state["scaler"] is not None:
            self.scaler.load_state_dict(found.state["scaler"])
        log.info("%s: continued at step %d", self.stage, found.step)
        return found.step

    def rewind(self, step: int) -> list[bool]:
        """Cut off the rows of steps that are about to be taken again. Whether each journal has that
        very step's row.
        """

        def place(row: dict[str, Any]) -> tuple[int, int] | None:
            try:
                return KINDS.index(row["stage"]), int(row["step"])
            except (ValueError, KeyError, TypeError):
                return None

        here = KINDS.index(self.stage), step
        kept = [
            journal.truncate(lambda row: (at := place(row)) is not None and at <= here)
            for journal in self.journals
        ]
        return [row is not None and place(row) == here for row in kept]


@dataclass
class Checkpoint:
    """Where a stage stood after a step. `state` is whatever JSON can hold exactly."""

    stage: str
    step: int
    tensors: dict[str, Tensor] = field(repr=False)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.step:08d}"


class Broken(Exception):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; the newest `keep` of each stage stay. Without one of the `wanted`
    keys in its state, a checkpoint counts as broken: another version wrote it, or a person did."""

    folder: Path
    keep: int
    wanted: tuple[str, ...] = ()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one, then remove those that it makes superfluous. OSError leaves the others as they
        were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".pisasr-*.tmp"):  # by a kill in the middle of one
            left.unlink()
        head = json.dumps(
            {"stage": checkpoint.stage, "step": checkpoint.step, **checkpoint.state}
        ).encode()
        content = (
            head
            + b"\n"
            + bytes_of({key: tensor.contiguous() for key, tensor in checkpoint.tensors.items()})
        )
        write_whole(self.folder / checkpoint.name, content + sha256(content).digest())
        flush_folder(self.folder)
        for old in self._places(checkpoint.stage)[self.keep :]:
            old.unlink()

    def newest(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of a stage; broken ones are named and passed over. None if
        there is none.
        """
        for place in self._places(stage):
            try:
                found = read_checkpoint(place)
                if missing := [key for key in self.wanted if key not in found.state]:
                    raise Broken(f"it says nothing of {', '.join(missing)}")
                return found
            except Broken as fault:
                log.warning("%s is broken (%s) and is passed over", place, fault)
        return None

    def _places(self, stage: str) -> list[Path]:
        return sorted(self.folder.glob(f"{stage}-{'[0-9]' * 8}"), reverse=True)


def read_checkpoint(place: Path) -> Checkpoint:
    """Read one and hold every byte against its hash. Raises Broken."""
    try:
        whole = place.read_bytes()
        content, digest = whole[: -sha256().digest_size], whole[-sha256().digest_size :]
        if sha256(content).digest() != digest:
            raise Broken("its bytes have changed")
        head, _, tensors = content.partition(b"\n")
        state = json.loads(head)
        return Checkpoint(state.pop("stage"), state.pop("step"), tensors_of(tensors), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows the folder's entries; only POSIX can be asked to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

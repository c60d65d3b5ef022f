"""Photo to adapter, what may stop it: a scheduler that asks, and numbers that are none any more."""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pisasr.errors import PisasrError

ASKED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Slurm sends these


class TrainingDiverged(PisasrError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class Interrupted(PisasrError):
    """The run was asked to stop and has; the same command continues it. `number` is the
    signal's.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def stop_with_launcher() -> None:
    """Let SIGTERM reach a process whose launcher is killed: accelerate's launcher of one process
    passes nothing on.
    """
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if alone and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@dataclass
class NonFiniteGuard:
    """Counts the steps that were not taken because a loss or the gradient's norm was not finite.

    `patience` of them in a row end the run. The counts are part of a checkpoint: a resumed run ends
    where an uninterrupted one would.
    """

    patience: int
    skipped: int = 0
    in_a_row: int = 0

    def passes(self, values: dict[str, float]) -> bool:
        """Whether a step with these losses and norms may be taken; counts it."""
        if all(math.isfinite(value) for value in values.values()):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    def check(self, advice: Callable[[], str]) -> None:
        """Raises TrainingDiverged once the patience is over; called after what happened has been
        recorded.
        """
        if self.in_a_row >= self.patience:
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row were not finite and were not taken; {advice()}"
            )

    def state(self) -> dict[str, int]:
        return {key: value for key, value in asdict(self).items() if key != "patience"}

    def load(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

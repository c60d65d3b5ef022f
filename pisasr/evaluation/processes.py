"""Score, around the loop: one process or several, started by accelerate or torchrun; who scores
what, who knows what.

A single process imports neither torch nor accelerate.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from pisasr.errors import UsageError

T = TypeVar("T")


def place_among_processes() -> tuple[int, int]:
    """(rank, count) as accelerate and torchrun tell it, (0, 1) where neither did. UsageError for
    anything else.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and count is None:
        return 0, 1
    if rank and count and rank.isdecimal() and count.isdecimal() and int(rank) < int(count):
        return int(rank), int(count)
    given = f"RANK is {rank!r} and WORLD_SIZE {count!r} in the environment"
    raise UsageError(
        f"{given}; a launcher sets both, such as 0 and 2: start with accelerate launch, or unset both"
    )


class Processes:
    """The processes of this run. There is no exchange while pictures are scored: a slow one holds
    nobody up.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, place_among_processes()[1]
        self._state: Any = None
        if self.count > 1:
            import torch
            from accelerate import PartialState

            self._state = PartialState(
                cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7)
            )
            self.count, self.rank = self._state.num_processes, self._state.process_index
        self.is_first = self.rank == 0

    def split(self, items: Sequence[T]) -> Sequence[T]:
        """This process' share, every count-th item; the shares are disjoint and nothing is left
        over or doubled.
        """
        return items[self.rank :: self.count]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises, when the first process alone does it; all get the same."""
        if self._state is None:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome = [work(), None]
            except Exception as error:
                outcome = [None, error]
        result, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        return result

    def wait(self) -> None:
        """Until everybody is here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def close(self) -> None:
        """Leave the group, so that the launcher has nothing to warn about."""
        if self._state is not None:
            self._state.destroy_process_group()

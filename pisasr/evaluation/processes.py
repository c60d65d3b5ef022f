"""Score, around the loop: one process or several, started by accelerate or torchrun; who scores what, who knows what.

A single process imports neither torch nor accelerate.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


class Processes:
    """The processes of this run. There is no exchange while pictures are scored: a slow one holds nobody up."""

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), 0
        self._state: Any = None
        if self.count > 1:
            import torch
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
            self.count, self.rank = self._state.num_processes, self._state.process_index
        self.is_first = self.rank == 0

    def split(self, items: Sequence[T]) -> Sequence[T]:
        """This process' share, every count-th item; the shares are disjoint and nothing is left over or doubled."""
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

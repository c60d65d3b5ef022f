"""Under every journey: who may be asked to stop, by Ctrl-C or by a signal, and what becomes of the
work in hand.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Remembers that a signal asked to stop, so that what is in hand can be finished first.

    A context: outside of it the signals do what they did before. `number` is the first signal's, 0
    if there was none. patient: a second one changes nothing, since schedulers tell every process,
    and launchers pass on what they are told. Otherwise it is a KeyboardInterrupt, and the first is
    answered with `advice`. In any thread but the main one, where Python hears no signals, it does
    nothing.
    """

    def __init__(self, numbers: Iterable[int], patient: bool = True, advice: str = "") -> None:
        self.number, self._numbers, self._patient, self._advice = 0, tuple(numbers), patient, advice

    def __enter__(self) -> "StopRequests":
        heard = self._numbers if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._remember) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number and not self._patient:
            raise KeyboardInterrupt
        self.number = self.number or number
        if self._advice:
            os.write(2, f"{self._advice}\n".encode())  # print may be what was interrupted


@contextmanager
def heard_afterwards() -> Iterator[None]:
    """Let a signal that asks to stop wait until the block is over: compiled code may take the
    KeyboardInterrupt that is raised in it for an error of its own.
    """
    asked = StopRequests(ENDING)
    try:
        with asked:
            yield
    finally:
        if asked.number:
            signal.raise_signal(asked.number)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is half written is taken away; others'
    handlers stay.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

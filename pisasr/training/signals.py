"""Remember a signal, so that a training stops after the step it is in."""

import signal
import threading
from collections.abc import Iterable


class StopRequests:
    """Remember the first of some signals instead of ending, while the context is open.

    number: that signal's, 0 if none came. Outside of the main thread, where Python gets no signals,
    it does nothing.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self.number, self._numbers = 0, tuple(numbers)

    def __enter__(self) -> "StopRequests":
        in_main = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.signal(number, self._remember)
            for number in (self._numbers if in_main else ())
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.number = self.number or number

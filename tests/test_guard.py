"""What may stop a run, and what may not."""

import os
import signal

import pytest

from pisasr.signals import StopRequests
from pisasr.training.guard import ASKED, NonFiniteGuard, TrainingDiverged


@pytest.mark.parametrize("number", ASKED)
def test_a_signal_is_remembered_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequests(ASKED) as asked:
        assert asked.number == 0
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert asked.number == number
    assert signal.getsignal(number) == before


def test_the_first_signal_names_the_exit_code():
    with StopRequests(ASKED) as asked:
        for number in ASKED:
            os.kill(os.getpid(), number)
        assert asked.number == ASKED[0]


def test_only_steps_in_a_row_use_up_the_patience():
    guard = NonFiniteGuard(patience=2)
    for values, taken in (({"l2": 1.0}, True), ({"l2": float("nan")}, False), ({"l2": 0.5}, True)):
        assert guard.passes(values) is taken
        guard.check(lambda: "")
    assert guard.state() == {"skipped": 1, "in_a_row": 0}
    for norm in (float("inf"), float("-inf")):
        assert not guard.passes({"l2": 1.0, "grad_norm": norm})
    with pytest.raises(TrainingDiverged, match="2 steps in a row were not finite.*look there"):
        guard.check(lambda: "look there")
    again = NonFiniteGuard(patience=2)
    again.load(guard.state())
    assert again == guard

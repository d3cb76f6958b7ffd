"""Signals: the first is noted, a second Ctrl-C leaves at once, the handlers before come back."""

import os
import signal

import pytest

from customized_grpo.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_noted_and_nothing_else(number: signal.Signals) -> None:
    stop = StopRequest()
    with stop.listening():
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number


def test_a_second_ctrl_c_leaves_at_once() -> None:
    stop = StopRequest()

    def twice() -> None:
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_ctrl_c_leaves_at_once_after_a_termination_signal_and_not_the_other_way_round() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's second warning does not lose the step
        assert stop.signal is signal.SIGTERM


def test_handlers_come_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

    def fail() -> None:
        with StopRequest().listening():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before

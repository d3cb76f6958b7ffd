"""Seconds by phase add up to the step's."""

import time

import pytest
import torch

from customized_grpo.sampling.clock import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless a test moves it."""
    value = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: value[0])
    return value


def test_phases_add_up_and_the_rest_is_other(now: list[float]) -> None:
    clock = Clock(torch.device("cpu"))
    for seconds in (2.0, 3.0):
        with clock.phase("rollout"):
            now[0] += seconds
    now[0] += 1.0
    with clock.phase("replay"):
        now[0] += 4.0
    assert clock.drain() == {
        "time/rollout": 5.0,
        "time/replay": 4.0,
        "time/other": 1.0,
        "time/step": 10.0,
    }


def test_draining_starts_anew(now: list[float]) -> None:
    clock = Clock(torch.device("cpu"))
    with clock.phase("rollout"):
        now[0] += 2.0
    clock.drain()
    now[0] += 0.5
    assert clock.drain() == {"time/other": 0.5, "time/step": 0.5}


def test_a_phase_that_fails_is_counted_too(now: list[float]) -> None:
    clock = Clock(torch.device("cpu"))

    def fail() -> None:
        with clock.phase("score"):
            now[0] += 2.0
            raise RuntimeError("a reward")

    with pytest.raises(RuntimeError, match="a reward"):
        fail()
    assert clock.drain()["time/score"] == 2.0


def test_a_phase_waits_for_the_callers_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that work in another stream go on; no GPU is needed to see what is waited for."""
    waited: list[torch.device] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    with Clock(torch.device("cuda:1")).phase("rollout"):
        assert not waited
    assert waited == [torch.device("cuda:1")]

"""Train in a process of its own, kill it by -9 in a given phase, resume it, and compare the bytes that it ends with."""

import mmap
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from customized_grpo.sampling.clock import Clock
from customized_grpo.training import state, trainer
from forked import exit_code, forked
from runs import checkpoint_bytes, metrics_of, tiny_recipe, with_evaluation

STEPS = 6
KINDS = ("rollout", "replay", "save", "evaluate")
PHASES = ("other", "encode", "decode", "score", "optimizer", *KINDS)


class Stage:
    """Where a child is, in memory that it shares with its parent: (phase, how often it was entered, step)."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 4096)

    def enter(self, name: str) -> None:
        at = PHASES.index(name)
        self._bytes[0] = at
        self._bytes[1 + at] += 1

    def leave(self) -> None:
        self._bytes[0] = 0

    @property
    def now(self) -> str:
        return PHASES[self._bytes[0]]

    def count(self, name: str) -> int:
        return self._bytes[1 + PHASES.index(name)]


def recipe(world: Path, run: Path, **changes: Any) -> Any:
    """Everything that has state: average, schedule, two updates a rollout, KL, a moving window, an evaluation."""
    settings = {
        "train__steps": STEPS,
        "train__group_size": 2,
        "train__groups_per_step": 1,
        "train__microbatch": 1,
        "train__updates_per_rollout": 2,
        "train__checkpoint_every": 2,
        "train__ema": 0.5,
        "train__schedule": {"name": "cosine", "warmup_steps": 2},
        "objective__kl": 0.01,
        "sampling__steps": 4,
        "sampling__plan": {"type": "window", "width": 2, "every": 1},
        **with_evaluation(world, 3),
    }
    return tiny_recipe(world, run, **settings, **changes)


def watched(stage: Stage) -> None:
    """Have the clock's phases and the saving of a checkpoint noted."""
    phase, save = Clock.phase, state.save

    @contextmanager
    def noted(self: Clock, name: str) -> Iterator[None]:
        stage.enter(name)
        try:
            with phase(self, name):
                yield
        finally:
            stage.leave()

    def saved(*given: Any) -> None:
        stage.enter("save")
        save(*given)
        stage.leave()

    Clock.phase = noted  # type: ignore[method-assign]
    trainer.save = saved  # type: ignore[attr-defined, assignment]


def child(log: Path, stage: Stage, world: Path, run: Path, **changes: Any) -> int:
    """Start a training in a process of its own."""

    def watched_training() -> None:
        watched(stage)
        trainer.train(recipe(world, run, **changes))

    return forked(log, watched_training)


def finished(pid: int, log: Path) -> None:
    """Wait for a child that must end well."""
    code = exit_code(pid)
    if code:
        raise RuntimeError(f"a run failed ({code}):\n{log.read_text(errors='replace')[-3000:]}")


def kill(pid: int, stage: Stage, kind: str, occurrence: int, delay_s: float) -> str | None:
    """Kill a child in the given occurrence of a phase; where it was, or None if it had ended before."""
    while stage.count(kind) < occurrence:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return None
        time.sleep(0.0005)
    time.sleep(delay_s)
    was = stage.now
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return was if os.WIFSIGNALED(status) else None


def one(
    name: str, folder: Path, world: Path, whole: Path, kind: str, occurrence: int, delay_s: float
) -> dict[str, Any]:
    """Kill a run at a moment, resume it, compare."""
    run, log, stage = folder / f"run-{name}", folder / f"{name}.log", Stage()
    began = time.monotonic()
    was = kill(child(log, stage, world, run), stage, kind, occurrence, delay_s)
    names = [path.name for path in (run / "checkpoints").glob("*step-*")] if run.is_dir() else []
    halves = [found for found in names if found.startswith(".")]
    resume = {"run__resume": "latest"} if (run / "config.yaml").is_file() else {}
    finished(child(log, Stage(), world, run, **resume), log)
    same = checkpoint_bytes(run, STEPS) == checkpoint_bytes(whole, STEPS)
    same = same and metrics_of(run) == metrics_of(whole)
    shutil.rmtree(run)
    return {
        "run": name,
        "aimed_at": kind,
        "occurrence": occurrence,
        "delay_s": round(delay_s, 4),
        "died_in": was or "ended before",
        "newest": max((found for found in names if not found.startswith(".")), default=None),
        "half_written": bool(halves),
        "equal": same,
        "seconds": round(time.monotonic() - began, 1),
    }

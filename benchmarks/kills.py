"""Kill a training run by -9 at random moments, resume it, and compare what it ends with, byte for byte.

    python benchmarks/kills.py --runs 50

One run after the other, on a tiny policy of random weights, each in a process of its own (forked from one that has the
libraries loaded). A run is killed in one of four phases in turn - rollout, replay, save, evaluation -, at a random
occurrence of it and a random time into it; where the process really was is noted. Then it is resumed to the end. The
final adapter, optimizer, trainer's state and metrics must be those of the uninterrupted run. Finished runs are kept in
benchmarks/results/kills.csv, so the command goes on where it was stopped.
"""

import argparse
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULT = ROOT / "benchmarks" / "results" / "kills.csv"
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
    from runs import tiny_recipe, with_evaluation

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
    from customized_grpo.sampling.clock import Clock
    from customized_grpo.training import state, trainer

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
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from customized_grpo.training.trainer import train

        watched(stage)
        train(recipe(world, run, **changes))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def finished(pid: int, log: Path) -> None:
    """Wait for a child that must end well."""
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a run failed ({status}):\n{log.read_text(errors='replace')[-3000:]}")


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


def moment(number: int, spans: dict[str, tuple[int, float]]) -> tuple[str, int, float]:
    """The random moment of run ``number``: (phase, its occurrence, seconds into it)."""
    draw, kind = random.Random(number), KINDS[number % len(KINDS)]
    times, seconds = spans[kind]
    return kind, draw.randint(1, times), draw.uniform(0, seconds)


def one(
    name: str, folder: Path, world: Path, whole: Path, kind: str, occurrence: int, delay_s: float
) -> dict[str, Any]:
    """Kill a run at a moment, resume it, compare."""
    from runs import checkpoint_bytes, metrics_of

    run, log, stage = folder / f"run-{name}", folder / f"{name}.log", Stage()
    began = time.monotonic()
    was = kill(child(log, stage, world, run), stage, kind, occurrence, delay_s)
    names = [path.name for path in (run / "checkpoints").glob("*")] if run.is_dir() else []
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


def measured(folder: Path, world: Path) -> tuple[Path, dict[str, tuple[int, float]]]:
    """The uninterrupted run, and of each phase how often it comes and how long it takes."""
    stage, seen, last, since = Stage(), dict.fromkeys(KINDS, 0.0), "other", time.monotonic()
    whole, log = folder / "whole", folder / "whole.log"
    pid = child(log, stage, world, whole)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        now = stage.now
        if last in seen:
            seen[last] += time.monotonic() - since
        last, since = now, time.monotonic()
        time.sleep(0.0005)
    if ended[1]:
        raise RuntimeError(log.read_text(errors="replace")[-3000:])
    return whole, {kind: (stage.count(kind), seen[kind] / max(1, stage.count(kind))) for kind in KINDS}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Moments and outcomes, by where the process was when it died."""
    lines = [
        "| Killed in | Runs | A half-written checkpoint lay there | Equal to the uninterrupted run |",
        "|---|---|---|---|",
    ]
    for place in sorted({record["died_in"] for record in records}):
        of = [record for record in records if record["died_in"] == place]
        halves, equal = (sum(record[key] for record in of) for key in ("half_written", "equal"))
        lines.append(f"| {place} | {len(of)} | {halves} | {equal} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    given = parser.parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes

    import torch
    from records import read_table, write_table

    import customized_grpo.policies.flux
    import customized_grpo.training.trainer  # noqa: F401 - loaded once, for all children
    from runs import make_tiny_world

    torch.set_num_threads(1)
    records = read_table(RESULT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = folder / "world"
        world.mkdir()
        make_tiny_world(world)
        whole, spans = measured(folder, world)
        for number in range(len(records), given.runs):
            if time.monotonic() > end:
                break
            records.append(one(str(number), folder, world, whole, *moment(number, spans)))
            write_table(RESULT, list(records[0]), records)
            sys.stdout.write(f"{records[-1]}\n")
            sys.stdout.flush()
    sys.stdout.write(table(records))
    return int(not all(record["equal"] for record in records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

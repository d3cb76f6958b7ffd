"""Every fault that a run must survive or refuse, provoked for real on a tiny run, and what comes of it:
the table of docs/reliability.md.
"""

import contextlib
import io
import json
import os
import re
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from customized_grpo.commands.train import left
from customized_grpo.data.order import groups_a_rank
from customized_grpo.objectives import grpo
from customized_grpo.policies.flux import UNO
from customized_grpo.training import state
from customized_grpo.training import trainer as module
from customized_grpo.training.checkpoint import SaveError, check, latest, newest
from customized_grpo.training.tracking import RunLog
from customized_grpo.training.trainer import Trainer, train
from runs import SIGNAL_AT, make_tiny_world, metrics_of, signal_at, tiny_recipe


@dataclass(frozen=True)
class Site:
    """A world of random weights, and a folder for a run."""

    world: Path
    run: Path

    def train(self, **changes: Any) -> Path:
        small = {
            "train__steps": 2,
            "train__checkpoint_every": 1,
            "train__group_size": 2,
            "sampling__steps": 3,
        }
        return train(tiny_recipe(self.world, self.run, **(small | changes)))

    def fails(self, kind: type[BaseException], **changes: Any) -> str:
        """The message of the error that a training ends with."""
        try:
            self.train(**changes)
        except kind as error:
            return str(error)
        raise AssertionError("the run ended well")

    def says(self, **changes: Any) -> str:
        """What a training that ends well prints, but for the line that it begins with."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            self.train(**changes)
        return "".join(one for one in said.getvalue().splitlines(keepends=True) if ": steps " not in one)

    def holds(self, *steps: int) -> None:
        """These checkpoints are there, whole, and nothing else is."""
        folder = self.run / "checkpoints"
        assert sorted(path.name for path in folder.iterdir() if path.name != "latest") == [
            f"step-{step:06d}" for step in steps
        ]
        assert [check(folder / f"step-{step:06d}") for step in steps] == list(steps)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, how it's made to, what comes of it, and what the message must say."""

    title: str
    outcome: str
    provoke: Callable[[Site], str]
    says: tuple[str, ...]


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond ``limit`` bytes: a disk that fills up, at the real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def at_step(number: int, happens: Callable[[Trainer], object]) -> Any:
    """Something happens at the start of a step."""
    real = Trainer.step

    def step(self: Trainer, step: int) -> dict[str, float]:
        if step == number:
            happens(self)
        return real(self, step)

    return mock.patch.object(Trainer, "step", step)


def disk_full_in_checkpoint(site: Site) -> str:
    real, saves = state.save, []

    def save(parts: Any, done: int) -> None:
        saves.append(done)
        with small_files(20_000) if done == 2 else contextlib.nullcontext():
            real(parts, done)

    with mock.patch.object(module, "save", save):
        said = site.fails(SaveError)
    site.holds(1)
    return said


def disk_full_in_log(site: Site) -> str:
    real = RunLog.write

    def write(self: RunLog, step: int, *given: Any) -> None:
        with small_files(100) if step == 2 else contextlib.nullcontext():
            real(self, step, *given)

    with mock.patch.object(RunLog, "write", write):
        said = site.fails(RuntimeError)
    site.holds(1)
    site.train(run__resume="latest")
    assert [row["step"] for row in metrics_of(site.run)] == [1, 2]
    return said


def read_only(site: Site) -> str:
    site.run.mkdir()
    site.run.chmod(0o555)
    root = os.geteuid() == 0  # whom permissions don't stop
    if root:
        os.seteuid(65534)
    try:
        return site.fails(ValueError)
    finally:
        if root:
            os.seteuid(0)


def another_run(site: Site) -> str:
    site.run.mkdir()
    (site.run / "metrics.jsonl").write_text('{"step": 1}\n')
    return site.fails(ValueError)


def corrupt_newest(site: Site) -> str:
    site.train()
    weights = site.run / "checkpoints" / "step-000002" / "state" / "adapter.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    said = site.says(run__resume="latest")
    site.holds(1, 2)
    return said


def manifest_leads_out(site: Site) -> str:
    site.train(train__steps=1)
    manifest = site.run / "checkpoints" / "step-000001" / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["../../../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    manifest.write_text(json.dumps(listed))
    return site.fails(ValueError, run__resume=str(manifest.parent))


def changed_recipe(site: Site) -> str:
    site.train(train__steps=1)
    return site.fails(ValueError, run__resume="latest", train__lr=0.5)


def edited_manifest(site: Site) -> str:
    site.train(train__steps=1)
    manifest = site.world / "train.jsonl"
    before = manifest.read_text()
    try:
        manifest.write_text(before.replace("a blue cat", "a green cat"))
        return site.fails(ValueError, run__resume="latest")
    finally:
        manifest.write_text(before)


def harmless_change(site: Site) -> str:
    site.train(train__steps=1)
    return site.says(run__resume="latest", train__keep_checkpoints=1)


def out_of_memory(site: Site) -> str:
    def fill(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    with at_step(1, fill):
        said = site.fails(RuntimeError)
    site.holds(1)
    return said


def stopped_by(number: signal.Signals) -> Callable[[Site], str]:
    def provoke(site: Site) -> str:
        with mock.patch.dict(os.environ, {SIGNAL_AT: signal_at(number, 1)}):
            said = site.says()
        site.holds(1)
        return said

    return provoke


def interrupted_twice(site: Site) -> str:
    def twice(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with at_step(1, twice):
        site.fails(KeyboardInterrupt)
    site.holds(1)
    return left(site.run)


def not_finite(site: Site) -> str:
    with mock.patch.object(grpo, "clipped_surrogate", lambda new, *_, **__: (new * torch.inf).mean()):
        said = site.fails(module.DivergedError)
    assert newest(site.run / "checkpoints") is None
    return said


def other_replay(site: Site) -> str:
    real = UNO.velocity

    def velocity(self: UNO, *given: Any) -> Any:
        return real(self, *given) * (1.5 if torch.is_grad_enabled() else 1.0)

    with mock.patch.object(UNO, "velocity", velocity):
        said = site.fails(module.DivergedError, train__ratio_guard=1e-6)
    assert newest(site.run / "checkpoints") is None
    return said


def rewards_of(prompt: str) -> dict[str, Any]:
    return {
        "rewards": {
            "mine": {"type": f"runs:{prompt}", "axis": "prompt"},
            "warm": {"type": "runs:Warmth", "axis": "identity"},
        }
    }


def clock_jumps(site: Site) -> str:
    """Back by a year, in the middle: the newest checkpoint is then the oldest file."""
    site.train()
    whole = metrics_of(site.run)
    other = Site(site.world, site.run.with_name("jumped"))
    real = time.time
    with at_step(1, lambda _: setattr(time, "time", lambda: real() - 3e7)):
        try:
            other.train()
        finally:
            time.time = real
    folder = other.run / "checkpoints"
    os.utime(folder / "step-000002", (1.0, 1.0))
    assert latest(folder, lambda _: None).name == "step-000002"
    assert metrics_of(other.run) == whole
    return ""


def uneven_groups(site: Site) -> str:
    try:
        groups_a_rank(8, 3)
    except ValueError as error:
        return str(error)
    raise AssertionError


FAULTS = [
    Fault("Disk full while a checkpoint is written", "stops, exit 1; the checkpoint before stays, no half one is left",
          disk_full_in_checkpoint, ("can't be written", "run.resume=latest")),
    Fault("Disk full while a line of the log is written", "stops, exit 1; resumed, the log is whole again",
          disk_full_in_log, ("File too large", "step-000001 is untouched")),
    Fault("Run folder that can't be written", "refused before anything is loaded, exit 2", read_only,
          ("run.dir", "can't be written (Permission denied)")),
    Fault("Folder of another run", "refused before anything is loaded, exit 2", another_run,
          ("already holds files", "run.resume=latest")),
    Fault("Newest checkpoint corrupt", "a warning; the one before it is resumed", corrupt_newest,
          ("adapter.safetensors is corrupt", "falling back to the checkpoint before it")),
    Fault("Checkpoint whose manifest leads out of it", "refused, exit 2", manifest_leads_out, ("which is outside",)),
    Fault("Resumed with a key changed that changes a step", "refused, exit 2", changed_recipe,
          ("train.lr: was 0.01, given 0.5", "start a new run")),
    Fault("Resumed on data that were edited", "refused, exit 2", edited_manifest,
          ("1 changed (dog-1)", "start a new run")),
    Fault("Resumed with a harmless key changed", "goes on, and names it", harmless_change,
          ("train.keep_checkpoints", "train.steps")),
    Fault("Out of GPU memory", "stops, exit 1; the message names the knobs, the last checkpoint stays", out_of_memory,
          ("Tried to allocate 2.00 GiB", "train.microbatch", "policy.gradient_checkpointing=true", "step-000001")),
    Fault("SIGTERM (a machine is taken back)", "finishes the step, saves, exit 0", stopped_by(signal.SIGTERM),
          ("stopped after step 1 and saved",)),
    Fault("SIGUSR1 (Slurm's time limit is near)", "finishes the step, saves, exit 0", stopped_by(signal.SIGUSR1),
          ("stopped after step 1 and saved",)),
    Fault("Ctrl-C", "finishes the step, saves, exit 0", stopped_by(signal.SIGINT),
          ("stopped after step 1 and saved",)),
    Fault("Ctrl-C twice", "stops at once, exit 130; the last checkpoint stays", interrupted_twice, ("stopped",)),
    Fault("Gradient or loss that is not finite", "nothing moves on any process; after train.max_skipped it stops",
          not_finite, ("train.max_skipped=0", "nothing was updated")),
    Fault("Replay that differs from its rollout", "stops before the first update", other_replay,
          ("largest |log-ratio|", "train.ratio_guard")),
    Fault("Reward without a difference inside its groups", "a warning, once", lambda site: site.says(
          **rewards_of("Constant")), ("rewards.mine gave all samples of a group the same score in 100%",)),
    Fault("Reward whose differences drown in its size", "a warning, once", lambda site: site.says(
          **rewards_of("Offset")), ("rewards.mine differs inside a group by", "rounding noise")),
    Fault("Clock that jumps back", "nothing: the order of checkpoints is that of their steps", clock_jumps, ()),
    Fault("Groups that the processes can't share equally", "refused before anything is loaded, exit 2", uneven_groups,
          ("use 6 or 9",)),
]  # fmt: skip

SEVERAL = [
    ("Gradient not finite on one process", "nothing moves on any; all stop with the same message"),
    (
        "Processes that hold different adapters",
        "all stop before saving; the first tensor that differs is named",
    ),
    ("Error of one process while loading or saving", "raised on all of them at once, quoting that process"),
    ("Signal to one process only", "all finish the step, process 0 saves, exit 0"),
    ("Another number of processes on resume", "the same run, up to the order of adding"),
    ("One process raises in a step", "its traceback comes first, the launcher ends the others, exit 1"),
    ("One of two hosts vanishes", "the other ends with an error; the run resumes from its last checkpoint"),
]
"""What it takes several processes to provoke: tests/distributed."""


def plain(said: str, site: Site) -> str:
    """A message without what differs from machine to machine and what every run of this recipe says, on one line."""
    every = r"step \d+/|\s*(Loading|Writing)|data: \d+ references are read|advantage\.time_weights: it ends"
    lines = [line.strip() for line in said.splitlines() if not re.match(every, line)]
    text = " ".join(line for line in lines if line).replace(str(site.run), "RUN").replace("|", "\\|")
    text = re.sub(r"by \d[\d.e+-]* at a mean of [\d.e+-]+", "by ... at a mean of ...", text)
    return re.sub(r"log-ratio\\\| is [\d.e+-]+", r"log-ratio\\| is ...", text)


def table() -> str:
    """What came of each fault; an AssertionError where a message lacks what it must say."""
    lines, complaints = ["| Fault | Outcome | Message |", "|---|---|---|"], []
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # a test that gives up being root still has to get here
        world = Path(name) / "world"
        world.mkdir()
        make_tiny_world(world)
        for number, fault in enumerate(FAULTS):
            (Path(name) / f"{number}").mkdir()
            site = Site(world, Path(name) / f"{number}" / "run")
            said = fault.provoke(site)
            complaints += [f"{fault.title}: no {part!r} in {said}" for part in fault.says if part not in said]
            lines.append(f"| {fault.title} | {fault.outcome} | {plain(said, site)} |")
    assert not complaints, "\n".join(complaints)
    return "\n".join([*lines, *(f"| {title} | {outcome} | |" for title, outcome in SEVERAL)]) + "\n"

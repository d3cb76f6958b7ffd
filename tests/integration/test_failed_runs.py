"""A run that fails, wherever, leaves nothing open: no thread, socket, file, tracker or process group; its log is whole.

The error is held while this is looked at, as a notebook holds it: what only the garbage collector would close is open.
"""

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import accelerate.tracking
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType, LoggerType

from customized_grpo.atomic import held
from customized_grpo.evaluation.evaluator import evaluate
from customized_grpo.identity import hashes
from customized_grpo.objectives import grpo
from customized_grpo.recipe.config import EvaluateRecipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training import setup, state, trainer, validation
from customized_grpo.training.trainer import train
from forked import exit_code, forked
from judge_cases import KEY, KEY_ENV
from judge_server import JudgeServer, Reply, Request, error, score
from runs import tiny_dict, tiny_recipe, with_evaluation

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads


class Noting(GeneralTracker):
    """Counts those that are open."""

    name, requires_logging_directory = "tensorboard", True
    open: ClassVar[int] = 0

    def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
        super().__init__()
        type(self).open += 1

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None: ...

    def finish(self) -> None:
        type(self).open -= 1


class Broken(Exception):
    """What is raised on purpose."""


def broken(*_: Any, **__: Any) -> Any:
    raise Broken


def at_second(before: Callable[..., Any]) -> Callable[..., Any]:
    """Fails at its second call."""
    calls = []

    def run(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return broken() if len(calls) == 2 else before(*given, **named)

    return run


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def always(what: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _: what


PLACES: dict[str, tuple[Any, str, Any, int]] = {
    "loading the model": (setup, "open_for_training", always(broken), 0),
    "after the model": (setup, "get_scheduler", always(broken), 0),
    "after the scorer": (setup, "Clock", always(broken), 0),
    "loading a metric": (setup, "_evaluation", always(broken), 0),
    "starting trackers": (Accelerator, "init_trackers", always(broken), 0),
    "the first evaluation": (validation, "evaluate_policy", always(broken), 0),
    "a later evaluation": (validation, "evaluate_policy", at_second, 1),
    "sampling": (grpo, "sample_group", always(broken), 1),
    "replay": (grpo, "replay", always(broken), 1),
    "the optimizer": (trainer, "clip_and_step", at_second, 2),
    "a checkpoint": (state, "write_tensors", always(broken), 2),
    "a full disk": (state.checkpoint, "_sync", always(full), 2),
    "Ctrl-C twice": (trainer, "clip_and_step", always(interrupted), 1),
}
"""What fails, and how many lines the log has then."""


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    def script(request: Request) -> Reply:
        return score(round(4 * sum(request.pixel) / 3 / 255))

    with JudgeServer(script) as opened:
        yield opened


@pytest.fixture(autouse=True)
def around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Noting)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])


def recipe(world: Path, folder: Path, server: JudgeServer, **changes: Any) -> Path:
    """Judged by one judge in training and by another in its evaluation, which keep their answers in files."""
    judge = {
        "type": "vlm", "preset": "vllm", "model": "m", "base_url": server.url, "retries": 0,
        "rubric": "prompt_following", "axis": "prompt",
    }  # fmt: skip
    held_out = with_evaluation(world, 1)
    held_out["evaluate"]["metrics"] = {"pf": judge | {"cache": str(folder / "evaluation.sqlite")}}
    data = tiny_dict(
        world,
        folder / "run",
        rewards={
            "pf": judge | {"cache": str(folder / "judges.sqlite")},
            "warm": {"type": "runs:Warmth", "axis": "identity"},
        },
        run__trackers=["tensorboard"],
        train__checkpoint_every=1,
        train__steps=2,
        **held_out | changes,
    )
    (folder / "recipe.yaml").write_text(json.dumps(data))
    return folder / "recipe.yaml"


def is_open() -> tuple[set[str], int, set[str]]:
    """Threads by name, sockets and files of this process."""
    process = psutil.Process()
    own = {one.name for one in threading.enumerate()}
    return own, len(process.net_connections()), {one.path for one in process.open_files()}


def assert_closed(before: tuple[set[str], int, set[str]]) -> None:
    """Against what was open before; a server's answers and a thread's end take their moment."""
    end = time.monotonic() + 5
    while is_open() != before and time.monotonic() < end:
        time.sleep(0.05)
    threads, sockets, files = is_open()
    assert (threads - before[0], sockets - before[1], files - before[2]) == (set(), 0, set())


@pytest.mark.parametrize("place", PLACES)
def test_whatever_fails_nothing_stays_open(
    place: str, tiny_world: Path, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, failing, lines = PLACES[place]
    given = load_recipe(recipe(tiny_world, tmp_path, server))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    before = is_open()
    monkeypatch.setattr(module, name, failing(getattr(module, name)))
    with pytest.raises((Broken, KeyboardInterrupt, RuntimeError)) as kept:
        train(given)
    assert_closed(before)
    assert Noting.open == 0
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with held(tmp_path / "run"):
        pass
    log = tmp_path / "run" / "metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(lines)), kept
    assert text.endswith("\n" * bool(lines))


@pytest.mark.parametrize("section", ["rewards", "evaluate__metrics"])
def test_a_plug_in_that_cant_be_loaded_closes_those_before_it(
    section: str, tiny_world: Path, tmp_path: Path, server: JudgeServer
) -> None:
    lost = {"type": "dino", "model": str(tmp_path / "lost"), "axis": "identity"}
    given = load_recipe(recipe(tiny_world, tmp_path, server, **{f"{section}__lost": lost}))
    before = is_open()
    with pytest.raises(ValueError, match=r"lost: model .* no such folder") as kept:
        train(given)
    assert_closed(before)
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize(("first", "kind"), [(True, ValueError), (False, RuntimeError)])
def test_a_judge_that_refuses_leaves_nothing_open(
    tiny_world: Path, tmp_path: Path, first: bool, kind: type[Exception]
) -> None:
    with JudgeServer(lambda _: error(401, "no such key")) as server:
        off: dict[str, Any] = {"train__evaluate_every": 0, "evaluate": None}
        given = load_recipe(recipe(tiny_world, tmp_path, server, run__ask_first=first, **off))
        before = is_open()
        with pytest.raises(kind, match="no such key"):
            train(given)
        assert_closed(before)


def test_an_evaluation_that_fails_leaves_nothing_open(
    tiny_world: Path, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(recipe(tiny_world, tmp_path, server).read_text())
    run = {name: data["run"][name] for name in ("dir", "precision", "device", "threads")}
    given = EvaluateRecipe.model_validate({"run": run, "policy": data["policy"], "evaluate": data["evaluate"]})
    before = is_open()
    monkeypatch.setattr("customized_grpo.evaluation.evaluator.evaluate_policy", broken)
    with pytest.raises(Broken):
        evaluate(given)
    assert_closed(before)


def test_what_is_read_ahead_is_given_up(
    tiny_world: Path, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that hash a large data set, for which an interpreter waits at its end."""
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number in range(200):
        (data / f"{number}.png").write_bytes((tiny_world / "0.png").read_bytes())
        lines.append(json.dumps({"id": str(number), "prompt": "a dog", "references": [f"{number}.png"]}))
    (data / "train.jsonl").write_text("\n".join(lines) + "\n")
    read = []

    def slowly(path: Path) -> str:
        read.append(path)
        time.sleep(0.1)
        return "0" * 64

    monkeypatch.setattr(hashes, "file_hash", slowly)
    monkeypatch.setattr(setup, "open_for_training", broken)
    given = load_recipe(recipe(tiny_world, tmp_path, server, data__path=str(data / "train.jsonl")))
    before = is_open()
    with pytest.raises(Broken):
        train(given)
    assert_closed(before)
    assert len(read) < 100


@pytest.mark.parametrize("place", ["loading the model", "a later evaluation", "a checkpoint"])
def test_a_job_of_one_process_leaves_its_group(place: str, tiny_world: Path, tmp_path: Path) -> None:
    """As torchrun starts it, under DDP."""
    module, name, failing, _ = PLACES[place]

    def fails() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        changes = {"train__checkpoint_every": 1, "train__steps": 2, **with_evaluation(tiny_world, 1)}
        given = tiny_recipe(tiny_world, tmp_path / "run", **changes)
        with mock.patch.object(module, name, failing(getattr(module, name))), pytest.raises(Broken) as kept:
            train(given)
        assert kept.value.__traceback__ is not None
        assert Accelerator().distributed_type == DistributedType.MULTI_CPU
        assert not torch.distributed.is_initialized()

    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = str(opened.getsockname()[1])
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = exit_code(forked(tmp_path / "log", fails, **own))
    assert code == 0, (tmp_path / "log").read_text()

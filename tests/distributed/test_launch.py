"""The launchers: a process that fails brings the job down with its reason first, and two hosts train over TCP.

The hosts are two network namespaces joined by a cable, so this needs root and ``ip``.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from customized_grpo.training.checkpoint import check
from runs import RAISE_AT, environment, make_tiny_world, metrics_of, tiny_dict

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = ["-m", "customized_grpo", "train"]
CHANGES = {
    "run__device": "auto",
    "run__timeout_s": 20,
    "train__steps": 3,
    "train__checkpoint_every": 1,
    "train__group_size": 2,
    "sampling__steps": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


def recipe_file(world: Path, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(world, folder / "run", **CHANGES)))
    return path


def test_a_process_that_fails_ends_the_job_with_its_reason_first(world: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", *TRAIN, str(recipe_file(world, tmp_path))],
        env=environment(CUDA_VISIBLE_DEVICES="", **{RAISE_AT: "1:2"}),  # in the second step of rank 1
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    reason = ended.stderr.index("error on rank 1: reward 'bright' failed")
    assert "broken on purpose" in ended.stderr[reason:]
    others = [at for at in (ended.stderr.find(text) for text in ("Traceback", "ChildFailedError")) if at >= 0]
    assert others
    assert reason < min(others)
    assert check(tmp_path / "run" / "checkpoints" / "step-000001") == 1


def test_accelerate_launches_it_too(world: Path, tmp_path: Path) -> None:
    """One process: on CPUs accelerate starts several by MPI only, on GPUs by torchrun's own code."""
    accelerate = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    config = Path(__file__).parents[2] / "config" / "accelerate" / "ddp.yaml"
    ended = subprocess.run(
        [
            sys.executable,
            *accelerate,
            "--config_file",
            str(config),
            *TRAIN,
            str(recipe_file(world, tmp_path)),
        ],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert check(tmp_path / "run" / "checkpoints" / "step-000003") == 3


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces with the addresses 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip")
    names = tuple(f"cg{os.getpid()}{letter}" for letter in "ab")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield names[0], names[1]
    for name in names:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", name)


def launch(host: str, rank: int, recipe: Path, *overrides: str) -> "subprocess.Popen[str]":
    address = ["--master_addr=10.77.0.1", "--master_port=29577"]
    several = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", *address]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *TORCHRUN, *several, *TRAIN, str(recipe), *overrides],
        env=environment(CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="cable"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(*jobs: "subprocess.Popen[str]") -> str:
    """End them where they still run.

    Returns:
        What each wrote.
    """
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return "\n".join(f"rank {rank}:\n{job.communicate()[1]}" for rank, job in enumerate(jobs))


def test_two_hosts_train_and_survive_the_loss_of_one(hosts: tuple[str, str], world: Path, tmp_path: Path) -> None:
    recipe = recipe_file(world, tmp_path)
    first, second = (launch(host, rank, recipe, "train.steps=500") for rank, host in enumerate(hosts))
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "run" / "checkpoints" / "step-000002").is_dir():
            assert time.monotonic() < end
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.1)
        ip("-n", hosts[1], "link", "set", "cable", "down")  # no farewell: the other hears nothing more
        _, said = first.communicate(timeout=120)
        assert first.returncode == 1
        assert "Traceback" in said
        assert "imed out" in said or "timeout" in said.lower()
    finally:
        kill(first, second)
    done = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))

    ip("-n", hosts[1], "link", "set", "cable", "up")
    steps = f"train.steps={done + 1}"
    again = [launch(host, rank, recipe, steps, "run.resume=latest") for rank, host in enumerate(hosts)]
    try:
        # torchrun waits five minutes for the others before it ends, so the first to fail has the reason
        end = time.monotonic() + 250
        while any(process.poll() is None for process in again) and time.monotonic() < end:
            if any(process.poll() for process in again):
                break
            time.sleep(0.1)
    finally:
        codes = [process.poll() for process in again]
        said = kill(*again)
    assert codes == [0, 0], said
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == list(range(1, done + 2))
    assert check(tmp_path / "run" / "checkpoints" / f"step-{done + 1:06d}") == done + 1

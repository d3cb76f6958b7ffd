"""One process with two groups is two processes with one group each: the same adapter, the same metrics (gloo, CPU)."""

import math
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from customized_grpo.training.checkpoint import check, read_tensors
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import SLOW, environment, make_tiny_world, metrics_of, tiny_recipe

CHANGES = {"train__steps": 3, "train__save_samples_every": 2, "train__checkpoint_every": 1}


@dataclass(frozen=True, slots=True)
class Both:
    """The folder that two processes wrote, and what one process trained."""

    two: Path
    one: Path
    adapter: dict[str, Tensor]
    start: dict[str, Tensor]

    def of_two(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.two / f"{name}.safetensors")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("two-ranks")
    world = make_tiny_world(root)
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_ranks.py")), str(world), str(root)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                CUDA_VISIBLE_DEVICES="",
                **{
                    SLOW: str(0.3 * rank)
                },  # a slow reward on one rank: the other waits, and nothing else changes
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    trainer = Trainer(build(tiny_recipe(world, root / "one", **CHANGES)))
    start = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    trainer.run()
    for rank in ranks:
        said, _ = rank.communicate(timeout=240)
        assert rank.returncode == 0, said
    adapter = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    return Both(root, root / "one", adapter, start)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Euclidean, over all weights."""
    assert one.keys() == other.keys()
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


def first_gradient(run: Path) -> dict[str, Tensor]:
    """Adam's first moment after one update: a tenth of the gradient."""
    state = read_tensors(run / "checkpoints" / "step-000001" / "state" / "optimizer.safetensors")
    return {name: one for name, one in state.items() if name.endswith("/exp_avg")}


def test_both_ranks_hold_the_same_adapter(both: Both) -> None:
    assert distance(both.of_two("rank-0"), both.of_two("rank-1")) == 0
    assert check(both.two / "run" / "checkpoints" / "step-000003") == 3
    state = both.two / "run" / "checkpoints" / "step-000003" / "state"
    assert distance(read_tensors(state / "adapter.safetensors"), both.of_two("rank-0")) == 0


def test_two_processes_make_the_gradient_of_one(both: Both) -> None:
    one, two = first_gradient(both.one), first_gradient(both.two / "run")
    size = distance(one, {name: tensor * 0 for name, tensor in one.items()})
    assert size > 1e-5
    assert distance(one, two) < 1e-5 * size


def test_two_processes_train_what_one_does(both: Both) -> None:
    # Not to the bit: adding in another order moves an image's pixel by one level here and there, and so a reward.
    moved = distance(both.adapter, both.start)
    assert moved > 0.1
    assert distance(both.of_two("rank-0"), both.adapter) < 5e-3 * moved


def test_without_exchanged_gradients_they_do_not(both: Both) -> None:
    """The control: the test above can fail."""
    moved = distance(both.adapter, both.start)
    for rank in range(2):
        assert distance(both.of_two(f"alone-{rank}"), both.adapter) > 0.2 * moved
    assert distance(both.of_two("alone-0"), both.of_two("alone-1")) > 0.2 * moved


def test_metrics_are_those_of_all_groups_and_written_once(both: Both) -> None:
    one, two = metrics_of(both.one), metrics_of(both.two / "run")
    assert [row["step"] for row in two] == [1, 2, 3]
    for row, other, tolerance in zip(one, two, (1e-5, 5e-2, 5e-2), strict=True):
        assert row.keys() == other.keys()
        assert any(name.startswith("weight/") for name in row)
        for name in row:
            assert other[name] == pytest.approx(row[name], rel=tolerance, abs=tolerance / 10), name
    assert sorted(path.name for path in (both.two / "run" / "samples").glob("*.png")) == [
        "step-000001.png",
        "step-000002.png",
    ]

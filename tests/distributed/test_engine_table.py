"""Every cell of the table engine x option: two processes train what one does and resume to the bit, or it is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.training.engine_limits import Engine
from engine_table import CASES, EIGHT_BIT_MOMENTS, RUN, cases_of
from reward_faults import scores, serving
from runs import environment, make_tiny_world, metrics_of
from tiny_qwen_image import make_tiny_qwen
from uno_tiny import uno_file

RUNS = [(engine, name) for engine in RUN for name in cases_of(engine)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, and two under each engine, have run the cases."""
    root = make_tiny_world(tmp_path_factory.mktemp("engines"))
    make_tiny_qwen(root / "qwen")
    uno_file(root)
    script = Path(__file__).with_name("engine_runs.py")
    with serving(scores(4.0, 1.0, 2.0, 3.0)) as server:
        ended = subprocess.run(
            [sys.executable, str(script), str(root), str(root), str(server.server_address[1])],
            env=environment(CUDA_VISIBLE_DEVICES=""),
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert ended.returncode == 0, ended.stderr
    return root


def state(run: Path, step: int, name: str) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / f"step-{step:06d}" / "state" / f"{name}.safetensors")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum(float((one[name].float() - other[name].float()).square().sum()) for name in one) ** 0.5


def gradient(run: Path) -> dict[str, Tensor]:
    """Adam's first moment after one step, of which the first update's gradient is the larger part."""
    return {name: one for name, one in state(run, 1, "optimizer").items() if name.endswith("/exp_avg")}


@pytest.mark.parametrize(("engine", "name"), RUNS, ids=lambda one: one.value if isinstance(one, Engine) else one)
def test_two_processes_train_what_one_does(root: Path, engine: Engine, name: str) -> None:
    one, two = root / "one" / name, root / engine.value.lower() / name
    moved = distance(state(one, 2, "adapter"), state(one, 1, "adapter"))
    assert moved > 0
    apart = distance(state(two, 2, "adapter"), state(one, 2, "adapter"))
    print(engine, name, "weights", apart/moved)
    if EIGHT_BIT_MOMENTS not in CASES[name]:
        expected = gradient(one)
        size = distance(expected, {key: tensor * 0 for key, tensor in expected.items()})
        print(engine, name, "gradient", distance(gradient(two), expected) / size)
    for row in metrics_of(two): print(row.get("ratio/max_abs_log_first"), row["loss/kl"])

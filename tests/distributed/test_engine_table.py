"""Every cell of the table engine x option: two processes train what one does and resume exactly, or it is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.training.engine_limits import Engine
from engine_table import CASES, COMPILED, FULL, RUN, cases_of
from reward_faults import scores, serving
from runs import environment, make_tiny_world, metrics_of
from tiny_qwen_image import make_tiny_qwen
from uno_tiny import uno_file

pytestmark = pytest.mark.timeout(900)  # a minute on two free cores, and all tests of a run may share them
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
            timeout=880,
        )
    assert ended.returncode == 0, ended.stderr
    return root


def state(run: Path, step: int, name: str) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / f"step-{step:06d}" / "state" / f"{name}.safetensors")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum(float((one[name].float() - other[name].float()).square().sum()) for name in one) ** 0.5


def gradient(run: Path) -> dict[str, Tensor]:
    """Adam's first moment after the first step: a tenth of the gradient, if that is one update."""
    moments = {name: one for name, one in state(run, 1, "optimizer").items() if name.endswith(("/exp_avg", "/state1"))}
    return {name: one for name, one in moments.items() if one.is_floating_point()}


@pytest.mark.parametrize(("engine", "name"), RUNS, ids=lambda one: one.value if isinstance(one, Engine) else one)
def test_two_processes_train_what_one_does(root: Path, engine: Engine, name: str) -> None:
    one, two = root / "one" / name, root / engine.value.lower() / name
    expected = gradient(one)
    size = distance(expected, {key: tensor * 0 for key, tensor in expected.items()})
    assert size > 1e-6
    # FSDP2's hooks let autograd sum what the blocks give back to the embedding of time in another order, and in bf16.
    rounding = 5e-3 if name == FULL else 1e-5
    assert distance(gradient(two), expected) < rounding * size
    moved = distance(state(one, 2, "adapter"), state(one, 1, "adapter"))
    assert moved > 0.1
    # Adam makes a step of full size of a gradient that is nearly 0.
    assert distance(state(two, 1, "adapter"), state(one, 1, "adapter")) < 10 * rounding * moved
    first = [row.get("ratio/max_abs_log_first", 0.0) for run in (one, two) for row in metrics_of(run)]
    assert max(first[::2] if "`train.staleness: 1`" in CASES[name] else first) < 1e-6  # later an update lies between


@pytest.mark.parametrize(("engine", "name"), RUNS, ids=lambda one: one.value if isinstance(one, Engine) else one)
def test_what_two_processes_saved_goes_on_to_the_bit(root: Path, engine: Engine, name: str) -> None:
    run, again = root / engine.value.lower() / name, root / engine.value.lower() / f"{name}-again"
    files = sorted(path.name for path in (run / "checkpoints" / "step-000002" / "state").glob("*.safetensors"))
    copies = {"`train.ema`", "`nft` with an old policy", "`awm` with a running average", "`train.staleness: 1`"}
    assert len(files) == 2 + len(copies & set(CASES[name]))
    for file in files if name != COMPILED else ():
        first, second = (one / "checkpoints" / "step-000002" / "state" / file for one in (run, again))
        assert first.read_bytes() == second.read_bytes(), file
    moved = distance(state(run, 2, "adapter"), state(run, 1, "adapter"))
    assert distance(state(run, 2, "adapter"), state(again, 2, "adapter")) < 5e-3 * moved


def test_an_evaluation_with_a_remainder_is_whole(root: Path) -> None:
    for engine in RUN:
        for name in ("adapter", "guidance"):
            file = root / engine.value.lower() / name / "evaluation" / "step-000002.jsonl"
            assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [0, 1, 2]

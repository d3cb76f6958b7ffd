"""One process with two groups is two processes with one group each: the same adapter, the same metrics (gloo, CPU).

So under DDP and under FSDP2, and nearly so under DeepSpeed's ZeRO (``make test-deepspeed``); a checkpoint of any goes
on under any number of processes; and what befalls one of the processes is known to both.
"""

import copy
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.training.checkpoint import check
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import (
    BALANCED,
    BUCKETS,
    NFT,
    RULES,
    STALE,
    TAUGHT,
    environment,
    make_taught_world,
    make_tiny_world,
    metrics_of,
    taught_recipe,
    tiny_recipe,
)

STEPS = 5
CHANGES = {
    "train__steps": STEPS,
    "train__save_samples_every": 2,
    "samples__every": 2,
    "train__checkpoint_every": 1,
    "train__keep_checkpoints": STEPS,
}
LAST = f"step-{STEPS:06d}"


@dataclass(frozen=True, slots=True)
class Both:
    """The folder that two processes wrote, and what one process trained."""

    two: Path
    one: Path
    adapter: dict[str, Tensor]
    start: dict[str, Tensor]

    @property
    def moved(self) -> float:
        return distance(self.adapter, self.start)

    def of_two(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.two / f"{name}.safetensors")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("two-ranks")
    world = make_tiny_world(root)
    make_taught_world(world, root / "taught")
    trainer = Trainer(build(tiny_recipe(world, root / "one", **CHANGES)))
    start = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    trainer.run()
    cut_short(root / "one", root / "from-one", keep=2)
    Trainer(build(tiny_recipe(world, root / "one-nft", **(CHANGES | copy.deepcopy(NFT))))).run()
    Trainer(build(tiny_recipe(world, root / "one-rules", **(CHANGES | copy.deepcopy(RULES))))).run()
    Trainer(build(tiny_recipe(world, root / "one-balanced", **(CHANGES | BALANCED)))).run()
    Trainer(build(tiny_recipe(world, root / "one-stale", **(CHANGES | STALE)))).run()
    taught = {"data__path": str(root / "taught" / "train.jsonl")}
    Trainer(build(tiny_recipe(world, root / "one-buckets", **(CHANGES | BUCKETS | taught)))).run()
    for kind, changes in TAUGHT.items():
        given = CHANGES | copy.deepcopy(changes)
        Trainer(build(taught_recipe(root / "taught", root / f"one-{kind}", kind, **given))).run()
    run_two_ranks(world, root, "ddp", "fsdp")
    adapter = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    return Both(root, root / "one", adapter, start)


def run_two_ranks(world: Path, root: Path, *engines: str) -> None:
    """``two_ranks.py``; if a rank fails, what both wrote is the reason."""
    script = Path(__file__).with_name("two_ranks.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(world), str(root), *engines],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr


def cut_short(run: Path, into: Path, keep: int) -> None:
    """A copy of a run that ended after so many steps."""
    shutil.copytree(run, into, symlinks=True)
    for path in (into / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > keep:
            shutil.rmtree(path)


def widest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


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
    assert check(both.two / "run" / "checkpoints" / LAST) == STEPS
    state = both.two / "run" / "checkpoints" / LAST / "state"
    assert distance(read_tensors(state / "adapter.safetensors"), both.of_two("rank-0")) == 0


def test_two_processes_make_the_gradient_of_one(both: Both) -> None:
    one, two = first_gradient(both.one), first_gradient(both.two / "run")
    size = distance(one, {name: tensor * 0 for name, tensor in one.items()})
    assert size > 1e-5
    assert distance(one, two) < 1e-5 * size


def test_two_processes_train_what_one_does(both: Both) -> None:
    # Not to the bit: adding in another order moves an image's pixel by one level here and there, and so a reward.
    assert both.moved > 0.1
    assert distance(both.of_two("rank-0"), both.adapter) < 5e-3 * both.moved
    # Adam makes a step of full size of a gradient that is nearly 0, so a single weight may differ by more.
    assert widest(both.of_two("rank-0"), both.adapter) < 5e-2 * widest(both.adapter, both.start)


def test_without_exchanged_gradients_they_do_not(both: Both) -> None:
    """The control: the test above can fail."""
    for rank in range(2):
        assert distance(both.of_two(f"alone-{rank}"), both.adapter) > 0.2 * both.moved
    assert distance(both.of_two("alone-0"), both.of_two("alone-1")) > 0.2 * both.moved


def test_metrics_are_those_of_all_groups_and_written_once(both: Both) -> None:
    one, two = metrics_of(both.one), metrics_of(both.two / "run")
    assert [row["step"] for row in two] == list(range(1, STEPS + 1))
    for row, other, tolerance in zip(one, two, (1e-5, *[5e-2] * (STEPS - 1)), strict=True):
        assert row.keys() == other.keys()
        assert any(name.startswith("weight/") for name in row) == (row["step"] == 1)
        for name in row:
            assert other[name] == pytest.approx(row[name], rel=tolerance, abs=tolerance / 10), name
    assert sorted(path.name for path in (both.two / "run" / "samples").glob("*.png")) == [
        "step-000001.png",
        "step-000002.png",
        "step-000004.png",
    ]


def test_a_checkpoint_of_one_process_goes_on_under_two(both: Both) -> None:
    assert distance(both.of_two("resumed-0"), both.of_two("resumed-1")) == 0
    assert distance(both.of_two("resumed-0"), both.adapter) < 5e-3 * both.moved


@pytest.mark.parametrize("engine", ["run", "fsdp"])
def test_a_checkpoint_of_two_processes_goes_on_under_one(both: Both, engine: str, tmp_path: Path) -> None:
    cut_short(both.two / engine, tmp_path / "run", keep=2)
    changes = CHANGES | {"train__ema": 0.5 if engine == "fsdp" else None}
    world = both.two
    trainer = Trainer(build(tiny_recipe(world, tmp_path / "run", run__resume="latest", **changes)))
    trainer.run()
    ended = {name: one.detach() for name, one in trainer.parts.parameters.items()}
    assert distance(ended, both.adapter) < 5e-3 * both.moved


def tensors(run: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / LAST / name)


def test_shards_train_what_one_process_does_and_are_saved_whole(both: Both) -> None:
    """And the checkpoint is no larger than that of one process, but for the average."""
    run = both.two / "fsdp"
    assert check(run / "checkpoints" / LAST) == STEPS
    assert distance(tensors(run, "state/adapter.safetensors"), both.adapter) < 5e-3 * both.moved
    whole = both.one / "checkpoints" / LAST / "state" / "optimizer.safetensors"
    assert {n: t.shape for n, t in tensors(run, "state/optimizer.safetensors").items()} == {
        n: t.shape for n, t in read_tensors(whole).items()
    }
    saved = tensors(run, "pytorch_lora_weights.safetensors")
    average = tensors(run, "state/ema.safetensors")
    assert {n.removeprefix("transformer."): t.tolist() for n, t in saved.items()} == {
        n.replace(".default.", "."): t.tolist() for n, t in average.items()
    }


def test_shards_resume_exactly(both: Both) -> None:
    for name in ("state/adapter.safetensors", "state/optimizer.safetensors", "state/ema.safetensors"):
        assert distance(tensors(both.two / "fsdp", name), tensors(both.two / "fsdp-again", name)) == 0


def test_shards_evaluate_though_one_rank_has_more_to_draw(both: Both) -> None:
    rows = (both.two / "fsdp" / "evaluation" / "step-000004.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in rows] == [0, 1, 2]


SAID = {
    "not finite": ("DivergedError: the gradient's norm is", "nothing was updated"),
    "disk full": ("SaveError", "No space left on device", "run.resume=latest"),
    "loading": ("ValueError", "nowhere"),
    "differ": ("RanksDifferError: after step 1 ranks 0 and 1 hold different adapters", "Nothing was saved"),
}


@pytest.mark.parametrize("run", ["nft", "fsdp-nft"])
def test_two_processes_train_on_the_forward_process_what_one_does(both: Both, run: str) -> None:
    """With an old policy that lags, whose weights stand in the model while it samples, shards included."""
    folders = [both.two / one / "checkpoints" / "step-000003" / "state" for one in ("one-nft", run)]
    for file in ("adapter", "old"):
        one, two = (read_tensors(folder / f"{file}.safetensors") for folder in folders)
        size = distance(one, both.start)
        assert size > 0.01
        assert distance(one, two) < 1e-2 * size
    lag = distance(*(read_tensors(folders[1] / f"{file}.safetensors") for file in ("adapter", "old")))
    assert lag > 1e-3
    gradients = [first_gradient(folder.parents[2]) for folder in folders]
    size = distance(gradients[0], {name: tensor * 0 for name, tensor in gradients[0].items()})
    assert distance(*gradients) < 1e-3 * size


@pytest.mark.parametrize("run", ["stale", "fsdp-stale"])
def test_two_processes_sample_an_update_ahead_as_one_does(both: Both, run: str) -> None:
    """And a checkpoint holds the weights that sampled the step to come: those before the last update."""
    folders = [both.two / one / "checkpoints" for one in ("one-stale", run)]
    one, two = (read_tensors(folder / "step-000003" / "state" / "adapter.safetensors") for folder in folders)
    size = distance(one, both.start)
    assert size > 0.01
    assert distance(one, two) < 5e-3 * size
    behind = read_tensors(folders[1] / "step-000003" / "state" / "behind.safetensors")
    before = read_tensors(folders[1] / "step-000002" / "state" / "adapter.safetensors")
    assert distance(behind, before) == 0


@pytest.mark.parametrize("kind", TAUGHT)
@pytest.mark.parametrize("engine", ["", "fsdp-"])
def test_two_processes_learn_from_pictures_what_one_does(both: Both, kind: str, engine: str) -> None:
    folders = [both.two / f"{one}{kind}" / "checkpoints" / "step-000003" / "state" for one in ("one-", engine)]
    one, two = (read_tensors(folder / "adapter.safetensors") for folder in folders)
    size = distance(one, both.start)
    assert size > 0.01
    assert distance(one, two) < 1e-2 * size
    rows = [metrics_of(folder.parents[2]) for folder in folders]
    for alone, shared in zip(*rows, strict=True):
        assert alone["loss/surrogate"] == pytest.approx(shared["loss/surrogate"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("run", ["buckets", "fsdp-buckets", "balanced", "fsdp-balanced"])
def test_processes_whose_groups_differ_train_what_one_does(both: Both, run: str) -> None:
    """In the size of their images, or in the b of a balanced adapter."""
    names = (f"one-{run.removeprefix('fsdp-')}", run)
    folders = [both.two / one / "checkpoints" / "step-000003" / "state" for one in names]
    one, two = (read_tensors(folder / "adapter.safetensors") for folder in folders)
    first = read_tensors(folders[0].parents[1] / "step-000001" / "state" / "adapter.safetensors")
    size = distance(one, first)
    assert size > 0.01
    # a level of a pixel decides on rounding, and each processor rounds in its own way: 0.7 % to 1.1 % were seen
    assert distance(one, two) < 2e-2 * size
    (alone, *_), (shared, *_) = (metrics_of(folder.parents[2]) for folder in folders)
    assert alone["ratio/max_abs_log_first"] == shared["ratio/max_abs_log_first"] == 0.0


@pytest.mark.parametrize("run", ["rules", "fsdp-rules"])
def test_rules_over_groups_look_at_those_of_all_processes(both: Both, run: str) -> None:
    """Whitening and a group's weight are by all groups of a step, and every process trains on as many samples."""
    folders = [both.two / one / "checkpoints" / "step-000003" / "state" for one in ("one-rules", run)]
    one, two = (read_tensors(folder / "adapter.safetensors") for folder in folders)
    size = distance(one, both.start)
    assert size > 0.01
    assert distance(one, two) < 1e-2 * size
    rows = [metrics_of(folder.parents[2])[0] for folder in folders]
    for name in ("rules/max_weight", "advantage/abs_mean", "advantage/clip_share", "rules/gate/bright"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name
    assert rows[0]["rules/max_weight"] > 1.005
    assert [row["rules/resampled_share"] for row in rows] == [0.5, 0.5], "by one process of the two"


@pytest.mark.parametrize("fault", SAID)
def test_what_befalls_one_process_stops_both_with_its_reason(both: Both, fault: str) -> None:
    for rank in range(2):
        said = json.loads((both.two / f"said-{rank}.json").read_text())[fault]
        for part in SAID[fault]:
            assert part in said
    assert not (both.two / "differ" / "checkpoints").exists()


def test_a_signal_to_one_process_ends_both_after_the_step(both: Both) -> None:
    assert [path.name for path in (both.two / "signal" / "checkpoints").glob("step-*")] == ["step-000001"]


@pytest.mark.deepspeed
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_trains_what_one_process_does_and_resumes_exactly(engine: str, tmp_path: Path) -> None:
    """Its gradients are in bf16, so it is held to one process in bf16, and loosely: without exchange it were 0.2."""
    world = make_tiny_world(tmp_path)
    trainer = Trainer(build(tiny_recipe(world, tmp_path / "one", **CHANGES, run__precision="bf16")))
    start = {name: one.detach().clone() for name, one in trainer.parts.parameters.items()}
    trainer.run()
    run_two_ranks(world, tmp_path, engine)
    one = tensors(tmp_path / "one", "state/adapter.safetensors")
    two = tensors(tmp_path / engine, "state/adapter.safetensors")
    assert distance(two, one) < 0.15 * distance(one, start)
    for name in ("state/adapter.safetensors", "state/optimizer.safetensors"):
        assert distance(tensors(tmp_path / engine, name), tensors(tmp_path / f"{engine}-again", name)) == 0

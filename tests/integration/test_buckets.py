"""Aspect ratio buckets: a group has one size, and is what a run of that size alone makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.data.base import load_dataset, supervised
from customized_grpo.memory.footprint import of_recipe
from customized_grpo.policies.flux import UNO
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.validation import in_buckets, notices
from runs import (
    NFT,
    break_off,
    checkpoint_bytes,
    make_taught_world,
    metrics_of,
    taught_recipe,
    tiny_recipe,
    with_evaluation,
)

BUCKETS = [[32, 64], [64, 32]]
SIZES = ((32, 32), (32, 64), (64, 32))
"""Of the three examples' images; none has exactly the height and width that its line names, but the first."""


@pytest.fixture(scope="module")
def world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world whose examples ask for three shapes."""
    folder = make_taught_world(tiny_world, tmp_path_factory.mktemp("buckets") / "world")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    del rows[0]["height"], rows[0]["width"]
    rows[1] |= {"height": 512, "width": 1000}
    rows[2] |= {"height": 900, "width": 512}
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bucketed(world: Path, run: Path, **changes: Any) -> Recipe:
    given = {"train__buckets": BUCKETS, "sampling__shift": "dynamic", "train__steps": 3}
    return tiny_recipe(world, run, **(given | changes))


@pytest.mark.parametrize("objective", [{}, NFT])
def test_a_group_is_that_of_a_run_of_its_size(world: Path, tmp_path: Path, objective: dict[str, Any]) -> None:
    """To the bit: noise levels, samples, recorded values, and the gradient of its pairs."""
    parts = Trainer(build(bucketed(world, tmp_path / "run", **objective)))
    for index, (height, width) in enumerate(SIZES):
        size = {"policy__height": height, "policy__width": width, "train__buckets": []}
        alone = Trainer(build(bucketed(world, tmp_path / f"{height} x {width}", **(objective | size))))
        ours, theirs = (one.sample(0, 1, index) for one in (parts, alone))
        assert ours.images.shape[1:3] == (height, width)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        g, k = torch.arange(4).repeat(2), torch.arange(2).repeat_interleave(4)
        found = []
        for trainer, group in ((parts, ours), (alone, theirs)):
            pairs = group.pairs(g, k, torch.linspace(-1, 1, 8), torch.ones(8))
            loss = trainer.parts.objective_of(group.example).loss(pairs, on_policy=True)
            weights = list(trainer.parts.parameters.values())
            grads = torch.autograd.grad(loss.loss, weights, allow_unused=True)
            found.append(torch.cat([one.flatten() for one in grads if one is not None]))
        assert found[0].any()
        assert torch.equal(*found)
    sigmas = [one.sigmas for one in parts.parts.objectives.values()]
    assert not torch.equal(sigmas[0], sigmas[1]), "two sizes have one grid, so that this test says nothing about it"


@pytest.mark.parametrize("kind", ["grpo", "nft", "sft", "dpo"])
def test_a_run_that_broke_off_goes_on_to_the_byte(world: Path, tmp_path: Path, kind: str) -> None:
    def recipe(run: str, **changes: Any) -> Recipe:
        given = {"train__buckets": BUCKETS, "train__steps": 4, "train__checkpoint_every": 1, **changes}
        if kind in ("sft", "dpo"):
            return taught_recipe(world, tmp_path / run, kind, **given)
        own = NFT | {"train__steps": 4} if kind == "nft" else {}
        return tiny_recipe(world, tmp_path / run, **(own | given))

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    Trainer(build(recipe("whole"))).run()
    rows = metrics_of(whole)
    assert len(rows) == 4
    if kind == "grpo":
        assert max(row["ratio/max_abs_log_first"] for row in rows) == 0.0
    break_off(Trainer(build(recipe("parted"))), at=2)
    Trainer(build(recipe("parted", run__resume="latest"))).run()
    assert checkpoint_bytes(whole, 4) == checkpoint_bytes(parted, 4)


def test_no_view_keeps_what_wraps_the_transformer(world: Path, tmp_path: Path) -> None:
    trainer = Trainer(build(bucketed(world, tmp_path / "run", train__steps=1)))
    plain = trainer.parts.policy.transformer
    wrapped = torch.nn.Sequential(plain)
    for policy in trainer.parts.policies():
        policy.transformer = wrapped  # stands for DDP's
    trainer.parts.accelerator.unwrap_model = lambda model: plain
    trainer.loop = lambda *_: None  # type: ignore[method-assign]
    trainer.run()
    assert [policy.transformer is plain for policy in trainer.parts.policies()] == [True] * 3


@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_a_cache_has_an_entry_of_every_size(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The run's bytes are those of one without; held-out images keep the policy's size, or have their own."""

    def recipe(run: str, **changes: Any) -> Recipe:
        given = {"train__buckets": BUCKETS, "train__steps": 2, **with_evaluation(world, 2), **changes}
        given["evaluate"] = {**given["evaluate"], "width": 48}
        maker = tiny_recipe if kind == "grpo" else lambda w, r, **c: taught_recipe(w, r, kind, **c)
        return maker(world, tmp_path / run, **given)

    Trainer(build(recipe("fresh"))).run()
    cached = recipe("cached", run__cache=str(tmp_path / "cache"))
    file = tmp_path / "recipe.yaml"
    save_recipe(cached, file)
    for expected in ("6 conditionings made", "0 conditionings made"):  # three examples, each of them held out, too
        done = CliRunner().invoke(app, ["data", "cache", str(file)])
        assert done.exit_code == 0, done.output
        assert expected in done.stdout
    monkeypatch.setattr(UNO, "encode", lambda *_: pytest.fail("encoded in the middle of a run"))
    Trainer(build(cached)).run()
    assert checkpoint_bytes(tmp_path / "fresh", 2) == checkpoint_bytes(tmp_path / "cached", 2)
    rows = "evaluation/step-000002.jsonl"
    assert (tmp_path / "fresh" / rows).read_bytes() == (tmp_path / "cached" / rows).read_bytes()


def test_pictures_to_learn_from_say_their_shape(world: Path, tmp_path: Path) -> None:
    """Where a line names none: 48 x 32 pixels are nearest to the wide bucket."""
    recipe = taught_recipe(world, tmp_path / "run", "sft", train__buckets=BUCKETS)
    data = supervised(load_dataset(recipe.data), 1)
    assert [data[index].size for index in range(3)] == [(32, 48), (512, 1000), (900, 512)]
    said = in_buckets(data, recipe.buckets())
    assert said == [
        "train.buckets: of 3 examples, 0 at 32 x 32, 2 at 32 x 64, 1 at 64 x 32 (height x width); nothing "
        "is trained at 32 x 32"
    ]
    trainer = Trainer(build(recipe))
    assert said[0] in notices(trainer.parts, 0)
    assert [tuple(trainer.sample(0, 0, index).images.shape[1:3]) for index in range(3)] == [
        (32, 64),
        (32, 64),
        (64, 32),
    ]


def test_memory_is_that_of_the_largest(world: Path, tmp_path: Path) -> None:
    several = of_recipe(bucketed(world, tmp_path, train__buckets=[[32, 64], [64, 128], [16, 16]]))
    alone = of_recipe(bucketed(world, tmp_path, policy__height=64, policy__width=128, train__buckets=[]))
    assert several.peaks == alone.peaks
    assert several.resident == alone.resident


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__buckets": [[32, 40]]}, r"train\.buckets\.width: given 40; this model needs a multiple of 16"),
        ({"train__buckets": [[32, 32]]}, r"32 x 32 is there twice \(policy\.height x policy\.width"),
        ({"train__buckets": [[32, 64], [32, 64]]}, "32 x 64 is there twice; leave one out"),
        ({"train__buckets": [[32]]}, r"train\.buckets"),
        ({"train__buckets": [[0, 64]]}, r"train\.buckets"),
        ({"train__buckets": BUCKETS, "sampling__batch": "auto"}, "auto tries images of one size"),
    ],
)
def test_buckets_that_can_not_be_are_refused(
    world: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(world, tmp_path, **changes)

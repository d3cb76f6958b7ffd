import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo import registry
from customized_grpo.evaluation.baselines import reference_copy
from customized_grpo.evaluation.evaluator import evaluate, evaluate_policy, noise_levels
from customized_grpo.evaluation.items import Site, file_name
from customized_grpo.evaluation.metrics import build_metrics
from customized_grpo.evaluation.summary import Row
from customized_grpo.policies.adapters.hashes import adapter_hash
from customized_grpo.policies.base import PolicyConfig
from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, EvaluateSampling
from customized_grpo.sampling.schedule import shifted_sigmas
from customized_grpo.types import Example
from evaluation_fakes import Channels, TinyData, TinyPolicy, Unsure

Run = Callable[..., list[Row]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Evaluate the tiny policy into a folder, on one rank of some."""

    def call(**changes: Any) -> list[Row]:
        Channels.calls.clear()
        section = {
            "data": {"type": "evaluation_fakes:TinyData"},
            "metrics": {"channels": {"type": "evaluation_fakes:Channels"}},
            "images_per_prompt": 3,
            "batch": 2,
        }
        section |= changes.pop("spec", {})
        spec = Evaluate.model_validate(section)
        of_site = {"folder", "rank", "world", "gather", "progress"} & changes.keys()
        site = {"folder": tmp_path / "evaluation"} | {name: changes.pop(name) for name in of_site}
        arguments: dict[str, Any] = {"sigmas": shifted_sigmas(4, 3.0), "weights": "w"}
        policy = changes.pop("policy", TinyPolicy())
        arguments["encode"] = lambda example: policy.encode(example.prompt, example.references)
        metrics = build_metrics(spec.metrics, policy.device)
        return evaluate_policy(policy, TinyData(None), metrics, spec, Site(**site), "base", **(arguments | changes))

    return call


def plain(rows: list[Row]) -> str:
    return json.dumps(rows, sort_keys=True)


def test_rows_and_pictures_are_on_disk(run: Run, tmp_path: Path) -> None:
    rows = run()
    assert [(row["index"], row["image"]) for row in rows] == [(i, j) for i in range(7) for j in range(3)]
    folder = tmp_path / "evaluation"
    assert plain([json.loads(line) for line in (folder / "base.jsonl").read_text().splitlines()]) == plain(rows)
    with Image.open(folder / "images" / "base" / "example-0-1.png") as picture:
        first = np.asarray(picture)
    assert first[..., 0].mean() / 255 == pytest.approx(rows[1]["values"]["red"])
    with Image.open(folder / rows[0]["reference"]) as references:
        assert references.size == (8 + 2, 4)
    assert {row["values"]["blue"] is None for row in rows} == {True, False}


def test_why_a_metric_leaves_images_out_is_logged_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    metrics = {
        "channels": {"type": "evaluation_fakes:Channels"},
        "down": {"type": "evaluation_fakes:Down", "axis": "prompt"},
    }
    rows = run(spec={"metrics": metrics})
    assert {row["values"]["down"] for row in rows} == {None}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["base: down could not score an image of 'example-0': ConnectionError: refused (said once)"]


def test_every_image_has_its_own_noise(run: Run) -> None:
    assert len({row["values"]["red"] for row in run()}) > 18


# 3 images in batches of 2, one image alone, and blocks of two examples in one forward.
@pytest.mark.parametrize(("images", "batch"), [(3, 2), (1, 1), (2, 5)])
def test_result_does_not_depend_on_the_number_of_processes(run: Run, tmp_path: Path, images: int, batch: int) -> None:
    spec = {"images_per_prompt": images, "batch": batch}
    alone = run(folder=tmp_path / "one", spec=spec)
    gathered: list[Row] = []

    def gather(rows: list[Row]) -> list[Row]:
        gathered.extend(rows)
        return list(gathered)

    # Rank 0 comes last: the stand-in for a gather that waits for all ranks.
    for rank in (2, 1, 0):
        together = run(folder=tmp_path / "three", rank=rank, world=3, gather=gather, spec=spec)
    assert plain(together) == plain(alone)
    assert (tmp_path / "three" / "base.jsonl").read_bytes() == (tmp_path / "one" / "base.jsonl").read_bytes()


def test_other_seed_or_steps_give_other_images(run: Run, tmp_path: Path) -> None:
    values = [
        plain(run(folder=tmp_path / str(i), **change))
        for i, change in enumerate(({}, {"spec": {"seed": 1}}, {"sigmas": shifted_sigmas(5, 3.0)}))
    ]
    assert len(set(values)) == 3


def test_an_evaluations_own_steps_go_first() -> None:
    section = PolicyConfig(type="x", model="x")
    spec = {
        "data": {"type": "evaluation_fakes:TinyData"},
        "metrics": {"a": {"type": "evaluation_fakes:Channels"}},
    }
    for own, expected in ((None, 9), (4, 4)):
        given = Evaluate.model_validate(spec | {"steps": own})
        levels = noise_levels(section, EvaluateSampling(steps=9, shift=2.0), given, 16)
        assert torch.equal(levels, shifted_sigmas(expected, 2.0))


def test_what_is_finished_is_kept(run: Run) -> None:
    first = run()
    assert len(Channels.calls) == 7
    assert plain(run()) == plain(first)
    assert Channels.calls == []


def test_a_killed_evaluation_goes_on(run: Run, tmp_path: Path) -> None:
    expected = run(folder=tmp_path / "whole")

    def killed(label: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=killed)
    folder = tmp_path / "evaluation"
    assert not (folder / "base.jsonl").exists()
    part = next((folder / ".parts" / "base").glob("*.jsonl"))
    part.write_text(part.read_text()[:-40])  # the last row of the fourth example is torn
    assert plain(run()) == plain(expected)
    assert Channels.calls == ["../../up here", "example-4", "example-5", "example-6"]
    assert list((folder / ".parts" / "base").glob("*.jsonl")) == []


def test_a_killed_evaluation_goes_on_with_another_number_of_processes(run: Run, tmp_path: Path) -> None:
    expected = run(folder=tmp_path / "whole")
    run(rank=1, world=2)  # rank 1 finished its examples 1, 3, 5; rank 0 never began
    assert plain(run()) == plain(expected)
    assert Channels.calls == ["example-0", "example-2", "example-4", "example-6"]


def test_other_weights_or_settings_are_made_anew(run: Run) -> None:
    run()
    for change in ({"weights": "v"}, {"spec": {"seed": 2}}, {"sigmas": shifted_sigmas(4, 1.0)}):
        run(**change)
        assert len(Channels.calls) == 7


def test_a_larger_limit_goes_on_from_the_rows_there(run: Run) -> None:
    assert len(run(spec={"limit": 2})) == 6
    rows = run(spec={"limit": 5})
    assert len(rows) == 15
    assert Channels.calls == ["example-2", "../../up here", "example-4"]
    assert len(run(spec={"limit": 99})) == 21


def test_blocks_of_examples_share_forwards_and_a_limit_changes_nothing_in_them(run: Run, tmp_path: Path) -> None:
    blocks, alone = TinyPolicy(), TinyPolicy()
    spec = {"images_per_prompt": 2, "batch": 6}
    together = run(folder=tmp_path / "blocks", policy=blocks, spec=spec)
    apart = run(folder=tmp_path / "alone", policy=alone, spec=spec | {"batch": 2})
    assert [row["values"]["red"] for row in together] == pytest.approx([row["values"]["red"] for row in apart])
    assert (blocks.velocities, alone.velocities) == (3 * 4, 7 * 4)
    assert plain(run(folder=tmp_path / "limit", spec=spec | {"limit": 4})) == plain(together[:8])


def test_pictures_are_kept_of_the_first_examples_and_made_where_they_are_gone(run: Run, tmp_path: Path) -> None:
    rows = run(spec={"save_images": 2})
    assert [row["file"] is not None for row in rows] == [True] * 6 + [False] * 15
    picture = tmp_path / "evaluation" / "images" / "base" / "example-1-0.png"
    before = picture.read_bytes()
    picture.unlink()
    run(spec={"save_images": 2})
    assert Channels.calls == ["example-1"]
    assert picture.read_bytes() == before


def test_a_key_never_leaves_the_folder(run: Run, tmp_path: Path) -> None:
    run()
    for path in tmp_path.rglob("*.png"):
        assert path.resolve().is_relative_to(tmp_path / "evaluation")
    assert file_name("plain-1.a") == "plain-1.a"
    names = {file_name(key) for key in ("a/b", "a_b", "a b", "../a", "..", ".", "é", "x" * 300, "x" * 301, "")}
    assert len(names) == 10
    assert all(name and "/" not in name and not name.startswith(".") and len(name) < 120 for name in names)


def test_encode_of_the_caller_is_used(run: Run, tmp_path: Path) -> None:
    policy, seen = TinyPolicy(), []
    expected = run()

    def encode(example: Any) -> Any:
        seen.append(example.key)
        return policy.encode(example.prompt, example.references)

    assert plain(run(folder=tmp_path / "cached", encode=encode)) == plain(expected)
    assert len(seen) == 7


def test_fingerprint_is_that_of_the_adapter_alone() -> None:
    module = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2), "base": torch.nn.Linear(2, 2)})
    before = adapter_hash(module)
    with torch.no_grad():
        module["base"].weight += 1.0
    assert adapter_hash(module) == before
    with torch.no_grad():
        module["lora_A"].weight[0, 0] += 1e-6
    assert adapter_hash(module) != before


def test_copies_are_the_reference_in_the_output_s_size() -> None:
    images = reference_copy(TinyData(None)[5], 8, 8)
    assert images.shape == (1, 8, 8, 3)
    assert images[0, 4, 4].tolist() == [150, 80, 160]


def recipe(folder: Path, **run: Any) -> EvaluateRecipe:
    return EvaluateRecipe.model_validate(
        {
            "run": {"dir": str(folder), "device": "cpu", "precision": "no"} | run,
            "policy": {"type": "evaluation_fakes:TinyPolicy", "model": "none", "height": 2, "width": 2},
            "sampling": {"steps": 3},
            "evaluate": {
                "data": {"type": "evaluation_fakes:TinyData"},
                "metrics": {"channels": {"type": "evaluation_fakes:Channels"}},
            },
        }
    )


def test_command_writes_summary_and_recipe(tmp_path: Path) -> None:
    folder = evaluate(recipe(tmp_path / "run"))
    assert folder == tmp_path / "run"
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["copy_reference", "base"]
    assert summary["differences"] == []
    values = summary["rows"][1]["metrics"]["red"]
    assert values.keys() == {"mean", "low", "high", "n"}
    assert values["low"] < values["mean"] < values["high"]
    assert values["n"] == 7
    assert "evaluation_fakes:TinyPolicy" in (folder / "config.yaml").read_text()
    assert "'axis: identity'" in summary["absent"]["real_photos"]
    copies = summary["rows"][0]["metrics"]["red"]["mean"]
    assert math.isclose(copies, np.mean([30 * i for i in range(7)]) / 255, abs_tol=1e-6)


def test_command_goes_on_in_its_own_folder_and_refuses_others(tmp_path: Path) -> None:
    first = (evaluate(recipe(tmp_path / "run")) / "evaluation" / "summary.json").read_bytes()
    Channels.calls.clear()
    assert (evaluate(recipe(tmp_path / "run")) / "evaluation" / "summary.json").read_bytes() == first
    assert Channels.calls == []
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="is a training run"):
        evaluate(recipe(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        evaluate(recipe(tmp_path / "file"))
    with pytest.raises(ValueError, match="can't be made"):
        evaluate(recipe(tmp_path / "file" / "below"))


def test_new_metrics_score_the_images_that_are_there(run: Run, tmp_path: Path) -> None:
    first, policy = run(spec={"save_images": 7}), TinyPolicy()
    more = {"channels": {"type": "evaluation_fakes:Channels"}, "light": {"type": "evaluation_fakes:Bright"}}
    again = run(spec={"save_images": 7, "metrics": more}, policy=policy)
    assert policy.velocities == 0
    assert [row["values"]["red"] for row in again] == [row["values"]["red"] for row in first]
    fresh = run(folder=tmp_path / "fresh", spec={"save_images": 7, "metrics": more})
    assert [row["values"] for row in again] == [row["values"] for row in fresh]


def test_a_judge_s_failed_answers_are_asked_for_again_and_no_others(run: Run) -> None:
    metrics = {"unsure": {"type": "evaluation_fakes:Unsure"}, "sure": {"type": "evaluation_fakes:Unsure"}}
    spec = {
        "metrics": metrics | {"channels": {"type": "evaluation_fakes:Channels"}},
        "runs": {"unsure": 2},
        "products": {"square": ["unsure", "unsure"]},
        "images_per_prompt": 1,
        "save_images": 7,
    }
    Unsure.failing = {"example-1": 1}  # the first question about it, by either of the two
    Unsure.asked.clear()
    first = run(spec=spec)
    assert len(Unsure.asked) == 7 * 3
    assert first[1]["runs"]["unsure"] == [None, 0.5]
    final = run(spec=spec | {"retry_failed": False})
    assert plain(final) == plain(first), "asked for once, and it counts for no other row"
    Unsure.asked.clear()
    policy = TinyPolicy()
    again = run(spec=spec, policy=policy)
    assert Unsure.asked == ["example-1"] * 2, "both runs of the metric that failed, and nothing else"
    assert policy.velocities == 0
    assert again[1]["values"] == first[1]["values"] | {"unsure": 0.5, "square": 0.25}
    assert [row for row in again if row["index"] != 1] == [row for row in first if row["index"] != 1]
    assert {row["values"]["blue"] is None for row in again} == {True, False}, "a local model's null is final"
    Unsure.asked.clear()
    assert plain(run(spec=spec)) == plain(again)
    assert Unsure.asked == []


def test_how_a_judge_is_reached_changes_no_row(run: Run) -> None:
    def spec(**options: Any) -> dict[str, Any]:
        return {"metrics": {"unsure": {"type": "evaluation_fakes:Unsure"} | options}}

    Unsure.failing = {}
    first = run(spec=spec())
    Unsure.asked.clear()
    assert plain(run(spec=spec(url="http://elsewhere", patience_s=9))) == plain(first)
    assert Unsure.asked == []
    run(spec=spec(rubric="another"))
    assert len(Unsure.asked) == 7 * 3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "vlm",
            {"base_url", "budget_requests", "cache", "concurrency", "timeout_s", "deadline_s", "retries"},
        ),
        ("remote", {"urls", "timeout_s", "wait_s"}),
        *((name, {"batch_size"}) for name in ("dino", "clip_t", "clip_i", "siglip", "pickscore", "hpsv3")),
    ],
)
def test_what_is_named_as_transport_is_a_field(name: str, fields: set[str]) -> None:
    config: Any = registry.config_model("rewards", registry.resolve("rewards", name))
    assert fields <= config.transport <= config.model_fields.keys()


def test_new_weights_are_not_scored_by_old_images(run: Run) -> None:
    run(spec={"save_images": 7})
    policy = TinyPolicy(gain=2.0)
    run(spec={"save_images": 7}, policy=policy, weights="others")
    assert policy.velocities > 0


def test_runs_and_products_are_in_the_rows_and_survive_a_restart(run: Run) -> None:
    spec = {
        "metrics": {"moody": {"type": "evaluation_fakes:Moody"}},
        "runs": {"moody": 3},
        "products": {"square": ["moody", "moody"]},
        "images_per_prompt": 1,
    }
    rows = run(spec=spec)
    assert all(len(row["runs"]["moody"]) == 3 for row in rows)
    assert plain(run(spec=spec)) == plain(rows)
    for row in rows:
        known = [value**2 for value in row["runs"]["moody"] if value is not None]
        assert row["values"]["square"] == pytest.approx(np.mean(known))


def test_a_protocol_s_typo_stops_before_anything_is_loaded(tmp_path: Path) -> None:
    wrong = recipe(tmp_path / "run")
    wrong = wrong.model_copy(update={"evaluate": wrong.evaluate.model_copy(update={"protocol": "dreambench/x"})})
    with pytest.raises(ValueError, match=r"evaluate\.protocol: given 'dreambench/x'"):
        evaluate(wrong)
    assert not (tmp_path / "run").exists()


def test_two_examples_of_one_name_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows were averaged as one example, and the second's pictures replaced the first's."""
    plainly = TinyData.__getitem__

    def twice(self: TinyData, index: int) -> Example:
        return replace(plainly(self, index), key="dog" if index in (1, 4) else f"example-{index}")

    monkeypatch.setattr(TinyData, "__getitem__", twice)
    with pytest.raises(ValueError, match=r"evaluate\.data: examples 1 and 4 are both called 'dog'"):
        run()

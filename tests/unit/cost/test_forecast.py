"""Expected time of a run: by hand from what was measured, and nothing guessed that is called measured."""

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from customized_grpo.cost import measured
from customized_grpo.cost.arithmetic import arithmetic_of
from customized_grpo.cost.cards import asked_card, card_named
from customized_grpo.cost.forecast import _CHEAP as CHEAP
from customized_grpo.cost.forecast import Forecast, UnknownTimeError, forecast, forecast_on_cpu
from customized_grpo.recipe.loading import load_recipe

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
H200 = card_named("NVIDIA H200")
NOW = ("as it is", "forward", "12")
FLUX: dict[str, Any] = json.loads((RESULTS / "flux_h200.json").read_text())
FORWARD = {row["n"]: row["seconds"] for row in FLUX["forward"]}
REPLAY = {(row["n"], row["checkpointed"]): row["seconds"] for row in FLUX["replay"] if "seconds" in row}


def of(name: str, *overrides: str, **known: Any) -> Forecast:
    return forecast(load_recipe(name, list(overrides)), H200, **known)


def test_the_table_is_what_was_measured() -> None:
    table, machine = measured.measured(), FLUX["machine"]
    assert (table.card, table.torch) == (machine["device"], machine["torch"])
    assert dict(table.forwards) == pytest.approx(FORWARD, abs=1e-6)
    found = {(n, share): seconds for share, rows in table.replays.items() for n, seconds in rows}
    assert found == pytest.approx(REPLAY, abs=1e-6)
    for group, name in zip(table.groups, ("batched", "fast"), strict=True):
        assert group.seconds == pytest.approx(mean(one["time/step"] for one in FLUX["update"][name]), abs=1e-5)
        recipe = load_recipe(group.recipe, [])
        assert (group.forwards, table.samples) == (recipe.sampling.steps, recipe.train.group_size)
    threads = json.loads((RESULTS / "scaling_cpu.json").read_text())["threads"]
    assert measured.miniature().threads == pytest.approx(
        {int(n): row["median"] for n, row in threads.items()}, abs=1e-5
    )


def test_arithmetic_is_what_torch_counts() -> None:
    """Of FLUX.1-dev with a rank-64 adapter, on the H200: a forward, and one with backward, nothing computed again."""
    found = arithmetic_of(load_recipe("uno_customized_grpo", []).policy, 12)
    assert found.forward == pytest.approx(FLUX["flops_of_a_forward"], rel=0.005)
    assert found.replay == pytest.approx(FLUX["flops_of_a_replay"], rel=0.005)


@pytest.mark.parametrize(
    ("recipe", "group_s", "days"), [("uno_customized_grpo", 99.1, 9.2), ("uno_customized_grpo_fast", 31.8, 2.9)]
)
def test_the_shipped_recipes_on_one_h200_take_days(recipe: str, group_s: float, days: float) -> None:
    found = of(recipe)
    assert round(found.group_s, 1) == group_s
    assert found.step_s == pytest.approx(8 * found.group_s)
    assert round(found.steps * found.step_s / 86400, 1) == days
    assert found.run_s - found.steps * found.step_s < 600, "21 times four pictures"
    assert not found.guesses
    assert found.uncounted == ("rewards.hpsv3",)


def test_eight_cards_share_the_groups_and_that_was_not_measured() -> None:
    found = of("uno_customized_grpo", world=8)
    assert found.step_s == pytest.approx(of("uno_customized_grpo").step_s / 8)
    assert len(found.guesses) == 1
    assert "each other's gradients" in found.guesses[0]


def test_steps_that_are_done_are_not_expected_again() -> None:
    left, whole = of("uno_customized_grpo", done=750), of("uno_customized_grpo")
    assert left.steps * left.step_s == pytest.approx(whole.steps * whole.step_s / 4)
    assert left.fixed_s == pytest.approx(whole.fixed_s * 5 / 21), "those after 800, 850, 900, 950 and 1000 steps"


def test_smaller_batches_without_recomputation_are_of_measured_pieces() -> None:
    keys = ("sampling.batch=4", "train.microbatch=4", "policy.gradient_checkpointing=false")
    found = of("uno_customized_grpo_fast", *keys)
    beside = of("uno_customized_grpo_fast").group_s - 6 * FORWARD[12] - 5 * REPLAY[12, 1.0]
    assert found.group_s == pytest.approx(6 * 3 * FORWARD[4] + 5 * 3 * REPLAY[4, 0.0] + beside, rel=1e-4)
    assert not found.guesses


def test_a_batch_between_two_measured_ones_is_a_guess() -> None:
    found = of("uno_customized_grpo_fast", "train.group_size=8")
    beside = (of("uno_customized_grpo_fast").group_s - 6 * FORWARD[12] - 5 * REPLAY[12, 1.0]) * 8 / 12
    between = [(a + b) / 2 for a, b in ((FORWARD[4], FORWARD[12]), (REPLAY[4, 1.0], REPLAY[12, 1.0]))]
    assert found.group_s == pytest.approx(6 * between[0] + 5 * between[1] + beside, rel=1e-4)
    assert [one.split(" was ")[0] for one in found.guesses] == [
        "a forward of 8 samples",
        "a replay of 8 samples with all blocks computed again",
    ]


def test_the_base_and_an_old_policy_take_forwards() -> None:
    plain, kl = of("uno_customized_grpo_fast"), of("uno_customized_grpo_fast", "objective.kl=0.1")
    assert kl.group_s - plain.group_s == pytest.approx(5 * FORWARD[12], rel=1e-4)
    halves = ("train.updates_per_rollout=2", "sampling.batch=6")
    again = of("uno_customized_grpo_fast", *halves, "train.old_log_probs=replay")
    assert again.group_s - of("uno_customized_grpo_fast", *halves).group_s == pytest.approx(
        5 * measured.measured().forward(6).value, rel=1e-4
    )


def test_another_card_is_guessed_by_its_published_peak() -> None:
    recipe = load_recipe("uno_customized_grpo", [])
    found = forecast(recipe, card_named("NVIDIA A100-SXM4-80GB"))
    assert found.run_s == pytest.approx(of("uno_customized_grpo").run_s * 989 / 312)
    assert "published peaks in bfloat16, 312 and 989 TFLOP/s" in found.guesses[0]
    assert forecast(recipe, card_named("NVIDIA H100 80GB HBM3")).guesses, (
        "another card of the same peak is a guess, too"
    )


def test_another_model_is_guessed_by_its_arithmetic() -> None:
    found = of("flux2_klein_customized_grpo")
    ratio = [
        arithmetic_of(load_recipe(name, []).policy, 12) for name in ("flux2_klein_customized_grpo", "uno_naive_grpo")
    ]
    assert any(f"{ratio[0].forward / ratio[1].forward:.3g} times the arithmetic" in one for one in found.guesses)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("policy.quantization=8bit", "policy.quantization=8bit, policy.base_lora.mode=adapter"),
        ("policy.compile=true", "policy.compile=true"),
        ("policy.gradient_checkpointing=0.3", "with 30% of the blocks computed again"),
    ],
)
def test_what_was_not_measured_is_said(override: str, told: str) -> None:
    more = ["policy.base_lora.mode=adapter"] if "8bit" in override else []
    assert any(told in one for one in of("uno_customized_grpo", override, *more).guesses)


def test_evaluations_count_where_their_number_is_known() -> None:
    held = (
        "evaluate={data: {type: mini}, metrics: {clip: {type: clip_t, model: mini}}, batch: 12, steps: 10}",
        "train.evaluate_every=500",
    )
    plain = of("uno_customized_grpo", "samples.every=0")
    found = of("uno_customized_grpo", *held, "samples.every=0", examples=60)
    assert found.evaluations == 3  # the base, at half and at the end
    assert found.evaluation_s == pytest.approx(
        60 * (10 * FORWARD[12] / 12 + measured.measured().beside(1, 10)), rel=1e-4
    )
    assert found.run_s == pytest.approx(plain.run_s + 3 * (found.evaluation_s or 0))
    assert "evaluations, whose examples are not on this machine" in of("uno_customized_grpo", *held).uncounted


def test_what_nothing_says_is_unknown() -> None:
    flux = load_recipe("uno_customized_grpo", [])
    for name in ("NVIDIA GeForce GTX 1080", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        with pytest.raises(UnknownTimeError, match="not in the table of cards"):
            forecast(flux, card_named(name))
    with pytest.raises(UnknownTimeError, match="shapes of 'org/unknown' are not known"):
        forecast(load_recipe("uno_customized_grpo", ["policy.model=org/unknown"]), H200)
    with pytest.raises(UnknownTimeError, match="too little to scale"):
        forecast(load_recipe("mini_customized", []), H200)
    with pytest.raises(ValueError, match=r"--card: given 'H2000'; did you mean 'H200'\? known: B200"):
        asked_card("H2000")


def test_names_of_cards_are_those_of_drivers() -> None:
    names = {"NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA L40S": 362, "NVIDIA L4": 121}
    assert {name: card_named(name).tflops for name in names} == names


def test_the_miniature_is_known_from_another_cpu_alone() -> None:
    found = forecast_on_cpu(load_recipe("mini_customized", ["run.threads=1"]))
    assert found.step_s == pytest.approx(4 * 0.847459)
    assert found.run_s == pytest.approx(200 * 4 * 0.847459)
    assert "another one" in found.guesses[0]
    assert forecast_on_cpu(load_recipe("mini_customized", ["run.threads=7"])).group_s == pytest.approx(0.534305)
    for other in ("train.group_size=6", "policy.height=128", "sampling.steps=8"):
        with pytest.raises(UnknownTimeError, match="its own first steps will say"):
            forecast_on_cpu(load_recipe("mini_customized", [other]))


def test_cheap_operators_have_the_share_that_the_roofline_counts() -> None:
    with (RESULTS.parents[1] / "docs" / "roofline.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["variant"], row["use"], row["n"]) == NOW]
    cheap = ("norms", "casts", "elementwise", "copies", "sums")
    assert sum(float(row["share"]) for row in rows if row["kind"] in cheap) == pytest.approx(CHEAP, abs=0.01)

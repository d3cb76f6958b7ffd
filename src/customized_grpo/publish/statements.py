"""Statements of a model card: how a checkpoint was trained, and what its numbers don't say."""

from collections.abc import Sequence

from customized_grpo.console import duration
from customized_grpo.publish.licences import MINI
from customized_grpo.publish.loading import Form
from customized_grpo.publish.results import Evaluated
from customized_grpo.recipe.config import Recipe
from customized_grpo.report import page
from customized_grpo.report.folders import RunFolder

_SAID_OTHERWISE = ("GRPO steps", "Steps", "Started", "Took, without loading")


def facts(run: RunFolder, recipe: Recipe, step: int) -> list[tuple[str, str]]:
    """How a checkpoint was trained, as (name, value).

    Args:
        run: with a recipe that may be read by others.
        recipe: of the run.
        step: of the checkpoint.
    """
    done, seconds = run.series("time/step")
    of_step = [value for at, value in zip(done, seconds, strict=True) if at <= step]
    noted = dict(page.facts(run, None))
    device = noted.pop("Device", "CPU" if recipe.run.device == "cpu" else "not recorded")
    shown = [(name, value) for name, value in noted.items() if name not in _SAID_OTHERWISE]
    lora = recipe.policy.lora
    form = "all weights" if lora is None else f"LoRA of rank {lora.rank}{', balanced' if lora.balance else ''}"
    shown += [
        ("Trained", form),
        ("Objective", str(run.get("objective", "type"))),
        ("Published step", f"{step} of {run.planned_steps}"),
        ("Seconds per step", f"{sum(of_step) / len(of_step):.3g}" if of_step else ""),
        ("Time of training", duration(sum(of_step)) if of_step else ""),
        ("Device", device),
        ("Precision", {"no": "float32", "bf16": "bfloat16"}[recipe.run.precision]),
        ("Size", f"{recipe.policy.height} x {recipe.policy.width}"),
        ("Sampler", f"{recipe.sampling.steps} steps, shift {recipe.sampling.shift}"),
    ]
    return [(name, value) for name, value in shown if value]


def limits(
    run: RunFolder,
    recipe: Recipe,
    step: int,
    evaluated: Sequence[Evaluated],
    form: Form,
    balance: float | None,
) -> list[str]:
    """Sentences on what a reader may not conclude.

    Args:
        run: with a recipe that may be read by others.
        recipe: of the run.
        step: of the published checkpoint.
        evaluated: its evaluations.
        form: what is published.
        balance: b of a balanced adapter that is published at one.
    """
    found = [f"One run with seed {recipe.run.seed}; another seed gives other numbers."]
    for one in evaluated:
        count = max((value["n"] for value in one.result.tuned.values()), default=0)
        found.append(
            f"{one.result.title}: {count} {one.result.summary.get('unit', 'example')}s of {one.result.data.name}."
        )
        if one.step is not None and one.step != step:
            found.append(f"Its numbers and pictures are of step {one.step}, and the weights here of step {step}.")
    if evaluated:
        found.append("Measured by the metrics above alone: no person compared the images.")
    if form.balanced or balance is not None:
        at = "" if balance is None else f", and this file is at b = {balance:g}"
        found.append(f"An evaluation during training draws at b = 0{at}; other b were not measured unless said above.")
    lora, whole = recipe.policy.lora, recipe.policy.full
    if (lora is not None and lora.path) or (whole is not None and whole.path):
        found.append("Training did not start from the base but from other weights of its author.")
    found += [one for one in run.missing if one not in found]
    if form.base == MINI:
        found.append("The miniature draws 64 x 64 pictures of a world of its own; it is for learning and tests.")
    return found

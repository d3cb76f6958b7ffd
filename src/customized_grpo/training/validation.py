"""Evaluation during training: held-out data, at fixed seeds, by metrics that are not the training rewards."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from customized_grpo.console import OnProgress
from customized_grpo.data.base import Dataset, FromFiles
from customized_grpo.data.images import image_size
from customized_grpo.devices import device_name
from customized_grpo.evaluation.blocks import num_examples
from customized_grpo.evaluation.costs import evaluations, of_evaluation, of_training
from customized_grpo.evaluation.evaluator import (
    evaluate_policy,
    noise_levels,
)
from customized_grpo.evaluation.items import Site, quiet
from customized_grpo.evaluation.protocols import Unit, find_protocol
from customized_grpo.evaluation.settings import settings_of
from customized_grpo.evaluation.summary import Row, differences, intervals
from customized_grpo.evaluation.tables import summarize
from customized_grpo.identity.hashes import equal_files
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.drawn import Buckets, size_of
from customized_grpo.recipe.sections import RewardSpec
from customized_grpo.report.folders import read_runs
from customized_grpo.training import engine
from customized_grpo.training import metrics as explain
from customized_grpo.training.advice import advice
from customized_grpo.training.distributed import Lockstep, gather_rows
from customized_grpo.training.parts import Evaluation, Parts
from customized_grpo.training.resumable import is_finished
from customized_grpo.training.tracking import is_every


def evaluate(parts: Parts, done: int, progress: OnProgress = quiet) -> dict[str, float]:
    """Held-out metrics of the adapter as it would be saved now, after ``done`` GRPO steps."""
    recipe, spec = parts.recipe, parts.recipe.evaluate
    held, accelerator, policy = parts.evaluation, parts.accelerator, parts.held_out_policy()
    assert spec is not None
    assert held is not None
    meets = engine.needs_all_ranks(accelerator, parts.policy.transformer)
    lockstep = Lockstep(accelerator, parts.policy.transformer) if meets else None

    def gather(rows: list[Row]) -> list[Row]:
        if lockstep is not None:
            lockstep.finish(lambda: _idle(policy, parts.sigmas[0], held))
        return gather_rows(rows)

    with parts.clock.phase("evaluate"), parts.averaged():
        rows = evaluate_policy(
            policy,
            held.dataset,
            held.metrics,
            spec,
            Site(
                folder=_rows_file(parts, done).parent,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                gather=gather,
                progress=progress,
                hashes=parts.hashes,
            ),
            _rows_file(parts, done).stem,
            sigmas=noise_levels(recipe.evaluated, recipe.sampling, spec, policy.latent_shape[0]),
            weights=held.base + engine.fingerprint(accelerator, parts.policy.transformer, done),
            encode=held.encode,
        )
    held.rows["base" if done == 0 else "tuned"] = rows
    return explain.evaluation(rows, spec.protocol) | {"time/evaluate": parts.clock.drain()["time/evaluate"]}


@torch.no_grad()
def _idle(policy: Policy, sigma: Float[Tensor, ""], held: Evaluation) -> None:
    """Dummy forward, so that ranks without work join the collective."""
    x = torch.zeros(1, *policy.latent_shape, device=policy.device, dtype=policy.dtype)
    policy.velocity(x, sigma, held.encode(held.dataset[0]))


def warn(parts: Parts, done: int, say: Callable[[str], None]) -> None:
    """Log results and warnings of the evaluation after ``done`` steps, on the main process."""
    held, spec = parts.evaluation, parts.recipe.evaluate
    if parts.accelerator.is_main_process:
        if held is not None and spec is not None:
            for line in results(held.rows, find_protocol(spec.protocol).unit, closing=done == parts.recipe.train.steps):
                say(line)
        for warning in warnings(parts.folder, done):
            say(warning)


def results(rows: Mapping[str, Sequence[Row]], unit: Unit, *, closing: bool = False) -> list[str]:
    """What an evaluation found, in one line; of the run's last one a line for each metric.

    Args:
        rows: of ``base``, and of ``tuned`` where something was trained; without a base there is nothing to say.
        unit: what the interval is over.
        closing: it is the run's last.
    """
    if "base" not in rows:  # the evaluation was turned on in a resumed run
        return []
    base = {name: one.mean for name, one in intervals(rows["base"], unit=unit).items()}
    if "tuned" not in rows:
        return ["held out, base: " + ", ".join(f"{name} {value:.3f}" for name, value in base.items())]
    tuned = {name: one.mean for name, one in intervals(rows["tuned"], unit=unit).items()}
    texts = {}
    for name, one in differences(rows["tuned"], rows["base"], unit).items():
        if None not in (one["mean"], one["low"], one["high"]):
            texts[name] = f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
    if not closing:
        return ["held out: " + ", ".join(f"{name} {tuned[name]:.3f} ({text})" for name, text in texts.items())]
    width = max(map(len, texts), default=0)
    head = f"held out over {len({row['index'] for row in rows['tuned']})} examples, tuned minus base with 95 %:"
    return [head] + [
        f"  {name:<{width}}  {base[name]:8.3f} -> {tuned[name]:8.3f}   {text}" for name, text in texts.items()
    ]


def warnings(folder: Path, done: int) -> list[str]:
    """Warnings of a run's just logged evaluation after ``done`` steps.

    After the first one also axes without a held-out column: only now are a metric's columns known.
    """
    (run,) = read_runs([folder], metrics="reward/")
    unwatched = [axis for axis in run.axes if done == 0 and run.axes_of("rewards") and run.axis_column(axis) is None]
    return [str(suspicion) for suspicion in run.suspicions(until=done)] + [
        f"no held-out metric stands for the axis {axis}, so reward hacking on it can't show; "
        f"give one of evaluate.metrics 'axis: {axis}'"
        for axis in unwatched
    ]


def notices(parts: Parts, start: int) -> list[str]:
    """Notices before step ``start``: what is trained, advice, requests to judges, and blind spots of the evaluation."""
    recipe, held = parts.recipe, parts.evaluation
    found = [header(parts, start), *advice(recipe, parts.sigmas), *of_training(recipe, done=start, run=parts.run)]
    found += in_buckets(parts.dataset, parts.buckets)
    if start >= recipe.train.steps:
        found.append(is_finished(recipe, start))
    if recipe.evaluate is not None and held is not None:
        examples = num_examples(held.dataset, recipe.evaluate)
        found += of_evaluation(recipe.evaluate, examples, rows=evaluations(recipe, start), run=parts.run)
        found += seen_in_training(parts.dataset, held.dataset)
    return found + blind_spots(recipe)


def header(parts: Parts, start: int) -> str:
    """What is trained, on what, by what, and where it is written."""
    train, world = parts.recipe.train, parts.accelerator.num_processes
    rewards = ", ".join(f"{name} ({spec.axis})" for name, spec in parts.recipe.rewards.items()) or "none"
    processes = f", {world} processes" if world > 1 else ""
    steps = f"steps {start + 1} to {train.steps}" if start < train.steps else "no step"
    size = "examples" if parts.recipe.objective.targets else f"groups of {train.group_size}"
    where = f"on {device_name(parts.accelerator.device)}{processes}"
    return f"{parts.folder}: {steps}, {train.groups_per_step} {size} each, {where}; rewards: {rewards}"


def in_buckets(dataset: Dataset, buckets: Buckets) -> list[str]:
    """A notice of how many examples each bucket has; only of data from files, which say so without being decoded."""
    if len(buckets.sections) == 1 or not isinstance(dataset, FromFiles):
        return []
    counts = dict.fromkeys(map(size_of, buckets.sections), 0)
    for one in map(dataset.sources, range(len(dataset))):
        size = None if one is None else one.size
        if one is not None and size is None and one.targets:
            width, height = image_size(one.root / one.targets[0])
            size = height, width
        counts[size_of(buckets.of(size))] += 1
    shown = ", ".join(f"{number:,} at {height} x {width}" for (height, width), number in counts.items())
    empty = [f"{height} x {width}" for (height, width), number in counts.items() if not number]
    unused = f"; nothing is trained at {', '.join(empty)}" if empty else ""
    return [f"train.buckets: of {len(dataset):,} examples, {shown} (height x width){unused}"]


def seen_in_training(trained: Dataset, held: Dataset) -> list[str]:
    """A notice of held-out references that training shows, too, under whatever name; only of data from files."""
    shown, asked = _pictures(trained), _pictures(held)
    first = equal_files([*shown, *asked])
    known = {first[path] for path in shown if path in first}
    both = [key for path, key in asked.items() if first.get(path) in known]
    return [
        f"{len(both)} of {len(asked)} held-out references are pictures of the training data, too, such as that of "
        f"{both[0]!r}: held-out scores then show what was learnt by heart; customized-grpo data split keeps them apart"
        for _ in both[:1]
    ]


def _pictures(dataset: Dataset) -> dict[Path, str]:
    """File of each reference to the key of an example that shows it."""
    known = [dataset.sources(index) for index in range(len(dataset))] if isinstance(dataset, FromFiles) else []
    return {one.root / name: one.key for one in known if one is not None for name in one.references}


def blind_spots(recipe: Recipe) -> list[str]:
    """Held-out metrics by a model that training is rewarded by: they can't detect that this model is gamed."""
    if recipe.evaluate is None or not recipe.train.evaluate_every:
        return []
    rewards = [spec.scored_by() for spec in recipe.rewards.values()]
    return [
        f"evaluate.metrics.{name} is scored by the model of a training reward, so it can't show reward hacking; "
        "add a judge that training never sees"
        for name, spec in recipe.evaluate.metrics.items()
        if isinstance(spec, RewardSpec) and spec.scored_by() in rewards
    ]


def is_due(parts: Parts, done: int) -> bool:
    """True if an evaluation is due after ``done`` steps: every N, and the last."""
    settings = parts.recipe.train
    is_last = settings.evaluate_every > 0 and done == settings.steps
    return is_last or is_every(settings.evaluate_every, done)


def is_owed(parts: Parts, start: int) -> bool:
    """True if a run that starts at ``start`` lacks its evaluation: the base's, or one delayed by a signal."""
    return start == 0 or not _rows_file(parts, start).is_file()


def renew_base(parts: Parts) -> None:
    """Evaluate the untrained policy again where it was evaluated: rows that stand on the same data are kept."""
    if parts.evaluation is not None and _rows_file(parts, 0).is_file():
        evaluate(parts, 0)


def write_summary(parts: Parts) -> None:
    """Write ``evaluation/summary.json`` of the base, and of the adapter after the last step."""
    recipe, held = parts.recipe, parts.evaluation
    if recipe.evaluate is not None and held is not None and parts.accelerator.is_main_process:
        total = num_examples(held.dataset, recipe.evaluate)
        made = settings_of(recipe.evaluated, recipe.sampling, recipe.evaluate, total)
        summarize(parts.folder / "evaluation", recipe.evaluate.protocol, held.rows, made)


def _rows_file(parts: Parts, done: int) -> Path:
    return parts.folder / "evaluation" / f"step-{done:06d}.jsonl"

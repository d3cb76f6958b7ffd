"""Evaluation during training: held-out data, at fixed seeds, by metrics that are not the training rewards."""

from pathlib import Path

from customized_grpo.evaluation.evaluator import adapter_fingerprint, evaluate_policy, summarize
from customized_grpo.training import metrics as explain
from customized_grpo.training.distributed import gather_rows
from customized_grpo.training.setup import Parts


def evaluate(parts: Parts, done: int) -> dict[str, float]:
    """Held-out metrics of the adapter as it would be saved now, after ``done`` GRPO steps."""
    spec = parts.recipe.evaluate
    assert spec is not None
    assert parts.evaluation is not None
    with parts.clock.phase("evaluate"), parts.averaged():
        rows = evaluate_policy(
            parts.policy,
            parts.evaluation.dataset,
            parts.evaluation.metrics,
            spec,
            steps=parts.recipe.sampling.steps,
            shift=parts.recipe.sampling.shift,
            rank=parts.accelerator.process_index,
            world=parts.accelerator.num_processes,
            folder=_rows_file(parts, done).parent,
            label=_rows_file(parts, done).stem,
            weights=adapter_fingerprint(parts.accelerator.unwrap_model(parts.policy.transformer)),
            gather=gather_rows,
            encode=parts.evaluation.encode,
        )
    parts.evaluation.rows["base" if done == 0 else "tuned"] = rows
    return explain.evaluation(rows) | {"time/evaluate": parts.clock.drain()["time/evaluate"]}


def is_due(parts: Parts, done: int) -> bool:
    """Whether an evaluation belongs after ``done`` steps: every N, and the last."""
    every = parts.recipe.train.evaluate_every
    return every > 0 and (done % every == 0 or done == parts.recipe.train.steps)


def is_owed(parts: Parts, start: int) -> bool:
    """Whether a run that begins at ``start`` lacks the evaluation there: the base's, or one that a signal put off."""
    return is_due(parts, start) and not (start > 0 and _rows_file(parts, start).is_file())


def write_summary(parts: Parts) -> None:
    """``evaluation/summary.json``: the base, and the adapter after the last step."""
    spec = parts.recipe.evaluate
    if spec is not None and parts.evaluation is not None and parts.accelerator.is_main_process:
        summarize(parts.folder / "evaluation", spec.protocol, parts.evaluation.rows)


def _rows_file(parts: Parts, done: int) -> Path:
    return parts.folder / "evaluation" / f"step-{done:06d}.jsonl"

"""Evaluations of a published adapter: those of its run up to its step, and others that ``evaluate`` made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from customized_grpo.policies.adapters.tuning import with_scale
from customized_grpo.publish.card import Result
from customized_grpo.publish.pictures import data_of
from customized_grpo.report import page
from customized_grpo.report.folders import RunFolder, read_runs
from customized_grpo.report.gallery import Group, gallery


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation with its pictures.

    Attributes:
        result: its numbers.
        gallery: its pictures, chosen by stated rules; none where none were saved.
        step: of the adapter that it drew; None where it isn't known.
    """

    result: Result
    gallery: Sequence[Group]
    step: int | None


def evaluations_of(run: RunFolder, folder: Path, step: int, base: str, others: Sequence[Path]) -> list[Evaluated]:
    """The last evaluation of a run at or before ``step``, if there is one, and then ``others``.

    Args:
        run: with a recipe that may be read by others.
        folder: of the run.
        step: of the published checkpoint.
        base: hub id of the base.
        others: folders of ``evaluate``.

    Raises:
        ValueError: one of the others is no evaluation of this run's adapter.
    """
    found = []
    steps = sorted(run.at_steps())
    until = [at for at in steps if at <= step]
    if until and until != steps:  # later ones are of other weights
        rows = {name: rows for name, rows in run.evaluations.items() if name in {f"step-{at:06d}" for at in until}}
        run = replace(run, evaluations=rows, summary=None)
    summary = page.summary_of(run)
    if summary is not None and (until or not steps):
        title = f"During training, step {until[-1]}" if until else "Of the run"
        found.append(_evaluated(title, run, summary, base, until[-1] if until else None))
    for other in others:
        (read,) = read_runs([other])
        summary = page.summary_of(read)
        _check(read, folder, step, other)
        if summary is None:
            raise ValueError(f"--evaluation: {other} has no finished comparison of base and tuned; finish it first")
        b = read.get("balance")
        at = "" if b is None else f", b = {b:g}"
        found.append(_evaluated(f"By customized-grpo evaluate{at}", read, summary, base, step))
    return found


def _check(read: RunFolder, run: Path, step: int, other: Path) -> None:
    """Refuse what is no evaluation of the run's adapter alone, or one of another step of it."""
    given = read.get("lora")
    loras = [given] if isinstance(given, str) else list(given or ())
    if not read.is_evaluation or len(loras) != 1:
        raise ValueError(
            f"--evaluation: {other} is no evaluation of one adapter; give a folder of customized-grpo evaluate with "
            "lora=RUN"
        )
    where, scale = with_scale(str(loras[0]))
    place = Path(where).expanduser().resolve()
    if not place.is_relative_to(run.resolve()) or scale != 1:
        raise ValueError(
            f"--evaluation: {other} is of {loras[0]!r}, and {run} is published; give one that drew with lora={run}"
        )
    named = next((one.name for one in (place, *place.parents) if one.name.startswith("step-")), f"step-{step:06d}")
    if named != f"step-{step:06d}":
        raise ValueError(f"--evaluation: {other} is of {named}, and step {step} is published; publish that checkpoint")


def _evaluated(title: str, run: RunFolder, summary: Mapping[str, Any], base: str, step: int | None) -> Evaluated:
    axes = page.axes_of([run])
    settings: dict[str, Any] = {
        name: base if name == "model" else value
        for name, value in summary.get("settings", {}).items()
        if name not in ("transformer", "base_lora")
    }
    data = data_of(run.get("evaluate", "data") or {}, count=settings.get("examples"))
    groups = gallery(run, axes)
    title = f"{title} (`{summary['protocol']}`, {data.name})"
    return Evaluated(Result(title, {**summary, "settings": settings}, data), groups, step)

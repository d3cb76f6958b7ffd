"""Run folders read as data for the report. Only files of the folder are read; missing or damaged ones are reported."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import yaml

from customized_grpo.advantages.axes import AXES
from customized_grpo.evaluation.pairing import unlike
from customized_grpo.evaluation.protocols import PROTOCOLS, Protocol
from customized_grpo.evaluation.statistics import Interval
from customized_grpo.evaluation.summary import Row, columns_of, intervals
from customized_grpo.paths import matching
from customized_grpo.report.hacking import Suspicion, suspicions


@final
@dataclass(frozen=True)
class RunFolder:
    """Data of one run.

    Attributes:
        name: display name, unique within a report.
        config: the resolved recipe, or an empty mapping.
        steps: one mapping per training step, in order; the later one if a resumed run wrote a step twice.
        evaluations: rows of ``evaluation/<label>.jsonl`` by label.
        missing: sentences about missing or damaged files.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    config_text: str
    steps: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Sequence[Row]]
    summary: Mapping[str, Any] | None
    missing: Sequence[str]

    def get(self, *keys: str) -> Any:
        """What the recipe says at nested keys; None where it says nothing, as in a damaged file."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def axes_of(self, *keys: str) -> dict[str, str]:
        """The axis that each section under these keys says, by the section's name."""
        sections = self.get(*keys)
        names = sections if isinstance(sections, dict) else ()
        return {str(name): str(self.get(*keys, name, "axis")) for name in names}

    @property
    def axes(self) -> tuple[str, ...]:
        """Prompt and identity, and further axes that the recipe's rewards or held-out metrics name."""
        named = (*self.axes_of("rewards").values(), *self.axes_of("evaluate", "metrics").values())
        return tuple(dict.fromkeys((*AXES, *(axis for axis in named if axis not in ("", "None")))))

    @property
    def is_evaluation(self) -> bool:
        """True if the folder was written by ``evaluate``, without training."""
        return "train" not in self.config and not self.steps

    @property
    def protocol(self) -> Protocol:
        """Protocol of its evaluation; a plain one if the recipe names no known one."""
        name = self.get("evaluate", "protocol")
        return PROTOCOLS.get(str(name), Protocol(name=str(name or "heldout")))

    def at_steps(self) -> dict[int, Sequence[Row]]:
        """Rows of the evaluations during training, by step."""
        return {
            int(label.removeprefix("step-")): rows
            for label, rows in self.evaluations.items()
            if re.fullmatch(r"step-\d+", label)
        }

    def suspicions(self, until: int | None = None) -> list[Suspicion]:
        """Training rewards that rose while their held-out twin fell, up to an evaluation, by default the last."""
        twins = {axis: column for axis in self.axes if (column := self.axis_column(axis)) is not None}
        evaluations = {s: rows for s, rows in self.at_steps().items() if until is None or s <= until}
        return suspicions(self.steps, evaluations, self.axes_of("rewards"), twins, self.protocol.unit)

    @cached_property
    def curve(self) -> list[tuple[int, dict[str, Interval]]]:
        """Held-out curve as (step, column to interval); bare means if only those were logged."""
        found = {step: intervals(rows, unit=self.protocol.unit) for step, rows in self.at_steps().items() if rows}
        for line in self.steps:
            logged = {
                key.removeprefix("evaluation/").removesuffix("/mean"): value
                for key, value in line.items()
                if key.startswith("evaluation/") and key.endswith("/mean") and isinstance(value, int | float)
            }
            if logged and line["step"] not in found:
                found[line["step"]] = {
                    column: Interval(value, math.nan, math.nan, 0) for column, value in logged.items()
                }
        return sorted(found.items())

    @cached_property
    def ends(self) -> tuple[Sequence[Row], Sequence[Row]]:
        """Rows of the base and of the last adapter; empty if missing."""
        labels = sorted(label for label in self.evaluations if label.startswith("step-"))
        base = self.evaluations.get("base") or (self.evaluations[labels[0]] if len(labels) > 1 else [])
        tuned = self.evaluations.get("tuned") or (self.evaluations[labels[-1]] if len(labels) > 1 else [])
        return base, tuned

    @cached_property
    def columns(self) -> list[str]:
        """Held-out columns, in order of first appearance."""
        measured = [column for rows in self.evaluations.values() for column in columns_of(rows)]
        logged = [
            key.removeprefix("evaluation/").removesuffix("/mean")
            for key in self.keys("evaluation/")
            if key.endswith("/mean")
        ]
        summarised = [column for row in (self.summary or {"rows": []})["rows"] for column in row["metrics"]]
        return list(dict.fromkeys(measured + logged + summarised))

    def axis_column(self, axis: str) -> str | None:
        """Held-out column that represents an axis: ``<axis>_accuracy``, or the first with that name or ``axis``."""
        named = [column for column in self.columns if column.startswith(axis)]
        for column in (f"{axis}_accuracy", *self.axis_columns(axis), *named):
            if column in self.columns:
                return column
        return None

    def axis_columns(self, axis: str) -> list[str]:
        """Held-out columns of metrics whose section has this axis, in the recipe's order."""
        configured = self.axes_of("evaluate", "metrics").items()
        return [name for name, one in configured if one == axis and name in self.columns]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one key of ``metrics.jsonl``, only where it is a number."""
        pairs = [(line["step"], float(line[key])) for line in self.steps if isinstance(line.get(key), int | float)]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def keys(self, prefix: str) -> list[str]:
        """Keys of ``metrics.jsonl`` with this prefix, in order of first appearance."""
        return list(dict.fromkeys(key for line in self.steps for key in line if key.startswith(prefix)))

    @property
    def planned_steps(self) -> int | None:
        """Number of steps in the recipe."""
        steps = self.get("train", "steps")
        return steps if isinstance(steps, int) else None

    @property
    def last_step(self) -> int:
        """The last step in ``metrics.jsonl``; 0 if there is none."""
        return int(self.steps[-1]["step"]) if self.steps else 0


def read_runs(paths: Sequence[Path], *, metrics: str = "") -> list[RunFolder]:
    """Read every folder, each with a unique name.

    Args:
        metrics: prefix of the keys of ``metrics.jsonl`` to keep; a long run has many lines.

    Raises:
        ValueError: no path, a path that is not a folder, or a folder without measurements.
    """
    if not paths:
        raise ValueError("no run was given; give the folder of at least one run")
    return [_read(path, name, metrics) for name, path in named(paths).items()]


def named(paths: Sequence[Path], taken: str = "") -> dict[str, Path]:
    """Runs by unique names: the folder's, with its parent's where two are called the same, or one is called ``taken``.

    Raises:
        ValueError: a run is there twice.
    """
    found = {path.resolve().name: path for path in paths}
    if len(found) < len(paths) or taken in found:
        found = {f"{path.resolve().parent.name}/{path.resolve().name}": path for path in paths}
    if len(found) < len(paths):
        raise ValueError(f"the same run was given twice: {', '.join(map(str, paths))}")
    return found


def _read(path: Path, name: str, metrics: str) -> RunFolder:
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a run's folder, the run.dir of its recipe")
    if path.resolve().parent.name == "checkpoints":
        raise ValueError(f"{path} is a checkpoint; a report is of its whole run: give {path.resolve().parents[1]}")
    missing: list[str] = []
    config_text, config = _config(path / "config.yaml", missing)
    expected = "train" in config or not config
    steps = _metrics(path / "metrics.jsonl", missing, prefix=metrics, expected=expected)
    evaluations = {file.stem: _rows(file, missing) for file in matching(path / "evaluation", "*.jsonl")}
    summary = _summary(path / "evaluation" / "summary.json", missing)
    if not steps and summary is None and not any(evaluations.values()):
        raise ValueError(
            f"{path} holds no metrics.jsonl with a step in it and no evaluation; "
            "give the folder of a run that has done at least one step"
        )
    if not any(evaluations.values()):
        missing.append("No held-out evaluation yet, so there are no held-out curves and no pictures to compare.")
    run = RunFolder(path, name, config, config_text, steps, evaluations, summary, missing)
    missing += _of_other_data(run.at_steps())
    if steps and run.planned_steps is not None and run.last_step < run.planned_steps:
        done = f"{run.last_step} of {run.planned_steps} steps are done"
        missing.insert(0, f"The run is in progress or was stopped: {done}.")
    return run


def _of_other_data(steps: Mapping[int, Sequence[Row]]) -> list[str]:
    """Sentences about evaluations of other examples than the newest one's, which a curve would mix."""
    if not steps:
        return []
    newest = steps[max(steps)]
    others = {step: len(unlike(rows, newest)) for step, rows in steps.items()}
    return [
        f"The evaluation at step {step} is of other data than the newest: {count} prompts have the same id but another "
        "text, other pictures or other metrics. Their means are not comparable."
        for step, count in others.items()
        if count
    ]


def _lines(path: Path, missing: list[str], wanted: Callable[[str], bool] = lambda _: True) -> list[dict[str, Any]]:
    good, bad = [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                bad += bool(line.strip())
                continue
            if isinstance(row, dict):
                good.append({name: row[name] for name in row if wanted(name)})
    if bad:
        missing.append(f"{path.name}: {bad} unfinished or damaged line{'s' if bad > 1 else ''} left out.")
    return good


def _metrics(path: Path, missing: list[str], *, prefix: str, expected: bool) -> list[dict[str, Any]]:
    if not path.is_file():
        if expected:
            missing.append("No metrics.jsonl, so there is nothing about the training itself.")
        return []
    lines = _lines(path, missing, lambda name: name == "step" or name.startswith(prefix))
    by_step = {row["step"]: row for row in lines if isinstance(row.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def _rows(path: Path, missing: list[str]) -> list[Row]:
    needed = {"key", "prompt", "values", "index", "image"}
    return [row for row in _lines(path, missing) if needed <= row.keys() and isinstance(row["values"], dict)]


def _summary(path: Path, missing: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        missing.append("No evaluation/summary.json: the final comparison of base and tuned has not been made.")
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        well_formed = all("metrics" in row and "name" in row for row in summary["rows"])
        assert well_formed and all({"of", "to", "metrics"} <= entry.keys() for entry in summary["differences"])
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError):
        missing.append("evaluation/summary.json can't be read.")
        return None
    found: dict[str, Any] = summary
    return found


def _config(path: Path, missing: list[str]) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        missing.append("No config.yaml, so the recipe is unknown.")
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        missing.append("config.yaml can't be read.")
        return text, {}
    return text, config

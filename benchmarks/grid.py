"""A grid of training runs on the miniature: cells, paired seeds, single-threaded workers, resumable.

A finished run leaves a record in two tables of ``benchmarks/results``: ``<name>.csv`` has one row per run and evaluated
step (held-out means), ``<name>_examples.csv`` one row per run and held-out example (values after the last step). They
are committed: with the same embedded models and recipe a run is never made again, on any machine. A run that was
killed goes on from its last checkpoint in ``runs/<name>``.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import read_table, write_table

from customized_grpo.evaluation.statistics import crossed_interval

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "config" / "train" / "mini_customized.yaml"

Records = dict[tuple[str, int], dict[str, Any]]
"""Finished runs by cell and seed: ``curve`` (step to metric to mean), ``examples`` (metric to example to value)."""

RUN, EXAMPLE = ("fingerprint", "cell", "seed", "step"), ("cell", "seed", "example")
"""What names a row of the two tables; the other columns are metrics."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant: its part of the grid, its name, what it overrides (``<seed>`` is the seed), and its seeds."""

    part: str
    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells that share all but their own overrides. ``varied``: the recipe's sections that cells differ in. A run ends
    one step after the first evaluation whose ``until`` (metric, value) is reached, if that is given."""

    name: str
    common: tuple[str, ...]
    cells: tuple[Cell, ...]
    varied: frozenset[str]
    until: tuple[str, float] | None = None

    @property
    def parts(self) -> list[str]:
        """Names of the grid's parts, in order."""
        return list(dict.fromkeys(cell.part for cell in self.cells))

    def jobs(self, only: str | None) -> list[tuple[Cell, int]]:
        """(cell, seed), seed by seed, so that an early stop leaves complete pairs."""
        chosen = [cell for cell in self.cells if only in (None, cell.part)]
        seeds = sorted({seed for cell in chosen for seed in cell.seeds})
        return [(cell, seed) for seed in seeds for cell in chosen if seed in cell.seeds]

    def folder_of(self, cell: Cell, seed: int) -> Path:
        """The run of a cell at a seed."""
        return ROOT / "runs" / self.name / f"{cell.name}-seed{seed}"

    @property
    def _order(self) -> list[tuple[str, int]]:
        return [(cell.name, seed) for cell in self.cells for seed in cell.seeds]

    def fingerprint(self) -> str:
        """Hash of what all runs have in common: the embedded models, and the recipe's text outside of the sections
        that cells differ in. Records with another one are of another world."""
        from customized_grpo.paths import ASSETS
        from customized_grpo.recipe.yaml_source import read_yaml

        own = {"run", *self.varied}
        sections = {name: section for name, section in read_yaml(RECIPE)[0].items() if name not in own}
        overrides = [override for override in self.common if override.split(".")[0] not in own]
        digest = hashlib.sha256(json.dumps([sections, overrides], sort_keys=True).encode())
        for name, sha256 in sorted(json.loads((ASSETS / "manifest.json").read_text()).items()):
            digest.update(sha256.encode() if name.endswith(".safetensors") else b"")
        return digest.hexdigest()[:16]

    def records(self) -> Records:
        """Finished runs of this world, by cell and seed, in the grid's order."""
        fingerprint, found = self.fingerprint(), Records()
        for row in read_table(self._table("")):
            world, cell, seed, step = (row.pop(name) for name in RUN)
            if world == fingerprint:
                record = found.setdefault((cell, seed), {"curve": {}, "examples": {}})
                record["curve"][str(step)] = row
        for row in read_table(self._table("_examples")):
            cell, seed, example = (row.pop(name) for name in EXAMPLE)
            if (cell, seed) in found:
                for metric, value in row.items():
                    found[cell, seed]["examples"].setdefault(metric, {})[example] = value
        return {run: found[run] for run in self._order if run in found}

    def keep(self, records: Records) -> None:
        """Write finished runs into the two tables, beside those that are there."""
        fingerprint, means, examples = self.fingerprint(), [], []
        known = self.records() | records
        for cell, seed in filter(known.__contains__, self._order):
            run, record = {"fingerprint": fingerprint, "cell": cell, "seed": seed}, known[cell, seed]
            means += [run | {"step": step} | values for step, values in record["curve"].items()]
            columns = record["examples"]
            for example in next(iter(columns.values())):
                values = {metric: of[example] for metric, of in columns.items()}
                examples.append(run | {"example": example} | values)
        metrics = sorted({key for row in means for key in row} - {*RUN})
        write_table(self._table(""), [*RUN, *metrics], means)
        write_table(self._table("_examples"), [*EXAMPLE, *metrics], examples)

    def run(self, only: str | None, workers: int, minutes: float) -> None:
        """Train what is missing."""
        done = self.records()
        todo = [(cell, seed) for cell, seed in self.jobs(only) if (cell.name, seed) not in done]
        if not todo:
            return
        if not done and (file := self._table("")).is_file():
            raise ValueError(f"{file} is of other models or another recipe; move it away to begin anew")
        end = time.monotonic() + 60 * minutes
        with multiprocessing.get_context("spawn").Pool(workers, initializer=silence) as pool:
            running: list[Any] = []
            for number, job in enumerate(todo):
                while sum(not one.ready() for one in running) >= workers:
                    time.sleep(0.5)
                if time.monotonic() > end:
                    sys.stdout.write(f"time is up; {len(todo) - number} runs are left\n")
                    break
                running.append(pool.apply_async(self.run_one, job, callback=self._finish))
            for one in running:
                one.get()

    def _finish(self, made: tuple[str, int, dict[str, Any], str]) -> None:
        cell, seed, record, message = made
        self.keep({(cell, seed): record})
        sys.stdout.write(message + "\n")
        sys.stdout.flush()

    def run_one(self, cell: Cell, seed: int) -> tuple[str, int, dict[str, Any], str]:
        """Train one cell at one seed, in a worker that has its libraries loaded: cell, seed, record, message."""
        from customized_grpo.recipe.loading import load_recipe
        from customized_grpo.training.setup import build
        from customized_grpo.training.trainer import Trainer

        folder = self.folder_of(cell, seed)
        began = time.monotonic()
        if not self._ended(folder):
            resume = ("run.resume=latest",) if folder.is_dir() else ()
            overrides = [one.replace("<seed>", str(seed)) for one in cell.overrides]
            own = (f"run.dir={folder}", f"run.seed={1000 + seed}", *self.common, *overrides, *resume)
            trainer = Trainer(build(load_recipe(RECIPE, own)))
            self._lend_base(folder, seed)
            step = trainer.step

            def until(number: int) -> dict[str, float]:
                if self._reached(folder):
                    trainer.stop.signal = signal.SIGTERM
                return step(number)

            trainer.step = until  # type: ignore[method-assign, assignment]
            trainer.run()
            if not self._ended(folder):
                raise RuntimeError(f"{folder} was stopped; run this again to go on")
        return cell.name, seed, _read(folder), f"{folder.name}: {time.monotonic() - began:.0f} s"

    def _lend_base(self, folder: Path, seed: int) -> None:
        """Copy the base's evaluation from another cell of the seed: rows that stand on the same weights are kept."""
        own, *others = (f / "evaluation" / "step-000000.jsonl" for f in (folder, *self._siblings(seed)))
        if not own.is_file() and (found := next(filter(Path.is_file, others), None)):
            own.parent.mkdir(exist_ok=True)
            shutil.copy(found, own)

    def _siblings(self, seed: int) -> list[Path]:
        return [self.folder_of(cell, seed) for cell in self.cells if self._ended(self.folder_of(cell, seed))]

    def _ended(self, folder: Path) -> bool:
        return (folder / "evaluation" / "summary.json").is_file() or self._reached(folder)

    def _reached(self, folder: Path) -> bool:
        if self.until is None or not (folder / "metrics.jsonl").is_file():
            return False
        metric, value = self.until
        return any(values[metric] >= value for values in _curve(folder).values())

    def _table(self, kind: str) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}{kind}.csv"


def command_line(text: str | None, parts: Sequence[str], repeats: int | None = None) -> argparse.ArgumentParser:
    """What every grid's command takes: what to run, by how many workers, for how long; or only to collect, or, where
    ``repeats`` is its default, to time."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--collect", action="store_true")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="of --time")
        parser.add_argument("--time", action="store_true", help="measure the seconds of updates instead of training")
    return parser


def _curve(folder: Path) -> dict[str, dict[str, float]]:
    """Held-out means of a run by step."""
    curve: dict[str, dict[str, float]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        values = {key.split("/")[1]: value for key, value in line.items() if key.startswith("evaluation/")}
        if values:
            curve[str(line["step"])] = values
    return curve


def examples_of(file: Path) -> dict[str, dict[str, float]]:
    """Means of every metric and held-out example in one evaluation's rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in map(json.loads, file.read_text().splitlines()):
        for metric, value in row["values"].items():
            found.setdefault(metric, {}).setdefault(row["key"], []).append(value)
    return {
        metric: {key: round(sum(values) / len(values), 4) for key, values in of.items()} for metric, of in found.items()
    }


def _read(folder: Path) -> dict[str, Any]:
    """The curve of a finished run, and the final values of every held-out example."""
    return {
        "curve": _curve(folder),
        "examples": examples_of(max(folder.glob("evaluation/step-*.jsonl"))),
    }


def interval(values: Any) -> dict[str, float | None]:
    """Mean of (seeds, examples) with its 95 % interval over both, and the means' spread over seeds."""
    found = crossed_interval(values).as_json()
    return {name: found[name] for name in ("mean", "low", "high")} | {"std_seeds": float(values.mean(1).std())}


def silence() -> None:
    """A worker's progress lines would mix with those of the others."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115

"""DreamBench by the real command: what comes out knows neither the number of processes nor that one was killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from dreambench_evaluation import ROWS, evaluation, make_models, results
from dreambench_folder import CLASSES, make_dreambench
from forked import exit_code, forked
from runs import SIGNAL_AT, environment, signal_at

SCRIPT = Path(__file__).parents[2] / "scripts" / "eval_dreambench.sh"
COMMAND = (sys.executable, "-m", "customized_grpo", "evaluate")
PROMPTS = len(CLASSES)


def evaluated(command: tuple[str, ...], run: Path) -> Path:
    # The script takes the Python that it finds, as after 'activate'.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        [*command, f"run.dir={run}"],
        env=environment(CUDA_VISIBLE_DEVICES="", PATH=path),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one prompt a subject, in batches of two, which don't divide them; and a metric that may end its process."""
    world = make_models(make_dreambench(tmp_path_factory.mktemp("world")))
    given = evaluation(world, world, world / "run")
    given["evaluate"]["data"]["per_subject"] = 1
    given["evaluate"]["metrics"]["bright"] = {"type": "runs:Brightness"}
    path = world / "recipe.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    return evaluated((*COMMAND, str(recipe)), recipe.parent / "alone")


def test_every_row_is_there_and_what_it_was_measured_with(alone: Path) -> None:
    summary = json.loads((alone / "evaluation" / "summary.json").read_text())
    rows = {row["name"]: row["metrics"] for row in summary["rows"]}
    assert tuple(rows) == ROWS
    assert list(rows["real_photos"]) == ["dino_vits16", "dinov2_base", "clip_i_vitb32"]
    assert list(rows["tuned"]) == [*rows["real_photos"], "clip_t_vitb32", "pickscore", "bright"]
    assert {value["n"] for metrics in rows.values() for value in metrics.values()} == {PROMPTS}
    counts = {label: len(results(alone)[f"{label}.jsonl"].splitlines()) for label in ROWS}
    assert counts == {"real_photos": 25, "copy_reference": PROMPTS, "base": PROMPTS, "tuned": PROMPTS}
    assert summary["differences"][0]["to"] == "base"
    assert summary["differences"][0]["metrics"]["bright"]["mean"] != 0, "the adapter changes what is drawn"


def test_the_report_has_published_numbers_and_says_that_they_do_not_compare(alone: Path) -> None:
    page = (alone / "report.html").read_text(encoding="utf-8")
    assert "UNO, Table 1 (arXiv 2504.02160v1)" in page
    (notice,) = re.findall(r"Not comparable with published numbers:[^<]*", page)
    for departure in ("examples is 5, not 750", "height is 64, not 512", "dino_vits16 is measured by"):
        assert departure in notice


def test_two_processes_find_the_same(recipe: Path, alone: Path) -> None:
    both = evaluated((str(SCRIPT), str(recipe), "2"), recipe.parent / "both")
    assert results(both) == results(alone)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads
def test_a_killed_evaluation_goes_on_to_the_same(recipe: Path, alone: Path) -> None:
    run, log = recipe.parent / "killed", recipe.parent / "log"
    arguments = ["evaluate", str(recipe), f"run.dir={run}"]
    at = signal_at(signal.SIGKILL, 2 * PROMPTS - 1)  # in the fourth image of the base
    code = exit_code(forked(log, lambda: app(arguments), **{SIGNAL_AT: at}))
    assert code == -signal.SIGKILL, log.read_text()
    assert not (run / "evaluation" / "summary.json").exists()
    (part,) = (run / "evaluation" / ".parts" / "base").glob("*.jsonl")
    assert len(part.read_text().strip().splitlines()) == 3, "each row is written when it is done"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert results(run) == results(alone)

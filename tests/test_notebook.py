"""The notebook is clean, runs in a kernel of its own, and its Markdown names what there is."""

import json
import math
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from customized_grpo.recipe.loading import load_recipe

FILE = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"
STEPS = 2


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def test_the_notebook_is_valid_and_holds_no_output(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]


def test_links_and_recipes_of_the_notebook_lead_somewhere(notebook: nbformat.NotebookNode) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = [one for one in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", one)]
    assert len(targets) > 5
    assert not [one for one in targets if not (FILE.parent / one).exists()]
    recipes = set(re.findall(r"`(\w+_customized\w*)`", text)) | {"mini_customized"}
    assert {"uno_customized_grpo", "uno_customized_grpo_fast"} <= recipes
    for name in recipes:
        load_recipe(name)


@pytest.mark.timeout(900)  # a minute of one core; more where others want it, too
def test_the_notebook_runs(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code cell, in order, in a real kernel of this interpreter, in an empty folder, and in fewer steps."""
    kernel = tmp_path / "jupyter" / "kernels" / "here"  # the user's own "python3" may be another interpreter
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(json.dumps({"argv": command, "display_name": "here"}), encoding="utf-8")
    for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("QUICKSTART_STEPS", str(STEPS))
    monkeypatch.delenv("MPLBACKEND")  # of the tests; a kernel has one of its own, which shows pictures

    # A cell that raises ends this by an error with its traceback.
    NotebookClient(notebook, kernel_name="here", resources={"metadata": {"path": str(tmp_path)}}).execute()

    run = tmp_path / "runs" / "quickstart"
    steps = [
        json.loads(line)["step"] for line in run.joinpath("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert steps == list(range(1, STEPS + 1))
    assert run.joinpath("report.html").exists()
    assert run.joinpath("exported", "pytorch_lora_weights.safetensors").exists()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == 4, "the data, the curves, and base beside tuned for both prompts"
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for reward in ("clip", "dino"):
        (before, after) = re.findall(rf"^{reward}: (\S+) -> (\S+)$", printed, re.M)[0]
        assert math.isfinite(float(before))
        assert before != after

"""Commands that only look import no heavy library: each is asked in an interpreter of its own what it has loaded.

``benchmarks/start.py`` times them; here the modules are counted, which is the same on every machine.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.recipe.loading import shipped_recipes

HEAVY = ("diffusers", "transformers", "peft", "accelerate", "matplotlib", "openai", "datasets", "requests", "httpx2",
         "huggingface_hub", "sympy", "cv2", "torch.distributed.tensor", "torch._dynamo", "jinja2")  # fmt: skip
NUMBERS = ("torch", "jaxtyping", "safetensors")

PROGRAM = """
import io, json, sys
from contextlib import redirect_stdout
from customized_grpo.commands.app import app

commands, watched = json.loads(sys.argv[1]), sys.argv[2:]
for command in commands:
    try:
        with redirect_stdout(io.StringIO()):
            app(command)
    except SystemExit as done:
        print(json.dumps([command, done.code, [name for name in watched if name in sys.modules]]))
"""


def loaded(commands: list[list[str]], watched: tuple[str, ...]) -> None:
    """Run commands one after the other in one fresh interpreter; each must end well with nothing watched loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands), *watched],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [command for command, _, _ in answers] == commands
    # doctor and a recipe that doesn't fit give advice by exit code 1; a mistake would be 2.
    assert [answer for answer in answers if answer[1] not in (0, 1) or answer[2]] == [], done.stderr


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for n in range(10):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(tmp_path / f"{n}.png")
        lines.append({"id": f"row-{n}", "prompt": "a bag", "references": [f"{n}.png"], "subject": "bag"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_help_and_data_check_import_no_torch(manifest: Path) -> None:
    loaded([["--help"], ["data", "--help"], ["data", "check", str(manifest)]], HEAVY + NUMBERS)


def test_looking_at_recipes_plugins_and_machine_imports_no_model_library() -> None:
    recipes = [["validate", name] for name in shipped_recipes()]
    advice = ["validate", "uno_customized_grpo", "--memory-gb", "24", "--card", "L4"]
    loaded([["plugins"], ["schema"], ["doctor"], ["doctor", "mini_customized"], advice, *recipes], HEAVY)

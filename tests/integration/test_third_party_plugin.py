"""A separate package with a reward, an aggregator and a policy, installed in an environment of its own: found,
listed, checked by the conformance kit, and used in training. Nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
RECIPE = """\
run: {dir: run, device: cpu, precision: no, threads: 1}
policy: {type: linear, height: 8, width: 8, lora: {rank: 2}}
data: {type: manifest, path: train.jsonl}
sampling: {steps: 4}
rewards:
  red: {type: redness, axis: prompt}
  blue: {type: "third_party_plugins:Redness", axis: identity, colour: blue}
  green: {type: redness, axis: tint, colour: green}
advantage: {aggregator: {type: cautious, fear: 3}, axes: {tint: 0.2}}
train: {steps: 2, group_size: 4, groups_per_step: 2, evaluate_every: 0}
"""
CHECKS = """
import torch
from PIL import Image
from customized_grpo import registry
from customized_grpo.policies.adapters import lora
from customized_grpo.testing import check_aggregator, check_policy, check_reward
from customized_grpo.types import Example

cpu = torch.device("cpu")
example = Example(key="1", prompt="a bag", references=(Image.new("RGB", (8, 8), "red"),))
def read(kind, section):
    plugin = registry.resolve(kind, section["type"])
    return plugin, registry.config_model(kind, plugin).model_validate(section)
reward, config = read("rewards", {"type": "redness", "axis": "prompt"})
images = torch.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).remainder(251).to(torch.uint8)
check_reward(reward(config, device=cpu), example, images)
check_aggregator(registry.build_function("aggregators", read("aggregators", {"type": "cautious"})[1]))
policy, config = read("policies", {"type": "linear", "height": 8, "width": 8})
loaded = policy.load(config, device=cpu, dtype=torch.float32)
lora.attach(loaded, config.lora, seed=0)
check_policy(loaded, example)
"""
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from customized_grpo.commands.app import app
done = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
json.dump([(one.exit_code, one.stdout, one.stderr) for one in done], sys.stdout)
"""
ASKED = {
    "plugins": ["plugins"],
    "valid": ["validate", "recipe.yaml"],
    "wrong": ["validate", "recipe.yaml", "rewards.red.color=blue", "advantage.aggregator.fear=0"],
    "mistyped": ["validate", "recipe.yaml", "rewards.red.type=rednes"],
}
Said = dict[str, tuple[int, str, str]]


class Environment:
    """A virtual environment that sees this one's packages, and the plug-ins' package of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / "venv" / scripts / "python"
        site = self.run("-c", "import sysconfig, sys; sys.stdout.write(sysconfig.get_paths()['purelib'])").stdout
        paths = [SOURCE, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        (Path(site) / "shared.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(map(str, paths))))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, "install"]
        subprocess.run(
            [*pip, "--quiet", "--no-index", "--no-deps", HERE / "third_party"],
            check=True,
            timeout=120,
            env=self.variables,
        )

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RANK", "WORLD_SIZE")}
        return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.folder,
            env=self.variables,
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("third_party")
    Image.new("RGB", (8, 8), "red").save(folder / "bag.png")
    row = {"id": "bag", "prompt": "a bag", "references": ["bag.png"]}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return Environment(folder)


@pytest.fixture(scope="module")
def said(environment: Environment) -> Said:
    """Exit code, output and errors of each command, all in one process of that environment."""
    done = environment.run("-c", COMMANDS, json.dumps(list(ASKED.values())))
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, map(tuple, json.loads(done.stdout)), strict=True))


def test_it_is_not_installed_here() -> None:
    from customized_grpo.registry import available

    assert "redness" not in available("rewards")


def test_plugins_are_listed_with_their_package(said: Said) -> None:
    code, listed, errors = said["plugins"]
    assert code == 0, errors
    for name, option in (("redness", "colour (red)"), ("cautious", "fear (2.0)"), ("linear", "model (none)")):
        (line,) = [line for line in listed.splitlines() if f" {name} " in line]
        assert "third-party-plugins" in line
        assert option in listed


def test_a_recipe_with_them_is_valid(said: Said) -> None:
    code, output, errors = said["valid"]
    assert code == 0, errors
    assert "8 = 2 groups x 4" in output


def test_their_options_are_checked_like_ours(said: Said) -> None:
    code, _, errors = said["wrong"]
    assert code == 2
    assert "rewards.red.color: unknown key; did you mean 'colour'?" in errors
    assert "advantage.aggregator.fear: given 0; allowed: a number, at least 1" in errors
    assert "did you mean 'redness'?" in said["mistyped"][2]


def test_they_hold_what_plugins_must_hold(environment: Environment) -> None:
    done = environment.run("-c", CHECKS)
    assert done.returncode == 0, done.stderr


def test_they_train(environment: Environment) -> None:
    done = environment.run("-m", "customized_grpo", "train", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (environment.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert any("red" in key for key in rows[0])
    assert rows[0]["reward/tint/mean"] == rows[0]["reward/green/mean"]
    assert rows[0]["weight/tint/step_00"] == pytest.approx(0.2)
    assert (environment.folder / "run" / "checkpoints" / "step-000002" / "pytorch_lora_weights.safetensors").is_file()

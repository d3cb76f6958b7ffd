"""What is given twice on a command line: LoRAs all count, an option of one value is refused, an override is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from customized_grpo.commands.app import app, data
from customized_grpo.evaluation import evaluator
from customized_grpo.policies.adapters import tuning
from customized_grpo.recipe.loading import undone
from customized_grpo.sampling import draw


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


class Stop(Exception):
    """Ends a command where it would begin to load models."""


@pytest.mark.parametrize("option", ["--out", "--config", "--seed", "--num", "--prompt"])
def test_an_option_of_one_value_comes_once(option: str) -> None:
    done = run("generate", "--prompt", "x", "--out", "a.png", option, "1", option, "2")
    assert done.exit_code == 2
    times = 3 if option in ("--out", "--prompt") else 2
    assert done.stderr == f"error: {option}: given {times} times; it takes one value\n"


def test_every_command_refuses_what_comes_twice() -> None:
    """Also opposites, such as --decode and --no-decode; a plain switch may come twice."""
    assert "--decode: given 2 times" in run("data", "import", "hub", "x", "--decode", "--no-decode").stderr
    assert "--format: given 2 times" in run("export", "x", "--out", "y", "--format", "uno", "--format", "model").stderr
    assert "given" not in run("export", "nowhere", "--out", "y", "--with-base", "--with-base").stderr
    kinds = {info.cls for one in (app, data) for info in one.registered_commands}
    assert {kind.__name__ for kind in kinds if kind} == {"Once"}
    assert None not in kinds


def test_generate_takes_several_loras(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(recipe: Any, adapter: Any, *_: Any, **__: Any) -> None:
        seen.append(adapter)
        raise Stop

    monkeypatch.setattr(draw, "draw", stop)
    given = ("generate", "--prompt", "x", "--out", "a.png", "--config", "mini_customized")
    done = run(*given, "--lora", "runs/a", "--lora", "style.safetensors=0.5")
    assert isinstance(done.exception, Stop)
    assert seen == [["runs/a", "style.safetensors=0.5"]]


def test_loras_of_two_runs_need_a_recipe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    given = ("generate", "--prompt", "x", "--out", "a.png")
    done = run(*given, "--lora", str(tmp_path / "a"), "--lora", f"{tmp_path / 'b'}=0.5")
    assert (done.exit_code, "are of different runs; say by --config which policy" in done.stderr) == (2, True)
    done = run(*given, "--lora", "org/style/file.safetensors")
    assert (done.exit_code, "no such file or folder" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("given", "lora"),
    [
        (["--lora", "runs/a"], ("runs/a",)),
        (["--lora", "runs/a", "--lora", "b=0.5"], ("runs/a", "b=0.5")),
        (["lora=[runs/a, b=0.5]"], ("runs/a", "b=0.5")),
        (["lora=runs/a"], "runs/a"),
    ],
)
def test_evaluate_takes_several_loras(given: list[str], lora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(recipe: Any, **_: Any) -> None:
        seen.append(recipe.lora)
        raise Stop

    monkeypatch.setattr(evaluator, "evaluate", stop)
    monkeypatch.setattr(tuning, "read_all", lambda *_: ())
    assert isinstance(run("evaluate", "mini", *given).exception, Stop)
    assert seen == [lora]


def test_lora_and_compare_exclude_each_other() -> None:
    assert "--lora: it has no effect with --compare" in run("evaluate", "--compare", "a", "b", "--lora", "c").stderr


@pytest.mark.parametrize(
    ("overrides", "void"),
    [
        (["a.b=1", "a.b=2"], ["a.b=1"]),
        (["--a.b=1", "a.b=2"], ["--a.b=1"]),
        (["a.b=1", "a.b=1"], []),
        (["a.b=1", "a={}"], ["a.b=1"]),
        (["a={}", "a.b=1"], []),
        (["a.b=1", "a.c=2", "ab=3"], []),
        (["a=1", "a=2", "a=3"], ["a=1", "a=2"]),
        (["a", "a=1"], []),
    ],
)
def test_an_override_without_effect(overrides: list[str], void: list[str]) -> None:
    assert [line.partition("'")[2].partition("'")[0] for line in undone(overrides)] == void


@pytest.mark.parametrize("command", [["validate", "mini_customized"], ["evaluate", "mini"]])
def test_an_override_without_effect_is_said(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "evaluate", lambda recipe, **_: (_ for _ in ()).throw(Stop()))
    done = run(*command, "run.seed=1", "run.seed=2")
    assert "override 'run.seed=1': without effect, since 'run.seed=2' comes after it" in done.stderr
    assert json.dumps("run.seed=2") not in done.stderr

"""The command: thin, clean messages for its user's mistakes, tracebacks for ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands import doctor
from customized_grpo.commands.app import app
from customized_grpo.commands.errors import UserErrors
from customized_grpo.registry import BUILTIN

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def test_version_and_help() -> None:
    assert run("--version").output.strip()
    text = run("--help").output
    for command in (
        "train",
        "evaluate",
        "generate",
        "report",
        "validate",
        "plugins",
        "doctor",
        "schema",
        "demo",
    ):
        assert command in text


def test_validate_prints_the_geometry_of_a_step() -> None:
    done = run(
        "validate", "mini_customized", "train.group_size=6", "train.groups_per_step=3", "train.microbatch=5",
        "train.updates_per_rollout=2", "sampling.steps=5", "sampling.plan={type: window, width: 2}", "train.steps=7",
        "objective.kl=0.1", "run.precision=bf16",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.replace("│", " ").split())
    assert "samples 18 = 3 groups x 6" in text
    assert "K = 2 of T = 5, for instance 0, 1" in text
    # 5 steps x 6 samples x 3 groups; the window starts at step 0, so nothing is shared
    assert "rollout 90 forwards of one sample" in text
    # per update and group: 3 samples x 2 steps = 6 pairs = 2 micro-batches of 5; 2 updates x 3 groups
    assert "replay 36 forwards and backwards, in 12 micro-batches" in text
    assert "base, for the KL 36 forwards" in text
    assert "updates 2 a step, 14 in 7 steps" in text
    # x and x_next: 2 x 3 x 6 x 2 states of 16 x 64 values in 2 bytes
    assert f"{2 * 3 * 6 * 2 * 16 * 64 * 2 / 2**20:.1f} MiB" in text


@pytest.mark.parametrize("command", ["validate", "doctor"])
def test_memory_of_a_recipe_is_estimated(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda folder: [])
    monkeypatch.setattr(doctor, "_needs", lambda recipe: [])  # its data and a GPU
    done = run(command, "uno_customized_grpo", "--memory-gb", "80")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.replace("│", " ").split())
    assert "text encoders 9.1 GiB" in text
    assert "it fits a device of 80.0 GiB" in text
    done = run(command, "uno_customized_grpo", "--memory-gb", "24")
    assert done.exit_code == 1
    told = (
        "does not fit a device of 24.0 GiB with a twentieth left free; with its large rewards on another card it takes"
    )
    assert told in done.output
    assert 'rewards.hpsv3={"type": "remote", "axis": "prompt"' in done.output
    assert "run.cache=cache" in done.output
    assert "policy.base_lora.mode=adapter" in done.output
    done = run(command, "uno_customized_grpo", "--memory-gb", "48")
    assert "with a twentieth left free; with these it takes" in done.output
    done = run(command, "uno_customized_grpo", "--memory-gb", "1")
    assert "use smaller images, or a larger device" in done.output


def test_nothing_fits_while_something_on_the_card_is_not_counted() -> None:
    done = run("validate", "uno_customized_grpo", "rewards.dino.model=org/other", "--memory-gb", "80")
    assert done.exit_code == 0, done.output
    assert "what is counted fits a device of 80.0 GiB; not counted: rewards.dino (org/other)" in done.output
    assert "it fits" not in done.output


def test_what_is_served_is_not_on_this_card() -> None:
    done = run("validate", "customized_grpo_dino_hpsv3_remote", "--memory-gb", "80")
    said = "not on this card: rewards.hpsv3 (remote); a server of this machine needs a card of its own"
    assert said in done.output
    assert "not counted" not in done.output
    assert "it fits a device of 80.0 GiB" in done.output


def test_memory_of_an_unknown_model_is_no_mistake() -> None:
    done = run("validate", "uno_customized_grpo", "policy.model=org/unknown", "--memory-gb", "24")
    assert done.exit_code == 0
    assert "estimated memory: unknown; the shapes of 'org/unknown' are not known offline" in done.output


def test_validate_takes_an_evaluation_too() -> None:
    assert "a valid recipe" in run("validate", "mini", "evaluate.limit=3").output


def test_validate_loads_no_weights() -> None:
    """A model that isn't there is no mistake of the recipe's form."""
    assert run("validate", "uno_customized_grpo").exit_code == 0


def test_a_mistake_is_one_clean_message() -> None:
    done = run("validate", "mini_customized", "train.stps=3")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: override 'train.stps=3': train.stps: unknown key; did you mean 'steps'?")
    assert "Traceback" not in done.stderr


def test_the_traceback_is_there_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMIZED_GRPO_TRACEBACK", "1")
    done = run("validate", "mini_custmized")
    assert done.exit_code == 1
    assert type(done.exception).__name__ == "RecipeError"


def test_only_the_main_process_prints() -> None:
    program = "from customized_grpo.commands.app import app\napp(['validate', 'mini_custmized'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"RANK": "1", "PATH": "", "PYTHONPATH": str(ROOT / "src")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def raising(error: BaseException) -> Result:
    """A command of ours that raises from this file: code of neither the package nor a plug-in."""
    other = typer.Typer(cls=UserErrors, pretty_exceptions_enable=False)

    @other.callback()
    def main() -> None: ...

    @other.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(other, ["fail"])


def test_defects_keep_their_traceback() -> None:
    for defect in (ValueError("of a library"), RuntimeError("of torch"), AssertionError("of ours")):
        done = raising(defect)
        assert done.exit_code == 1
        assert done.exception is defect


def test_a_proxy_that_stops_the_hubs_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_the_hub() -> None:
        try:
            httpx2.Client()
        except ValueError as error:
            raise RuntimeError("a library's own words") from error

    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks://me:s3cret@host:7890")
    shown = one_command(ask_the_hub)
    assert shown.exit_code == 2
    said = " ".join(shown.output.split())
    assert "error: the hub can't be asked: all_proxy: given 'socks://***@host:7890', but socks:// is none of" in said
    assert "s3cret" not in shown.output
    monkeypatch.setenv("ALL_PROXY", "")
    monkeypatch.setenv("all_proxy", "")
    assert isinstance(one_command(lambda: json.loads("{")).exception, json.JSONDecodeError), "a defect stays one"


def one_command(work: Callable[[], object]) -> Result:
    small = typer.Typer(cls=UserErrors)
    small.command("work")(lambda: work() and None)
    small.command("other")(lambda: None)
    return CliRunner().invoke(small, ["work"], env={"COLUMNS": "200"})


def test_private_hosts_are_spared_from_proxies_in_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "a.com")  # and is put back
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert run("plugins").exit_code == 0
    listed = os.environ["NO_PROXY"].split(",")
    assert {"a.com", "localhost", "127.0.0.0/8", "10.0.0.0/8"} <= set(listed)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]


def test_files_and_interrupts() -> None:
    done = raising(PermissionError(13, "Permission denied", "/x/y"))
    assert (done.exit_code, done.stderr.strip()) == (2, "error: /x/y: Permission denied")
    done = raising(KeyboardInterrupt())
    assert done.exit_code == 130
    assert "what was finished is kept" in done.stderr


def test_plugins_lists_every_builtin() -> None:
    text = run("plugins").output
    for table in BUILTIN.values():
        for name in table:
            assert name in text
    assert "can't be loaded" not in text
    assert "gamma (0.4)" in text


def test_plugins_of_one_kind() -> None:
    text = run("plugins", "rewards").output
    assert "dino" in text
    assert "sars" not in text
    assert "allowed: policies, rewards" in run("plugins", "reward").stderr


def test_schema_is_json() -> None:
    schema = json.loads(run("schema").stdout)
    assert "advantage" in schema["properties"]
    assert "lora" in json.loads(run("schema", "--evaluation").stdout)["properties"]


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_assets", lambda: ["missing: flux"])
    done = run("doctor")
    assert done.exit_code == 1
    assert "missing: flux" in done.output
    assert "make assets" in done.output
    monkeypatch.setattr(doctor, "check_assets", lambda: [])
    assert "whole" in run("doctor").output


def test_generate_checks_its_arguments_first(tmp_path: Path) -> None:
    given = ("generate", "--lora", str(tmp_path / "run"), "--prompt", "x", "--out", str(tmp_path / "o.png"))
    done = run(*given, "--reference", str(tmp_path / "absent.png"))
    assert done.exit_code == 2
    assert f"{tmp_path / 'absent.png'}: no such file" in done.stderr


def test_importing_the_command_is_light() -> None:
    heavy = ("torch", "diffusers", "transformers", "matplotlib")
    program = "import sys, customized_grpo.commands.app\n"
    program += f"sys.stdout.write(','.join(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.stdout == ""


def test_empty_variables_of_a_launcher_are_none() -> None:
    """An exported but empty RANK stopped every command with a traceback."""
    emptied = os.environ | {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}
    command = [sys.executable, "-m", "customized_grpo", "validate", "mini_customized"]
    done = subprocess.run(command, env=emptied, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it there, and a folder called '~' was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(image)
    done = run("score", str(image), "--reward", "clip_t", "clip_t.model=mini", "--prompt", "red", "--out=~/new/s.csv")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "s.csv").is_file()
    assert not (tmp_path / "~").exists()


def test_a_console_of_few_characters_stops_no_command() -> None:
    """Console code pages crashed trainers at their first message (kohya-ss/sd-scripts#232)."""
    command = [sys.executable, "-m", "customized_grpo", "validate", "mini_customized"]
    narrow = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=narrow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_printed_is_verbatim(tmp_path: Path) -> None:
    """rich read emoji codes and markup in prompts and paths: ':x:' became a cross."""
    folder = tmp_path / "my:dog:pictures[red]"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "a:x:b[bold].png")
    table = folder / "scores:x:.csv"
    done = run("score", str(folder), "--reward", "clip_t", "clip_t.model=mini", "--prompt", "red", "--out", str(table))
    assert "a:x:b[bold].png" in done.output
    assert str(table) in done.output
    assert "there is no such folder or image" in (refused := run("score", f"{folder}:x:", "--reward", "clip_t").output)
    assert f"{folder}:x:" in refused

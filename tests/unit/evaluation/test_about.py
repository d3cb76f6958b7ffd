import json
from pathlib import Path

from customized_grpo.evaluation import about


def test_each_start_is_noted(tmp_path: Path) -> None:
    for step in (0, 7):
        about.note(tmp_path, device="NVIDIA H200", processes=2, step=step)
    first, second = about.starts(tmp_path)
    assert (first["step"], second["step"]) == (0, 7)
    assert second["versions"].keys() >= {"python", "torch", "diffusers"}
    assert json.loads((tmp_path / about.FILE).read_text()) == [first, second]


def test_a_command_is_one_that_can_be_typed() -> None:
    module = "/somewhere/site-packages/customized_grpo/__main__.py"
    assert about.command([module, "train", "a b.yaml", "run.dir=x"]) == "customized-grpo train 'a b.yaml' run.dir=x"
    assert about.command(["/bin/customized-grpo", "doctor"]) == "customized-grpo doctor"
    assert about.command(["scripts/mine.py"]) == "mine.py"


def test_a_secret_is_not_noted() -> None:
    told = about.command(["customized-grpo", "train", "r.yaml", "rewards.judge.api_key=sk-12345678901234567890"])
    assert "sk-" not in told
    assert "api_key" in told


def test_what_is_damaged_is_no_start(tmp_path: Path) -> None:
    (tmp_path / about.FILE).write_text("[1, ")
    assert about.starts(tmp_path) == []

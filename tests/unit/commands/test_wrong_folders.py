"""What a newcomer gives to score and serve in place of pictures and of a server's configuration: one line."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from customized_grpo.commands.app import app


def line(*words: str) -> str:
    done: Any = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    (only,) = done.stderr.splitlines()
    return str(only)


def test_a_file_that_is_no_image_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "customized_grpo.scoring.folder.load_rewards", lambda *_, **__: pytest.fail("a model would be loaded")
    )
    (tmp_path / "metrics.jsonl").write_text("{}")
    said = line("score", str(tmp_path / "metrics.jsonl"), "--reward", "dino")
    assert "metrics.jsonl: is no image; give a folder of images" in said


@pytest.mark.parametrize(("recipe", "section"), [("mini_customized", "evaluate"), ("mini", "evaluate")])
def test_serve_is_given_a_run(recipe: str, section: str) -> None:
    assert f"error: {recipe}: has the section {section!r} of a run; serve takes" in line("serve", recipe)

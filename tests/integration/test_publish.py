"""A trained run, published: what the trainer wrote is enough, and the folder's numbers are the run's."""

import json
from pathlib import Path

from huggingface_hub import ModelCard
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.policies.adapters.lora_reader import read_lora

from .conftest import Finished


def test_a_trained_run_is_published(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["publish", str(finished.folder), "--out", str(out), "--base", "black-forest-labs/FLUX.1-dev"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    card = ModelCard.load(out / "README.md")
    summary = json.loads((finished.folder / "evaluation" / "summary.json").read_text())
    bright = next(row for row in summary["rows"] if row["name"] == "tuned")["metrics"]["bright"]
    assert f"{bright['mean']:.3f} [{bright['low']:.3f}, {bright['high']:.3f}]" in card.text
    assert "During training, step 10" in card.text
    assert "10 of 10" in card.text
    assert card.data.to_dict()["license_name"] == "flux-1-dev-non-commercial-license"
    given, trained = read_lora(out), read_lora(finished.folder)
    assert given.factors.keys() == trained.factors.keys()
    assert "recipe" not in given.metadata
    assert given.metadata["base_hash"] == trained.metadata["base_hash"]

"""What a recipe's options name, by content: the same wherever it lies, and another after any change."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.identity.hashes import FileHashes
from customized_grpo.identity.sections import hub_commit, identified, with_local_content


def model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def of(section: Any) -> Any:
    return identified(section, FileHashes())


def test_a_folder_and_a_file_are_their_content(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    file = tmp_path / "lora.safetensors"
    file.write_bytes(b"lora")

    def section(folder: Path) -> dict[str, Any]:
        return {"type": "dino", "model": str(folder), "size": 3, "parts": [{"path": str(file)}, None]}

    first = of(section(one))
    assert first == of(section(two))
    assert first["type"] == "dino"
    assert first["size"] == 3
    (two / "model.safetensors").write_bytes(b"weight5")
    assert first != of(section(two))
    file.write_bytes(b"LoRA")
    assert first != of(section(one))


def test_what_is_no_weight_changes_nothing(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    first = of({"model": str(folder)})
    (folder / "README.md").write_text("more")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("")
    assert of({"model": str(folder)}) == first


def test_of_a_pipeline_the_parts_count(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    model(folder / "transformer")
    (folder / "model_index.json").write_text("{}")
    first = of({"model": str(folder)})
    (folder / "everything.safetensors").write_bytes(b"for other programs")
    assert of({"model": str(folder)}) == first
    (folder / "transformer" / "model.safetensors").write_bytes(b"others!")
    assert of({"model": str(folder)}) != first


def test_of_a_run_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (5, 10):
        model(run / "checkpoints" / f"step-{step:06d}", b"%d" % step)
    first = of({"path": str(run)})
    (run / "metrics.jsonl").write_text("{}")
    (run / "checkpoints" / "step-000005" / "model.safetensors").write_bytes(b"old")
    (run / "checkpoints" / "step-000010" / "state").mkdir()
    (run / "checkpoints" / "step-000010" / "state" / "optimizer.safetensors").write_bytes(b"moments")
    assert of({"path": str(run)}) == first
    model(run / "checkpoints" / "step-000015")
    assert of({"path": str(run)}) != first


@pytest.mark.parametrize(
    "text", ["", " ", "a bag", "facebook/none", "x\0y", "/" * 2000, "/", "~", "~/", "./", "../", "png", "likeness", "."]
)
def test_other_strings_are_themselves(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a folder of that name lies about, unless it holds a model."""
    for name in ("png", "likeness"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert of({"word": text}) == {"word": text}


def test_a_model_s_bare_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert "content" in of({"model": "mine"})["model"]


def test_databases_and_logs_are_written_and_not_read(tmp_path: Path) -> None:
    for name in ("a.sqlite", "b.log", "c.db"):
        (tmp_path / name).write_text(name)
        assert of({"cache": str(tmp_path / name)}) == {"cache": str(tmp_path / name)}


def test_a_hub_id_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (refs / "main").write_text("a" * 40)
    (refs / "v2").write_text("b" * 40)
    assert hub_commit("org/name") == "a" * 40
    assert of({"model": "org/name"}) == {"model": {"hub": "org/name", "commit": "a" * 40}}
    assert of({"model": "org/name", "revision": "v2"})["model"]["commit"] == "b" * 40
    assert of({"base_lora": {"path": "org/name/x.safetensors"}})["base_lora"]["path"]["commit"] == "a" * 40
    assert of({"model": "org/other"}) == {"model": "org/other"}
    (refs / "main").write_text("c" * 40)
    assert of({"model": "org/name"})["model"]["commit"] == "c" * 40
    assert with_local_content({"model": "org/name"}, FileHashes()) == {"model": "org/name"}


def test_a_revision_is_of_its_own_hub_id_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned policy hid the commits of the base's LoRA and of a single file, and a pinned commit was none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("model", "lora", "file"):
        folder = tmp_path / f"models--org--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(f"{name}-main")
        (folder / "snapshots" / "a-commit").mkdir(parents=True)
    (tmp_path / "models--org--model/refs/v1").write_text("model-v1")
    section = {
        "model": "org/model", "revision": "v1", "base_lora": {"path": "org/lora", "revision": None},
        "transformer": "org/file/x.safetensors", "transformer_revision": None,
    }  # fmt: skip
    found = of(section)
    assert found["model"]["commit"] == "model-v1"
    assert found["base_lora"]["path"]["commit"] == "lora-main"
    assert found["transformer"]["commit"] == "file-main"
    found = of(
        {**section, "transformer_revision": "a-commit", "base_lora": {"path": "org/lora", "revision": "a-commit"}}
    )
    assert found["transformer"]["commit"] == found["base_lora"]["path"]["commit"] == "a-commit"


def test_a_plug_in_is_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_reward_of_identity.py"
    file.write_text("def score(example, images):\n    return [0.0 for _ in images]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("my_reward_of_identity")
    first = of({"type": "my_reward_of_identity:score"})
    assert first == of({"type": "my_reward_of_identity:score"})
    file.write_text(file.read_text().replace("0.0", "1.0"))
    assert of({"type": "my_reward_of_identity:score"}) != first
    assert json.dumps(of({"type": "none_such:score"}))
    del sys.modules["my_reward_of_identity"]


def test_the_embedded_models_are_those_of_the_package() -> None:
    found = of({"model": "mini"})["model"]
    assert found["embedded"] == "mini"
    assert len(found["manifest.json"]) == 64

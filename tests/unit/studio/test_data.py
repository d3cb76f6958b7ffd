"""The studio's examples to begin with."""

import json
from pathlib import Path

import pytest

from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.studio.data import examples_of
from layouts import draw


def test_a_damaged_picture_is_no_example_and_stops_no_studio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    lines = [{"id": name, "prompt": "a bag", "references": [f"{name}.png"]} for name in ("b", "a")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / "manifest.jsonl")))
    assert [one.key for one in examples_of(data, 8)] == ["a"]
    said = capsys.readouterr().err
    assert "left out of the examples to begin with" in said
    assert "b.png: is damaged or truncated" in said

"""Pictures that a supervised objective learns from: read where they are asked for, missed by name, known by content."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.data.base import Dataset, load_dataset, supervised
from customized_grpo.data.content import contents
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.data.rows import ManifestError
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.mini.dataset import MiniDataset
from customized_grpo.mini.oracle import MiniOracle

COLORS = {"ref.png": "red", "target.png": "green", "good.png": "blue", "bad.png": "black"}


def manifest(folder: Path, **keys: Any) -> ManifestDataset:
    for name, color in COLORS.items():
        Image.new("RGB", (16, 8), color).save(folder / name)
    rows = [{"id": f"dog-{i}", "prompt": "a dog", "references": ["ref.png"], **keys} for i in range(3)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ManifestDataset(ManifestDataset.Config(type="manifest", path=str(folder / "data.jsonl")))


PAIR = {"chosen": "good.png", "rejected": "bad.png"}


def test_pictures_are_those_that_are_asked_for(tmp_path: Path) -> None:
    plain = manifest(tmp_path, target="target.png", **PAIR)
    assert plain[0].targets == ()
    (target,) = supervised(plain, 1)[0].targets
    chosen, rejected = supervised(plain, 2)[2].targets
    assert [one.getpixel((0, 0)) for one in (target, chosen, rejected)] == [(0, 128, 0), (0, 0, 255), (0, 0, 0)]
    assert len(supervised(plain, 1)) == 3
    assert supervised(plain, 2)[1].key == "dog-1"


def test_an_example_without_them_stops_a_run_at_its_start(tmp_path: Path) -> None:
    plain = manifest(tmp_path, target="target.png")
    with pytest.raises(ValueError, match=r"3 of 3 examples have no chosen and rejected \(dog-0, dog-1, dog-2\)"):
        supervised(plain, 2)
    (tmp_path / "target.png").unlink()
    with pytest.raises(ManifestError, match=r"data\.jsonl:1: no such file: .*target\.png"):
        supervised(plain, 1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"chosen": "good.png"}, "chosen without rejected"),
        ({"rejected": "good.png"}, "rejected without chosen"),
        ({"chosen": "good.png", "rejected": "good.png"}, "are one file"),
        ({"chosen": "../good.png", "rejected": "bad.png"}, "not inside the manifest's folder"),
    ],
)
def test_a_pair_is_two_files_of_the_folder(tmp_path: Path, keys: dict[str, str], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        manifest(tmp_path, **keys)


def test_a_data_set_that_has_none_is_refused() -> None:
    class Bare:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            raise IndexError

    bare: Dataset = Bare()
    with pytest.raises(
        ValueError, match=r"Bare has no pictures to learn from \(target\); start a new run on a manifest"
    ):
        supervised(bare, 1)


def test_their_content_is_part_of_what_a_supervised_run_stands_on_and_of_no_other(tmp_path: Path) -> None:
    def content(data: Dataset) -> Any:
        return contents(data, [0], FileHashes(tmp_path / "hashes.json"))[0]

    plain = manifest(tmp_path, target="target.png")
    before, learnt = content(plain), content(supervised(plain, 1))
    assert {name: value for name, value in learnt.items() if name != "targets"} == before
    Image.new("RGB", (16, 8), "white").save(tmp_path / "target.png")
    assert content(plain) == before
    assert content(supervised(plain, 1))["targets"] != learnt["targets"]


def test_the_miniatures_targets_are_true_pictures_and_copies_of_the_references_scene() -> None:
    data = load_dataset(MiniDataset.Config(type="mini", split="tune", size=8))
    learnt = supervised(data, 2)
    oracle = MiniOracle(MiniOracle.Config(type="mini_oracle"), device=torch.device("cpu"))
    right = {"chosen": 0.0, "rejected": 0.0}
    for index in range(len(data)):
        example = learnt[index]
        assert example.references[0].tobytes() == data[index].references[0].tobytes()
        found = oracle(example, torch.stack([torch.from_numpy(np.array(one)) for one in example.targets]))
        for row, name in enumerate(right):
            right[name] += float(found["prompt_accuracy"][row]) / len(data)
    assert right["chosen"] > 0.95
    assert right["rejected"] < 0.8

"""Weights of reward models are whole, used, and numbers; whole other parts of a checkpoint are left aside."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model, modeling_utils

from customized_grpo.identity.hashes import FileHashes
from customized_grpo.identity.sections import identified
from customized_grpo.rewards.clip import ClipI
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.segmenter import Segmenter, SegmenterConfig
from tiny_rewards import example, pictures

CPU = torch.device("cpu")


def changed(folder: Path, target: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def configured(folder: Path, target: Path, **values: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("vision_config", {})):
        section |= {name: value for name, value in values.items() if name in section}
    config = {name: one for name, one in config.items() if name not in ("out_features", "out_indices", "stage_names")}
    (target / "config.json").write_text(json.dumps(config))
    return target


def dino(folder: Path) -> Dino:
    return Dino(Dino.Config(type="dino", weight=1.0, model=str(folder)), device=CPU)


def clip(folder: Path) -> ClipI:
    return ClipI(ClipI.Config(type="clip_i", weight=1.0, model=str(folder)), device=CPU)


BUILD: dict[str, Callable[[Path], Any]] = {"dino_folder": dino, "clip_folder": clip}
both = pytest.mark.parametrize("kind", list(BUILD))


@both
def test_a_weight_that_is_missing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[next(name for name in sorted(tensors) if ".1." in name)]

    folder = changed(request.getfixturevalue(kind), tmp_path / "broken", drop)
    with pytest.raises(ValueError, match=rf"^reward model '{folder}' .* it lacks 1 weight that the model has: .*\.1\."):
        BUILD[kind](folder)


@both
def test_layers_that_the_configuration_leaves_out(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Only transformers' own table was shown, and the reward was of half a model."""
    folder = configured(request.getfixturevalue(kind), tmp_path / "short", num_hidden_layers=1)
    with pytest.raises(
        ValueError, match=rf"'{folder}' .* it holds \d+ weights that the model has no place for: .*\.1\."
    ):
        BUILD[kind](folder)


@both
def test_weights_of_another_shape(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It was a traceback of transformers' RuntimeError."""
    folder = configured(request.getfixturevalue(kind), tmp_path / "other", intermediate_size=16, mlp_ratio=1)
    with pytest.raises(ValueError, match=rf"'{folder}' .* it holds \d+ weights of another shape: .* \(\d.* for \d"):
        BUILD[kind](folder)


@both
def test_a_weight_that_is_no_number(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each image was unscorable, and the model was never named."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[next(name for name in sorted(tensors) if ".1." in name)].flatten()[0] = torch.nan

    folder = changed(request.getfixturevalue(kind), tmp_path / "nan", spoil)
    with pytest.raises(ValueError, match=rf"^reward model '{folder}' is broken: 1 values? .*NaN.*\.1\."):
        BUILD[kind](folder)


def test_the_segmenter_as_well(segmenter_folders: tuple[Path, Path], tmp_path: Path) -> None:
    for at, name in enumerate(("detector", "sam")):

        def drop(tensors: dict[str, Tensor]) -> None:
            del tensors[sorted(tensors)[-1]]

        folders = list(segmenter_folders)
        folders[at] = changed(folders[at], tmp_path / name, drop)
        config = SegmenterConfig(detector=str(folders[0]), sam=str(folders[1]))
        with pytest.raises(ValueError, match=rf"reward model '{folders[at]}' .* it lacks 1 weight"):
            Segmenter(config, device=CPU)


def test_a_head_beside_an_encoder_is_left(dino_folder: Path, tmp_path: Path) -> None:
    """A classifier's checkpoint, whose names have a prefix; its encoder is read and scores alike."""
    model = Dinov2ForImageClassification(Dinov2Config.from_pretrained(dino_folder, num_labels=3))
    model.dinov2.load_state_dict(Dinov2Model.from_pretrained(dino_folder).state_dict())
    folder = tmp_path / "classifier"
    shutil.copytree(dino_folder, folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "model.safetensors", folder)
    one, images = example(), pictures(2)
    assert torch.equal(dino(folder)(one, images), dino(dino_folder)(one, images))
    short = configured(folder, tmp_path / "short", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"no place for: .*layer\.1\."):
        dino(short)


def test_a_head_of_numbered_layers_is_left(dino_folder: Path, tmp_path: Path) -> None:
    """Of a sequence whose first layer, a dropout, has no weights; and old buffers."""

    def add(tensors: dict[str, Tensor]) -> None:
        tensors |= {"classifier.1.weight": torch.ones(3, 24), "classifier.1.bias": torch.ones(3)}
        tensors |= {"decoder.layer.0.weight": torch.ones(3), "decoder.layer.5.weight": torch.ones(3)}

    dino(changed(dino_folder, tmp_path / "head", add))


@pytest.fixture
def pickled(dino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id whose main branch has no safetensors; refs/pr/1 has them, and the commit is known."""
    repository = tmp_path / "models--org--pickled"
    for commit, kept in (("a" * 40, False), ("b" * 40, True)):
        shutil.copytree(dino_folder, repository / "snapshots" / commit)
        if not kept:
            (repository / "snapshots" / commit / "model.safetensors").unlink()
            (repository / "snapshots" / commit / "pytorch_model.bin").write_bytes(b"a pickle")
    for ref, commit in (("main", "a" * 40), ("refs/pr/1", "b" * 40)):
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    cached = modeling_utils.cached_file

    def asked(name: str, filename: str, **options: Any) -> str | None:
        """As online, where a file that isn't there is none."""
        there = repository / "snapshots" / (repository / "refs" / (options.get("revision") or "main")).read_text()
        return cached(name, filename, **options) if (there / filename).is_file() else None

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling_utils, "cached_file", asked)
    return "org/pickled"


def test_a_main_branch_without_safetensors_is_converted_by_nobody(
    pickled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asked a service on the hub, with the user's token, and loaded the pull request that it made."""

    def convert(*_: Any, **__: Any) -> Any:
        pytest.fail("the model was sent to be converted")

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(modeling_utils, "auto_conversion", convert)
    config = Dino.Config(type="dino", model=pickled)
    with pytest.raises(ValueError, match=r"'org/pickled' .* main of it holds no \.safetensors, .* refs/pr/1"):
        Dino(config, device=CPU)


def test_a_revision_is_what_is_loaded_and_what_a_run_stands_on(pickled: str) -> None:
    config = Dino.Config(type="dino", model=pickled, revision="refs/pr/1")
    loaded = Dino(config, device=CPU)
    assert loaded(example(), pictures(2)).isfinite().all()
    named = identified(config.model_dump(), FileHashes())["model"]
    assert named == {"hub": pickled, "commit": "b" * 40}
    by_commit = identified(config.model_copy(update={"revision": "b" * 40}).model_dump(), FileHashes())
    assert by_commit["model"] == named

"""Several LoRAs at once, each with a scale, by path and from the hub: the sum is exact, and nothing is dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.lora_files import find_adapter
from customized_grpo.policies.adapters.tuning import with_scale
from customized_grpo.policies.flux import UNO
from lora_conventions import CLOSE, FLUX, Convention, add, difference, velocity
from lora_writers import Written
from tiny import tiny_policy

BY_NAME = {one.name: one for one in FLUX}
KOHYA, XLABS, PEFT = (BY_NAME[f"flux-1-{name}"] for name in (
    "sd-scripts--kohya-", "xlabs--x-flux-", "peft-s--save-pretrained---trl--unirl--flow-factory-",
))  # fmt: skip


@pytest.fixture
def write(tiny_flux: Path, tmp_path: Path) -> Callable[[Convention], Written]:
    return lambda one: one.write(tmp_path / one.name, tiny_policy(tiny_flux).transformer)


def drawn(policy: UNO) -> Tensor:
    return velocity(policy, policy.encode("a red dog", []))


@pytest.mark.parametrize("scales", [(1, 1, 1), (0.8, -0.5, 1), (0, 2, 0.25)])
def test_updates_add_up(tiny_flux: Path, write: Any, scales: tuple[float, float, float]) -> None:
    right, found = tiny_policy(tiny_flux), tiny_policy(tiny_flux)
    written = [write(one) for one in (KOHYA, XLABS, PEFT)]
    for one, scale in zip(written, scales, strict=True):
        add(right, {name: scale * delta for name, delta in one.delta.items()})
    texts = [f"{one.path}={scale}" if scale != 1 else str(one.path) for one, scale in zip(written, scales, strict=True)]
    tuning.load_tuned(found, texts)
    assert difference(drawn(right), drawn(tiny_policy(tiny_flux))) > 1e-2
    assert difference(drawn(found), drawn(right)) < CLOSE


def test_the_same_one_twice_is_twice_the_update(tiny_flux: Path, write: Any) -> None:
    path = str(write(KOHYA).path)
    twice, double = tiny_policy(tiny_flux), tiny_policy(tiny_flux)
    tuning.load_tuned(twice, [path, path])
    tuning.load_tuned(double, f"{path}=2")
    assert difference(drawn(twice), drawn(double)) < CLOSE


def test_a_scale_is_part_of_the_weights_identity(tiny_flux: Path, write: Any) -> None:
    """Rows of an evaluation that were drawn with another scale are not these."""
    path = str(write(KOHYA).path)
    given = [[path], [f"{path}=0.5"], [path, path]]
    found = {tuning.apply_all(tiny_policy(tiny_flux), tuning.read_all(texts)) for texts in given}
    assert len(found) == len(given)


@pytest.mark.parametrize(
    ("text", "where", "scale"),
    [
        ("runs/mine", "runs/mine", 1),
        ("runs/mine=0.8", "runs/mine", 0.8),
        ("style.safetensors=-1", "style.safetensors", -1),
        ("org/name/file.safetensors=1e-1", "org/name/file.safetensors", 0.1),
        (r"C:\loras\style.safetensors=0.5", r"C:\loras\style.safetensors", 0.5),
        (r"C:\loras\style.safetensors", r"C:\loras\style.safetensors", 1),
        ("runs/lr=small", "runs/lr=small", 1),
        ("runs/lr=0.1=0.5", "runs/lr=0.1", 0.5),
        ("runs/mine=", "runs/mine=", 1),
    ],
)
def test_a_scale_stands_after_the_last_equals_sign(text: str, where: str, scale: float) -> None:
    assert with_scale(text) == (where, scale)


def test_a_path_that_ends_like_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    assert with_scale("lr=0.1") == ("lr=0.1", 1)
    assert with_scale("lr=0.1=0.5") == ("lr=0.1", 0.5)
    Path("lr").mkdir()
    with pytest.raises(ValueError, match=r"'lr=0\.1' exists, and so does 'lr'; write lr=0\.1=1"):
        with_scale("lr=0.1")
    assert with_scale("lr=0.1=1") == ("lr=0.1", 1)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_scale_is_finite(number: str) -> None:
    with pytest.raises(ValueError, match="a finite number is needed"):
        with_scale(f"runs/mine={number}")


def test_a_whole_transformer_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "read", lambda where: TransformerFolder.__new__(TransformerFolder))
    monkeypatch.setattr(TransformerFolder, "path", tmp_path, raising=False)
    for given in (["full", "style"], ["full=0.5"]):
        with pytest.raises(ValueError, match="trained in full: it has no scale"):
            tuning.read_all(given)


class Hub:
    """A repository in a folder in place of the hub."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[str] = []
        folder.mkdir()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.files)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def files(self, repository: str, revision: str | None) -> list[str]:
        return [one.relative_to(self.folder).as_posix() for one in self.folder.rglob("*") if one.is_file()]

    def download(self, repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        self.asked.append(f"{repository}/{name}@{revision}")
        return str(self.folder / name)

    def snapshot(self, repository: str, *, revision: str | None, local_files_only: bool) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("nothing there")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_the_only_file_of_a_repository(hub: Hub) -> None:
    (hub.folder / "style.safetensors").touch()
    (hub.folder / "README.md").touch()
    assert find_adapter("org/style", revision="v2") == hub.folder / "style.safetensors"
    assert hub.asked == ["org/style/style.safetensors@v2"]


def test_a_named_file(hub: Hub) -> None:
    (hub.folder / "deep").mkdir()
    for name in ("deep/a.safetensors", "b.safetensors"):
        (hub.folder / name).touch()
    assert find_adapter("org/style/deep/a.safetensors") == hub.folder / "deep" / "a.safetensors"


def test_the_usual_name_comes_first(hub: Hub) -> None:
    for name in ("pytorch_lora_weights.safetensors", "other.safetensors"):
        (hub.folder / name).touch()
    assert find_adapter("org/style").name == "pytorch_lora_weights.safetensors"


def test_peft_comes_with_its_configuration(hub: Hub) -> None:
    """Without it its alpha is unknown."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (hub.folder / name).touch()
    find_adapter("org/style")
    assert hub.asked == ["org/style/adapter_config.json@None", "org/style/adapter_model.safetensors@None"]


def test_several_files_and_none_named(hub: Hub) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (hub.folder / name).touch()
    with pytest.raises(ValueError, match=r"holds 2 \.safetensors files \(org/style/a.*, org/style/b.*\); name one"):
        find_adapter("org/style")


def test_offline_only_the_cache_is_asked(hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"there is no 'org/style' here, and on the hub it is not in the hub's cache"):
        find_adapter("org/style", offline=True)


def test_a_misspelt_run_is_no_hub_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(ValueError, match="no adapter at 'runs/mine'"):
        find_adapter("runs/mine")
    assert not hub.asked


def test_a_hub_id_is_drawn_with(hub: Hub, tiny_flux: Path, write: Any) -> None:
    torch.manual_seed(0)
    (hub.folder / "lora.safetensors").write_bytes(write(XLABS).path.read_bytes())
    by_id, by_path = tiny_policy(tiny_flux), tiny_policy(tiny_flux)
    tuning.load_tuned(by_id, "org/style=0.5")
    tuning.load_tuned(by_path, f"{hub.folder / 'lora.safetensors'}=0.5")
    assert torch.equal(drawn(by_id), drawn(by_path))

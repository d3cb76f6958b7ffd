"""Weights by path or hub id: what is found, and in one line what to do where it is not. The hub is never asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import FluxPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.policies.hub_files import weights_file


def refusal(kind: Any) -> Exception:
    """The hub's own exception, as its client raises it."""
    text = "403 Client Error.\nAccess is restricted."
    error: Exception = (
        kind(text, response=SimpleNamespace(headers={}, request=None))
        if issubclass(kind, HfHubHTTPError)
        else kind(text)
    )
    return error


CASES = [
    (
        GatedRepoError,
        r"is gated: accept its licence at https://huggingface\.co/owner/name, then run 'hf auth login'",
    ),
    (RepositoryNotFoundError, r"no repository 'owner/name' on the hub, or it is private"),
    (RevisionNotFoundError, r"'owner/name' has no such revision"),
    (RemoteEntryNotFoundError, r"'owner/name' has no such file"),
    (LocalEntryNotFoundError, r"not in the hub's cache.*policy\.offline=false"),
    (OfflineModeIsEnabled, r"HF_HUB_OFFLINE is set"),
]


@pytest.mark.parametrize(("kind", "message"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_a_model_that_the_hub_refuses(kind: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where diffusers has wrapped the hub's exception in one of its own."""

    def fail(*_: object, **__: object) -> None:
        try:
            raise refusal(kind)
        except Exception as error:
            raise OSError("Cannot load model owner/name:\n several lines") from error

    monkeypatch.setattr(FluxPipeline, "download", fail)
    with pytest.raises(ValueError, match=rf"policy\.model: 'owner/name' can't be loaded: .*{message}") as caught:
        UNO.load(UNOConfig(model="owner/name"), device=torch.device("cpu"), dtype=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "message"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_a_file_that_the_hub_refuses(kind: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise refusal(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=rf"^policy\.x: 'owner/name' can't be loaded: .*{message}") as caught:
        weights_file("owner/name", "policy.x", default="a.safetensors", revision=None, offline=False)
    assert "\n" not in str(caught.value)


def test_what_a_path_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repo, file, revision, local_files_only))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (tmp_path / "a.safetensors").touch()

    def find(given: str | Path, default: str | None = "a.safetensors") -> Path:
        return weights_file(str(given), "policy.x", default=default, revision="main", offline=True)

    assert find(tmp_path) == find(tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    assert not asked
    assert find("owner/name") == find("owner/name/sub/b.safetensors", None) == tmp_path / "cached"
    assert asked == [
        ("owner/name", "a.safetensors", "main", True),
        ("owner/name", "sub/b.safetensors", "main", True),
    ]
    for nowhere in (tmp_path / "absent.safetensors", "./x.safetensors", "name"):
        with pytest.raises(ValueError, match=r"policy\.x: there is no file .*organisation/name/a\.safetensors"):
            find(nowhere)
    with pytest.raises(ValueError, match="there is no file"):
        find("owner/name", None)

"""The one function that opens a device: what it chooses, what it refuses, and the attention that it switches off."""

from contextlib import nullcontext

import pytest
import torch

from customized_grpo.devices import open_device


def test_the_device_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert open_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert open_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert open_device("cuda:1") == torch.device("cuda", 1)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^run\.device: 'cuda' .* use run\.device=auto or cpu$"):
        open_device("cuda")
    with pytest.raises(ValueError, match=r"use --device=auto or cpu$"):
        open_device("cuda", "--device")


def test_cudnn_attention_is_off() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    open_device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("gpus", "rank", "fits"), [(1, "1", False), (2, "1", True), (0, "3", True), (1, "", True)])
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int, rank: str, fits: bool) -> None:
    """It was 'CUDA error: invalid device ordinal' from within accelerate (tatsu-lab/stanford_alpaca#67)."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    with nullcontext() if fits else pytest.raises(ValueError, match=r"has 1 usable GPU\(s\), and process 1 .* at most"):
        open_device("auto")
    open_device("cpu")


def test_defaults_that_a_module_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that sets them makes noise in half precision, or crashes models (mosaicml/diffusion#136)."""
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on cpu, where torch\.float32 on cpu .* an imported module"):
        open_device("auto")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    with pytest.raises(ValueError, match=r"torch\.float32 on cuda, where"):
        open_device("cpu")

"""The one function that opens a device: what it chooses, what it refuses, and the attention that it switches off."""

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

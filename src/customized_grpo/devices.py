"""The device that a process computes on: chosen, checked, and freed of what computes wrong there."""

import torch


def open_device(asked: str, key: str = "run.device") -> torch.device:
    """The device of ``run.device``, before anything is loaded on it; ``auto`` is the accelerator where there is one.

    Args:
        asked: ``auto``, or a device's name.
        key: the recipe's key or the command's option, for the message.

    Raises:
        ValueError: a GPU is asked for, and torch finds none.
    """
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{key}: {asked!r} was asked for but torch finds no GPU; use {key}=auto or cpu")
    # cuDNN's attention is torch's own choice on an H100 or H200 from 2.11 on. With it FLUX's gradients in bfloat16 were
    # NaN, infinite or an illegal access there (docs/log.md; https://github.com/pytorch/pytorch/issues/196678 is one of
    # its kind). It can go when tests/integration/test_devices.py passes on such a card without it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if asked != "auto":
        return torch.device(asked)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

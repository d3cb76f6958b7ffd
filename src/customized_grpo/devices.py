"""The device that a process computes on: chosen, checked, and freed of what computes wrong there."""

import gc
import os

import torch


def open_device(asked: str, key: str = "run.device") -> torch.device:
    """The device of ``run.device``, before anything is loaded on it; ``auto`` is the accelerator where there is one.

    Args:
        asked: ``auto``, or a device's name.
        key: the recipe's key or the command's option, for the message.

    Raises:
        ValueError: a GPU is asked for, and torch finds none, or fewer than this machine has processes; or torch's
            defaults are others than its own.
    """
    _defaults_are_torchs()
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{key}: {asked!r} was asked for but torch finds no GPU; use {key}=auto or cpu")
    local, there = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if asked in ("auto", "cuda") and 0 < there <= local:
        raise ValueError(
            f"this machine has {there} usable GPU(s), and process {local} (LOCAL_RANK, from 0) needs one of its own; "
            f"start at most {there} processes a machine (--nproc_per_node, --num_processes); see CUDA_VISIBLE_DEVICES"
        )
    # cuDNN's attention is torch's own choice on an H100 or H200 from 2.11 on. With it FLUX's gradients in bfloat16 were
    # NaN, infinite or an illegal access there (docs/log.md; https://github.com/pytorch/pytorch/issues/196678 is one of
    # its kind). It can go when tests/integration/test_devices.py passes on such a card without it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if asked != "auto":
        return torch.device(asked)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """A device as people call it: the card's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else device.type


def safetensors_name(device: torch.device) -> str:
    """What safetensors calls a device: it knows no ``cpu:0``, which accelerate gives each of several CPU processes."""
    return "cpu" if device.type == "cpu" else str(device)


def _defaults_are_torchs() -> None:
    """Refuse defaults that a module has set when it was imported: noise and scores would be made in them, too."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32 or device.type != "cpu":
        raise ValueError(
            f"torch's defaults are {dtype} on {device}, where torch.float32 on cpu is needed: an imported module, as a "
            "plug-in's, calls torch.set_default_dtype, _device or _tensor_type; give dtype= and device= there instead"
        )


def leave_group_of_one() -> None:
    """Leave the process group of a job of one process, if there is one; after an error, too.

    Several processes leave theirs at their end: a group that is left takes its connections along, and the others would
    fail of that before the one that met an error has said why. So does one whose error still holds DDP's wrapper: the
    group would die with the wrapper, see ``training.engine.finishing``.
    """
    group = torch.distributed
    if not group.is_available() or not group.is_initialized() or group.get_world_size() > 1:
        return
    gc.collect()
    if not any(type(one) is torch.nn.parallel.DistributedDataParallel for one in gc.get_objects()):
        group.destroy_process_group()

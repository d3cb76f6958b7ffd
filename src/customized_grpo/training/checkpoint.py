"""Checkpoints: a folder that is complete or absent, safetensors and JSON only.

``checkpoints/step-000050/`` holds ``pytorch_lora_weights.safetensors`` (diffusers format, what ``load_lora_weights``
opens), ``state/`` (trained and averaged weights, optimizer, everything a resume needs) and ``manifest.json`` with sizes
and hashes.
It is written aside, synced, and renamed; the manifest is what makes it complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
PREFIX = "step-"


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or corrupt; the message says which and what to do."""


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write ``folder/step-NNNNNN`` atomically, then drop the oldest beyond ``keep``.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: GRPO steps done.
        write: fills an empty folder with the checkpoint's files.
        keep: complete checkpoints left afterwards, the new one among them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{step:06d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    write(aside)
    files = {
        str(path.relative_to(aside)): _describe(path) for path in sorted(aside.rglob("*")) if path.is_file()
    }
    (aside / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n")
    for path in aside.rglob("*"):
        _sync(path)
    _sync(aside)
    if target.exists():  # an earlier attempt at this step, incomplete or about to be written again
        shutil.rmtree(target)
    aside.rename(target)
    _sync(folder)
    for old in _candidates(folder)[keep:]:
        shutil.rmtree(old)
    return target


def check(checkpoint: Path) -> int:
    """Verify every file of a checkpoint against its manifest.

    Returns:
        The GRPO steps done.

    Raises:
        CheckpointError: what is missing or differs.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files, step = manifest["files"], manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: no readable {MANIFEST} ({error}); this is not a complete checkpoint"
        ) from error
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing; resume from another checkpoint")
        if _describe(path) != expected:
            raise CheckpointError(f"{checkpoint}: {name} is corrupt (size or hash differs from the manifest)")
    return int(step)


def has_any(folder: Path) -> bool:
    """Whether there is a checkpoint, complete or not; what is still being written is none."""
    return bool(_candidates(folder))


def latest(folder: Path, warn: Callable[[str], None]) -> Path:
    """The newest complete checkpoint; a corrupt newer one is reported through ``warn`` and passed over.

    Raises:
        CheckpointError: there is none.
    """
    for candidate in _candidates(folder):
        try:
            check(candidate)
        except CheckpointError as error:
            warn(f"{error}; falling back to the checkpoint before it")
            continue
        return candidate
    raise CheckpointError(
        f"{folder}: no complete checkpoint to resume from; start the run anew with run.resume=null"
    )


def newer_than(checkpoint: Path) -> list[str]:
    """Names of the checkpoints beside this one that are of later steps."""
    return [path.name for path in _candidates(checkpoint.parent) if path.name > checkpoint.name]


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Optimizer state as ``<parameter>/<entry>`` tensors, ``names`` in the order of its one parameter group."""
    # Read off the parameters, not state_dict(): bitsandbytes nests that. It also counts steps by plain integers.
    return {
        f"{name}/{entry}": (
            value.detach().cpu().clone().contiguous()
            if isinstance(value, Tensor)
            else torch.tensor(value, dtype=torch.float32)
        )
        for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True)
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``flatten_optimizer`` gave; the hyper-parameters stay the recipe's."""
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index_of[name], {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with sorted keys, so that equal weights give equal bytes."""
    save_file({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU."""
    return load_file(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _candidates(folder: Path) -> list[Path]:
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else []
    return sorted((path for path in found if path.is_dir()), key=lambda path: path.name, reverse=True)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints: a folder that is complete or absent, safetensors and JSON only.

``checkpoints/step-000050/`` holds ``pytorch_lora_weights.safetensors`` (diffusers format, what ``load_lora_weights``
opens) or, of full fine-tuning, ``transformer/`` (what ``from_pretrained`` opens), ``state/`` (trained and averaged
weights, optimizer, everything a resume needs) and ``manifest.json`` with sizes and hashes.
``checkpoints/latest`` leads to the newest one.
It is written aside, synced, and renamed, and also removed by renaming: an existing folder is complete.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from customized_grpo.identity.hashes import file_hash
from customized_grpo.identity.runs import goes_on
from customized_grpo.paths import is_inside
from customized_grpo.policies.adapters.sharding import cut_like, whole

MANIFEST = "manifest.json"
PREFIX = "step-"
LATEST = "latest"
"""A link to the newest checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or corrupt; the message says which and what to do."""


class SaveError(RuntimeError):
    """A checkpoint that can't be written; the message says why, and that those before it are still there."""


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write ``folder/step-NNNNNN`` atomically, then drop the oldest beyond ``keep``.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: GRPO steps done.
        write: fills an empty folder with the checkpoint's files.
        keep: complete checkpoints left afterwards, the new one among them.

    Raises:
        SaveError: the disk is full, can't be written, or failed.
    """
    target = folder / f"{PREFIX}{step:06d}"
    aside = folder / f".{target.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{PREFIX}*"):  # of a run that was killed here
            shutil.rmtree(left)
        aside.mkdir()
        write(aside)
        files = {str(path.relative_to(aside)): _describe(path) for path in sorted(aside.rglob("*")) if path.is_file()}
        (aside / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
        for path in aside.rglob("*"):
            _sync(path)
        _sync(aside)
        if target.exists():  # an earlier attempt at this step that was passed over
            _discard(target)
        aside.rename(target)
        _link(folder, target.name)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise SaveError(
            f"{target} can't be written: {_reason(error)}. The checkpoints before it are untouched: make room or give "
            f"write access, then go on by: {goes_on(folder.parent)}"
        ) from error
    for old in _candidates(folder)[keep:]:
        _discard(old)
    return target


def check(checkpoint: Path) -> int:
    """Verify every file of a checkpoint against its manifest.

    Returns:
        The GRPO steps done.

    Raises:
        CheckpointError: what is missing or differs.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files, step = manifest["files"], manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: no readable {MANIFEST} ({error}); this is not a complete checkpoint"
        ) from error
    for name, expected in files.items():
        if not is_inside(name):
            raise CheckpointError(f"{checkpoint}: its manifest names {name!r}, which is outside; don't trust it")
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing; resume from another checkpoint")
        if _describe(path) != expected:
            raise CheckpointError(f"{checkpoint}: {name} is corrupt (size or hash differs from the manifest)")
    return int(step)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint, unverified; None if there is none."""
    return next(iter(_candidates(folder)), None)


def latest(folder: Path, warn: Callable[[str], None]) -> Path:
    """The newest complete checkpoint; corrupt newer ones are reported through ``warn`` and skipped.

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
    raise CheckpointError(f"{folder}: no complete checkpoint to resume from; start the run anew with run.resume=null")


def newer_than(checkpoint: Path) -> list[str]:
    """Names of the checkpoints beside this one that are of later steps."""
    return [path.name for path in _candidates(checkpoint.parent) if _step(path) > _step(checkpoint)]


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], *, keep: bool = True
) -> dict[str, Tensor]:
    """Optimizer state as ``<parameter>/<entry>`` tensors, ``names`` in the order of its one parameter group.

    Shards are put together by all ranks; one that doesn't ``keep`` the result only takes part.
    """
    flat = {}
    # Read off the parameters, not state_dict(): bitsandbytes nests that. It also counts steps by plain integers.
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        for entry, value in optimizer.state.get(parameter, {}).items():
            plain = torch.tensor(value, dtype=torch.float32) if isinstance(value, int) else value
            full = whole(plain.detach())
            if keep:
                flat[f"{name}/{entry}"] = full.cpu().clone().contiguous()
    return flat


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``flatten_optimizer`` gave; the hyper-parameters stay the recipe's."""
    index_of = {name: index for index, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        of = parameters[name]
        state.setdefault(index_of[name], {})[entry] = cut_like(tensor, of) if tensor.shape == of.shape else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _link(folder: Path, name: str) -> None:
    """Let ``latest`` lead to a checkpoint, for people and other programs: a resume looks at the folders themselves.

    A disk without links, as some network shares are, goes without.
    """
    aside, link = folder / f".{LATEST}.tmp", folder / LATEST
    with suppress(OSError):
        if link.is_dir() and not link.is_symlink():  # of a copied run, whose links became folders: it would go stale
            _discard(link)
        aside.unlink(missing_ok=True)
        aside.symlink_to(name)
        aside.replace(link)


def _candidates(folder: Path) -> list[Path]:
    """Newest first, by the step in the name: a clock that jumps can't change the order."""
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else []
    return sorted((path for path in found if _step(path) >= 0 and path.is_dir()), key=_step, reverse=True)


def _step(path: Path) -> int:
    """The step in a checkpoint's name; -1 for other names."""
    found = re.fullmatch(rf"{PREFIX}(\d+)", path.name)
    return int(found[1]) if found else -1


def _discard(path: Path) -> None:
    """Remove a checkpoint atomically: a kill leaves no partial one."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)


def _reason(error: Exception) -> str:
    """The system's error text; safetensors wraps it in its own."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""State of a training run in checkpoints, saved and restored bit for bit, or not at all.

Randomness is a function of (seed, purpose, step, index), so weights, optimizer, schedule and step suffice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.devices import device_name
from customized_grpo.evaluation import about
from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.lora_files import RECIPE
from customized_grpo.policies.adapters.tensor_files import read_tensors, write_tensors
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.training import averages, checkpoint, engine, trackers
from customized_grpo.training.distributed import gather_rows, together
from customized_grpo.training.parts import Parts
from customized_grpo.training.resumable import compare_recipes, differing, saved_recipe
from customized_grpo.training.tracking import METRICS, cut_metrics


def save(parts: Parts, done: int) -> None:
    """Write the checkpoint after ``done`` GRPO steps: all ranks gather, rank 0 writes, the others wait.

    Raises:
        SaveError: on every rank, if rank 0 can't write.
    """
    accelerator = parts.accelerator
    trained = engine.weights(accelerator, parts.parameters)
    untrained = engine.weights(accelerator, tuning.untrained_parameters(parts.policy))
    optimizer = engine.optimizer_state(accelerator, parts.optimizer, parts.parameters)
    average, old, behind = (
        {} if one is None else engine.weights(accelerator, averages.named(one, parts.parameters))
        for one in (parts.ema, parts.old, parts.behind)
    )
    trainer = {
        "step": done,
        "updates": parts.schedule.last_epoch,
        "ema_updates": 0 if parts.ema is None else parts.ema.optimization_step,
        "skipped": parts.state.skipped,
        "rollout_batch": parts.state.rollout_batch,
        "old_log_probs": parts.state.old_log_probs,
        "scorers": gather_rows([parts.scorer.tally.state_dict()]),
    }

    def write(aside: Path) -> None:
        recipe = parts.recipe.model_dump_json(exclude={"run"})
        about = {"base_model": parts.recipe.policy.model, RECIPE: recipe, "step": str(done)}
        about["precision"] = parts.recipe.run.precision
        tuning.save(parts.policy, aside, about, average or trained, untrained)
        save_recipe(parts.recipe, aside / "config.yaml")
        state = aside / "state"
        state.mkdir()
        write_tensors(state / "adapter.safetensors", trained)
        write_tensors(state / "optimizer.safetensors", optimizer)
        if average:
            write_tensors(state / "ema.safetensors", average)
        if old:
            write_tensors(state / "old.safetensors", old)
        if behind:
            write_tensors(state / "behind.safetensors", behind)
        (state / "trainer.json").write_text(json.dumps(trainer, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        assert parts.identity is not None
        parts.identity.write(state)
        parts.hashes.save()

    with together(accelerator, checkpoint.SaveError):
        if accelerator.is_main_process:
            keep = parts.recipe.train.keep_checkpoints
            checkpoint.save_checkpoint(parts.folder / "checkpoints", done, write, keep=keep)


def restore(parts: Parts, untrained: Callable[[], None] = lambda: None) -> int:
    """Load the checkpoint that ``run.resume`` names, and write the recipe into the run's folder.

    Args:
        parts: a run's parts.
        untrained: is called where there is a checkpoint to go on from, while the weights are still those of step 0.

    Returns:
        GRPO steps done.

    Raises:
        ValueError: the checkpoint is missing or corrupt, or the recipe, the data or a model changed in a way that
            matters.
    """
    run, main = parts.recipe.run, parts.accelerator.is_main_process
    start, held = 0, None
    with together(parts.accelerator, checkpoint.CheckpointError):
        if run.resume is not None:
            warn = parts.accelerator.print if main else lambda _: None
            path = _checkpoint(parts, warn)
            start = 0 if path is None else checkpoint.check(path)
            if parts.identity is not None:  # of the main process
                before = saved_recipe((path or parts.folder) / "config.yaml")
                if path is None:
                    keys = ", ".join(differing(before, parts.recipe)) or "none"
                    warn(f"{parts.folder} has no checkpoint yet; its run starts anew from step 0, changed keys: {keys}")
                else:
                    same = parts.identity.same_as(path, before, parts.recipe, warn)
                    if keys := ", ".join(compare_recipes(before, parts.recipe, same)):
                        warn(f"resuming with changed keys; a training step is the same up to rounding: {keys}")
            if path is not None:
                held = _read(parts, path / "state")
        if main:
            cut_metrics(parts.folder / METRICS, start or -1)  # a run that starts anew evaluates its base again
            save_recipe(parts.recipe, parts.folder / "config.yaml")
            device, processes = device_name(parts.accelerator.device), parts.accelerator.num_processes
            about.note(parts.folder, device=device, processes=processes, step=start)
    if held is not None:
        untrained()
        _put_back(parts, held)
    trackers.start(parts.accelerator, parts.recipe, parts.run)
    return start


def _checkpoint(parts: Parts, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint of ``run.resume``; None if the run was killed before its first one."""
    folder, named = parts.folder / "checkpoints", parts.recipe.run.resume
    assert named is not None
    if named != "latest":
        path = Path(named)
        if path.is_symlink():  # checkpoints/latest
            path = path.parent / path.readlink()
        newer = checkpoint.newer_than(path) if path.resolve().parent == folder.resolve() else None
        if newer is None:
            raise ValueError(
                f"run.resume: {path} is not a checkpoint of run.dir ({folder}); give one of these, or 'latest'"
            )
        if newer:
            raise ValueError(
                f"run.resume: {folder} holds newer checkpoints than {path.name} ({', '.join(newer)}), which a later "
                "run.resume=latest would take; move them away first"
            )
        return path
    if checkpoint.newest(folder) is None:
        return None
    return checkpoint.latest(folder, warn)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The files of a checkpoint's ``state``."""

    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] | None
    old: dict[str, Tensor] | None
    behind: dict[str, Tensor] | None
    trainer: dict[str, Any]


def _read(parts: Parts, state: Path) -> _Held:
    adapter = read_tensors(state / "adapter.safetensors")
    if set(adapter) != set(parts.parameters):
        raise checkpoint.CheckpointError(
            f"{state}: its trained weights are others than those of the recipe's policy.lora or policy.full"
        )
    return _Held(
        adapter=adapter,
        optimizer=read_tensors(state / "optimizer.safetensors"),
        average=None if parts.ema is None else read_tensors(state / "ema.safetensors"),
        old=None if parts.old is None else read_tensors(state / "old.safetensors"),
        behind=None if parts.behind is None else read_tensors(state / "behind.safetensors"),
        trainer=json.loads((state / "trainer.json").read_text(encoding="utf-8")),
    )


def _put_back(parts: Parts, held: _Held) -> None:
    saved, accelerator = held.trainer, parts.accelerator
    engine.load_weights(accelerator, parts.parameters, held.adapter)
    engine.load_optimizer_state(accelerator, parts.optimizer, parts.parameters, held.optimizer)
    parts.schedule.load_state_dict(parts.schedule.state_dict() | {"last_epoch": saved["updates"]})
    for group, lr in zip(parts.optimizer.param_groups, parts.schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * lr(saved["updates"])
    parts.schedule._last_lr = [group["lr"] for group in parts.optimizer.param_groups]
    if parts.ema is not None and held.average is not None:
        averages.put_back(parts.ema, parts.parameters, held.average)
        parts.ema.optimization_step = saved["ema_updates"]
    if parts.old is not None and held.old is not None:
        averages.put_back(parts.old, parts.parameters, held.old)
    if parts.behind is not None and held.behind is not None:
        averages.put_back(parts.behind, parts.parameters, held.behind)
    parts.state.skipped = saved["skipped"]
    parts.state.rollout_batch = saved.get("rollout_batch")  # older checkpoints have neither
    parts.state.old_log_probs = saved.get("old_log_probs")
    share = scorer_share(saved["scorers"], accelerator.process_index, accelerator.num_processes)
    parts.scorer.tally.load_state_dict(share)


def scorer_share(states: Sequence[dict[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """The scorer state of rank ``rank`` of ``world``, from those saved by all ranks.

    With as many ranks as before each gets its own. Else the run's totals go to the first, and all get all ranks' recent
    samples, of which a scorer keeps as many as it looks at.
    """
    if world == len(states):
        return states[rank]
    return {name: _merged([state[name] for state in states], first=rank == 0) for name in states[0]}


def _merged(states: Sequence[dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """One reward's: lists are interleaved, as the ranks filled them side by side; numbers are totals."""
    merged: dict[str, Any] = {}
    for key, value in states[0].items():
        every = [state[key] for state in states]
        if isinstance(value, list):
            rows = zip_longest(*every)  # a window may be longer on one rank than on another
            merged[key] = [item for row in rows for item in row if item is not None]
        else:
            merged[key] = sum(every) if first else 0
    return merged

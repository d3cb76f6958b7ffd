"""Backward, update and state under every engine of accelerate: one process, DDP, FSDP2, DeepSpeed ZeRO.

Where they differ: FSDP2 cuts the weights into shards, and DeepSpeed keeps gradients, optimizer and float32 weights to
itself. What is read here is whole on every rank, what is written is cut again; so a checkpoint knows no engine and no
number of ranks. Every function is collective, except for ``engine_of``, ``needs_all_ranks`` and ``configure``, which
look at what all ranks know.
"""

import gc
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from customized_grpo.policies.adapters.hashes import adapter_hash
from customized_grpo.policies.adapters.sharding import cut_like, whole
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.config import Recipe
from customized_grpo.training import checkpoint, engine_limits
from customized_grpo.training.distributed import largest
from customized_grpo.training.engine_limits import Engine

Parameters = Mapping[str, nn.Parameter]


def engine_of(accelerator: Accelerator) -> Engine:
    """The engine that accelerate was launched with."""
    kind = accelerator.distributed_type
    return engine_limits.engine_of(
        kind.value,
        fsdp_version=2 if accelerator.is_fsdp2 else 1,
        zero_stage=accelerator.state.deepspeed_plugin.zero_stage if kind == DistributedType.DEEPSPEED else 0,
    )


def needs_all_ranks(accelerator: Accelerator, model: nn.Module) -> bool:
    """True if a forward needs all ranks: FSDP2 and ZeRO-3 gather weights, and DDP broadcasts buffers."""
    engine = engine_of(accelerator)
    if engine != Engine.DDP:
        return engine.cuts_weights
    return accelerator.num_processes > 1 and any(True for _ in model.buffers())


def configure(accelerator: Accelerator, recipe: Recipe) -> None:
    """Configure the engine from the recipe, before anything is prepared.

    Raises:
        ValueError: the recipe needs something that this engine can't do; see ``engine_limits``.
    """
    _recipe_decides(accelerator)
    engine_limits.check(engine_of(accelerator), recipe)
    # Said of outputs that are views. Neither diffusers' blocks nor what is here write into one, so hooks are not lost.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDP\w*Transformer", UserWarning)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would load text encoders and rewards as empty shards
    accelerator.state.deepspeed_plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": 1,  # required but unused: there is no data loader
        "gradient_accumulation_steps": 1,  # else the engine divides the loss, which is over the global count already
        "gradient_clipping": recipe.train.max_grad_norm,
        "zero_allow_untested_optimizer": True,
    }


def _recipe_decides(accelerator: Accelerator) -> None:
    """Refuse what accelerate reads from its own configuration, or from variables, and would do besides the recipe.

    ``accelerate launch`` without ``--config_file`` takes the file that another project's ``accelerate config`` made.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # takes bf16, and has its accumulation set beneath
        return
    found = {
        "mixed_precision": (accelerator.mixed_precision, "no", "run.precision"),
        "gradient_accumulation_steps": (accelerator.gradient_accumulation_steps, 1, "train.microbatch"),
        "dynamo_backend": (accelerator.state.dynamo_plugin.backend.value.lower(), "no", "policy.compile"),
    }
    for name, (given, needed, key) in found.items():
        if given != needed:
            raise ValueError(
                f"accelerate: {name} is {given} and would change what the recipe computes, whose {key} decides; launch "
                f"with --{name} {needed} or a file of config/accelerate/ (ACCELERATE_{name.upper()} may be set)"
            )


@contextmanager
def micro_batch(accelerator: Accelerator, model: nn.Module, *, last: bool) -> Iterator[Callable[[Tensor], None]]:
    """Forward and backward of one micro-batch; gives the backward. Gradients are exchanged with the ``last`` one."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # accelerate's own backward would step at once, before the ratio is checked
        engine = accelerator.deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield engine.backward
        return
    with nullcontext() if last else accelerator.no_sync(model):
        yield accelerator.backward


def clip_and_step(accelerator: Accelerator, optimizer: Any, parameters: Parameters, max_norm: float) -> float:
    """Take a step on the clipped gradient, or no step on any rank if the gradient is not finite on one.

    Returns:
        The gradient's norm before clipping, the same on all ranks; not finite if no step was taken.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = accelerator.deepspeed_engine_wrapped.engine
        engine.step()
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan
    clipped = accelerator.clip_grad_norm_(list(parameters.values()), max_norm)
    norm = largest(accelerator, float(whole(clipped)))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return norm


@contextmanager
def finishing(accelerator: Accelerator, policies: Sequence[Policy]) -> Iterator[None]:
    """Finish the trackers and leave the process group at the block's end.

    The policy's own transformer takes its wrapper's place first, in views of other sizes, too: DDP's reducer, if it is
    the last to hold gloo's group, waits for the group's threads without letting go of Python's lock, which one of them
    may need to free a tensor. After an error of several ranks the group is left to the end of the process: leaving it
    may wait for ranks that know of no error.
    """
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            with suppress(Exception):  # what ended the run is to be seen
                if tracker.name == "wandb":
                    tracker.tracker.finish(exit_code=1)  # its own finish() says that the run has finished well
                else:
                    tracker.finish()
        if accelerator.num_processes == 1:
            _unwrap(accelerator, policies)  # whoever opened the group leaves it, see devices.leave_group_of_one
        raise
    _unwrap(accelerator, policies)
    gc.collect()  # free_memory does so before it lets go of its own references
    accelerator.end_training()


def _unwrap(accelerator: Accelerator, policies: Sequence[Policy]) -> None:
    for policy in policies:
        policy.transformer = accelerator.unwrap_model(policy.transformer)
    accelerator.free_memory()


def weights(accelerator: Accelerator, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> whole float32 weight on the main process's CPU; the other ranks take part and get nothing."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if deepspeed:
        from deepspeed.utils import safe_get_full_fp32_param
    found = {}
    for name, parameter in parameters.items():
        full = safe_get_full_fp32_param(parameter) if deepspeed else whole(parameter.detach())
        if accelerator.is_main_process:
            found[name] = full.float().cpu()
    return found


def fingerprint(accelerator: Accelerator, model: nn.Module, done: int) -> str:
    """Identifier of the trained weights after ``done`` steps, by which an evaluation recognises its rows."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"step {done}"  # what the module itself shows of its weights may be an empty shard
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return f"step {done}"  # all of a transformer's weights would take minutes to hash
    return adapter_hash(accelerator.unwrap_model(model))


@torch.no_grad()
def load_weights(accelerator: Accelerator, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Restore the result of ``weights``."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0):
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])  # what a forward reads
        for name, parameter in parameters.items():
            safe_set_full_fp32_param(parameter, tensors[name].to(parameter.device))
        return
    for name, parameter in parameters.items():
        parameter.copy_(cut_like(tensors[name], parameter))


def optimizer_state(accelerator: Accelerator, optimizer: Any, parameters: Parameters) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter>/<entry>``, whole, on the main process's CPU, as ``weights``."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_optimizer_state

        partitions = list(optimizer.optimizer.optimizer.state.values())
        entries = [entry for entry, value in partitions[0].items() if value.numel() > 1] if partitions else []
        steps = {f"{name}/step": partitions[0]["step"].cpu().clone() for name in parameters if partitions}
        return steps | {
            f"{name}/{entry}": safe_get_full_optimizer_state(parameter, entry).cpu()
            for name, parameter in parameters.items()
            for entry in entries
        }
    return checkpoint.flatten_optimizer(optimizer.optimizer, list(parameters), keep=accelerator.is_main_process)


def load_optimizer_state(
    accelerator: Accelerator, optimizer: Any, parameters: Parameters, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the result of ``optimizer_state``; the hyper-parameters stay the recipe's."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _fill_zero(optimizer.optimizer, accelerator.state.deepspeed_plugin.zero_stage, parameters, tensors)
        return
    checkpoint.restore_optimizer(optimizer.optimizer, parameters, tensors)


def _fill_zero(zero: Any, stage: int, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Fill the state of DeepSpeed's own partitions, which has to be made first: it comes with the first step."""
    if not tensors:
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    first = next(iter(parameters))
    entries = [key.rpartition("/")[2] for key in tensors if key.rpartition("/")[0] == first]
    partitions = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    for partition in partitions:
        made = {entry: torch.zeros_like(partition) for entry in entries if entry != "step"}
        zero.optimizer.state[partition] = {"step": tensors[f"{first}/step"].clone(), **made}
    if stage < 3:
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in parameters.items():
        for entry in entries:
            if entry != "step":
                value = tensors[f"{name}/{entry}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, entry)

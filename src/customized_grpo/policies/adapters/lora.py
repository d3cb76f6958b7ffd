"""The trained LoRA adapter: attach, save and load it, switch it off for the KL. A frozen one may lie beneath it.

Files are in diffusers' LoRA format (``lora_files``). The adapter beneath (such as UNO's) is part of the base: it is
active in every forward, also if ours is off.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.policies.adapters.hashes import ADAPTER, OURS, base_hash
from customized_grpo.policies.adapters.lora_files import WEIGHTS_NAME, write_adapter
from customized_grpo.policies.adapters.lora_layers import (
    FROZEN,
    activate,
    add,
    commonest,
    equal,
    exactly_these,
    number,
    share_a,
    target_regex,
)
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.low_rank import Factors, Update, check_fits, mismatch
from customized_grpo.policies.adapters.sharding import base_transformer, whole
from customized_grpo.policies.balance import BALANCE, attach_gate, halves
from customized_grpo.policies.base import LoraSettings, Policy
from customized_grpo.seeding import generator
from customized_grpo.weights import shown


def attach(policy: Policy, settings: LoraSettings, seed: int) -> None:
    """Freeze the transformer and add the adapter to it, in float32 even on a bf16 base.

    The first weights are a function of (seed, settings, model) alone: A is drawn on the CPU, B is zero, so that the
    policy starts as its base. With ``settings.path`` they are those of that adapter instead, and where its layers have
    several ranks or scales, the rarer ones are kept.

    Args:
        policy: without an adapter of its own, and not yet wrapped for several processes.
        settings: rank, alpha and targets; ``targets`` null means ``policy.lora_targets``.
        seed: the run's seed.

    Raises:
        ValueError: a target that no linear layer matches, or an adapter file that does not fit.
    """
    transformer: Any = policy.transformer
    policy.base_hash = base_hash(transformer)
    update: dict[str, Factors] = {}
    if settings.path is not None:
        file = read_lora(settings.path)
        update = file.update(transformer)
        file.check_base(policy.base_hash, policy.base_lora)
        _check_settings(update, settings)
    targets = settings.targets if settings.targets is not None else policy.lora_targets
    targets = tuple(one for target in targets for one in policy.lora_presets.get(target, (target,)))
    updates = 2 if settings.balance else 1
    add(
        policy,
        update,
        rank=settings.rank * updates,
        alpha=float(settings.alpha or settings.rank) * updates,
        targets=target_regex(transformer, targets),
        init="gaussian" if settings.init == "gaussian" else True,
    )
    if settings.qkv == "shared":
        share_a(transformer)
    if settings.balance:
        policy.gate = attach_gate(transformer, ADAPTER, settings.rank)
    draw = generator(seed, "lora", 0, 0)
    for name, parameter in trainable_parameters(policy).items():
        weight = torch.zeros(parameter.shape)
        if ".lora_A." in name and settings.init == "gaussian":
            nn.init.normal_(weight, std=1 / settings.rank, generator=draw)
        elif ".lora_A." in name:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=draw)
        parameter.data = weight.to(policy.device)
    if settings.path is not None:
        _copy(policy, update, f"adapter {settings.path!r}")


def attach_update(policy: Policy, update: Update) -> None:
    """Freeze the transformer and add an update to it as its trained adapter: of any ranks, each with its scale.

    Args:
        policy: without an adapter of its own, and not yet wrapped for several processes.
        update: as ``LoraFile.update`` gives it, or a sum of several.

    Raises:
        ValueError: a module or a shape that the model lacks.
    """
    check_fits(update, policy.transformer)
    policy.base_hash = base_hash(policy.transformer)
    rank, alpha = commonest(update)
    add(policy, update, rank=rank, alpha=alpha, targets=exactly_these(update), init=False)
    for parameter in trainable_parameters(policy).values():
        parameter.data = parameter.data.to(policy.device, torch.float32)
    _copy(policy, update, "the LoRA")


def detach(policy: Policy) -> None:
    """Take the adapter of ``attach_update`` off again, if there is one: the policy is its base, and may get another."""
    model = base_transformer(policy)
    there = set(getattr(model, "peft_config", {}))  # which diffusers takes away with the last one
    if ADAPTER in there:
        model.delete_adapters(ADAPTER)
    if FROZEN in there:
        activate(model, [FROZEN])


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Name -> parameter of the adapter, in the order of names, the same on every rank; shared ones once."""
    named = {n: p for n, p in base_transformer(policy).named_parameters() if OURS.search(n)}
    return dict(sorted(named.items()))


def _peft_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """peft's names in files (``<module>.lora_A.weight``), sorted; a shared A under each of its names."""
    named = transformer.named_parameters(remove_duplicate=False)
    return dict(sorted((n.replace(f".{ADAPTER}.", "."), p) for n, p in named if OURS.search(n)))


def adapter_state(transformer: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """peft's state dict of the adapter (``<module>.lora_A.weight``): float32 copies on the CPU, sorted by name.

    Args:
        transformer: with an adapter attached.
        weights: in place of its own, by the names of ``trainable_parameters``.
    """
    own = {id(parameter): name for name, parameter in transformer.named_parameters()}
    return {
        name: whole(parameter.detach() if weights is None else weights[own[id(parameter)]])
        .to("cpu", torch.float32, copy=True)
        .contiguous()
        for name, parameter in _peft_parameters(transformer).items()
    }


def save_adapter(
    policy: Policy,
    folder: str | Path,
    metadata: Mapping[str, str],
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/pytorch_lora_weights.safetensors``; the same weights and metadata give the same bytes.

    Of a balanced adapter that is dW_0, a plain LoRA, and dW_1 is another in ``folder/balance``.

    Args:
        policy: with an adapter attached.
        folder: made where it is missing.
        metadata: what else the header says (base id, recipe, step); the hashes of the base and of its LoRA are added.
        weights: what to write in place of the policy's own weights, by the names of ``trainable_parameters``.
    """
    model = base_transformer(policy)
    config = model.peft_config[ADAPTER]
    own = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    own |= {"rank_pattern": config.rank_pattern} if config.rank_pattern else {}
    own |= {"alpha_pattern": config.alpha_pattern} if config.alpha_pattern else {}
    about = {"base_hash": policy.base_hash, "base_lora": policy.base_lora, **metadata}
    state, file = adapter_state(model, weights), Path(folder) / WEIGHTS_NAME
    if policy.gate is None:
        return write_adapter(file, state, own, about)
    own |= {"r": config.r // 2, "lora_alpha": number(config.lora_alpha / 2)}
    center, slope = halves(state)
    write_adapter(slope_of(file), slope, own, about | {BALANCE: "dW_1 of dW_0 + b dW_1, b in [-1, 1]"})
    return write_adapter(file, center, own, about | {BALANCE: f"dW_0 of dW_0 + b dW_1; dW_1: {BALANCE}/{WEIGHTS_NAME}"})


def slope_of(file: Path) -> Path:
    """The file of a balanced adapter's dW_1, beside that of its dW_0."""
    return file.parent / BALANCE / file.name


@torch.no_grad()
def _copy(policy: Policy, update: Update, what: str) -> None:
    """Copy an update into the attached adapter, which must have the same layers, ranks and scales."""
    model = base_transformer(policy)
    parameters = _peft_parameters(model)
    layers = {name.rpartition(".lora_")[0] for name in parameters}
    if wrong := mismatch(update.keys(), layers):
        raise ValueError(
            f"{what} does not fit this policy's; layers {wrong}. "
            "policy.lora.targets must be what it was trained with (all in diffusers' names; '^' pins a whole one)"
        )
    for name, one in update.items():
        layer: Any = model.get_submodule(name)
        if layer.r[ADAPTER] != one.rank or not equal(layer.scaling[ADAPTER], one.scale):
            rank, alpha = commonest(update)
            raise ValueError(
                f"{what} has rank {one.rank} and alpha {number(one.alpha)} in {name}, the policy has rank "
                f"{layer.r[ADAPTER]} and alpha {layer.lora_alpha[ADAPTER]:g}; set policy.lora.rank={rank} "
                f"policy.lora.alpha={number(alpha)}"
            )
    tensors = {f"{name}.lora_{side}.weight": t for name, f in update.items() for side, t in (("A", f.a), ("B", f.b))}
    first: dict[int, str] = {}
    apart = [n for n, p in parameters.items() if not tensors[n].equal(tensors[first.setdefault(id(p), n)])]
    if apart:
        raise ValueError(
            f"{what} has an A of its own for each of q, k and v ({shown(apart)}), and "
            "policy.lora.qkv is 'shared'; set policy.lora.qkv=separate"
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _check_settings(update: Update, settings: LoraSettings) -> None:
    """The recipe must say a rank and an alpha that its adapter has; other layers keep theirs."""
    own = float(settings.alpha or settings.rank)
    if not any(one.rank == settings.rank and equal(one.alpha, own) for one in update.values()):
        rank, alpha = commonest(update)
        raise ValueError(
            f"adapter {settings.path!r} has rank {rank} and alpha {number(alpha)}, the recipe has rank "
            f"{settings.rank} and alpha {number(own)}; set policy.lora.rank={rank} policy.lora.alpha={number(alpha)}"
        )


@contextmanager
def reference(policy: Policy) -> Iterator[None]:
    """The policy without its adapter, for the KL: the frozen base, an adapter beneath included."""
    model = base_transformer(policy)
    if FROZEN in model.peft_config:
        activate(model, [FROZEN])
    else:
        model.disable_adapters()
    try:
        yield
    finally:
        if FROZEN in model.peft_config:
            activate(model, [FROZEN, ADAPTER])
        else:
            model.enable_adapters()

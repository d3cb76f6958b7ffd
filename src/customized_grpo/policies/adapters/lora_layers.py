"""peft's layers in a transformer: of the trained adapter, and of a frozen one beneath it, active in every forward."""

import math
import re
import warnings
from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, nn

from customized_grpo.policies.adapters.hashes import ADAPTER, OURS
from customized_grpo.policies.adapters.lora_files import exactly
from customized_grpo.policies.adapters.lora_products import join_products
from customized_grpo.policies.adapters.low_rank import Update, check_fits
from customized_grpo.policies.base import Policy

FROZEN: Final = "base"
"""peft's name of the adapter beneath."""
_QKV: Final = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


def add(policy: Policy, update: Update, *, rank: int, alpha: float, targets: str, init: str | bool) -> None:
    """Add the trained adapter, in which modules of ``update`` with another rank or alpha keep theirs.

    Args:
        policy: without an adapter of its own.
        update: what will be loaded, or nothing.
        rank: of all other modules.
        alpha: of all other modules.
        targets: peft's target_modules.
        init: peft's init_lora_weights.
    """
    from peft import LoraConfig

    policy.transformer.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=number(alpha),
        rank_pattern={exactly(name): one.rank for name, one in update.items() if one.rank != rank},
        alpha_pattern={exactly(name): number(one.alpha) for name, one in update.items() if not equal(one.alpha, alpha)},
        init_lora_weights=init,
        target_modules=targets,
    )
    _inject(policy.transformer, config, ADAPTER, policy.device)


def attach_frozen(transformer: Any, update: Update, *, device: torch.device, dtype: torch.dtype) -> None:
    """Put an update beneath the adapter to come: a frozen adapter, part of the base from now on.

    Args:
        transformer: diffusers' model without any adapter.
        update: its modules; tensors that several of them share stay shared.
        device: where the factors go.
        dtype: of the factors.

    Raises:
        ValueError: a module or a shape that the model lacks.
    """
    from peft import LoraConfig

    check_fits(update, transformer)
    update = {name: one.folded() for name, one in update.items()}
    ranks = {exactly(name): one.rank for name, one in update.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=exactly_these(update),
        init_lora_weights=False,
    )
    _inject(transformer, config, FROZEN, device)
    moved: dict[int, Tensor] = {}
    for name, factors in update.items():
        layer = transformer.get_submodule(name)
        for part, tensor in ((layer.lora_A, factors.a), (layer.lora_B, factors.b)):
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device, dtype).contiguous()
            part[FROZEN].weight.data = moved[id(tensor)]
    transformer.requires_grad_(False)


def _inject(transformer: Any, config: Any, name: str, device: torch.device) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    # peft draws from the global generators; what it draws is replaced by the caller.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are meant
        transformer.add_adapter(config, name)
    for layer in (one for one in transformer.modules() if isinstance(one, BaseTunerLayer)):
        layer.cast_input_dtype_enabled = False  # autocast needs no float32 on its way to half: the same bits
        join_products(layer)
    activate(transformer, [one for one in (FROZEN, ADAPTER) if one in transformer.peft_config])


def activate(transformer: Any, names: list[str]) -> None:
    """Make these adapters take part in forwards; only ours may train."""
    transformer.set_adapter(names)
    for name, parameter in transformer.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(False)


def share_a(transformer: nn.Module) -> None:
    """Give q, k and v of each layer one A: the form of a LoRA on a fused projection, in forward and in gradient."""
    layers = {OURS.split(name)[0] for name, _ in transformer.named_parameters() if OURS.search(name)}
    for parent in sorted({layer.rpartition(".")[0] for layer in layers}):
        for trio in _QKV:
            present = [name for name in trio if f"{parent}.{name}" in layers]
            if present and len(present) < len(trio):
                raise ValueError(
                    f"policy.lora.qkv: 'shared' needs {', '.join(trio)} of {parent} among the targets, which hold only "
                    f"{', '.join(present)}; add the others to policy.lora.targets, or use qkv: separate"
                )
            parts: list[Any] = [transformer.get_submodule(f"{parent}.{name}") for name in present]
            for part in parts[1:]:
                part.lora_A[ADAPTER].weight = parts[0].lora_A[ADAPTER].weight


def target_regex(transformer: nn.Module, targets: tuple[str, ...]) -> str:
    """One regular expression for peft out of the targets, each matched against a name or its end after a dot."""
    linear = [
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    for target in targets:
        try:
            matches = [name for name in linear if re.fullmatch(rf"(.*\.)?({target})", name)]
        except re.error as error:
            raise ValueError(f"policy.lora.targets: {target!r} is not a regular expression ({error})") from error
        if not matches:
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear if not name[-1].isdigit()})
            raise ValueError(
                f"policy.lora.targets: no linear layer matches {target!r}; among the names' ends are: {', '.join(ends)}"
            )
    return rf"(.*\.)?({'|'.join(targets)})"


def number(value: float) -> int | float:
    """An integer where it is one: peft's own type for alpha."""
    return int(value) if value.is_integer() else value


def commonest(update: Update) -> tuple[int, float]:
    """Rank and alpha that most layers have."""
    return Counter((one.rank, one.alpha) for _, one in sorted(update.items())).most_common(1)[0][0]


def equal(one: float, other: float) -> bool:
    """Whether two alphas or scales are the same but for rounding."""
    return math.isclose(one, other, rel_tol=1e-6)


def exactly_these(update: Update) -> str:
    """peft's target_modules for the modules of an update."""
    return rf"({'|'.join(re.escape(name) for name in sorted(update))})"

"""The trained LoRA adapter: attach, save and load it, switch it off for the KL. A frozen one may lie beneath it.

Files are in diffusers' LoRA format (``lora_files``). The adapter beneath (such as UNO's) is part of the base: it is
active in every forward, also if ours is off.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from customized_grpo.policies.adapters.hashes import ADAPTER, OURS, base_hash
from customized_grpo.policies.adapters.lora_files import (
    WEIGHTS_NAME,
    AdapterFile,
    exactly,
    read_adapter,
    write_adapter,
)
from customized_grpo.policies.adapters.low_rank import Update, check_fits, mismatch, shown
from customized_grpo.policies.adapters.sharding import base_transformer, whole
from customized_grpo.policies.base import LoraSettings, Policy
from customized_grpo.seeding import generator

_FROZEN: Final = "base"
_QKV: Final = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


def attach(policy: Policy, settings: LoraSettings, seed: int) -> None:
    """Freeze the transformer and add the adapter to it, in float32 even on a bf16 base.

    The first weights are a function of (seed, settings, model) alone: A is drawn on the CPU, B is zero, so that the
    policy starts as its base. With ``settings.path`` they are those of that adapter instead.

    Args:
        policy: without an adapter of its own, and not yet wrapped for several processes.
        settings: rank, alpha and targets; ``targets`` null means ``policy.lora_targets``.
        seed: the run's seed.

    Raises:
        ValueError: a target that no linear layer matches, or an adapter file that does not fit.
    """
    from peft import LoraConfig

    transformer: Any = policy.transformer
    transformer.requires_grad_(False)
    policy.base_hash = base_hash(transformer)
    targets = settings.targets if settings.targets is not None else policy.lora_targets
    targets = tuple(one for target in targets for one in policy.lora_presets.get(target, (target,)))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=_number(float(settings.alpha or settings.rank)),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        target_modules=_target_regex(transformer, targets),
    )
    _inject(transformer, config, ADAPTER, policy.device)
    if settings.qkv == "shared":
        _share_a(transformer)
    draw = generator(seed, "lora", 0, 0)
    for name, parameter in trainable_parameters(policy).items():
        weight = torch.zeros(parameter.shape)
        if ".lora_A." in name and settings.init == "gaussian":
            nn.init.normal_(weight, std=1 / settings.rank, generator=draw)
        elif ".lora_A." in name:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=draw)
        parameter.data = weight.to(policy.device)
    if settings.path is not None:
        load_adapter(policy, settings.path)


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
    ranks = {exactly(name): one.rank for name, one in update.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=rf"({'|'.join(re.escape(name) for name in sorted(update))})",
        init_lora_weights=False,
    )
    _inject(transformer, config, _FROZEN, device)
    moved: dict[int, Tensor] = {}
    for name, factors in update.items():
        layer = transformer.get_submodule(name)
        for part, tensor in ((layer.lora_A, factors.a), (layer.lora_B, factors.b)):
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device, dtype).contiguous()
            part[_FROZEN].weight.data = moved[id(tensor)]
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
    _activate(transformer, [one for one in (_FROZEN, ADAPTER) if one in transformer.peft_config])


def _activate(transformer: Any, names: list[str]) -> None:
    """Make these adapters take part in forwards; only ours may train."""
    transformer.set_adapter(names)
    for name, parameter in transformer.named_parameters():
        if f".{_FROZEN}." in name:
            parameter.requires_grad_(False)


def _share_a(transformer: nn.Module) -> None:
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

    Args:
        policy: with an adapter attached.
        folder: made where it is missing.
        metadata: what else the header says (base id, recipe, step); the hash of the base is added.
        weights: what to write in place of the policy's own weights, by the names of ``trainable_parameters``.
    """
    model = base_transformer(policy)
    config = model.peft_config[ADAPTER]
    own = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    about = {"base_hash": policy.base_hash, **metadata}
    return write_adapter(Path(folder) / WEIGHTS_NAME, adapter_state(model, weights), own, about)


def load_adapter(policy: Policy, path: str | Path) -> AdapterFile:
    """Copy an adapter's weights into the attached one; every key of both must match.

    Raises:
        ValueError: keys are missing or left over, another rank, scale or base, or an unreadable file.
    """
    file = read_adapter(path)
    model = base_transformer(policy)
    parameters = _peft_parameters(model)
    if not parameters:
        raise ValueError("the policy has no adapter to load into; call lora.attach first")
    if wrong := mismatch(file.tensors.keys(), parameters.keys()):
        raise ValueError(
            f"adapter {str(file.path)!r} does not fit this policy's; {wrong}. "
            "Is it of this model, and is policy.lora.targets what it was trained with?"
        )
    config = model.peft_config[ADAPTER]
    if (file.rank, file.alpha / file.rank) != (config.r, config.lora_alpha / config.r):
        raise ValueError(
            f"adapter {str(file.path)!r} has rank {file.rank} and alpha {file.alpha:g}, the recipe has rank {config.r} "
            f"and alpha {config.lora_alpha:g}; set policy.lora.rank={file.rank} policy.lora.alpha={file.alpha:g}"
        )
    unlike = [name for name, parameter in parameters.items() if parameter.shape != file.tensors[name].shape]
    if unlike:
        raise ValueError(f"adapter {str(file.path)!r} is of a model of another width: {shown(unlike)}")
    file.check_base(policy.base_hash)
    first: dict[int, str] = {}
    tensors = file.tensors
    apart = [n for n, p in parameters.items() if not tensors[n].equal(tensors[first.setdefault(id(p), n)])]
    if apart:
        raise ValueError(
            f"adapter {str(file.path)!r} has an A of its own for each of q, k and v ({shown(apart)}), and "
            "policy.lora.qkv is 'shared'; set policy.lora.qkv=separate"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return file


@contextmanager
def reference(policy: Policy) -> Iterator[None]:
    """The policy without its adapter, for the KL: the frozen base, an adapter beneath included."""
    model = base_transformer(policy)
    if _FROZEN in model.peft_config:
        _activate(model, [_FROZEN])
    else:
        model.disable_adapters()
    try:
        yield
    finally:
        if _FROZEN in model.peft_config:
            _activate(model, [_FROZEN, ADAPTER])
        else:
            model.enable_adapters()


def _target_regex(transformer: nn.Module, targets: tuple[str, ...]) -> str:
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


def _number(value: float) -> int | float:
    """An integer where it is one: peft's own type for alpha."""
    return int(value) if value.is_integer() else value

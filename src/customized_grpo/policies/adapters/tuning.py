"""One interface for LoRA (``lora``) and full fine-tuning (``full``)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from customized_grpo.policies.adapters import full, lora
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.hashes import adapter_hash, base_hash
from customized_grpo.policies.adapters.lora_reader import LoraFile, read_lora
from customized_grpo.policies.adapters.low_rank import Factors, joined, scaled
from customized_grpo.policies.adapters.sharding import base_transformer, cut_like
from customized_grpo.policies.balance import BALANCE
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.sections import PolicySpec

Tuned = LoraFile | TransformerFolder
"""Result of training on disk."""


def attach(policy: Policy, section: PolicySpec, seed: int, *, keep_base: bool = False) -> None:
    """Make trainable what a recipe's section ``policy`` asks for, and freeze the rest; see ``attach`` of both modules.

    Args:
        policy: not yet wrapped for several processes.
        section: with ``lora`` or ``full``.
        seed: the run's seed.
        keep_base: whether ``reference`` will be used, for which full fine-tuning keeps a copy.
    """
    if section.full is not None:
        full.attach(policy, section.full, keep_base=keep_base)
    elif section.lora is not None:
        lora.attach(policy, section.lora, seed)


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Name -> trained parameter, in the same order on every rank; shared ones once.

    A transformer's are in its own order: accelerate compares the list with the model's when it clips FSDP2's gradients.
    """
    named = base_transformer(policy).named_parameters()
    return lora.trainable_parameters(policy) or {name: one for name, one in named if one.requires_grad}


def untrained_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Frozen parameters to save in a checkpoint: the rest of a transformer saved whole; none for an adapter."""
    if lora.trainable_parameters(policy):
        return {}
    named = base_transformer(policy).named_parameters()
    return dict(sorted((n, p) for n, p in named if not p.requires_grad))


def follow_shards(policy: Policy) -> None:
    """Shard the base's weights like the trained ones."""
    if policy.base_weights is not None:
        named = trainable_parameters(policy)
        policy.base_weights = {name: cut_like(one, named[name]) for name, one in policy.base_weights.items()}


def reference(policy: Policy) -> AbstractContextManager[None]:
    """Context in which the policy is the untrained one, for the KL: adapter off, or initial weights restored."""
    if policy.base_weights is not None:
        return full.exchanged(base_transformer(policy), policy.base_weights)
    assert lora.trainable_parameters(policy), "full fine-tuning has a reference where it was attached with keep_base"
    return lora.reference(policy)


def save(
    policy: Policy,
    folder: Path,
    metadata: Mapping[str, str],
    trained: Mapping[str, Tensor],
    untrained: Mapping[str, Tensor],
) -> None:
    """Write the exported weights: ``pytorch_lora_weights.safetensors``, or ``transformer/``.

    Args:
        policy: the policy.
        folder: the checkpoint's folder.
        metadata: metadata of an adapter's header.
        trained: weights by the names of ``trainable_parameters``, on the CPU.
        untrained: those of ``untrained_parameters``.
    """
    if lora.trainable_parameters(policy):
        lora.save_adapter(policy, folder, metadata, trained)
    else:
        full.save(base_transformer(policy), folder, {**untrained, **trained}, policy.dtype)


def read(path: str | Path) -> Tuned:
    """An adapter, or a transformer that was trained in full, by its file, folder, checkpoint or run.

    Raises:
        ValueError: neither is there, or an adapter's file can't be used.
    """
    return full.find(path) or read_lora(path)


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was trained, and a factor on its update."""

    tuned: Tuned
    scale: float


def read_all(given: str | Path | Sequence[str], balance: float | None = None) -> tuple[Scaled, ...]:
    """Read one or several, each with a scale if it says one: ``WHERE`` or ``WHERE=0.8``.

    Args:
        given: where they are.
        balance: b of all, which must be balanced adapters; None: dW_0 of those that are.

    Raises:
        ValueError: see ``read``, ``with_scale`` and ``at_balance``; or a transformer beside others, or with a scale.
    """
    texts = [given] if isinstance(given, str | Path) else given
    found = tuple(Scaled(read(where), scale) for where, scale in map(with_scale, map(str, texts)))
    if balance is not None:
        found = tuple(replace(one, tuned=at_balance(one.tuned, balance)) for one in found)
    whole = [one for one in found if isinstance(one.tuned, TransformerFolder)]
    if whole and (len(found) > 1 or whole[0].scale != 1):
        raise ValueError(
            f"{whole[0].tuned.path} is a transformer that was trained in full: it has no scale, and nothing can be "
            "added to it here; give it alone, or as policy.model"
        )
    return found


def at_balance(tuned: Tuned, b: float) -> LoraFile:
    """A balanced adapter at one b: the plain LoRA dW_0 + b dW_1, whose ranks stand one after another.

    Args:
        tuned: as ``read`` gives it.
        b: in [-1, 1]; 0: dW_0 as it is.

    Raises:
        ValueError: b is outside, or the adapter is of one trade-off.
    """
    if not -1 <= b <= 1:
        raise ValueError(f"balance: given {b:g}; allowed: -1 (the prompt's side) to 1 (the identity's)")
    if not isinstance(tuned, LoraFile) or not (slope := lora.slope_of(tuned.path)).is_file():
        raise ValueError(
            f"balance: {tuned.path} is of one trade-off, with no folder {BALANCE!r} beside it; train with "
            "policy.lora.balance=true, or leave balance out"
        )
    return replace(tuned, factors=joined(tuned.factors, scaled(read_lora(slope).factors, b))) if b else tuned


def read_start(section: PolicySpec) -> tuple[Scaled, ...]:
    """What a training of a recipe's section ``policy`` starts from beside its base; nothing where no path is given.

    Raises:
        ValueError: ``policy.lora.path`` or ``policy.full.path`` can't be used.
    """
    if section.full is not None:
        return () if section.full.path is None else (Scaled(full.start(section.full.path), 1.0),)
    if section.lora is not None and section.lora.path is not None:
        return (Scaled(read_lora(section.lora.path), 1.0),)
    return ()


def with_scale(text: str) -> tuple[str, float]:
    """``WHERE=SCALE`` taken apart; the scale is 1 where no number follows the last ``=``.

    A path that itself ends so is taken whole where it exists and what stands before the ``=`` doesn't.

    Raises:
        ValueError: both exist, or the scale is no finite number.
    """
    where, equals, number = text.rpartition("=")
    try:
        scale = float(number) if equals else None
    except ValueError:
        scale = None
    if scale is None:
        return text, 1.0
    whole, before = (Path(one).expanduser().exists() for one in (text, where))
    if whole and before:
        raise ValueError(f"{text!r} exists, and so does {where!r}; write {text}=1, or rename one of them")
    if whole:
        return text, 1.0
    if not math.isfinite(scale):
        raise ValueError(f"{text!r}: the scale is {number}, and a finite number is needed")
    return where, scale


def load_tuned(policy: Policy, path: str | Path | Sequence[str]) -> None:
    """Load a run's trained weights into a policy.

    Args:
        policy: frozen, from ``load_policy``.
        path: a run, a checkpoint, an adapter's folder or file, a LoRA's hub id, or a transformer's folder; several
            LoRAs add up. Each may say a scale: ``WHERE=0.8``.

    Raises:
        ValueError: nothing trained is there, its file can't be used, or it does not fit the policy.
    """
    apply_all(policy, read_all(path))


def apply(policy: Policy, tuned: Tuned) -> str:
    """``apply_all`` of one."""
    return apply_all(policy, (Scaled(tuned, 1.0),))


def apply_all(policy: Policy, loaded: Sequence[Scaled], *, other_base: bool = False) -> str:
    """Load trained weights into a policy: the sum of all, each with its scale.

    Args:
        policy: frozen, from ``load_policy``.
        loaded: of ``read_all``.
        other_base: an adapter may have been trained on another base of this architecture; see ``other_base``.

    Returns:
        An identifier of the weights and their scales.

    Raises:
        ValueError: one does not fit.
    """
    update: dict[str, Factors] = {}
    for one in loaded:
        if isinstance(one.tuned, TransformerFolder):
            full.load(policy, one.tuned)
            return one.tuned.fingerprint()
        given = one.tuned.update(policy.transformer)
        if other_base:
            one.tuned.check_base_lora(policy.base_lora)
        else:
            one.tuned.check_base(base_hash(policy.transformer), policy.base_lora)
        update = joined(update, scaled(given, one.scale))
    lora.attach_update(policy, update)
    return adapter_hash(policy.transformer)

"""One interface for LoRA (``lora``) and full fine-tuning (``full``)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from customized_grpo.policies.adapters import full, lora
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.hashes import adapter_hash, base_hash
from customized_grpo.policies.adapters.lora_reader import LoraFile, read_lora
from customized_grpo.policies.adapters.sharding import base_transformer, cut_like
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


def load_tuned(policy: Policy, path: str | Path) -> None:
    """Load a run's trained weights into a policy.

    Args:
        policy: frozen, from ``load_policy``.
        path: a run, a checkpoint, an adapter's folder or file, or a transformer's folder.

    Raises:
        ValueError: nothing trained is there, its file can't be used, or it does not fit the policy.
    """
    apply(policy, read(path))


def apply(policy: Policy, tuned: Tuned) -> str:
    """Load trained weights into a policy.

    Returns:
        An identifier of the weights and their scales.

    Raises:
        ValueError: it does not fit.
    """
    if isinstance(tuned, TransformerFolder):
        full.load(policy, tuned)
        return tuned.fingerprint()
    update = tuned.update(policy.transformer)
    tuned.check_base(base_hash(policy.transformer))
    lora.attach_update(policy, update)
    identity = adapter_hash(policy.transformer)
    scales = [(name, one.scale) for name, one in sorted(update.items()) if one.scale != 1]
    return sha256(f"{identity} {scales}".encode()).hexdigest()[:16] if scales else identity

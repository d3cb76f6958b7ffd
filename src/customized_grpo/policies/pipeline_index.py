"""The index of a folder in diffusers' layout: which pipeline it holds, and whether a policy reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from customized_grpo import registry
from customized_grpo.paths import MODEL_INDEX
from customized_grpo.policies.pipelines import PipelineConfig, explained


def check_folder(pipeline_class: Any, source: str, others: str, index: str = MODEL_INDEX) -> None:
    """Raise a ``ValueError``, which names what else there is to give, for a folder that holds no pipeline."""
    if Path(source).is_dir() and not (Path(source) / index).is_file():
        raise ValueError(
            f"policy.model: the folder {source!r} has no {index}; give one in diffusers' layout (as "
            f"{pipeline_class.__name__}.save_pretrained writes it), {others}"
        )


def read_index(pipeline_class: Any, config: PipelineConfig, index: str = MODEL_INDEX) -> tuple[str, dict[str, Any]]:
    """The folder or hub id, and what its index says.

    Args:
        pipeline_class: whose folder it should be.
        config: the recipe's section ``policy``.
        index: the index file's name.

    Raises:
        ValueError: there is no such model.
    """
    if config.model in ("mini", "mini-judge"):
        raise ValueError(
            f"policy.model: there is no embedded miniature of {config.type}; policy.type uno has one, "
            f"and {config.type} takes a folder in diffusers' layout or a hub id"
        )
    source = config.source()
    check_folder(pipeline_class, source, "or a hub id", index)
    with explained(config):
        file = Path(source) / index
        if not file.is_file():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(source, index, revision=config.revision))
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found.get("_class_name"), str):
            raise ValueError(f"its {index} names no pipeline")
    return source, found


def fetched(source: str, inside: str, revision: str | None) -> Path:
    """A folder inside a folder or a hub id, with all its files; ``inside`` empty: all of it."""
    if Path(source).is_dir():
        return Path(source) / inside
    from huggingface_hub import snapshot_download

    wanted = f"{inside}/*" if inside else None
    return Path(snapshot_download(source, revision=revision, allow_patterns=wanted)) / inside


def check_class(given: str, allowed: Sequence[str], config: PipelineConfig) -> None:
    """Raise a ``ValueError`` for an index of another pipeline, which names the policy that reads it, if one does."""
    if given not in allowed:
        reader = next((name for name in registry.BUILTIN["policies"] if _reads(name, given)), None)
        raise ValueError(
            f"policy.model: {config.model!r} holds a {given}, and policy.type {config.type} reads a "
            f"{' or a '.join(allowed)}; " + (f"use policy.type={reader}" if reader else "give another model")
        )


def _reads(policy: str, pipeline: str) -> bool:
    kind: Any = registry.resolve("policies", policy)
    return pipeline in (kind.pipeline_class.__name__, *kind.pipeline_forms)

"""Blocks of an evaluation: examples that are generated in one batch, and how many examples there are."""

from customized_grpo.data.base import Dataset
from customized_grpo.recipe.config import Evaluate


def num_examples(dataset: Dataset, spec: Evaluate) -> int:
    """Number of examples that are evaluated."""
    return min(len(dataset), spec.limit or len(dataset))


def encoded_examples(dataset: Dataset, spec: Evaluate) -> range:
    """Indices of the examples whose conditioning an evaluation needs: whole blocks, also beyond the limit."""
    block = block_of(spec)
    return range(min(-(-num_examples(dataset, spec) // block) * block, len(dataset)))


def block_of(spec: Evaluate) -> int:
    """Number of examples that are generated in one batch."""
    return max(1, spec.batch // spec.images_per_prompt)
